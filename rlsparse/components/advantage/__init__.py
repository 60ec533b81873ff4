"""Advantages: what a token is worth (rewards → advantages). Config group ``advantage``."""

from rlsparse.components.advantage.base import Advantage, GroupBaseline, equal_rewards

__all__ = ["Advantage", "GroupBaseline", "equal_rewards"]

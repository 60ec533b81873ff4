"""Advantages: what a token is worth (rewards → advantages). Config group ``advantage``."""

from rlsparse.components.advantage.base import Advantage, GroupBaseline, TermAdvantage, equal_rewards

__all__ = ["Advantage", "GroupBaseline", "TermAdvantage", "equal_rewards"]

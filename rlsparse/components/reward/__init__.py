"""Rewards, and the verifier that judges final answers. Config group ``reward``."""

from rlsparse.components.reward.base import Completion, Reward
from rlsparse.components.reward.verifier import Score, Verifier

__all__ = ["Completion", "Reward", "Score", "Verifier"]

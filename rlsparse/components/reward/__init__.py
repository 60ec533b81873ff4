"""Rewards, and the verifier that judges final answers. Config group ``reward``."""

from rlsparse.components.reward.base import Completion, GroupReward, Reward
from rlsparse.components.reward.math_process import MathVerify, VerifierError
from rlsparse.components.reward.terms import Term, Terms
from rlsparse.components.reward.verifier import Score, Verifier

__all__ = ["Completion", "GroupReward", "MathVerify", "Reward", "Score", "Term", "Terms", "Verifier", "VerifierError"]

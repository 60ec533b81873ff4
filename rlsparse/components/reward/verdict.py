"""Rewards of the verdict alone: the right answer, and controls of it (Shao et al. 2025, 2506.10947)."""

from dataclasses import dataclass
from typing import Annotated

from rlsparse.components.component import Range
from rlsparse.components.reward.base import Completion, Reward


@dataclass(frozen=True)
class Answer(Reward):
    """1 for a right answer, 0 for a wrong or missing one."""

    def __call__(self, completion: Completion) -> float:
        return float(completion.score.correct)


@dataclass(frozen=True)
class Inverted(Reward):
    """1 for a wrong answer, 0 for a right one, and ``missing`` for a completion without an answer.

    The control "incorrect labels" of 2506.10947, section 2, rewards the agreement with a label that is wrong. A label
    needs a majority vote over the training set beforehand; every wrong answer counts here (ours).
    """

    missing: float

    def __call__(self, completion: Completion) -> float:
        if not completion.score.answered:
            return self.missing
        return float(not completion.score.correct)


@dataclass(frozen=True)
class Random(Reward):
    """1 with probability γ, else 0, whatever the completion is. 2506.10947, section 2."""

    gamma: Annotated[float, Range(0, 1)]

    def __call__(self, completion: Completion) -> float:
        return float(completion.draw < self.gamma)

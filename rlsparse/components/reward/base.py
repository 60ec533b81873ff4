"""The base class of rewards."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from rlsparse.batch import Problem
from rlsparse.components.component import Component
from rlsparse.components.reward.verifier import Score


@dataclass(frozen=True)
class Completion:
    """Holds a completion and what a reward may use of it.

    Attributes:
        text: the completion, special tokens left out.
        tokens: its length, EOS included.
        ended: it closed with EOS; it was not cut off at ``rollout.max_new_tokens``.
        problem: the question and its gold answer.
        score: the verdict of the verifier.
    """

    text: str
    tokens: int
    ended: bool
    problem: Problem
    score: Score


@dataclass(frozen=True)
class Reward(Component, ABC):
    """Gives a completion its reward. It must be a function of the completion alone."""

    @abstractmethod
    def __call__(self, completion: Completion) -> float:
        """Return the reward, a finite number."""

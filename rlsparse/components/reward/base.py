"""The base classes of rewards."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from rlsparse.batch import Problem
from rlsparse.components.component import Component
from rlsparse.components.reward.verifier import Score
from rlsparse.config.ranges import keys_of
from rlsparse.config.schema import ConfigError


@dataclass(frozen=True)
class Completion:
    """Holds a completion and what a reward may use of it.

    Attributes:
        text: the completion, special tokens left out.
        tokens: its length, EOS included.
        ended: it closed with EOS; it was not cut off at ``rollout.max_new_tokens``.
        problem: the question, its gold answer, and the columns of its row in the data set.
        score: the verdict of the verifier, with the answer that it found.
        token_ids: its tokens, EOS included; as many as ``tokens``.
        draw: a uniform random number in [0, 1), another one for each completion; a reward that needs randomness takes
            it from here, so that a run can be repeated.
    """

    text: str
    tokens: int
    ended: bool
    problem: Problem
    score: Score
    token_ids: tuple[int, ...] = ()
    draw: float = 0.0


@dataclass(frozen=True)
class Reward(Component, ABC):
    """Gives a completion its reward. It must be a function of the completion alone."""

    @classmethod
    def of(cls, where: str, values: Mapping[str, Any]) -> Self:
        """Return the reward with these values of its keys; see ``Component.of``."""
        if "terms" in values and "terms" not in keys_of(cls):
            raise ConfigError(
                f"{where}.terms: {cls.__name__} is a single reward and has no terms; take {where}=terms for a sum"
            )
        return super().of(where, values)

    @property
    def term_count(self) -> int:
        """The number of terms that it is the sum of."""
        return 1

    @property
    def smallest_reward(self) -> float | None:
        """The smallest reward that it can give; None where that is not known."""
        return None

    @abstractmethod
    def __call__(self, completion: Completion) -> float:
        """Return the reward, a finite number."""


@dataclass(frozen=True)
class GroupReward(Reward):
    """A reward that compares the completions of a prompt with each other."""

    @abstractmethod
    def of_group(self, completions: Sequence[Completion]) -> Sequence[float]:
        """Return the reward of each completion, finite numbers.

        Args:
            completions: all G completions of one prompt.
        """

    def __call__(self, completion: Completion) -> float:
        """Return the reward of a completion that is alone in its group."""
        return self.of_group([completion])[0]

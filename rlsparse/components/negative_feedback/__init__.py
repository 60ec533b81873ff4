"""Negative feedback: how much advantages above and below zero weigh. Config group ``negative_feedback``."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from rlsparse.components.component import Component, Digest, Range
from rlsparse.config.ranges import shown


@dataclass(frozen=True)
class NegativeFeedback(Component, ABC):
    """Changes advantages by their sign, after any advantage."""

    @abstractmethod
    def __call__(self, advantages: Tensor) -> Tensor:
        """Return the advantages that enter the loss, (B, T).

        Args:
            advantages: (B, T).
        """


@dataclass(frozen=True)
class SignWeights(NegativeFeedback):
    """w₊ max(A, 0) + w₋ min(A, 0).

    (1, 1) keeps A. (1, 0) is the ablation "positive only" of Carrino et al. 2026 (2603.18756), and PSR of Zhu et al.
    2025 (2506.01347). (0, 1) is their NSR, negative only, and (0.1, 1) their Weighted-REINFORCE. Zhu et al. weigh
    rewards 1 and −1 without a baseline, which is ``reward=signed advantage=raw_reward``; with a baseline, the sign that
    decides is that of A.

    Attributes:
        positive, negative: w₊ and w₋.
    """

    positive: Annotated[float, Range(0)]
    negative: Annotated[float, Range(0)]

    def problems(self) -> Iterator[str]:
        """Yield the problem of two weights of 0."""
        if self.positive == 0 and self.negative == 0:
            yield (
                f"positive={shown(self.positive)}: with negative={shown(self.negative)} every advantage becomes 0, so "
                "that nothing is learned; give one of them a weight above 0"
            )

    def __call__(self, advantages: Tensor) -> Tensor:
        if self.positive == 1 and self.negative == 1:
            return advantages
        return self.positive * advantages.clamp(min=0) + self.negative * advantages.clamp(max=0)

    def identity(self, digest: Digest) -> dict[str, Any]:
        """Return what can change the numbers of a run, for the run id; see ``Component.identity``."""
        # An earlier version had a class Switch, with (1, 1) and (1, 0) only. Its runs must count as finished, so these
        # two weights are described in its words.
        if type(self) is SignWeights and self.positive == 1 and self.negative in (0, 1):
            return {"class": "Switch", "enabled": self.negative == 1}
        return super().identity(digest)

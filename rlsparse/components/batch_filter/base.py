"""The base class of batch filters, and the one that keeps every group."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from rlsparse.components.component import Component


@dataclass(frozen=True)
class BatchFilter(Component, ABC):
    """Chooses the groups that training sees, between the rewards and the advantages.

    A group is judged by the verdicts of the verifier, never by a reward, which may have other terms.
    """

    @abstractmethod
    def keeps(self, correct: Tensor) -> Tensor:
        """Return which groups training sees, (P,) bool. The others count nowhere in the loss, not even in its divisor.

        Args:
            correct: (P, G) bool: whether each completion has the right answer.
        """

    @property
    def redraws(self) -> int:
        """Return how many times more is sampled, as long as groups are missing."""
        return 0

    @property
    def same_prompts(self) -> bool:
        """Whether the prompts of the groups that are not kept are sampled again, in place of other prompts."""
        return False

    @property
    def active(self) -> bool:
        """Whether it can leave out a group."""
        return True


@dataclass(frozen=True)
class Dilute(BatchFilter):
    """Keeps every group: one whose advantages are all 0 counts in the divisor of the loss. GRPO."""

    def keeps(self, correct: Tensor) -> Tensor:
        return torch.ones(len(correct), dtype=torch.bool)

    @property
    def active(self) -> bool:
        return False

    @property
    def is_neutral(self) -> bool:
        return True

"""The base class of token samplers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from rlsparse.batch import Rollout, Selection
from rlsparse.components.component import Component


@dataclass(frozen=True)
class TokenSampler(Component, ABC):
    """Chooses the tokens that enter the loss.

    Traits:
        per_transition: it picks the distinct transitions that an advantage of the same trait credits.
    """

    per_transition: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, advantages: Tensor, rollout: Rollout, generator: Generator) -> Selection:
        """Return the weights of the tokens and the divisor of each completion.

        Args:
            advantages: (B, T).
            rollout: of B completions.
            generator: CPU stream of the draws of this stage.
        """


def largest(scores: Tensor, mask: Tensor, budget: int) -> Selection:
    """Select the ``budget`` tokens of each completion with the largest scores, the earlier one first in a tie.

    Args:
        scores: (B, T). mask: (B, T) bool, True on completion tokens.
    """
    order = scores.masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True)  # (B, T)
    place = torch.arange(mask.shape[1], device=mask.device).expand_as(order)  # (B, T)
    rank = torch.empty_like(order).scatter_(1, order, place)  # (B, T) place of each token in the order of its row
    chosen = mask & (rank < budget)  # (B, T)
    return Selection(weights=chosen.float(), counts=chosen.sum(dim=1).float())

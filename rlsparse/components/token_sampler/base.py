"""The base classes of token samplers."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Generator, Tensor

from rlsparse.batch import Rollout, Selection
from rlsparse.components.component import Component, Range
from rlsparse.config.ranges import shown

ROUNDING = 1e-9  # share · length is computed in float64: 0.07 · 100 is 7.000000000000001 and means 7 tokens


@dataclass(frozen=True)
class TokenSampler(Component, ABC):
    """Chooses the tokens that enter the loss.

    Traits:
        per_transition: it picks the distinct transitions that an advantage of the same trait credits.
        cuts_completions: it leaves out the tokens behind a cut so that they need no forward pass. It cannot be
            combined with a surrogate that needs whole completions.
        needs_entropy: it reads ``Rollout.entropy``, which is None otherwise where the rollout engine knows none.
        makes_passes: it spreads the tokens over several optimizer steps; see ``Selection.passes``.
    """

    per_transition: ClassVar[bool] = False
    cuts_completions: ClassVar[bool] = False
    needs_entropy: ClassVar[bool] = False
    makes_passes: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, advantages: Tensor, rollout: Rollout, generator: Generator) -> Selection:
        """Return the weights of the tokens and the divisor of each completion.

        Args:
            advantages: (B, T).
            rollout: of B completions.
            generator: CPU stream of the draws of this stage.
        """


@dataclass(frozen=True)
class SizedSampler(TokenSampler, ABC):
    """Chooses k tokens of each completion, where k is a number of tokens or a share of the completion.

    Attributes:
        budget: k; None where ``share`` is given.
        share: k is the smallest whole number that is at least share · length; None where ``budget`` is given.
    """

    budget: Annotated[int | None, Range(1)]
    share: Annotated[float | None, Range(0, 1, above=True)]
    neutral: ClassVar[Mapping[str, Any]] = {"share": None}

    def problems(self) -> Iterator[str]:
        if (self.budget is None) == (self.share is None):
            yield (
                f"share={shown(self.share)}: token_sampler.budget={shown(self.budget)}, but exactly one of both must "
                "be a number; for a share of each completion give token_sampler.share=0.5 token_sampler.budget=null, "
                "for a number of tokens token_sampler.budget=8 token_sampler.share=null"
            )

    def sizes(self, lengths: Tensor) -> int | Tensor:
        """Return k: one number for all completions, or one for each, (B,) long.

        Args:
            lengths: (B,) long.
        """
        if self.share is None:
            assert self.budget is not None
            return self.budget
        exact = lengths.cpu().double() * self.share  # (B,)
        return (exact - ROUNDING).ceil().clamp(min=1).long().to(lengths.device)


def largest(scores: Tensor, mask: Tensor, budget: int | Tensor) -> Selection:
    """Select the ``budget`` tokens of each completion with the largest scores, the earlier one first in a tie.

    Args:
        scores: (B, T). mask: (B, T) bool, True on completion tokens.
        budget: for all completions, or (B,) long: for each.
    """
    order = scores.masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True)  # (B, T)
    place = torch.arange(mask.shape[1], device=mask.device).expand_as(order)  # (B, T)
    rank = torch.empty_like(order).scatter_(1, order, place)  # (B, T) place of each token in the order of its row
    most = budget[:, None] if isinstance(budget, Tensor) else budget  # (B, 1), or one number
    chosen = mask & (rank < most)  # (B, T)
    return Selection(weights=chosen.float(), counts=chosen.sum(dim=1).float())

"""The base class of off-policy corrections, and the measure of the mismatch that they correct."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from rlsparse.components.component import Component


@dataclass(frozen=True)
class OffPolicyWeight(Component, ABC):
    """The weight of a token by its ratio r = π_old/μ: μ sampled it, π_old is the policy before the update.

    A weight carries no gradient. It multiplies all that a token adds to the loss, its KL penalty too (ours): that is
    what an expectation under π_old takes. TRL 1.16 multiplies the policy's term alone. A token of weight 0 still counts
    in the mean over tokens (``Aggregation``), as in TRL.

    Traits:
        corrects: whether weights differ from 1.
    """

    corrects: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, ratio: Tensor) -> Tensor:
        """Return the weights, (b, T).

        Args:
            ratio: (b, T) π_old/μ of each token or, where ``needs_whole_rows``, of its whole completion.
        """

    @property
    def needs_whole_rows(self) -> bool:
        """Whether the ratio is one of the whole completion: the product of those of its tokens, or ``geometric``."""
        return False

    @property
    def geometric(self) -> bool:
        """Whether the ratio of a completion is the geometric mean of those of its tokens, and not their product."""
        return False

    @property
    def ceiling(self) -> float:
        """Return the ratio above which a weight no longer grows, or infinity. Used in a metric only."""
        return math.inf

    def cut(self, ratio: Tensor) -> Tensor:
        """Return whether a weight is another than its ratio because of a bound, (b, T) bool. Used in a metric only.

        Args:
            ratio: (b, T), as for ``__call__``.
        """
        return ratio > self.ceiling

    def ratio(self, old: Tensor, behaviour: Tensor, mask: Tensor) -> Tensor:
        """Return π_old/μ of each token or of its whole completion, (b, T); no gradient.

        Args:
            old: (b, T) log-probabilities under π_old; only those of ``mask`` are read.
            behaviour: (b, T) under μ.
            mask: (b, T) bool: the tokens to weight; for whole completions all of their tokens.
        """
        log_ratio = torch.where(mask, old.detach() - behaviour, 0.0)  # (b, T)
        if self.needs_whole_rows:
            of_row = log_ratio.sum(dim=1, keepdim=True)  # (b, 1)
            if self.geometric:
                of_row = of_row / mask.sum(dim=1, keepdim=True).clamp(min=1)
            log_ratio = of_row.expand_as(log_ratio)
        return log_ratio.exp()


@dataclass
class Mismatch:
    """How far μ is from π_old, over the tokens of a step whose terms are in the loss; parts add up.

    Attributes:
        tokens: their number.
        kl: Σ of r − 1 − log r, r = π_old/μ: never negative and, on a token sampled from μ, an unbiased estimate of
            KL(μ‖π_old) there. Only tokens of the loss are seen, so a selection by outcome (groups of unequal rewards,
            branch points of a tree) shows in it.
        weight, square, largest: Σ w, Σ w² and the largest w.
        cut: tokens whose weight is not their ratio because of a bound of the correction.
    """

    tokens: int = 0
    kl: float = 0.0
    weight: float = 0.0
    square: float = 0.0
    largest: float = 0.0
    cut: int = 0

    def add(self, log_ratio: Tensor, weights: Tensor, cut: Tensor) -> None:
        """Add k tokens.

        Args:
            log_ratio: (k,) log π_old − log μ of the tokens themselves.
            weights: (k,) that the correction returned.
            cut: (k,) bool, see ``OffPolicyWeight.cut``.
        """
        if len(log_ratio) == 0:
            return
        self.tokens += len(log_ratio)
        self.kl += float((log_ratio.exp() - 1 - log_ratio).sum())
        self.weight += float(weights.sum())
        self.square += float(weights.square().sum())
        self.largest = max(self.largest, float(weights.max()))
        self.cut += int(cut.sum())

    def __add__(self, other: "Mismatch") -> "Mismatch":
        both = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Mismatch(**{**both, "largest": max(self.largest, other.largest)})

    def metrics(self) -> dict[str, float]:
        """Return the measures by their documented names; none where no token was added."""
        if self.tokens == 0:
            return {}
        return {
            "off_policy/kl": self.kl / self.tokens,
            "off_policy/effective_sample_size": self.weight**2 / (self.tokens * self.square) if self.square else 0.0,
            "off_policy/weight_mean": self.weight / self.tokens,
            "off_policy/weight_max": self.largest,
            "off_policy/frac_truncated": self.cut / self.tokens,
        }

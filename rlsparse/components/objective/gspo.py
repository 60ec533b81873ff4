"""GSPO: one ratio for the whole completion. Config group ``clipping``."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from rlsparse.components.component import Range
from rlsparse.components.objective.surrogate import RowSurrogate, clipped_terms, finite_exp, outside_bounds


@dataclass(frozen=True)
class Gspo(RowSurrogate):
    """min(s_t·A, clip(s_t, 1−ε_low, 1+ε_high)·A), s_t = sg(s)·π/sg(π), s = exp(mean_t log π/π_old).

    sg is without gradient; the mean is over all tokens of the completion, so s is the geometric mean of their ratios.
    Zheng et al. 2025 (2507.18071), eq. 5 and 7 for s, eq. 13 and 14 for the form with a term for each token.

    Each s_t has the value s, so all tokens of a completion with one advantage are clipped or none is. With
    ``objective=sequence_mean`` and one advantage for each completion, value and gradient are those of the objective of
    the completion, min(s·A, clip(s)·A). Advantages that differ between tokens are GSPO-token in the paper. Only tokens
    in the loss get a gradient, each by its own weight (ours); s always comes from all tokens.

    TRL: ``importance_sampling_level="sequence"`` with ``loss_type="grpo"``; where weights differ between tokens, it
    gives all tokens of the completion their mean. verl: ``loss_mode=gspo``, which also limits s to e^10.
    """

    same_gradient_at_ratio_1: ClassVar[bool] = True
    bounds_ratio: ClassVar[bool] = True

    epsilon_low: Annotated[float, Range(0, 1)]
    epsilon_high: Annotated[float, Range(0)]

    def of_rows(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        ratio = finite_exp(_mean(log_ratio, mask) + (log_ratio - log_ratio.detach()))  # (b, T)
        return clipped_terms(ratio, advantages, 1 - self.epsilon_low, 1 + self.epsilon_high)

    def clipped_in_rows(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        ratio = finite_exp(_mean(log_ratio, mask))  # (b, 1)
        return outside_bounds(ratio, advantages, 1 - self.epsilon_low, 1 + self.epsilon_high) & mask


def _mean(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the tokens of each completion, without gradient, (b, 1); 0 for one without tokens."""
    total = torch.where(mask, log_ratio.detach(), 0.0).sum(dim=1, keepdim=True)  # (b, 1)
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1)

"""GMPO: the geometric mean of the clipped ratios of a completion. Config group ``clipping``."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from rlsparse.components.component import Range
from rlsparse.components.objective.surrogate import RowSurrogate, finite_exp, outside_bounds


@dataclass(frozen=True)
class Gmpo(RowSurrogate):
    """sg(g)·exp(c_t − sg(c_t))·A, g = exp(mean_t c_t), c_t = log π/π_old, clipped. Zhao et al. 2025 (2507.20673).

    sg is without gradient; the mean is over all tokens of the completion. The log-ratio is clipped on the side that A
    pushes to: c_t ≤ ε_high where A > 0, and c_t ≥ −ε_low where A < 0. A clipped token gets no gradient, but its c_t
    counts in g. Both bounds are in log space (nats); the ratio is in [e^−ε_low, e^ε_high].

    The paper maximises g·A for each completion. The term here (ours) has that value at every token, and with
    ``objective=sequence_mean`` and one advantage for each completion the gradient is that of g·A. Where the
    advantages of a completion differ, each token takes its own (ours), and c_t is 0 where A = 0: ratio^sign(A) is 1.

    verl: ``loss_mode=geo_mean``; TRL: ``trl.experimental.gmpo``, with the same bounds.
    """

    same_gradient_at_ratio_1: ClassVar[bool] = True
    bounds_ratio: ClassVar[bool] = True

    epsilon_low: Annotated[float, Range(0)]
    epsilon_high: Annotated[float, Range(0)]

    def of_rows(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        below, above = log_ratio.clamp(max=self.epsilon_high), log_ratio.clamp(min=-self.epsilon_low)  # (b, T)
        clipped = torch.where(advantages > 0, below, above)  # (b, T)
        clipped = torch.where(mask & (advantages != 0), clipped, 0.0)
        total = clipped.detach().sum(dim=1, keepdim=True)  # (b, 1)
        mean = total / mask.sum(dim=1, keepdim=True).clamp(min=1)  # (b, 1)
        return finite_exp(mean + (clipped - clipped.detach())) * advantages

    def clipped_in_rows(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        return outside_bounds(log_ratio, advantages, -self.epsilon_low, self.epsilon_high) & mask

"""Dual clip: a second bound for tokens of negative advantage. Config group ``clipping``."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from rlsparse.components.component import Range
from rlsparse.components.objective.surrogate import ClippedRatio, finite_exp


@dataclass(frozen=True)
class DualClip(ClippedRatio):
    """The clipped ratio L, and max(L, δ·A) where A < 0. Ye et al. 2020 (1912.09729), where δ is c.

    The clipped ratio has no lower bound where A < 0 and the ratio grows. Here a token of A < 0 with a ratio above δ
    gets no gradient.

    TRL calls δ ``delta``; where δ ≥ 1 + ε_high the loss is the same. For a smaller δ, TRL also cuts the ratio of tokens
    with A > 0, and it keeps the bound 1 + ε_high for those with A < 0. verl calls δ ``clip_ratio_c``.
    """

    delta: Annotated[float, Range(1, above=True)]

    def __call__(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        terms = super().__call__(log_probs, old_log_probs, advantages)  # (b, T)
        return torch.where(advantages < 0, torch.maximum(terms, self.delta * advantages), terms)

    def clipped(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        rho = finite_exp(log_probs - old_log_probs)  # (b, T)
        beyond_delta = (rho > self.delta) & (advantages < 0)  # (b, T)
        return super().clipped(log_probs, old_log_probs, advantages) | beyond_delta

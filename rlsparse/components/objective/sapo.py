"""SAPO: a smooth gate in the place of a clip. Config group ``clipping``."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from rlsparse.components.component import Range
from rlsparse.components.objective.surrogate import Surrogate, finite_exp


@dataclass(frozen=True)
class Sapo(Surrogate):
    """sigmoid(τ(ρ − 1))·4/τ·A, ρ = π/π_old, τ = τ_pos where A > 0, else τ_neg. Gao et al. 2025 (2511.20347).

    The gradient is ρ·4p(1 − p)·A·∇log π with p = sigmoid(τ(ρ − 1)). The weight 4p(1 − p) is 1 at ρ = 1 and falls
    smoothly on both sides, so no token is clipped, and ``clipped`` is False everywhere. A larger τ is a narrower gate.

    TRL: ``loss_type="sapo"`` with ``sapo_temperature_pos`` and ``sapo_temperature_neg``. verl: ``loss_mode=sapo``
    with ``tau_pos`` and ``tau_neg``.
    """

    same_gradient_at_ratio_1: ClassVar[bool] = True
    bounds_ratio: ClassVar[bool] = True

    tau_pos: Annotated[float, Range(0, above=True)]
    tau_neg: Annotated[float, Range(0, above=True)]

    def __call__(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        rho = finite_exp(log_probs - old_log_probs)  # (b, T)
        tau = torch.full_like(rho, self.tau_neg).masked_fill(advantages > 0, self.tau_pos)  # (b, T)
        return torch.sigmoid(tau * (rho - 1)) * (4 / tau) * advantages

"""Surrogates: what a selected token contributes to the objective that is maximised.

Every surrogate is ``f(log_probs (b, T), old_log_probs (b, T), advantages (b, T), config) -> (b, T)``.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from rlsparse.config.schema import ClippedRatioConfig, ClippingConfig


def clipped_ratio(log_probs: Tensor, old: Tensor, advantages: Tensor, config: ClippingConfig) -> Tensor:
    """min(ρA, clip(ρ, 1−ε_lo, 1+ε_hi)·A), ρ = π/π_old. PPO's clipping as in GRPO, Shao et al. 2024, eq. 3."""
    bounds = cast(ClippedRatioConfig, config)
    rho = torch.exp(log_probs - old)
    return torch.minimum(rho * advantages, rho.clamp(1 - bounds.epsilon_low, 1 + bounds.epsilon_high) * advantages)


def ratio(log_probs: Tensor, old: Tensor, advantages: Tensor, config: ClippingConfig) -> Tensor:
    """ρA. S-GRPO, Lee & Tong 2025 (2504.20834)."""
    return torch.exp(log_probs - old) * advantages


def log_prob(log_probs: Tensor, old: Tensor, advantages: Tensor, config: ClippingConfig) -> Tensor:
    """A·log π. RGRA, Carrino et al. 2026 (2603.18756); REINFORCE."""
    return log_probs * advantages


def prob(log_probs: Tensor, old: Tensor, advantages: Tensor, config: ClippingConfig) -> Tensor:
    """A·π. T-SPMO, Lee & Tong 2025 (2504.20834)."""
    return torch.exp(log_probs) * advantages


def clipped(log_probs: Tensor, old: Tensor, advantages: Tensor, config: ClippedRatioConfig) -> Tensor:
    """(b, T) bool: the minimum takes the clipped branch, so the token has no gradient."""
    rho = torch.exp(log_probs - old)
    too_high = (rho > 1 + config.epsilon_high) & (advantages > 0)
    too_low = (rho < 1 - config.epsilon_low) & (advantages < 0)
    return too_high | too_low


SURROGATES: dict[str, Callable[[Tensor, Tensor, Tensor, ClippingConfig], Tensor]] = {
    "clipped_ratio": clipped_ratio,
    "ratio": ratio,
    "log_prob": log_prob,
    "prob": prob,
}

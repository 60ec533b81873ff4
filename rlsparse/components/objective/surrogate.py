"""Surrogates: what a selected token contributes to the objective that is maximised. Config group ``clipping``."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from rlsparse.components.component import Component, Range


def finite_exp(log_ratio: Tensor) -> Tensor:
    """Return exp(log_ratio), at most the square root of the largest number of its type.

    Its gradient is the returned value, also at that limit. Without the limit, a ratio that overflows has the gradient
    0 · ∞ = NaN where a clip or an advantage of 0 takes it out of the loss.
    """
    limit = 0.5 * math.log(torch.finfo(log_ratio.dtype).max)
    excess = (log_ratio.detach() - limit).clamp(min=0)  # its shape
    return torch.exp(log_ratio - excess)


def clipped_terms(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """Return min(ratio · A, clip(ratio, low, high) · A), (b, T)."""
    return torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)


def outside_bounds(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """Return where ``clipped_terms`` has no gradient because of a bound, (b, T) bool."""
    too_high = (ratio > high) & (advantages > 0)  # (b, T)
    too_low = (ratio < low) & (advantages < 0)  # (b, T)
    return too_high | too_low


@dataclass(frozen=True)
class Surrogate(Component, ABC):
    """The term of a token, which is maximised.

    A token whose advantage is 0 is left out of the loss, so its term must not depend on the policy there.

    Traits:
        same_gradient_at_ratio_1: its gradient at π = π_old is A·∇log π. All surrogates of this trait are the same
            method where each rollout batch gets a single optimizer step.
        bounds_ratio: it limits how far π may move from π_old, such as by bounds on π/π_old.
        uses_old_policy: it looks at π_old.
        needs_whole_rows: a term depends on all tokens of its completion; see ``RowSurrogate``.
    """

    same_gradient_at_ratio_1: ClassVar[bool] = False
    bounds_ratio: ClassVar[bool] = False
    uses_old_policy: ClassVar[bool] = True
    needs_whole_rows: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        """Return the term of each token, (b, T).

        Args:
            log_probs: (b, T) under the policy π, with gradient.
            old_log_probs: (b, T) under π_old, the policy at rollout time.
            advantages: (b, T).
        """

    def clipped(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        """Return which tokens get no gradient because of a bound, (b, T) bool; the arguments are those of a call."""
        return torch.zeros_like(advantages, dtype=torch.bool)


@dataclass(frozen=True)
class RowSurrogate(Surrogate):
    """A surrogate whose term of a token depends on all tokens of its completion.

    It sees whole completions, also where a token sampler chooses a part of them; only the terms of chosen tokens enter
    the loss.
    """

    needs_whole_rows: ClassVar[bool] = True

    @abstractmethod
    def of_rows(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """Return the term of each token, (b, T).

        Args:
            log_ratio: (b, T) log π/π_old, with gradient; 0 outside the completions.
            advantages: (b, T).
            mask: (b, T) bool: all tokens of the completions.
        """

    def clipped_in_rows(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """Return which tokens get no gradient because of a bound, (b, T) bool; the arguments are those of a call."""
        return torch.zeros_like(mask)

    def __call__(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        """Return the term of each token of completions without padding, (b, T)."""
        return self.of_rows(log_probs - old_log_probs, advantages, torch.ones_like(advantages, dtype=torch.bool))

    def clipped(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        """Return which tokens of completions without padding get no gradient because of a bound, (b, T) bool."""
        mask = torch.ones_like(advantages, dtype=torch.bool)  # (b, T)
        return self.clipped_in_rows(log_probs - old_log_probs, advantages, mask)


@dataclass(frozen=True)
class ClippedRatio(Surrogate):
    """min(ρA, clip(ρ, 1−ε_low, 1+ε_high)·A), ρ = π/π_old. The clipping of PPO as in GRPO, Shao et al. 2024, eq. 3.

    With ε_high = 0.28 above ε_low = 0.2 it is clip-higher of DAPO, Yu et al. 2025 (2503.14476), eq. 10.
    """

    same_gradient_at_ratio_1: ClassVar[bool] = True
    bounds_ratio: ClassVar[bool] = True

    epsilon_low: Annotated[float, Range(0, 1)]
    epsilon_high: Annotated[float, Range(0)]

    def __call__(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        rho = finite_exp(log_probs - old_log_probs)  # (b, T)
        return clipped_terms(rho, advantages, 1 - self.epsilon_low, 1 + self.epsilon_high)

    def clipped(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        rho = finite_exp(log_probs - old_log_probs)  # (b, T)
        return outside_bounds(rho, advantages, 1 - self.epsilon_low, 1 + self.epsilon_high)


@dataclass(frozen=True)
class Ratio(Surrogate):
    """ρA, ρ = π/π_old: the clipped ratio without its bounds."""

    same_gradient_at_ratio_1: ClassVar[bool] = True

    def __call__(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        return finite_exp(log_probs - old_log_probs) * advantages


@dataclass(frozen=True)
class SelfRatio(Surrogate):
    """A·π/stop_gradient(π): A in value, A·∇log π in gradient, at every update. S-GRPO, Lee & Tong 2025 (2504.20834)."""

    same_gradient_at_ratio_1: ClassVar[bool] = True
    uses_old_policy: ClassVar[bool] = False

    def __call__(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        return torch.exp(log_probs - log_probs.detach()) * advantages


@dataclass(frozen=True)
class LogProb(Surrogate):
    """A·log π. RGRA, Carrino et al. 2026 (2603.18756); REINFORCE."""

    same_gradient_at_ratio_1: ClassVar[bool] = True
    uses_old_policy: ClassVar[bool] = False

    def __call__(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        return log_probs * advantages


@dataclass(frozen=True)
class Prob(Surrogate):
    """A·π. T-SPMO, Lee & Tong 2025 (2504.20834)."""

    uses_old_policy: ClassVar[bool] = False

    def __call__(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        return torch.exp(log_probs) * advantages

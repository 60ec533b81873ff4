"""CISPO: the importance weight is cut, the token keeps its gradient. Config group ``clipping``."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from rlsparse.components.component import Range
from rlsparse.components.objective.surrogate import Surrogate, finite_exp


@dataclass(frozen=True)
class Cispo(Surrogate):
    """sg(min(ρ, 1+ε_high))·A·log π, ρ = π/π_old, sg without gradient. MiniMax-M1 2025 (2506.13585), eq. 4 and 5.

    No token loses its gradient, so ``clipped`` is False everywhere. Equation 5 also has a lower bound 1 − ε_low; the
    paper sets it so low that it has no effect, and it is left out here. The value of ε_high is not published: the
    default is (ours), at the bound that TRL recommends.

    The bound on the ratio is 1 + ε_high as in MiniMax-M1. TRL takes the bound itself as ``epsilon_high``, so
    ``epsilon_high=5`` there is 4 here; ScaleRL (2510.13786) calls that bound ε_max. verl has both bounds,
    ``clip_ratio_low`` and ``clip_ratio_high``.
    """

    same_gradient_at_ratio_1: ClassVar[bool] = True
    bounds_ratio: ClassVar[bool] = True

    epsilon_high: Annotated[float, Range(0)]

    def __call__(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        rho = finite_exp(log_probs.detach() - old_log_probs)  # (b, T)
        return rho.clamp(max=1 + self.epsilon_high) * advantages * log_probs

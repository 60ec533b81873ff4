"""DPPO: a bound on how far the probability of a token moves. Config group ``clipping``."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from rlsparse.components.component import OneOf, Range
from rlsparse.components.objective.surrogate import Surrogate, finite_exp


@dataclass(frozen=True)
class Dppo(Surrogate):
    """ρA, ρ = π/π_old, without gradient where D > δ and π has moved in the direction of A. Qi et al. 2026 (2602.04879).

    D compares two outcomes, the sampled token and any other: |π_old − π| for ``divergence=tv`` (eq. 13), and
    KL(π_old‖π) of the two outcomes for ``divergence=kl``, in nats (eq. 14). A token is masked (eq. 12) where A > 0,
    ρ > 1 and D > δ, or A < 0, ρ < 1 and D > δ; its term is then 0.

    The paper takes δ = 0.15 or 0.2 for tv, and 0.05 for kl. Its π_old is the model that sampled, with the
    probabilities of its inference engine; here it is the policy at rollout time, computed on the path of training
    (ours). The two differ where layers are skipped or the weights are quantized in the rollout.

    verl: ``loss_mode=dppo_tv`` or ``dppo_kl``, where ``clip_ratio`` is δ and ``clip_ratio_c`` also cuts ρ.
    """

    same_gradient_at_ratio_1: ClassVar[bool] = True
    bounds_ratio: ClassVar[bool] = True

    divergence: Annotated[str, OneOf("tv", "kl")]
    delta: Annotated[float, Range(0)]

    def __call__(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        kept = ~self.clipped(log_probs.detach(), old_log_probs, advantages)  # (b, T)
        return torch.where(kept, finite_exp(log_probs - old_log_probs) * advantages, 0.0)

    def clipped(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        along = torch.where(advantages > 0, log_probs > old_log_probs, log_probs < old_log_probs)  # (b, T)
        return along & (advantages != 0) & (self._moved(log_probs, old_log_probs) > self.delta)

    def _moved(self, log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
        """Return D of each token, (b, T)."""
        if self.divergence == "tv":
            return (log_probs.exp() - old_log_probs.exp()).abs()
        tiny = torch.finfo(log_probs.dtype).tiny  # of a probability of 1 the rest is 0, and its logarithm infinite
        rest, old_rest = (-torch.expm1(one).clamp(max=-tiny) for one in (log_probs, old_log_probs))  # (b, T)
        sampled = old_log_probs.exp() * (old_log_probs - log_probs)  # (b, T)
        return sampled + old_rest * (old_rest.log() - rest.log())

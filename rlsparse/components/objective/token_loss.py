"""The loss of selected tokens: −surrogate + β·KL, summed with their scales."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlsparse.components.component import with_shape
from rlsparse.components.objective.kl import KLPenalty
from rlsparse.components.objective.surrogate import Surrogate


@dataclass(frozen=True)
class TokenLoss:
    """The part of the loss of a microbatch and its metrics; parts add up to those of the batch.

    Attributes:
        loss: scalar.
        kl: sum over tokens of scale · KL, nats.
        clipped: number of tokens without gradient because of a bound.
        tokens: number of tokens with a scale other than 0.
    """

    loss: Tensor
    kl: float
    clipped: float
    tokens: int


@dataclass(frozen=True)
class TokenObjective:
    """Computes the loss: −surrogate + β·KL of each token, times its scale."""

    surrogate: Surrogate
    kl: KLPenalty

    def __call__(
        self, log_probs: Tensor, old_log_probs: Tensor, reference: Tensor | None, advantages: Tensor, scales: Tensor
    ) -> TokenLoss:
        """Return the loss of some rows.

        Args:
            log_probs: (b, T) under the policy, with gradient.
            old_log_probs: (b, T) under the policy at rollout time, computed on the same code path.
            reference: (b, T) log-probabilities under the base model; None where β = 0.
            advantages: (b, T).
            scales: (b, T), see ``Aggregation``.
        """
        chosen = scales != 0  # (b, T)
        # elsewhere the ratios are set to 1: an exp that overflows outside the selection would make its gradient NaN
        old_log_probs = torch.where(chosen, old_log_probs, 0.0)
        log_probs = torch.where(chosen, log_probs, 0.0)
        terms = self.surrogate(log_probs, old_log_probs, advantages)  # (b, T)
        per_token = -with_shape("clipping", self.surrogate, terms, tuple(advantages.shape))
        kl_sum = 0.0
        if self.kl.beta > 0:
            assert reference is not None
            divergence = self.kl(log_probs, torch.where(chosen, reference, 0.0))  # (b, T)
            per_token = per_token + self.kl.beta * divergence
            kl_sum = float((divergence * scales).sum().detach())
        loss = (per_token * scales).sum()
        clipped = self.surrogate.clipped(log_probs.detach(), old_log_probs, advantages) & chosen  # (b, T)
        return TokenLoss(loss=loss, kl=kl_sum, clipped=float(clipped.sum()), tokens=int(chosen.sum()))

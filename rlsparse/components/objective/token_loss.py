"""The loss of selected tokens: −surrogate + β·KL − entropy bonus, summed with their scales."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlsparse.components.component import with_shape
from rlsparse.components.objective.kl import KLPenalty
from rlsparse.components.objective.surrogate import RowSurrogate, Surrogate, finite_exp


@dataclass(frozen=True)
class ScoredTokens:
    """What the loss of some rows is made from.

    Attributes:
        log_probs: (b, T) under the policy, with gradient.
        old_log_probs: (b, T) under the policy at rollout time, computed on the same code path.
        advantages: (b, T).
        scales: (b, T), see ``Aggregation``; 0 for a token whose term is not in the loss.
        reference: (b, T) log-probabilities under the reference policy; None where β = 0.
        entropy: (b, T) of the policy, with gradient, nats; None without a bonus.
        mask: (b, T) bool: all tokens of the completions, for a surrogate that needs whole rows; else None.
    """

    log_probs: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    scales: Tensor
    reference: Tensor | None = None
    entropy: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class TokenLoss:
    """The part of the loss of a microbatch and its metrics; parts add up to those of the batch.

    Attributes:
        loss: scalar.
        kl: sum over tokens of scale · KL, nats.
        entropy: sum over tokens of scale · entropy, nats.
        clipped: number of tokens without gradient because of a bound.
        tokens: number of tokens with a scale other than 0.
    """

    loss: Tensor
    kl: float
    entropy: float
    clipped: float
    tokens: int


@dataclass(frozen=True)
class TokenObjective:
    """Computes the loss: −surrogate + β·KL − c·entropy of each token, times its scale.

    Attributes:
        entropy: c, the weight of the entropy.
    """

    surrogate: Surrogate
    kl: KLPenalty
    entropy: float = 0.0

    @property
    def uses_old_policy(self) -> bool:
        """Whether the loss depends on the policy at rollout time."""
        of_kl = self.kl.beta > 0 and (self.kl.times_ratio or self.kl.in_reward)
        return self.surrogate.uses_old_policy or of_kl

    def __call__(self, tokens: ScoredTokens) -> TokenLoss:
        """Return the loss of some rows."""
        scales = tokens.scales
        chosen = scales != 0  # (b, T)
        seen = chosen if tokens.mask is None else tokens.mask  # (b, T)
        # elsewhere the ratios are set to 1: an exp that overflows outside the selection would make its gradient NaN
        old_log_probs = torch.where(seen, tokens.old_log_probs, 0.0)
        log_probs = torch.where(seen, tokens.log_probs, 0.0)
        reference = None if tokens.reference is None else torch.where(seen, tokens.reference, 0.0)
        advantages, kl_sum, entropy_sum = tokens.advantages, 0.0, 0.0
        if self.kl.beta > 0 and self.kl.in_reward:
            assert reference is not None
            divergence = with_shape("kl", self.kl, self.kl(old_log_probs, reference), tuple(scales.shape))
            advantages = advantages - self.kl.beta * divergence
            kl_sum = float((divergence * scales).sum())
        if isinstance(self.surrogate, RowSurrogate):
            rows = (log_probs - old_log_probs, advantages, seen)
            terms = self.surrogate.of_rows(*rows)  # (b, T)
            clipped = self.surrogate.clipped_in_rows(rows[0].detach(), *rows[1:])  # (b, T)
        else:
            terms = self.surrogate(log_probs, old_log_probs, advantages)  # (b, T)
            clipped = self.surrogate.clipped(log_probs.detach(), old_log_probs, advantages)  # (b, T)
        per_token = -with_shape("clipping", self.surrogate, terms, tuple(scales.shape))
        if self.kl.beta > 0 and not self.kl.in_reward:
            assert reference is not None
            divergence = with_shape("kl", self.kl, self.kl(log_probs, reference), tuple(scales.shape))
            if self.kl.times_ratio:
                divergence = divergence * finite_exp(log_probs - old_log_probs)
            per_token = per_token + self.kl.beta * divergence
            kl_sum = float((divergence * scales).sum().detach())
        if tokens.entropy is not None:
            entropy = torch.where(chosen, tokens.entropy, 0.0)  # (b, T)
            per_token = per_token - self.entropy * entropy
            entropy_sum = float((entropy * scales).sum().detach())
        if tokens.mask is not None:  # a token outside the selection may have a term that is not finite
            per_token = torch.where(chosen, per_token, 0.0)
        return TokenLoss(
            loss=(per_token * scales).sum(),
            kl=kl_sum,
            entropy=entropy_sum,
            clipped=float((clipped & chosen).sum()),
            tokens=int(chosen.sum()),
        )

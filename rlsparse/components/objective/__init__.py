"""The loss of selected tokens: −surrogate + β·KL, aggregated. Pure functions of tensors.

A mean over a batch is a sum with fixed factors, so aggregation comes first (``token_scales``, over the whole batch) and
the loss of any microbatch is a plain sum: the gradient does not depend on the split.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlsparse.components.objective.kl import k3
from rlsparse.components.objective.surrogate import SURROGATES, clipped
from rlsparse.config.schema import ClippedRatioConfig, ClippingConfig, KLConfig


@dataclass(frozen=True)
class TokenLoss:
    """A microbatch's part of the loss and its metrics; parts add up to the batch's.

    Attributes:
        loss: scalar.
        kl: sum over tokens of scale · KL, nats.
        clipped: number of tokens whose ratio the clipping holds back.
        tokens: number of tokens with a non-zero scale.
    """

    loss: Tensor
    kl: float
    clipped: float
    tokens: int


def token_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    reference_log_probs: Tensor | None,
    advantages: Tensor,
    scales: Tensor,
    clipping: ClippingConfig,
    kl: KLConfig,
) -> TokenLoss:
    """Loss of the rows at hand.

    Args:
        log_probs: (b, T) of the policy, with gradient.
        old_log_probs: (b, T) of the policy at rollout time, on the same code path.
        reference_log_probs: (b, T) of the base model; None where β = 0.
        advantages: (b, T).
        scales: (b, T), see ``token_scales``.
    """
    chosen = scales != 0  # (b, T)
    # elsewhere the ratios are set to 1: an exp that overflows outside the selection would still make its gradient NaN
    old_log_probs = torch.where(chosen, old_log_probs, 0.0)
    log_probs = torch.where(chosen, log_probs, 0.0)
    terms = SURROGATES[clipping.surrogate](log_probs, old_log_probs, advantages, clipping)  # (b, T)
    per_token = -terms
    kl_sum = 0.0
    if kl.beta > 0:
        assert reference_log_probs is not None
        divergence = k3(log_probs, torch.where(chosen, reference_log_probs, 0.0))  # (b, T)
        per_token = per_token + kl.beta * divergence
        kl_sum = float((divergence * scales).sum().detach())
    loss = (per_token * scales).sum()
    held_back = 0.0
    if isinstance(clipping, ClippedRatioConfig):
        held_back = float((clipped(log_probs.detach(), old_log_probs, advantages, clipping) & chosen).sum())
    return TokenLoss(loss=loss, kl=kl_sum, clipped=held_back, tokens=int(chosen.sum()))

"""The token sampler of Clip-Cov."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Generator, Tensor

from rlsparse.batch import Rollout, Selection
from rlsparse.components.component import Range
from rlsparse.components.token_sampler.base import ROUNDING, TokenSampler, largest


@dataclass(frozen=True)
class Covariance(TokenSampler):
    """Every token but a few, drawn among those whose advantage and log-probability are both far from the mean.

    Clip-Cov, Cui et al. 2025 (2505.22617). The covariance of a token is (A - mean A)·(log π - mean log π), means over
    all tokens of the batch. Of the tokens whose covariance is in [low, high], floor(share · tokens of the batch) leave
    the loss, at least one (as in the code of its authors) and at most all of them, drawn uniformly. It is biased on
    purpose: such tokens lower the entropy most. Means are over all tokens of the completion: the divisor counts the
    tokens that were left out, as verl's ``compute_policy_loss_clip_cov`` does.

    In verl the bounds themselves are excluded, log π is that of the policy at each update, means are over a microbatch,
    and tokens that the ratio's bound clips are no candidates. Here log π is that of the rollout, at which no ratio is
    clipped yet, and the batch is the rollout batch (ours), so that the choice does not depend on the microbatches.

    Attributes:
        share: r, of the tokens of the batch.
        low, high: bounds of the covariance.
    """

    share: Annotated[float, Range(0, 1, above=True)]
    low: Annotated[float, Range()]
    high: Annotated[float, Range()]

    def problems(self) -> Iterator[str]:
        if self.low > self.high:
            yield f"low={self.low:g}: must be at most token_sampler.high={self.high:g}; swap them"

    def __call__(self, advantages: Tensor, rollout: Rollout, generator: Generator) -> Selection:
        mask = rollout.mask  # (B, T)
        covariances = token_covariances(advantages, rollout.log_probs, mask)  # (B, T)
        candidates = mask & (covariances >= self.low) & (covariances <= self.high)  # (B, T)
        scores = torch.rand(mask.shape, generator=generator).to(mask.device)  # (B, T)
        left_out = largest(scores.view(1, -1), candidates.view(1, -1), self.most(int(mask.sum()))).weights  # (1, B·T)
        weights = mask.float() - left_out.view_as(mask)  # (B, T)
        return Selection(weights=weights, counts=rollout.lengths.float())

    def most(self, tokens: int) -> int:
        """Return how many tokens of a batch leave the loss if there are enough candidates."""
        return max(1, int(self.share * tokens + ROUNDING))


def token_covariances(advantages: Tensor, log_probs: Tensor, mask: Tensor) -> Tensor:
    """Return (A - mean A)·(log π - mean log π) of each token, (B, T); the means are over the tokens of the mask.

    Args:
        advantages: (B, T). log_probs: (B, T). mask: (B, T) bool.
    """
    tokens = mask.sum().clamp(min=1)  # scalar
    centred = [x - torch.where(mask, x, 0.0).sum() / tokens for x in (advantages, log_probs)]  # (B, T) each
    return centred[0] * centred[1]

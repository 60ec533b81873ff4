"""Sampling a token: temperature, top-k, top-p and the inverse of the cumulative distribution function (CDF)."""

from math import gcd
from typing import Protocol

import torch
from torch import Tensor

BLOCK = 256  # tokens


class Settings(Protocol):
    """The settings of sampling; see ``RolloutEngine``."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def top_k(self) -> int: ...


def truncate(probs: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return the probabilities with 0 outside the k most likely tokens and outside the nucleus, (b, V).

    The result is not normalised. The nucleus is the smallest set of most likely tokens whose total probability, after
    top-k, is at least top_p.

    Args:
        probs: (b, V) probabilities, or multiples of them.
        top_k: 0 is off.
        top_p: 1 is off.
    """
    if top_k and top_k < probs.shape[1]:
        probs = probs.masked_fill(probs < probs.topk(top_k, dim=1).values[:, -1:], 0.0)
    if top_p < 1:
        ordered, order = probs.sort(dim=1, descending=True)
        before = ordered.cumsum(dim=1) - ordered  # (b, V) probability of the more likely tokens
        outside = before >= top_p * ordered.sum(dim=1, keepdim=True)
        probs = torch.zeros_like(probs).scatter(1, order, ordered.masked_fill(outside, 0.0))
    return probs


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """Return tokens by the inverse CDF, (b,): the first whose cumulative probability exceeds uniform · total.

    Args:
        probs: (b, V), not necessarily normalised; a token of probability 0 is never returned.
        uniform: (b,) in [0, 1).
    """
    b, V = probs.shape
    blocks = probs.view(b, -1, gcd(V, BLOCK))  # (b, n, V / n)
    # first find the block, then the token in it: a cumulative sum over the whole vocabulary is slow and less accurate
    of_block = blocks.sum(dim=2)  # (b, n)
    total = of_block.sum(dim=1, keepdim=True)
    block, rest = _invert(of_block, uniform[:, None] * total)
    within, _ = _invert(blocks[torch.arange(b, device=probs.device), block], rest)
    return block * blocks.shape[2] + within


def _invert(weights: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first index whose cumulative sum exceeds the target, (b,), and the rest of the target there, (b, 1).

    The rest is the target minus the sum of the weights before the index.

    Args:
        weights: (b, n).
        target: (b, 1).
    """
    running = weights.cumsum(dim=1)  # (b, n)
    # rounding may raise the target to the last sum; it must be below it, so that an index with weight > 0 is found
    last = running[:, -1:]
    target = torch.minimum(target, torch.nextafter(last, torch.zeros_like(last)))
    index = torch.searchsorted(running, target, right=True)
    index = index.clamp(max=weights.shape[1] - 1)  # NaN is reported later, and must not be an index error
    left = target - (running - weights).gather(1, index)
    return index.squeeze(1), left.clamp(min=0)  # rounding may make it negative


def sample(logits: Tensor, uniform: Tensor, settings: Settings, greedy: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Sample a token for each row and return it with its log-probability and the entropy of the distribution.

    Log-probability and entropy are those of softmax(logits / temperature), before top-k and top-p: training uses the
    policy at the sampling temperature, as in TRL.

    Args:
        logits: (b, V).
        uniform: (b,) random numbers in [0, 1).
        settings: temperature, top-k and top-p.
        greedy: take the most likely token instead.

    Returns:
        tokens (b,), log_probs (b,) in nats, entropy (b,) in nats.
    """
    shifted = logits.float()  # (b, V)
    if settings.temperature != 1:
        shifted = shifted / settings.temperature
    shifted = shifted - shifted.amax(dim=1, keepdim=True)
    shifted.clamp_(min=torch.finfo(torch.float32).min)  # so that a logit of −∞ times its probability 0 is 0
    weights = shifted.exp()  # (b, V)
    total = weights.sum(dim=1)  # (b,)
    # a dot product, since torch.special.entr over the vocabulary would take as long as the rest of this function
    entropy = total.log() - torch.linalg.vecdot(weights, shifted) / total
    if greedy:
        tokens = logits.argmax(dim=1)
    else:
        tokens = draw(truncate(weights, settings.top_k, settings.top_p), uniform)
    log_probs = shifted.gather(1, tokens[:, None]).squeeze(1) - total.log()
    return tokens, log_probs, entropy

"""Drawing a token: temperature, top-k, top-p and the inverse CDF."""

from math import gcd
from typing import Protocol

import torch
from torch import Tensor

BLOCK = 256  # tokens


class Settings(Protocol):
    """How a token is drawn; see ``RolloutEngine``."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def top_k(self) -> int: ...


def truncate(probs: Tensor, top_k: int, top_p: float) -> Tensor:
    """The (b, V) probabilities, or multiples of them, zero outside the k likeliest tokens and outside the nucleus.

    Not normalised again. The nucleus is the smallest set of likeliest tokens whose probability reaches top_p, counted
    after top-k.
    """
    if top_k and top_k < probs.shape[1]:
        probs = probs.masked_fill(probs < probs.topk(top_k, dim=1).values[:, -1:], 0.0)
    if top_p < 1:
        ordered, order = probs.sort(dim=1, descending=True)
        before = ordered.cumsum(dim=1) - ordered  # (b, V) probability of the likelier tokens
        outside = before >= top_p * ordered.sum(dim=1, keepdim=True)
        probs = torch.zeros_like(probs).scatter(1, order, ordered.masked_fill(outside, 0.0))
    return probs


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """(b,) tokens by inverse CDF: the first whose cumulative probability exceeds uniform · total.

    Args:
        probs: (b, V), need not sum to one; a token of probability 0 is never drawn.
        uniform: (b,) in [0, 1).
    """
    b, V = probs.shape
    blocks = probs.view(b, -1, gcd(V, BLOCK))  # (b, n, V / n)
    # the block first, then the token in it: a running sum over the whole vocabulary is slow and rounds more
    of_block = blocks.sum(dim=2)  # (b, n)
    total = of_block.sum(dim=1, keepdim=True)
    block, rest = _invert(of_block, uniform[:, None] * total)
    within, _ = _invert(blocks[torch.arange(b, device=probs.device), block], rest)
    return block * blocks.shape[2] + within


def _invert(weights: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(b,) first index whose running sum exceeds the target, and what of the target is left there, (b, 1).

    Args:
        weights: (b, n). target: (b, 1).
    """
    running = weights.cumsum(dim=1)  # (b, n)
    # below the last sum even where rounding has brought the target up to it, so that a weight > 0 is found
    last = running[:, -1:]
    target = torch.minimum(target, torch.nextafter(last, torch.zeros_like(last)))
    index = torch.searchsorted(running, target, right=True)
    index = index.clamp(max=weights.shape[1] - 1)  # a broken policy's NaN must be reported, not crash the lookup
    left = target - (running - weights).gather(1, index)
    return index.squeeze(1), left.clamp(min=0)  # rounding may leave less than nothing


def sample(logits: Tensor, uniform: Tensor, settings: Settings, greedy: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A token for each row, with its log-probability and the entropy of the distribution it came from.

    Log-probability and entropy are those of softmax(logits / temperature), before top-k and top-p: the policy that is
    trained is the tempered one, as in TRL.

    Args:
        logits: (b, V).
        uniform: (b,) in [0, 1), the rows' random numbers.
        greedy: take the likeliest token instead.

    Returns:
        tokens (b,), log_probs (b,), entropy (b,), nats.
    """
    shifted = logits.float()  # (b, V)
    if settings.temperature != 1:
        shifted = shifted / settings.temperature
    shifted = shifted - shifted.amax(dim=1, keepdim=True)
    shifted.clamp_(min=torch.finfo(torch.float32).min)  # a logit of −∞ times its probability 0 is to be 0
    weights = shifted.exp()  # (b, V)
    total = weights.sum(dim=1)  # (b,)
    # a dot product, since entr over a vocabulary costs as much as all else here
    entropy = total.log() - (weights[:, None] @ shifted[:, :, None]).flatten() / total
    if greedy:
        tokens = logits.argmax(dim=1)
    else:
        tokens = draw(truncate(weights, settings.top_k, settings.top_p), uniform)
    log_probs = shifted.gather(1, tokens[:, None]).squeeze(1) - total.log()
    return tokens, log_probs, entropy

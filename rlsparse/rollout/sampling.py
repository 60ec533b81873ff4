"""Drawing a token: temperature, top-k, top-p and the inverse CDF."""

import torch
from torch import Tensor

from rlsparse.config import RolloutConfig


def truncate(probs: Tensor, top_k: int, top_p: float) -> Tensor:
    """(b, V) with zeros outside the k likeliest tokens and outside the nucleus; not normalised again.

    The nucleus is the smallest set of likeliest tokens whose probability reaches top_p, counted after top-k.
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
    cdf = probs.cumsum(dim=1)  # (b, V)
    total = cdf[:, -1:]
    # below the total even when the product rounds up to it, so that the last token with probability > 0 is found
    threshold = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens = torch.searchsorted(cdf, threshold, right=True).squeeze(1)
    return tokens.clamp(max=probs.shape[1] - 1)  # a broken policy's NaN must be reported, not crash the lookup


def sample(logits: Tensor, uniform: Tensor, config: RolloutConfig, greedy: bool) -> tuple[Tensor, Tensor, Tensor]:
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
    log_probs = torch.log_softmax(logits.float() / config.temperature, dim=1)  # (b, V)
    probs = log_probs.exp()
    entropy = torch.special.entr(probs).sum(dim=1)
    if greedy:
        tokens = logits.argmax(dim=1)
    else:
        tokens = draw(truncate(probs, config.top_k, config.top_p), uniform)
    return tokens, log_probs.gather(1, tokens[:, None]).squeeze(1), entropy

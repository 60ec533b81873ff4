"""S-GRPO's token sampler (Lee & Tong 2025, 2504.20834): the first tokens, then a coin each until a budget is spent."""

import torch
from torch import Generator, Tensor

from rlsparse.batch import Rollout, Selection
from rlsparse.config.schema import StochasticConfig


def inclusion_probability(length: int, config: StochasticConfig) -> Tensor:
    """(length,) chance that token t is chosen: 1 for t < α, else P·Pr[Binomial(t−α, P) < k−α].

    The coins of the tokens before t, and a budget that is not spent yet.
    """
    from scipy.stats import binom  # slow to import, and needed by runs that reweight only

    alpha, p = config.always_first, config.probability
    later = torch.arange(length) - alpha  # coins thrown before token t
    room = torch.from_numpy(binom.cdf(config.budget - alpha - 1, later.clamp(min=0).numpy(), p))
    return torch.where(later < 0, 1.0, p * room).float()


def stochastic(advantages: Tensor, rollout: Rollout, config: StochasticConfig, generator: Generator) -> Selection:
    """The first α tokens, and each later one with probability P as long as fewer than k are chosen. Drawn afresh.

    With ``reweight`` a chosen token weighs 1/p and means are over the whole completion (Horvitz–Thompson): the sparse
    gradient is then an unbiased estimate of the full one, as far as p > 0.
    """
    mask = rollout.mask  # (B, T)
    T = mask.shape[1]
    is_start = (torch.arange(T, device=mask.device) < config.always_first).expand_as(mask)
    coin = torch.rand(mask.shape, generator=generator).to(mask.device) < config.probability  # (B, T)
    heads = coin & ~is_start
    heads_before = heads.long().cumsum(dim=1) - heads.long()
    chosen = mask & (is_start | (heads & (heads_before < config.budget - config.always_first)))  # (B, T)
    if not config.reweight:
        return Selection(weights=chosen.float(), counts=chosen.sum(dim=1).float())
    weights = chosen / inclusion_probability(T, config).clamp(min=torch.finfo(torch.float32).tiny).to(mask.device)
    return Selection(weights=weights, counts=rollout.lengths.float())

"""The token sampler of S-GRPO: the first tokens, then each later one by chance until a budget is spent."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Generator, Tensor

from rlsparse.batch import Rollout, Selection
from rlsparse.components.component import Range
from rlsparse.components.token_sampler.base import TokenSampler


@dataclass(frozen=True)
class Stochastic(TokenSampler):
    """The first α tokens, and each later one with probability P as long as fewer than k are chosen.

    S-GRPO, Lee & Tong 2025 (2504.20834). With ``reweight`` a chosen token has the weight 1/p and means are over the
    whole completion (Horvitz–Thompson): the sparse gradient is then an unbiased estimate of the full one, as far as
    p > 0.

    Attributes:
        always_first: α. probability: P. budget: k, α included.
        reweight: whether weights are 1/p instead of 1.
    """

    always_first: Annotated[int, Range(0)]
    probability: Annotated[float, Range(0, 1, above=True)]
    budget: Annotated[int, Range(1)]
    reweight: bool

    def problems(self) -> Iterator[str]:
        if self.budget < self.always_first:
            yield (
                f"budget={self.budget}: the first token_sampler.always_first={self.always_first} tokens count too, so "
                "it must be at least that"
            )

    def __call__(self, advantages: Tensor, rollout: Rollout, generator: Generator) -> Selection:
        mask = rollout.mask  # (B, T)
        T = mask.shape[1]
        is_start = (torch.arange(T, device=mask.device) < self.always_first).expand_as(mask)  # (B, T)
        coin = torch.rand(mask.shape, generator=generator).to(mask.device) < self.probability  # (B, T)
        heads = coin & ~is_start  # (B, T)
        heads_before = heads.long().cumsum(dim=1) - heads.long()  # (B, T)
        chosen = mask & (is_start | (heads & (heads_before < self.budget - self.always_first)))  # (B, T)
        if not self.reweight:
            return Selection(weights=chosen.float(), counts=chosen.sum(dim=1).float())
        smallest = torch.finfo(torch.float32).tiny
        weights = chosen / self.inclusion_probability(T).clamp(min=smallest).to(mask.device)  # (B, T)
        return Selection(weights=weights, counts=rollout.lengths.float())

    def inclusion_probability(self, length: int) -> Tensor:
        """Return the chance that token t is chosen, (length,): 1 for t < α, else P·Pr[Binomial(t−α, P) < k−α].

        The binomial counts the tokens chosen by chance before t: the budget must not be spent yet.
        """
        from scipy.stats import binom  # slow to import, and needed by runs that reweight only

        later = torch.arange(length) - self.always_first  # (length,) draws before token t
        room = binom.cdf(self.budget - self.always_first - 1, later.clamp(min=0).numpy(), self.probability)
        return torch.where(later < 0, 1.0, self.probability * torch.from_numpy(room)).float()

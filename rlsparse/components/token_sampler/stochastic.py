"""The token sampler of S-GRPO: the first tokens, then each later one by chance until a budget is spent."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Generator, Tensor

from rlsparse.batch import Rollout, Selection
from rlsparse.components.component import Range
from rlsparse.components.token_sampler.base import SizedSampler


@dataclass(frozen=True)
class Stochastic(SizedSampler):
    """The first α tokens, and each later one with probability P as long as fewer than k are chosen.

    S-GRPO, Lee & Tong 2025 (2504.20834). It is biased: later tokens enter the loss less often. With ``reweight`` a
    chosen token has the weight 1/p and means are over the whole completion (Horvitz-Thompson): the sparse gradient is
    then an unbiased estimate of the full one, as far as p > 0. The probability p is 0 behind the first α tokens if
    k ≤ α, and behind the first k tokens if P = 1.

    A share of the completion in the place of k is ours. The first α tokens stay in where the share is fewer.

    Attributes:
        budget: k, α included. share: of a completion's tokens, in the place of k; α included.
        always_first: α. probability: P.
        reweight: whether weights are 1/p instead of 1.
    """

    always_first: Annotated[int, Range(0)]
    probability: Annotated[float, Range(0, 1, above=True)]
    reweight: bool

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.budget is not None and self.budget < self.always_first:
            yield (
                f"budget={self.budget}: the first token_sampler.always_first={self.always_first} tokens count too, so "
                "it must be at least that"
            )

    def __call__(self, advantages: Tensor, rollout: Rollout, generator: Generator) -> Selection:
        mask = rollout.mask  # (B, T)
        coins = torch.rand(mask.shape, generator=generator).to(mask.device) < self.probability  # (B, T)
        return self.of_coins(coins, rollout.lengths)

    def of_coins(self, coins: Tensor, lengths: Tensor) -> Selection:
        """Return the selection that follows from the outcomes of the draws.

        Args:
            coins: (B, T) bool, True with probability P.
            lengths: (B,) long.
        """
        place = torch.arange(coins.shape[1], device=lengths.device)  # (T,)
        mask = place < lengths[:, None]  # (B, T)
        is_start = (place < self.always_first).expand_as(mask)  # (B, T)
        heads = coins & ~is_start  # (B, T)
        heads_before = heads.long().cumsum(dim=1) - heads.long()  # (B, T)
        sizes = self.sizes(lengths)
        most = sizes[:, None] if isinstance(sizes, Tensor) else sizes  # (B, 1), or one number
        chosen = mask & (is_start | (heads & (heads_before < most - self.always_first)))  # (B, T)
        if not self.reweight:
            return Selection(weights=chosen.float(), counts=chosen.sum(dim=1).float())
        smallest = torch.finfo(torch.float32).tiny
        inclusion = self.inclusion_probability(coins.shape[1], lengths)  # (1 or B, T)
        weights = chosen / inclusion.clamp(min=smallest).to(mask.device)  # (B, T)
        return Selection(weights=weights, counts=lengths.float())

    def inclusion_probability(self, width: int, lengths: Tensor) -> Tensor:
        """Return the chance that token t is chosen, (B, width): 1 for t < α, else P·Pr[Binomial(t−α, P) < k−α].

        The binomial counts the tokens chosen by chance before t: the budget must not be spent yet. Where k is one
        number for all completions there is one row, (1, width). Values behind the end of a completion have no meaning.

        Args:
            lengths: (B,) long.
        """
        from scipy.stats import binom  # slow to import, and needed by runs that reweight only

        sizes = torch.as_tensor(self.sizes(lengths)).cpu().reshape(-1)  # (1,) or (B,)
        different, row = sizes.unique(return_inverse=True)  # (number of different k,), (1,) or (B,)
        later = torch.arange(width) - self.always_first  # (width,) draws before token t
        most = different[:, None] - self.always_first - 1  # (number of different k, 1)
        room = torch.from_numpy(binom.cdf(most.numpy(), later.clamp(min=0).numpy(), self.probability))
        return torch.where(later < 0, 1.0, self.probability * room).float()[row]

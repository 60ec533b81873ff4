"""The token sampler of NAT that keeps a random prefix of each completion."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Generator, Tensor

from rlsparse.batch import Rollout, Selection
from rlsparse.components.component import Range
from rlsparse.components.token_sampler.base import TokenSampler


@dataclass(frozen=True)
class PrefixCut(TokenSampler):
    """The first L tokens of each completion, L uniform on {m, ..., length} with m = min(min_tokens, length).

    Random prefix cutting of NAT, Sang et al. 2026 (2603.06619). The tokens behind the cut need no forward pass, since
    the earlier ones do not depend on them. With ``reweight`` a kept token has the weight 1/p, p its probability to be
    kept, and means are over the whole completion (Horvitz-Thompson): the gradient is an unbiased estimate of the full
    one. For token number t from 1, p = 1 if t ≤ m, else (length - t + 1) / (length - m + 1). Without ``reweight`` it is
    biased towards early tokens, and means are over the kept tokens.

    Attributes:
        min_tokens: the smallest L (ours); a shorter completion is kept as it is.
        reweight: whether weights are 1/p instead of 1.
    """

    cuts_completions: ClassVar[bool] = True

    min_tokens: Annotated[int, Range(1)]
    reweight: bool

    def __call__(self, advantages: Tensor, rollout: Rollout, generator: Generator) -> Selection:
        lengths = rollout.lengths.cpu()  # (B,)
        uniform = torch.rand(lengths.shape, generator=generator, dtype=torch.float64)  # (B,)
        shortest = lengths.clamp(max=self.min_tokens)  # (B,)
        drawn = shortest + (uniform * (lengths - shortest + 1)).long()  # (B,)
        kept = torch.minimum(drawn, lengths).to(rollout.lengths.device)  # (B,) the product may be rounded up
        return self.of_kept(kept, rollout.lengths, rollout.completion_ids.shape[1])

    def of_kept(self, kept: Tensor, lengths: Tensor, width: int) -> Selection:
        """Return the selection that follows from the outcomes of the draws.

        Args:
            kept: (B,) long: L, the number of tokens that each completion keeps.
            lengths: (B,) long.
            width: T.
        """
        place = torch.arange(width, device=lengths.device)  # (T,)
        chosen = (place < kept[:, None]).float()  # (B, T)
        if not self.reweight:
            return Selection(weights=chosen, counts=kept.float())
        shortest = lengths.clamp(max=self.min_tokens)  # (B,)
        cuts = lengths - shortest + 1  # (B,) number of values that L can have
        keeping = (lengths[:, None] - place).clamp(min=1).minimum(cuts[:, None])  # (B, T) those that keep a token
        return Selection(weights=chosen * cuts[:, None] / keeping, counts=lengths.float())

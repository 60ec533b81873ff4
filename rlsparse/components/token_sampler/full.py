"""Every token: the baseline of all sparse methods."""

from dataclasses import dataclass

from torch import Generator, Tensor

from rlsparse.batch import Rollout, Selection
from rlsparse.components.token_sampler.base import TokenSampler


@dataclass(frozen=True)
class Full(TokenSampler):
    """Every completion token: GRPO, RGRA."""

    def __call__(self, advantages: Tensor, rollout: Rollout, generator: Generator) -> Selection:
        return Selection(weights=rollout.mask.float(), counts=rollout.lengths.float())

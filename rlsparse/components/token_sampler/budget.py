"""Controls (ours) with a fixed budget of k tokens a completion: is it the shape of S-GRPO that matters, or sparsity?"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Generator, Tensor

from rlsparse.batch import Rollout, Selection
from rlsparse.components.component import Range
from rlsparse.components.token_sampler.base import TokenSampler, largest


@dataclass(frozen=True)
class Random(TokenSampler):
    """k tokens drawn uniformly without replacement; with ``reweight`` each has the weight length/k (1/p)."""

    budget: Annotated[int, Range(1)]
    reweight: bool

    def __call__(self, advantages: Tensor, rollout: Rollout, generator: Generator) -> Selection:
        scores = torch.rand(rollout.completion_ids.shape, generator=generator).to(rollout.lengths.device)  # (B, T)
        selection = largest(scores, rollout.mask, self.budget)
        if not self.reweight:
            return selection
        lengths = rollout.lengths.float()  # (B,)
        inverse_probability = (lengths / self.budget).clamp(min=1.0)  # (B,)
        return Selection(weights=selection.weights * inverse_probability[:, None], counts=lengths)


@dataclass(frozen=True)
class First(TokenSampler):
    """The first k tokens."""

    budget: Annotated[int, Range(1)]

    def __call__(self, advantages: Tensor, rollout: Rollout, generator: Generator) -> Selection:
        position = torch.arange(rollout.completion_ids.shape[1], device=rollout.lengths.device)  # (T,)
        return largest(-position.float().expand_as(rollout.completion_ids), rollout.mask, self.budget)


@dataclass(frozen=True)
class HighEntropy(TokenSampler):
    """The k tokens at which the model that sampled them had the highest entropy."""

    budget: Annotated[int, Range(1)]

    def __call__(self, advantages: Tensor, rollout: Rollout, generator: Generator) -> Selection:
        return largest(rollout.entropy, rollout.mask, self.budget)

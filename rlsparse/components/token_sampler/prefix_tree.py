"""The token sampler of T-SPMO."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from rlsparse.batch import Rollout, Selection
from rlsparse.components.token_sampler.base import TokenSampler


@dataclass(frozen=True)
class BranchPoints(TokenSampler):
    """The transitions with a non-zero advantage: T-SPMO, Lee & Tong 2025 (2504.20834).

    They are distinct, since the advantage credits each of them only once.
    """

    per_transition: ClassVar[bool] = True

    def __call__(self, advantages: Tensor, rollout: Rollout, generator: Generator) -> Selection:
        weights = (advantages != 0).float()  # (B, T)
        return Selection(weights=weights, counts=weights.sum(dim=1))

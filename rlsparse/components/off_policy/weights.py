"""The corrections of Nested-ReFT, Heuillet et al. 2025 (2508.10123)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from rlsparse.components.component import OneOf, Range
from rlsparse.components.off_policy.base import OffPolicyWeight


@dataclass(frozen=True)
class NoCorrection(OffPolicyWeight):
    """1: the completions count as samples of the policy itself."""

    corrects: ClassVar[bool] = False

    def __call__(self, ratio: Tensor) -> Tensor:
        return torch.ones_like(ratio)


@dataclass(frozen=True)
class Importance(OffPolicyWeight):
    """π_old/μ; unbiased with ``level=sequence`` alone."""

    level: Annotated[str, OneOf("token", "sequence")]

    @property
    def needs_whole_rows(self) -> bool:
        return self.level == "sequence"

    def __call__(self, ratio: Tensor) -> Tensor:
        return ratio


@dataclass(frozen=True)
class Truncated(Importance):
    """min(π_old/μ, C); truncation as in IMPALA, Espeholt et al. 2018 (1802.01561)."""

    cap: Annotated[float, Range(1)]

    @property
    def ceiling(self) -> float:
        return self.cap

    def __call__(self, ratio: Tensor) -> Tensor:
        return ratio.clamp(max=self.cap)


@dataclass(frozen=True)
class Retrace(OffPolicyWeight):
    """λ·min(1, π_old/μ); the trace as in Retrace, Munos et al. 2016 (1606.02647)."""

    trace: Annotated[float, Range(0, 1, above=True)]

    @property
    def ceiling(self) -> float:
        return 1.0

    def __call__(self, ratio: Tensor) -> Tensor:
        return self.trace * ratio.clamp(max=1.0)

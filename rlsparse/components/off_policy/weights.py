"""The corrections of Nested-ReFT, Heuillet et al. 2025 (2508.10123), and those that leave completions or tokens out.

``level`` says what the ratio r is of: ``token``; ``sequence``, the product over the completion; or ``geometric``, the
geometric mean over the completion, exp(mean_t log r_t), which does not grow or shrink with its length.
"""

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

    level: Annotated[str, OneOf("token", "sequence", "geometric")]

    @property
    def needs_whole_rows(self) -> bool:
        return self.level != "token"

    @property
    def geometric(self) -> bool:
        return self.level == "geometric"

    def __call__(self, ratio: Tensor) -> Tensor:
        return ratio


@dataclass(frozen=True)
class Truncated(Importance):
    """min(π_old/μ, C); truncation as in IMPALA, Espeholt et al. 2018 (1802.01561).

    TRL 1.16: ``vllm_importance_sampling_mode`` ``token_truncate`` and ``sequence_truncate`` with
    ``vllm_importance_sampling_clip_max`` = C (3 there) and ``vllm_importance_sampling_clip_min`` = null. The bound from
    below that TRL can add has no counterpart here.
    """

    cap: Annotated[float, Range(1)]

    @property
    def ceiling(self) -> float:
        return self.cap

    def __call__(self, ratio: Tensor) -> Tensor:
        return ratio.clamp(max=self.cap)


@dataclass(frozen=True)
class Masked(Importance):
    """r = π_old/μ where low ≤ r ≤ high, 0 outside. IcePop, Ling Team 2025 (2510.18855), with ``level=token``.

    TRL 1.16: ``vllm_importance_sampling_mode`` ``token_mask`` and ``sequence_mask`` (its default, with
    ``vllm_importance_sampling_clip_max`` = high = 3 and no ``vllm_importance_sampling_clip_min``, low = 0). Ratios that
    equal a bound are kept, there as here. ``level=geometric`` masks completions by their mean log ratio, as in Liu et
    al. 2025, "When speed kills stability", but the weight of a kept token is the geometric mean too (ours).

    Attributes:
        low, high: smallest and largest ratio that is kept; 1 lies between them, so that tokens that the policy itself
            sampled keep their weight of 1.
    """

    low: Annotated[float, Range(0, 1)]
    high: Annotated[float, Range(1)]

    @property
    def ceiling(self) -> float:
        return self.high

    def cut(self, ratio: Tensor) -> Tensor:
        return (ratio < self.low) | (ratio > self.high)

    def __call__(self, ratio: Tensor) -> Tensor:
        return ratio.masked_fill(self.cut(ratio), 0.0)


@dataclass(frozen=True)
class Retrace(OffPolicyWeight):
    """λ·min(1, π_old/μ); the trace as in Retrace, Munos et al. 2016 (1606.02647)."""

    trace: Annotated[float, Range(0, 1, above=True)]

    @property
    def ceiling(self) -> float:
        return 1.0

    def __call__(self, ratio: Tensor) -> Tensor:
        return self.trace * ratio.clamp(max=1.0)

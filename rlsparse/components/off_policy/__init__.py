"""Weights for tokens that another model wrote: μ sampled the completions, π_old is the policy before the update.

Every correction is ``f(ratio (b, T), config) -> weights (b, T)`` with ratio = π_old/μ. The weights carry no gradient.
They multiply all that a token adds to the loss, its KL penalty too (ours): an expectation under π_old takes that.
Heuillet et al. 2025 (2508.10123); truncation as in IMPALA (1802.01561), the trace as in Retrace (1606.02647).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import cast

import torch
from torch import Tensor

from rlsparse.config.schema import ImportanceConfig, OffPolicyConfig, RetraceConfig, TruncatedConfig


def none(ratio: Tensor, config: OffPolicyConfig) -> Tensor:
    """1: the completions are treated as the policy's own."""
    return torch.ones_like(ratio)


def importance(ratio: Tensor, config: OffPolicyConfig) -> Tensor:
    """π_old/μ; unbiased with ``level=sequence`` alone."""
    return ratio


def truncated(ratio: Tensor, config: OffPolicyConfig) -> Tensor:
    """min(π_old/μ, C)."""
    return ratio.clamp(max=cast(TruncatedConfig, config).cap)


def retrace(ratio: Tensor, config: OffPolicyConfig) -> Tensor:
    """λ·min(1, π_old/μ)."""
    return cast(RetraceConfig, config).trace * ratio.clamp(max=1.0)


OFF_POLICY: dict[str, Callable[[Tensor, OffPolicyConfig], Tensor]] = {
    "none": none,
    "importance": importance,
    "truncated": truncated,
    "retrace": retrace,
}


def needs_whole_rows(config: OffPolicyConfig) -> bool:
    """Whether a token's weight depends on all tokens of its completion."""
    return isinstance(config, ImportanceConfig) and config.level == "sequence"


def correction_ratio(old: Tensor, behaviour: Tensor, mask: Tensor, config: OffPolicyConfig) -> Tensor:
    """(b, T) π_old/μ of each token or, with ``level=sequence``, of its whole completion; no gradient.

    Args:
        old: (b, T) log-probs under π_old; only those of ``mask`` are read.
        behaviour: (b, T) under μ.
        mask: (b, T) bool: the tokens asked for; with ``level=sequence`` all of the completions.
    """
    log_ratio = torch.where(mask, old.detach() - behaviour, 0.0)
    if needs_whole_rows(config):
        log_ratio = log_ratio.sum(dim=1, keepdim=True).expand_as(log_ratio)
    return log_ratio.exp()


@dataclass
class Mismatch:
    """How far μ is from π_old, over the tokens of a step whose terms are in the loss; pieces add up.

    Attributes:
        tokens: their number.
        kl: Σ of π_old/μ − 1 − log(π_old/μ), never negative and, on a token that μ drew, an unbiased estimate of
            KL(μ‖π_old) there. Only tokens of the loss are seen, so a choice by outcome (groups of unequal rewards, a
            tree's branch points) shows in it.
        weight, square, largest: Σ w, Σ w² and the largest w.
        cut: tokens whose ratio the correction held down.
    """

    tokens: int = 0
    kl: float = 0.0
    weight: float = 0.0
    square: float = 0.0
    largest: float = 0.0
    cut: int = 0

    def add(self, log_ratio: Tensor, ratio: Tensor, weights: Tensor, config: OffPolicyConfig) -> None:
        """Take in k tokens.

        Args:
            log_ratio: (k,) log π_old − log μ of the tokens themselves.
            ratio: (k,) that the correction was given, see ``correction_ratio``. weights: (k,) that it made of it.
        """
        if len(log_ratio) == 0:
            return
        self.tokens += len(log_ratio)
        self.kl += float((log_ratio.exp() - 1 - log_ratio).sum())
        self.weight += float(weights.sum())
        self.square += float(weights.square().sum())
        self.largest = max(self.largest, float(weights.max()))
        ceiling = {"truncated": getattr(config, "cap", 1.0), "retrace": 1.0}.get(config.name, math.inf)
        self.cut += int((ratio > ceiling).sum())

    def __add__(self, other: "Mismatch") -> "Mismatch":
        both = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Mismatch(**{**both, "largest": max(self.largest, other.largest)})

    def metrics(self) -> dict[str, float]:
        """By their documented names; none where no token was taken in."""
        if self.tokens == 0:
            return {}
        return {
            "off_policy/kl": self.kl / self.tokens,
            "off_policy/effective_sample_size": self.weight**2 / (self.tokens * self.square) if self.square else 0.0,
            "off_policy/weight_mean": self.weight / self.tokens,
            "off_policy/weight_max": self.largest,
            "off_policy/frac_truncated": self.cut / self.tokens,
        }

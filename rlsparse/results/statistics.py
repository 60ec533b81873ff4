"""What seeds can tell: intervals, paired differences, exact tests. Pure functions of a few numbers each.

Seeds are paired: a seed draws the same prompts for every method, so methods are compared seed by seed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

RESAMPLES = 10_000
EXACT_UP_TO = 16  # seeds: 2^16 sign patterns; beyond, as many random ones
LEVEL = 0.05  # above it, a difference is called inconclusive
MEANING = (
    "Mean [95 % bootstrap interval] over seeds. Differences are paired by seed; p is the two-sided sign-flip "
    f"permutation test's, exact up to {EXACT_UP_TO} seeds, and a difference is called inconclusive unless "
    f"p ≤ {LEVEL:g}, which takes at least six seeds; it is not corrected for the number of methods."
)
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: NaN where there is no value.
        low, high: percentile bootstrap interval, 95 %; NaN where fewer than two seeds leave it unknown.
        iqm: interquartile mean: the mean without the lowest and the highest quarter, rounded down to whole seeds.
        n: seeds.
    """

    mean: float
    low: float
    high: float
    iqm: float
    n: int


@dataclass(frozen=True)
class Test:
    """How far a mean over seeds lies from a bound.

    Attributes:
        estimate: of the mean.
        p: probability, if the values lay symmetrically around the bound, of a mean at least as far from it on either
            side. NaN without values.
        verdict: "above", "below" or "inconclusive", of the bound.
    """

    estimate: Estimate
    p: float
    verdict: str


def estimate(values: "pd.Series[float]") -> Estimate:
    """Mean and 95 % percentile bootstrap interval (Efron 1979) over seeds as independent draws.

    Args:
        values: one a seed; missing ones are left out.
    """
    present = values.dropna().to_numpy(dtype=float)
    n = len(present)
    nothing = float("nan")
    if n == 0:
        return Estimate(nothing, nothing, nothing, nothing, 0)
    low, high = _bootstrap(present) if n > 1 else (nothing, nothing)
    cut = n // 4
    return Estimate(float(present.mean()), low, high, float(np.sort(present)[cut : n - cut].mean()), n)


def against(values: "pd.Series[float]", bound: float) -> Test:
    """Whether the mean lies above or below a bound, as far as the seeds can tell.

    Args:
        values: one a seed, such as paired differences.
    """
    found = estimate(values)
    p = sign_flip_p(values.dropna().to_numpy(dtype=float) - bound)
    side = "above" if found.mean > bound else "below"
    return Test(found, p, side if p <= LEVEL else "inconclusive")


def paired(values: "pd.Series[float]", baseline: "pd.Series[float]") -> "pd.Series[float]":
    """Differences seed by seed, of the seeds that both have.

    Args:
        values, baseline: indexed by seed, a seed once.
    """
    return (values.dropna() - baseline.dropna()).dropna()


def sign_flip_p(differences: Floats) -> float:
    """Two-sided p of the paired permutation test: the share of sign patterns whose mean is as far from 0, or farther.

    Exact up to ``EXACT_UP_TO`` values; with n of them it is at least 2 / 2^n (Fisher 1935). Beyond, of as many random
    patterns and the one observed, so that it is never 0 (Phipson and Smyth 2010). NaN without values.
    """
    n = len(differences)
    if n == 0:
        return float("nan")
    if n <= EXACT_UP_TO:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)  # (2^n, n)
    else:
        signs = np.random.default_rng(0).choice([-1, 1], size=(2**EXACT_UP_TO, n))
        signs[0] = 1
    means = np.abs(signs @ differences) / n
    observed = abs(differences.mean())
    return float((means >= observed - 1e-12 * max(1.0, observed)).mean())


def _bootstrap(present: Floats) -> tuple[float, float]:
    draws = np.random.default_rng(0).integers(len(present), size=(RESAMPLES, len(present)))
    low, high = np.quantile(present[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)

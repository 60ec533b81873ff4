"""Statistics over seeds: intervals, paired differences and exact tests. All functions are pure.

Seeds are paired: the same seed draws the same prompts for every method, so methods are compared seed by seed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

RESAMPLES = 10_000
EXACT_UP_TO = 16  # seeds: all 2^16 sign patterns are enumerated; with more seeds, as many random patterns are drawn
LEVEL = 0.05  # significance level: with a larger p, a difference is called inconclusive
MEANING = (
    "Values of the form mean [low, high] are means over seeds with 95 % bootstrap intervals. Differences are paired by "
    "seed; p is the p-value of the two-sided sign-flip permutation test, which is exact up to "
    f"{EXACT_UP_TO} seeds. A difference is called inconclusive unless p ≤ {LEVEL:g}, which needs at least six seeds. p "
    "is not corrected for the number of methods."
)
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval.

    Attributes:
        mean: NaN without values.
        low, high: bounds of the 95 % percentile bootstrap interval; NaN with fewer than two seeds.
        iqm: interquartile mean: the mean without the lowest and the highest quarter, rounded down to whole seeds.
        n: number of seeds.
    """

    mean: float
    low: float
    high: float
    iqm: float
    n: int


@dataclass(frozen=True)
class PermutationTest:
    """The result of testing a mean over seeds against a bound.

    Attributes:
        estimate: the mean.
        p: two-sided p-value: the probability of a mean at least as far from the bound, if the values were distributed
            symmetrically around it. NaN without values.
        verdict: "above" or "below" the bound, or "inconclusive".
    """

    estimate: Estimate
    p: float
    verdict: str


def estimate(values: "pd.Series[float]") -> Estimate:
    """Return the mean and its 95 % percentile bootstrap interval (Efron 1979), with seeds as independent draws.

    Args:
        values: one value per seed; missing values are left out.
    """
    present = values.dropna().to_numpy(dtype=float)
    n = len(present)
    nan = float("nan")
    if n == 0:
        return Estimate(nan, nan, nan, nan, 0)
    low, high = _bootstrap(present) if n > 1 else (nan, nan)
    cut = n // 4
    return Estimate(float(present.mean()), low, high, float(np.sort(present)[cut : n - cut].mean()), n)


def permutation_test(values: "pd.Series[float]", bound: float) -> PermutationTest:
    """Test whether the mean lies above or below a bound.

    Args:
        values: one value per seed, such as paired differences; missing values are left out.
    """
    found = estimate(values)
    p = sign_flip_p(values.dropna().to_numpy(dtype=float) - bound)
    side = "above" if found.mean > bound else "below"
    return PermutationTest(found, p, side if p <= LEVEL else "inconclusive")


def paired(values: "pd.Series[float]", baseline: "pd.Series[float]") -> "pd.Series[float]":
    """Return the differences by seed, for the seeds that both have.

    Args:
        values, baseline: indexed by seed; each seed occurs once.
    """
    return (values.dropna() - baseline.dropna()).dropna()


def sign_flip_p(differences: Floats) -> float:
    """Return the two-sided p-value of the paired permutation test.

    It is the share of sign patterns whose mean is at least as far from 0 as the observed mean. Up to ``EXACT_UP_TO``
    values it is exact; with n values it is at least 2 / 2^n (Fisher 1935). With more values it is computed over random
    patterns that include the observed one, so that it is never 0 (Phipson and Smyth 2010).

    Args:
        differences: shape (n,).

    Returns:
        The p-value; NaN for n = 0.
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

"""Means with their errors, and tests of them against a bound. All functions are pure.

Seeds are paired: the same seed draws the same prompts for every method, so methods are compared seed by seed. Questions
are paired too: every method answers the same ones. Where the answers are known, errors include both.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from rlsparse.results.crossed import Floats, Spread, Widest, analyse, over_seeds, over_several
from rlsparse.results.sample import Sample

EXACT_UP_TO = 16  # seeds: all 2^16 sign patterns are enumerated; with more seeds, as many random patterns are drawn
LEVEL = 0.05  # significance level: with a larger corrected p, a difference is called inconclusive
FEWEST = 3  # seeds of a t test: two values are equal by chance too often, since accuracies are counts
ROUNDING = 1e-12  # of an error, below which all values are equal
NAN = float("nan")


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval.

    Attributes:
        mean: NaN without values.
        low, high: bounds of the 95 % interval: for new seeds and new questions where ``questions`` is above 0, else for
            new seeds. NaN with fewer than two seeds, and with two that are equal by chance.
        seeds_low, seeds_high: bounds of the 95 % interval for new seeds on the same questions.
        iqm: interquartile mean: the mean without the lowest and the highest quarter, rounded down to whole seeds.
        n: number of seeds.
        questions: number of questions whose choice is part of the interval; 0 where it is not.
    """

    mean: float
    low: float
    high: float
    seeds_low: float
    seeds_high: float
    iqm: float
    n: int
    questions: int = 0

    def within(self, least: float, most: float) -> "Estimate":
        """Return the estimate with bounds that do not leave a range of possible values, such as that of a share."""
        if self.low != self.low:
            return self

        def inside(value: float) -> float:
            return min(max(value, least), most)

        return replace(
            self,
            low=inside(self.low),
            high=inside(self.high),
            seeds_low=inside(self.seeds_low),
            seeds_high=inside(self.seeds_high),
        )

    def scaled(self, factor: float) -> "Estimate":
        """Return the estimate in another unit."""
        names = ("mean", "low", "high", "seeds_low", "seeds_high", "iqm")
        return Estimate(**{name: factor * getattr(self, name) for name in names}, n=self.n, questions=self.questions)


@dataclass(frozen=True)
class MeanTest:
    """The result of testing a mean against a bound.

    Attributes:
        estimate: the mean.
        above: one-sided p-value of the hypothesis that the true mean is at most the bound; NaN with fewer than
            ``FEWEST`` seeds. Where the values are all equal, it is half of ``p_seeds``.
        below: the same of the hypothesis that it is at least the bound.
        p_seeds: two-sided p-value over seeds, for new seeds on these questions: of the sign-flip permutation test, and
            of the exact binomial test of a rate.
        side: "above" if the mean is above the bound, else "below".
    """

    estimate: Estimate
    above: float
    below: float
    p_seeds: float
    side: str

    @property
    def p(self) -> float:
        """The two-sided p-value, before any correction for several comparisons."""
        return min(2 * min(self.above, self.below), 1.0)  # NaN stays NaN


def estimate(values: "pd.Series[float] | Sample") -> Estimate:
    """Return the mean and its 95 % interval: of a rate the exact binomial one, else Student's t interval.

    Args:
        values: one value per seed, of which missing ones are left out; or a sample, whose questions then count too.
    """
    sample = Sample.of(values)
    present = sample.values
    n, inner = len(present), _over_seeds(sample)
    outer = _over_both(sample) or inner
    if outer is None or inner is None:
        mean = float(present.mean()) if n else NAN
        return Estimate(mean, NAN, NAN, NAN, NAN, mean, n)
    cut = n // 4
    iqm = float(np.sort(present)[cut : n - cut].mean())
    questions = sample.questions if outer is not inner else 0
    bounds = [one.interval() if one.error > 0 or n >= FEWEST else (NAN, NAN) for one in (outer, inner)]
    if _is_binary(sample) and not sample.is_difference:
        exact = stats.binomtest(int(present.sum()), n).proportion_ci(method="exact")  # Clopper and Pearson 1934
        bounds = [(float(exact.low), float(exact.high))] * 2
    return Estimate(inner.mean, *bounds[0], *bounds[1], iqm, n, questions)


def mean_test(values: "pd.Series[float] | Sample", bound: float) -> MeanTest:
    """Test whether the true mean lies above or below a bound.

    A rate, whose values are 0 or 1, is tested against a bound by the exact binomial test, and the difference of two
    rates against 0 by the sign-flip test, which is then the exact test of McNemar 1947. Values that are all equal have
    no t distribution, and the sign-flip test decides; everything else is tested by t.

    Args:
        values: one value per seed, such as paired differences, or a sample.
    """
    sample = Sample.of(values)
    found = estimate(sample)
    spread = _over_both(sample) or _over_seeds(sample)
    p_seeds, side = sign_flip_p(sample.values - bound), "above" if found.mean > bound else "below"
    if _is_binary(sample) and not sample.is_difference:
        above, below = _binomial(sample.values, bound)
        p_seeds = min(2 * min(above, below), 1.0)
        above, below = (above, below) if found.n >= FEWEST else (NAN, NAN)
    elif spread is None or found.n < FEWEST:
        above = below = NAN
    elif spread.error <= ROUNDING * max(1.0, abs(found.mean)) or (_is_binary(sample) and bound == 0):
        above, below = (p_seeds / 2 if side == one and found.mean != bound else 1.0 for one in ("above", "below"))
    else:
        above, below = spread.p_above(bound), spread.p_below(bound)
    return MeanTest(found, above, below, p_seeds, side)


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
        return NAN
    if n <= EXACT_UP_TO:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)  # (2^n, n)
    else:
        signs = np.random.default_rng(0).choice([-1, 1], size=(2**EXACT_UP_TO, n))
        signs[0] = 1
    means = np.abs(signs @ differences) / n
    observed = abs(differences.mean())
    return float((means >= observed - 1e-12 * max(1.0, observed)).mean())


def _is_binary(sample: Sample) -> bool:
    """Return whether these are values of 0 and 1 by their nature, or differences of two such values."""
    return sample.is_rate and bool(np.isin(sample.values, (-1, 0, 1)).all())


def _binomial(values: Floats, bound: float) -> tuple[float, float]:
    """Return the one-sided p-values that a rate is above a bound, and below it.

    Args:
        values: 0 or 1, shape (n,).
    """
    n, count, rate = len(values), int(values.sum()), min(max(bound, 0.0), 1.0)
    return float(stats.binom.sf(count - 1, n, rate)), float(stats.binom.cdf(count, n, rate))


def _over_seeds(sample: Sample) -> Spread | None:
    return over_seeds(sample.values) if len(sample.values) > 1 else None


def _over_both(sample: Sample) -> Widest | None:
    """Return the mean over seeds with its error for new seeds and questions; None where questions are not known."""
    scores = sample.scores
    if scores is None or min(scores.shape) < 2:
        return None
    if scores.columns.nlevels > 1:  # several benchmarks
        parts = [group.T.to_numpy(dtype=float) for _, group in scores.T.groupby(level=0)]
        if min(part.shape[1] for part in parts) < 2:
            return None
        return over_several([analyse(part) for part in parts], sample.values)
    # the mean of the values by seed, from which a mean of shares may differ by rounding
    return analyse(scores.to_numpy(dtype=float)).over_both().around(float(sample.values.mean()))

"""Means over seeds and questions. The two are crossed: the run of each seed answers the same questions.

The score of seed s on question q is modelled as μ + a_s + b_q + e_sq with independent random effects of mean 0, the
two-way random-effects model of analysis of variance. The mean over all S·Q scores has the variance

    σ_a²/S + σ_b²/Q + σ_e²/(S·Q).

Error bars over questions, and pairing by question: Miller 2024 (2411.00640). Degrees of freedom: Satterthwaite 1946.

With few seeds and many questions, Satterthwaite's degrees of freedom are too many whenever the observed mean square of
the seeds is small by chance. p-values at small levels, which corrections for many comparisons need, are then several
times too small. So the t interval over seeds counts too, and the wider bound and the larger p are taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Spread:
    """A mean and its standard error, with the degrees of freedom of its t distribution.

    Attributes:
        mean: the mean.
        error: its standard error; 0 where all values are equal.
        freedom: degrees of freedom.
    """

    mean: float
    error: float
    freedom: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the bounds of Student's t interval."""
        half = float(stats.t.ppf((1 + level) / 2, self.freedom)) * self.error if self.error > 0 else 0.0
        return self.mean - half, self.mean + half

    def p_above(self, bound: float) -> float:
        """Return the one-sided p-value of the hypothesis that the true mean is at most ``bound``."""
        if self.error == 0:
            return float(self.mean <= bound)
        return float(stats.t.sf((self.mean - bound) / self.error, self.freedom))

    def p_below(self, bound: float) -> float:
        """Return the one-sided p-value of the hypothesis that the true mean is at least ``bound``."""
        if self.error == 0:
            return float(self.mean >= bound)
        return float(stats.t.cdf((self.mean - bound) / self.error, self.freedom))

    def around(self, mean: float) -> "Spread":
        """Return the same error around another mean."""
        return replace(self, mean=mean)


@dataclass(frozen=True)
class Widest:
    """Several errors of one mean, of which each bound and each p-value is the most cautious one."""

    spreads: tuple[Spread, ...]

    @property
    def error(self) -> float:
        """The largest error."""
        return max(one.error for one in self.spreads)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the lowest and the highest bound."""
        lows, highs = zip(*(one.interval(level) for one in self.spreads), strict=True)
        return min(lows), max(highs)

    def p_above(self, bound: float) -> float:
        """Return the largest one-sided p-value of the hypothesis that the true mean is at most ``bound``."""
        return max(one.p_above(bound) for one in self.spreads)

    def p_below(self, bound: float) -> float:
        """Return the largest one-sided p-value of the hypothesis that the true mean is at least ``bound``."""
        return max(one.p_below(bound) for one in self.spreads)

    def around(self, mean: float) -> "Widest":
        """Return the same errors around another mean."""
        return Widest(tuple(one.around(mean) for one in self.spreads))


@dataclass(frozen=True)
class Crossed:
    """The analysis of variance of scores by seed and question.

    Attributes:
        mean: over all scores.
        seeds, questions: S and Q.
        of_seeds, of_questions, of_rest: mean squares. Their expectations are σ_e² + Q·σ_a², σ_e² + S·σ_b² and σ_e².
    """

    mean: float
    seeds: int
    questions: int
    of_seeds: float
    of_questions: float
    of_rest: float

    @property
    def variances(self) -> tuple[float, float, float]:
        """Return the estimates of σ_a², σ_b² and σ_e²; a negative estimate is 0."""
        of_seeds = max(0.0, self.of_seeds - self.of_rest) / self.questions
        of_questions = max(0.0, self.of_questions - self.of_rest) / self.seeds
        return of_seeds, of_questions, self.of_rest

    def over_seeds(self) -> Spread:
        """Return the mean with its error for new seeds on these questions: the t interval of the means of the seeds."""
        return Spread(self.mean, (self.of_seeds / (self.seeds * self.questions)) ** 0.5, self.seeds - 1)

    def over_both(self) -> Widest:
        """Return the mean with its error for new seeds and new questions, where that over seeds counts too."""
        return Widest((self.two_way(), self.over_seeds()))

    def two_way(self) -> Spread:
        """Return the mean with its error for new seeds and new questions by the analysis of variance alone.

        Its squared error is (MS_seeds + max(MS_questions − MS_rest, 0)) / (S·Q), which is unbiased but for the
        maximum, and never smaller than for these questions. The degrees of freedom are Satterthwaite's, and at least
        those of the smaller of S and Q.
        """
        more = max(0.0, self.of_questions - self.of_rest)
        total = self.of_seeds + more
        if total == 0:
            return Spread(self.mean, 0.0, self.seeds - 1)
        S, Q = self.seeds, self.questions
        uncertain = self.of_seeds**2 / (S - 1)
        if more > 0:
            uncertain += self.of_questions**2 / (Q - 1) + self.of_rest**2 / ((S - 1) * (Q - 1))
        return Spread(self.mean, (total / (S * Q)) ** 0.5, max(total**2 / uncertain, min(S, Q) - 1))


def analyse(scores: Floats) -> Crossed:
    """Return the analysis of variance of scores.

    Args:
        scores: shape (S, Q) with S ≥ 2 and Q ≥ 2; no value is missing.
    """
    S, Q = scores.shape
    mean = scores.mean()
    of_seeds, of_questions = scores.mean(axis=1), scores.mean(axis=0)  # (S,), (Q,)
    rest = scores - of_seeds[:, None] - of_questions + mean  # (S, Q)
    return Crossed(
        mean=float(mean),
        seeds=S,
        questions=Q,
        of_seeds=float(Q * np.square(of_seeds - mean).sum() / (S - 1)),
        of_questions=float(S * np.square(of_questions - mean).sum() / (Q - 1)),
        of_rest=float(np.square(rest).sum() / ((S - 1) * (Q - 1))),
    )


def over_several(parts: Sequence[Crossed], values: Floats) -> Widest:
    """Return the mean over several sets of questions, each of which counts the same, for new seeds and new questions.

    Its squared error is that over seeds and, for the choice of the questions of each of the K sets, a K²th of the part
    that ``Crossed.two_way`` has. With one set it is the error of ``Crossed.over_both``.

    Args:
        parts: the analysis of each set, of the same seeds.
        values: means over the sets by seed, shape (S,).
    """
    K, S, alone = len(parts), len(values), over_seeds(values)
    total, uncertain = alone.error**2, alone.error**4 / (S - 1)
    for one in parts:
        cells = S * one.questions * K**2
        more = max(0.0, one.of_questions - one.of_rest) / cells
        if more > 0:
            total += more
            uncertain += (one.of_questions / cells) ** 2 / (one.questions - 1)
            uncertain += (one.of_rest / cells) ** 2 / ((S - 1) * (one.questions - 1))
    if total == 0:
        return Widest((alone,))
    least = min(S, *(one.questions for one in parts)) - 1
    return Widest((Spread(alone.mean, total**0.5, max(total**2 / uncertain, least)), alone))


def over_seeds(values: Floats) -> Spread:
    """Return the mean over seeds with its error.

    Args:
        values: shape (S,) with S ≥ 2.
    """
    return Spread(float(values.mean()), float(values.std(ddof=1)) / len(values) ** 0.5, len(values) - 1)

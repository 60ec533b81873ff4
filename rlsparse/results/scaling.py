"""Summaries of learning curves: the sigmoid of accuracy over cost, and the share of differences that noise explains.

The sigmoidal compute-performance curve is that of ScaleRL (Khatri et al. 2025, "The Art of Scaling Reinforcement
Learning Compute for LLMs", arXiv 2510.13786):

    R_C − R_0 = (A − R_0) / (1 + (C_mid / C)^B)

R_C is the accuracy at the cost C, R_0 the accuracy at the start, A the asymptote, B the scaling exponent and C_mid the
midpoint: the cost at which half of the gain A − R_0 is reached.
"""

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, special

from rlsparse.results.crossed import Floats
from rlsparse.results.curves import BEFORE_FIRST
from rlsparse.results.formatting import signed
from rlsparse.results.names import sorted_methods
from rlsparse.results.table import Table

PARAMETERS = 3  # A, B and C_mid
MIN_EVALUATIONS = 6  # after the start: twice the number of parameters
MAX_ASYMPTOTE_ERROR = 0.05  # standard error of A, as a share
MIN_METHODS = 3  # below it, the variance between methods says next to nothing
FIRST_MIDPOINTS = (0.05, 0.25, 0.75)  # starting values of C_mid, as shares of the last cost
FIRST_EXPONENTS = (0.7, 2.0)
EXPONENTS = (1e-3, 1e3)  # bounds of B; a curve that jumps from one evaluation to the next has no finite B
NOTE = (
    "Fit of the sigmoidal compute-performance curve of ScaleRL (Khatri et al. 2025, arXiv 2510.13786) to the sampled "
    "accuracy of each seed over the tokens sampled. asymptote: the accuracy that the curve approaches at unlimited "
    "cost. exponent: how steeply the accuracy rises around the midpoint. midpoint: the tokens at which half of the "
    "gain is reached. Values are means over the seeds whose fit was accepted; seeds fitted says how many these are. A "
    f"fit is refused with fewer than {MIN_EVALUATIONS} evaluations after the start, with a rise of at most the "
    "residual deviation, with a midpoint beyond the last cost, and with a standard error of the asymptote above "
    f"{100 * MAX_ASYMPTOTE_ERROR:g} points. Means over some of the seeds can be biased.{BEFORE_FIRST}: the midpoint "
    "lies before the first evaluation after step 0, so that half of the gain was reached unobserved; midpoint and "
    "exponent are uncertain."
)


class FitError(ValueError):
    """A learning curve from which the sigmoid cannot be determined; the message says which number is too small."""


@dataclass(frozen=True)
class SigmoidFit:
    """The sigmoid of a learning curve.

    Attributes:
        asymptote: A, as a share.
        exponent: B, without a unit.
        midpoint: C_mid, in the unit of the cost.
        start: R_0, the accuracy of the first evaluation, as a share.
        residual: standard deviation of the residuals, as a share, with E − 3 degrees of freedom.
        evaluations: E, the number of evaluations after the start.
    """

    asymptote: float
    exponent: float
    midpoint: float
    start: float
    residual: float
    evaluations: int

    def accuracy(self, cost: Floats) -> Floats:
        """Return the accuracy R_C at costs above 0, as a share, in the shape of ``cost``."""
        return _sigmoid(np.log(cost), self.start, (self.asymptote, np.log(self.midpoint), np.log(self.exponent)))


def fit_sigmoid(cost: Floats, accuracy: Floats) -> SigmoidFit:
    """Fit the sigmoidal compute-performance curve to a learning curve by least squares.

    A is bounded by R_0 and 1. R_0 is not fitted: it is the accuracy of the first evaluation. The
    logarithms of B and C_mid are fitted, which keeps both positive; B is bounded by ``EXPONENTS``. Of several fixed
    starts, the best fit is returned.

    Args:
        cost: the cost of each evaluation, shape (1 + E,), never decreasing. The first is 0, all others are above 0.
        accuracy: the accuracy of each evaluation as a share in [0, 1], shape (1 + E,), not the gain over the first.

    Raises:
        FitError: the curve does not determine the sigmoid: see ``NOTE``, or its first evaluation is not at the cost 0.
        ValueError: the arguments do not have these shapes and ranges.
    """
    cost, accuracy = np.asarray(cost, dtype=float), np.asarray(accuracy, dtype=float)
    _check_curve(cost, accuracy)
    start, after, evaluations = float(accuracy[0]), accuracy[1:], len(accuracy) - 1  # after: (E,)
    if cost[0] > 0:
        raise FitError(
            f"the first evaluation is at the cost {cost[0]:.6g}, not 0: the accuracy at the start is missing"
        )
    if evaluations < MIN_EVALUATIONS:
        raise FitError(f"{evaluations} evaluations after the start are fewer than {MIN_EVALUATIONS}")
    if after.max() <= start:
        raise FitError(f"the highest accuracy, {after.max():.3f}, is not above that of the start, {start:.3f}")
    scale = float(cost[-1])  # logarithms are of shares of the last cost, so that the fit does not depend on the unit
    log_cost = np.log(cost[1:] / scale)  # (E,)
    found, error = _least_squares(log_cost, after, start)
    asymptote, log_midpoint, log_exponent = (float(one) for one in found)
    fitted = _sigmoid(log_cost, start, found)  # (E,)
    residual = float(np.sqrt(((after - fitted) ** 2).sum() / (evaluations - PARAMETERS)))
    rise, midpoint = float(fitted[-1]) - start, scale * float(np.exp(log_midpoint))
    if rise <= residual:
        raise FitError(
            f"the fitted accuracy rises by {rise:.3f}, not by more than the residual deviation {residual:.3f}"
        )
    if midpoint > scale:
        raise FitError(f"the last cost, {scale:.6g}, is below the fitted midpoint, {midpoint:.6g}")
    if not error <= MAX_ASYMPTOTE_ERROR:
        raise FitError(
            f"the curve is too short or too noisy for its asymptote: its standard error, {error:.3f}, is above "
            f"{MAX_ASYMPTOTE_ERROR:g}"
        )
    return SigmoidFit(asymptote, float(np.exp(log_exponent)), midpoint, start, residual, evaluations)


def saturation_table(curves: pd.DataFrame, baseline: str | None = None) -> Table:
    """Return a table of the sigmoids of learning curves, one row per method; means over the seeds that can be fitted.

    Args:
        curves: the columns method, seed, step, accuracy_sampled and tokens_generated of ``results.curves.CURVES``.
            Evaluations without a value are left out; the curves of a seed that was run twice are averaged by step.
        baseline: the method of the first row; None for no such method.
    """
    rows, numbers, refused = [], [], []
    for method in sorted_methods(list(curves["method"]), baseline):
        own = curves[curves["method"] == method]
        fits, refusals = _fits(own)
        asymptote = _mean([100 * one.asymptote for one in fits])
        exponent = _mean([one.exponent for one in fits])
        midpoint = _mean([one.midpoint / 1000 for one in fits])
        first = own[own["step"] > 0].groupby("seed")["tokens_generated"].min().mean() / 1000
        mark = BEFORE_FIRST if midpoint < first else ""
        titles = ("asymptote, %", "exponent", "midpoint, thousands of tokens sampled")
        shown = (signed(asymptote, 1), signed(exponent, 2) + mark, signed(midpoint, 1) + mark) if fits else ("–",) * 3
        seeds = len(fits) + len(refusals)
        cells = dict(zip(titles, shown, strict=True))
        rows.append({"method": method, **cells, "seeds fitted": f"{len(fits)} of {seeds}"})
        unrounded = dict(zip(titles, (asymptote, exponent, midpoint), strict=True))
        numbers.append({"method": method, **unrounded, "seeds fitted": len(fits), "seeds": seeds})
        if not fits and refusals:
            refused.append(f"{method} (seed {refusals[0][0]}): {refusals[0][1]}")
    notes = [NOTE] + ([f"No seed fitted; the reason for the first one: {'; '.join(refused)}."] if refused else [])
    return Table(pd.DataFrame(rows), pd.DataFrame(numbers), notes)


def noise_share(gains: Floats) -> float:
    """Return the share of the variance between the mean gains of methods that noise between seeds explains, in [0, 1].

    The gain of method m with seed s is y_ms = μ + θ_m + c_s + e_ms. What a seed changes for all methods alike, c_s,
    such as that of a common start, does not change the differences of the means. Their variance has the expectation
    τ² + σ_e²/S, with the variance τ² of the θ_m. The share of the noise is (σ_e²/S) / (τ² + σ_e²/S), estimated by

        MS_rest / MS_methods,

    the mean squares of the two-way analysis of variance without repetitions (Fisher's 1/F), clipped to [0, 1].

    Args:
        gains: shape (M, S).

    Returns:
        The share; 1 if the variance of the means is at most that of the noise.

    Raises:
        ValueError: fewer than three methods, fewer than two seeds, or values that are not finite.
    """
    gains = np.asarray(gains, dtype=float)
    if gains.ndim != 2 or len(gains) < MIN_METHODS or gains.shape[1] < 2:
        raise ValueError(f"gains have the shape {gains.shape}, not (M, S) with M >= {MIN_METHODS} and S >= 2")
    if not np.isfinite(gains).all():
        raise ValueError("gains must be finite")
    M, S = gains.shape
    means = gains.mean(axis=1)  # (M,)
    rest = gains - means[:, None] - gains.mean(axis=0) + gains.mean()  # (M, S)
    noise, observed = float((rest**2).sum() / ((M - 1) * (S - 1))), S * float(means.var(ddof=1))
    return 1.0 if observed <= noise else noise / observed


def _check_curve(cost: Floats, accuracy: Floats) -> None:
    if cost.ndim != 1 or cost.shape != accuracy.shape or not len(cost):
        raise ValueError(f"cost {cost.shape} and accuracy {accuracy.shape} must have one shape (1 + E,)")
    if not np.isfinite(cost).all() or (cost < 0).any() or (np.diff(cost) < 0).any() or (cost[1:] <= 0).any():
        raise ValueError("costs must never decrease, and be above 0 after the first evaluation")
    if not ((accuracy >= 0) & (accuracy <= 1)).all():  # False for NaN too
        raise ValueError("accuracies must be shares in [0, 1]")


def _sigmoid(log_cost: Floats, start: float, parameters: Sequence[float] | Floats) -> Floats:
    """Return R_C. 1 / (1 + (C_mid / C)^B) is the logistic function of B · (log C − log C_mid), which does not overflow.

    Args:
        log_cost: shape (E,).
        parameters: A, log C_mid and log B.
    """
    asymptote, log_midpoint, log_exponent = parameters
    rise: Floats = special.expit(np.exp(log_exponent) * (log_cost - log_midpoint))
    return start + (asymptote - start) * rise


def _least_squares(log_cost: Floats, accuracy: Floats, start: float) -> tuple[Floats, float]:
    """Return A, log C_mid and log B of the best fit, and the standard error of A (infinite if not determined).

    Args:
        log_cost: logarithms of the shares of the last cost, shape (E,).
        accuracy: shape (E,).

    Raises:
        FitError: the fit converges from no start.
    """
    best, error, least = None, float("inf"), float("inf")
    highest = float(accuracy.max())
    for midpoint, exponent in itertools.product(FIRST_MIDPOINTS, FIRST_EXPONENTS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optimize.OptimizeWarning)  # its infinite error is refused below
                found, covariance = optimize.curve_fit(
                    lambda x, *parameters: _sigmoid(x, start, parameters),
                    log_cost,
                    accuracy,
                    p0=(highest, np.log(midpoint), np.log(exponent)),
                    bounds=([start, -np.inf, np.log(EXPONENTS[0])], [1.0, np.inf, np.log(EXPONENTS[1])]),
                )
        except RuntimeError:  # no convergence from this start
            continue
        squares = float(((accuracy - _sigmoid(log_cost, start, found)) ** 2).sum())
        if squares < least:
            best, error, least = found, float(np.sqrt(covariance[0, 0])), squares
    if best is None:
        raise FitError("the least-squares fit converges from no start")
    return best, error


def _fits(curves: pd.DataFrame) -> tuple[list[SigmoidFit], list[tuple[Any, str]]]:
    """Return the accepted fits of a method in the order of its seeds, and seed and reason of each refusal."""
    fits, refusals = [], []
    for seed, of_seed in curves.groupby("seed"):
        known = of_seed.dropna(subset=["accuracy_sampled", "tokens_generated"])
        means = known.groupby("step")[["tokens_generated", "accuracy_sampled"]].mean()  # sorted by step
        try:
            if means.empty:
                raise FitError("0 evaluations")
            fits.append(fit_sigmoid(means["tokens_generated"].to_numpy(), means["accuracy_sampled"].to_numpy()))
        except ValueError as refusal:  # also for costs that stay at 0, such as those of supervised runs
            refusals.append((seed, str(refusal)))
    return fits, refusals


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")

"""Sigmoids of learning curves and the share of noise: known parameters, refusals, and arithmetic by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from rlsparse.results.scaling import FitError, fit_sigmoid, noise_share, saturation_table
from rlsparse.results.table import csv, latex, markdown

COSTS = np.arange(0, 21) * 1000.0  # the start and 20 evaluations


def sigmoid(cost, start, asymptote, exponent, midpoint):
    """The curve as the paper writes it, with the start at cost 0."""
    rise = [0.0 if one == 0 else 1 / (1 + (midpoint / one) ** exponent) for one in cost]
    return start + (asymptote - start) * np.array(rise)


def curve_rows(method, seed, accuracy, cost=COSTS):
    rows = {"method": method, "seed": seed, "step": range(len(cost)), "accuracy_sampled": accuracy}
    return pd.DataFrame({**rows, "tokens_generated": cost})


@pytest.mark.parametrize(
    ("start", "asymptote", "exponent", "midpoint"),
    [
        (0.1, 0.7, 1.0, 5000.0),
        (0.0, 0.9, 2.5, 8000.0),
        (0.3, 0.6, 0.8, 2000.0),
        (0.5, 0.55, 4.0, 12000.0),
        (0.05, 0.98, 1.5, 900.0),
        (0.2, 1.0, 1.2, 6000.0),  # the asymptote is its own upper bound
    ],
)
def test_parameters_of_a_curve_without_noise_are_recovered(start, asymptote, exponent, midpoint):
    got = fit_sigmoid(COSTS, sigmoid(COSTS, start, asymptote, exponent, midpoint))
    assert got.asymptote == pytest.approx(asymptote, abs=1e-3)
    assert got.exponent == pytest.approx(exponent, rel=1e-3)
    assert got.midpoint == pytest.approx(midpoint, rel=1e-3)
    assert (got.start, got.evaluations) == (start, 20)
    assert got.residual < 1e-4


def test_parameters_of_noisy_curves_are_recovered_on_average():
    """50 curves with a noise of 0.01. The standard error of a mean over 50 is a seventh of one deviation."""
    random = np.random.default_rng(0)
    clean = sigmoid(COSTS, 0.1, 0.7, 1.5, 5000)
    fits = []
    for _ in range(50):
        noisy = clean + random.normal(0, 0.01, size=21)
        noisy[0] = 0.1
        fits.append(fit_sigmoid(COSTS, noisy))
    assert np.mean([one.asymptote for one in fits]) == pytest.approx(0.7, abs=0.01)
    assert np.mean([one.exponent for one in fits]) == pytest.approx(1.5, abs=0.1)
    assert np.mean([one.midpoint for one in fits]) == pytest.approx(5000, rel=0.05)
    assert np.mean([one.residual for one in fits]) == pytest.approx(0.01, abs=0.001)
    assert max(abs(one.asymptote - 0.7) for one in fits) < 0.05


def test_noisy_fit_equals_one_without_logarithms():
    """The same least squares in A, B and C_mid themselves, from the true parameters."""
    noisy = sigmoid(COSTS, 0.1, 0.7, 1.5, 5000) + np.random.default_rng(3).normal(0, 0.01, size=21)
    noisy[0] = 0.1
    (asymptote, exponent, midpoint), _ = optimize.curve_fit(
        lambda cost, a, b, c: 0.1 + (a - 0.1) / (1 + (c / cost) ** b), COSTS[1:], noisy[1:], p0=(0.7, 1.5, 5000)
    )
    got = fit_sigmoid(COSTS, noisy)
    assert got.asymptote == pytest.approx(asymptote, abs=1e-4)
    assert got.exponent == pytest.approx(exponent, rel=1e-3)
    assert got.midpoint == pytest.approx(midpoint, rel=1e-3)
    # 20 evaluations and 3 parameters leave 17 degrees of freedom
    squares = (sigmoid(COSTS, 0.1, asymptote, exponent, midpoint) - noisy)[1:] ** 2
    assert got.residual == pytest.approx(np.sqrt(squares.sum() / 17), rel=1e-4)


@pytest.mark.parametrize("seed", [10, 34, 36])
def test_fit_is_the_best_of_a_grid_where_starts_end_in_different_minima(seed):
    """The midpoint lies before the first evaluation, which gives the sum of squares several minima."""
    noisy = sigmoid(COSTS, 0.1, 0.6, 8.0, 500) + np.random.default_rng(seed).normal(0, 0.01, size=21)
    noisy[0] = 0.1
    midpoints, exponents = np.geomspace(1, 20_000, 200)[:, None, None], np.geomspace(0.05, 100, 100)[:, None]
    shapes = 1 / (1 + (midpoints / COSTS[1:]) ** exponents)  # midpoints x exponents x evaluations
    gains = (shapes * (noisy[1:] - 0.1)).sum(-1) / (shapes**2).sum(-1)  # A - R_0, which is linear
    squares = ((noisy[1:] - 0.1 - np.clip(gains, 0, 0.9)[..., None] * shapes) ** 2).sum(-1)
    assert 17 * fit_sigmoid(COSTS, noisy).residual ** 2 <= squares.min() * (1 + 1e-6)


def test_fit_does_not_depend_on_the_unit_of_the_cost():
    accuracy = sigmoid(COSTS, 0.1, 0.7, 1.5, 5000) + 0.005 * (-1.0) ** np.arange(21)
    small, large = fit_sigmoid(COSTS / 1000, accuracy), fit_sigmoid(COSTS * 1e6, accuracy)
    assert small.asymptote == pytest.approx(large.asymptote, abs=1e-9)
    assert small.midpoint * 1e9 == pytest.approx(large.midpoint, rel=1e-6)


def test_fit_gives_the_accuracy_at_any_cost():
    got = fit_sigmoid(COSTS, sigmoid(COSTS, 0.1, 0.7, 1.5, 5000))
    assert got.accuracy(np.array([5000.0]))[0] == pytest.approx(0.4, abs=1e-4)  # half of the gain: 0.1 + 0.6 / 2
    assert got.accuracy(np.array([20000.0]))[0] == pytest.approx(0.1 + 0.6 / (1 + 0.25**1.5), abs=1e-4)


@pytest.mark.filterwarnings("error")
def test_asymptote_of_a_curve_that_jumps_is_its_plateau():
    """All evaluations up to 10,000 are at the start, and all later ones at 0.6: the midpoint lies in between."""
    got = fit_sigmoid(COSTS, np.where(COSTS <= 10000, 0.1, 0.6))
    assert got.asymptote == pytest.approx(0.6, abs=1e-3)
    assert 10000 <= got.midpoint <= 11000


def test_fewer_than_six_evaluations_are_refused():
    accuracy = sigmoid(COSTS, 0.1, 0.7, 1.5, 3000)
    with pytest.raises(FitError, match="5 evaluations after the start are fewer than 6"):
        fit_sigmoid(COSTS[:6], accuracy[:6])
    assert fit_sigmoid(COSTS[:7], accuracy[:7]).evaluations == 6


def test_curve_that_has_not_passed_its_midpoint_is_refused():
    with pytest.raises(FitError, match="the last cost, 20000, is below the fitted midpoint, 30000"):
        fit_sigmoid(COSTS, sigmoid(COSTS, 0.1, 0.9, 2.0, 30000))


def test_rise_that_is_not_above_the_residual_deviation_is_refused():
    accuracy = np.where(np.arange(21) % 2 == 0, 0.5, 0.53)
    accuracy[0] = 0.51  # the values after the start lie 0.015 around 0.515: a rise of 0.005
    with pytest.raises(FitError, match=r"rises by 0\.00\d, not by more than the residual deviation 0\.016"):
        fit_sigmoid(COSTS, accuracy)


@pytest.mark.parametrize("start", [0.5, 1.0])
def test_curve_that_never_rises_is_refused(start):
    with pytest.raises(FitError, match=rf"the highest accuracy, {start:.3f}, is not above that of the start"):
        fit_sigmoid(COSTS, np.full(21, start))
    with pytest.raises(FitError, match="is not above that of the start"):
        fit_sigmoid(COSTS, np.linspace(start, 0, 21))


def test_asymptote_that_the_data_do_not_determine_is_refused_with_its_standard_error():
    """The curve ends just after its midpoint, with a noise of 0.02 of changing sign."""
    accuracy = sigmoid(COSTS, 0.1, 0.8, 1.0, 15000) + 0.02 * (-1.0) ** np.arange(21)
    accuracy[0] = 0.1
    _, covariance = optimize.curve_fit(
        lambda cost, a, b, c: 0.1 + (a - 0.1) / (1 + (c / cost) ** b), COSTS[1:], accuracy[1:], p0=(0.8, 1.0, 15000)
    )
    error = np.sqrt(covariance[0, 0])
    assert error > 0.05
    with pytest.raises(FitError, match=r"its standard error, (0\.\d+), is above 0\.05") as refusal:
        fit_sigmoid(COSTS, accuracy)
    shown = float(str(refusal.value).split("standard error, ")[1].split(",")[0])
    assert shown == pytest.approx(error, abs=0.01 * error + 0.0005)


def test_curve_without_its_start_is_refused():
    with pytest.raises(FitError, match="the first evaluation is at the cost 1000, not 0"):
        fit_sigmoid(COSTS[1:], sigmoid(COSTS[1:], 0.1, 0.7, 1.5, 3000))


@pytest.mark.parametrize(
    ("cost", "accuracy", "message"),
    [
        (COSTS, np.full(20, 0.5), "one shape"),
        (COSTS[:0], COSTS[:0], "one shape"),
        (COSTS[::-1], np.full(21, 0.5), "never decrease"),
        (np.zeros(21), np.full(21, 0.5), "above 0 after the first"),
        (COSTS, np.full(21, 50.0), "shares"),
        (COSTS, np.full(21, np.nan), "shares"),
    ],
)
def test_wrong_arguments_are_an_error_of_the_caller(cost, accuracy, message):
    with pytest.raises(ValueError, match=message) as error:
        fit_sigmoid(cost, accuracy)
    assert not isinstance(error.value, FitError)


def test_table_has_means_over_the_accepted_seeds():
    curves = pd.concat(
        [
            curve_rows("grpo", 0, sigmoid(COSTS, 0.1, 0.7, 1.0, 4000)),
            curve_rows("grpo", 1, sigmoid(COSTS, 0.1, 0.8, 2.0, 6000)),
            curve_rows("grpo", 2, np.full(21, 0.1)),
            curve_rows("flat", 3, np.full(21, 0.2)),
            curve_rows("flat", 4, np.full(21, 0.3)),
        ]
    )
    got = saturation_table(curves, baseline="grpo")
    assert got.cells.to_numpy().tolist() == [
        # (0.7 + 0.8) / 2, (1 + 2) / 2, (4 + 6) / 2 thousand
        ["grpo", "75.0", "1.50", "5.0", "2 of 3"],
        ["flat", "–", "–", "–", "0 of 2"],
    ]
    assert got.numbers["asymptote, %"][0] == pytest.approx(75, abs=0.1)
    assert got.numbers["midpoint, thousands of tokens sampled"][0] == pytest.approx(5, abs=0.01)
    assert np.isnan(got.numbers["exponent"][1])
    assert got.numbers["seeds fitted"].tolist() == [2, 0]
    assert "flat (seed 3): the highest accuracy, 0.200, is not above that of the start, 0.200" in got.notes[-1]
    assert "grpo" not in got.notes[-1]  # its fits are not all refused


def test_table_marks_a_midpoint_before_the_first_evaluation():
    """A curve whose midpoint, 500 tokens, comes before its first evaluation, at 1,000."""
    got = saturation_table(curve_rows("grpo", 0, sigmoid(COSTS, 0.1, 0.7, 1.5, 500)))
    assert got.cells.iloc[0].tolist() == ["grpo", "70.0", "1.50 †", "0.5 †", "1 of 1"]
    assert "†" not in saturation_table(curve_rows("grpo", 0, sigmoid(COSTS, 0.1, 0.7, 1.5, 1500))).cells["exponent"][0]


def test_table_is_of_the_rows_in_the_order_of_their_steps_without_missing_values():
    curves = curve_rows("grpo", 0, sigmoid(COSTS, 0.1, 0.7, 1.5, 5000))
    missing = curves.assign(accuracy_sampled=curves["accuracy_sampled"].where(curves["step"] != 7))
    for changed in (curves[::-1], missing, pd.concat([curves, curves])):  # the last: a seed that was run twice
        assert saturation_table(changed).cells.iloc[0].tolist() == ["grpo", "70.0", "1.50", "5.0", "1 of 1"]
    empty = curves.assign(accuracy_sampled=np.nan)
    assert "grpo (seed 0): 0 evaluations" in saturation_table(empty).notes[-1]


def test_table_has_a_dash_for_runs_that_sample_no_tokens():
    got = saturation_table(curve_rows("supervised", 0, sigmoid(COSTS, 0.1, 0.7, 1.5, 5000), cost=np.zeros(21)))
    assert got.cells.iloc[0].tolist() == ["supervised", "–", "–", "–", "0 of 1"]
    assert "be above 0 after the first evaluation" in got.notes[-1]


def test_same_curves_give_the_same_bytes():
    noisy = sigmoid(COSTS, 0.1, 0.7, 1.5, 5000) + 0.01 * np.random.default_rng(0).random(21)
    first, second = (saturation_table(curve_rows("grpo", 0, noisy)) for _ in range(2))
    assert (markdown(first), csv(first), latex(first)) == (markdown(second), csv(second), latex(second))


def test_share_of_noise_equals_hand_computed_values():
    # means 0.1, 0.2, 0.3 over two seeds: MS_methods = 2 · 0.01; rests of ±0.05 in the first two rows, 0 in the last:
    # 4 · 0.0025 / (2 · 1) = 0.005
    gains = np.array([[0.15, 0.05], [0.15, 0.25], [0.3, 0.3]])
    assert noise_share(gains) == pytest.approx(0.005 / 0.02)
    # a seed that is better for all methods changes nothing
    assert noise_share(gains + np.array([0.0, 0.4])) == pytest.approx(0.25)
    # equal means leave nothing but noise, and equal rows up to a constant have none
    assert noise_share(np.array([[0.1, 0.3], [0.3, 0.1], [0.2, 0.2]])) == 1
    assert noise_share(np.array([[0.1, 0.2], [0.2, 0.3], [0.4, 0.5]])) == pytest.approx(0, abs=1e-12)


def test_share_of_noise_is_one_over_the_f_statistic_of_a_regression_on_methods_and_seeds():
    gains = np.random.default_rng(2).normal(size=(5, 4)) + np.arange(5)[:, None]
    seeds, methods = np.tile(np.arange(4), 5), np.repeat(np.arange(5), 4)

    def residuals(*factors):
        columns = [np.ones(20), *((of == level) for of in factors for level in range(1, of.max() + 1))]
        design = np.array(columns, dtype=float).T
        return np.linalg.lstsq(design, gains.ravel())[1].item()

    full = residuals(methods, seeds)
    f = ((residuals(seeds) - full) / 4) / (full / 12)
    assert noise_share(gains) == pytest.approx(1 / f)


def test_share_of_noise_of_many_methods_is_that_of_their_variances():
    """True gains with the variance 0.03², and means over four seeds with errors of 0.04²: 16 / (9 + 16) is noise."""
    random = np.random.default_rng(0)
    gains = random.normal(0.1, 0.03, size=(20_000, 1)) + random.normal(0, 0.08, size=(20_000, 4))
    gains += random.normal(0, 0.5, size=4)  # of a seed, for all methods
    assert noise_share(gains) == pytest.approx(0.64, abs=0.02)


@pytest.mark.parametrize(
    ("gains", "message"),
    [
        (np.ones((2, 4)), "shape"),
        (np.ones((3, 1)), "shape"),
        (np.ones(3), "shape"),
        (np.full((3, 2), np.nan), "finite"),
    ],
)
def test_share_of_noise_refuses_what_it_cannot_estimate(gains, message):
    with pytest.raises(ValueError, match=message):
        noise_share(gains)

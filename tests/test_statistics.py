"""Intervals and tests over seeds, by hand and against SciPy."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rlsparse.results.statistics import estimate, paired, permutation_test, sign_flip_p


def test_mean_and_interquartile_mean_equal_hand_computed_values():
    # 8 seeds: the two lowest and the two highest go: (3 + 4 + 5 + 6) / 4
    got = estimate(pd.Series([1.0, 2, 3, 4, 5, 6, 7, 100]))
    assert (got.mean, got.iqm, got.n) == (16, 4.5, 8)
    # 5 seeds: 5 // 4 = 1 goes on each side
    assert estimate(pd.Series([0.0, 10, 11, 12, 50])).iqm == 11


@pytest.mark.parametrize("n", [2, 3, 5, 8, 20])
def test_interquartile_mean_equals_the_trimmed_mean_of_scipy(n):
    values = np.random.default_rng(n).normal(size=n)
    assert estimate(pd.Series(values)).iqm == pytest.approx(stats.trim_mean(values, 0.25))


def test_missing_seed_is_left_out_and_one_seed_has_no_interval():
    assert estimate(pd.Series([None, 4.0], dtype=float)).n == 1
    assert estimate(pd.Series([4.0])).low != estimate(pd.Series([4.0])).low  # NaN: unknown
    assert estimate(pd.Series([], dtype=float)).n == 0


@pytest.mark.parametrize("n", [2, 3, 5])
def test_interval_of_few_seeds_equals_that_of_all_resamples(n):
    """10,000 random resamples against all n^n of them."""
    values = np.random.default_rng(n).normal(size=n)
    means = [np.mean(draw) for draw in itertools.product(values, repeat=n)]
    low, high = np.quantile(means, [0.025, 0.975], method="inverted_cdf")  # the resamples are few: nothing between
    got = estimate(pd.Series(values))
    spread = values.max() - values.min()
    assert (got.low, got.high) == (pytest.approx(low, abs=0.03 * spread), pytest.approx(high, abs=0.03 * spread))


def test_interval_equals_the_bootstrap_of_scipy():
    values = np.random.default_rng(0).normal(size=12)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    got = estimate(pd.Series(values))
    assert (got.low, got.high) == (pytest.approx(theirs.low, abs=0.03), pytest.approx(theirs.high, abs=0.03))


def test_sign_flip_p_equals_hand_computed_values():
    # 1, 2, 3: of the 8 patterns only +++ and --- have a mean as far from 0
    assert sign_flip_p(np.array([1.0, 2, 3])) == 2 / 8
    # 1, -1: every pattern has a mean at least as far as 0
    assert sign_flip_p(np.array([1.0, -1])) == 1
    # five seeds that agree cannot reach 0.05, six can
    assert sign_flip_p(np.ones(5)) == 0.0625
    assert sign_flip_p(np.ones(6)) == 0.03125
    assert sign_flip_p(np.zeros(4)) == 1


@pytest.mark.parametrize("n", [3, 6, 9])
def test_sign_flip_p_equals_the_exact_permutation_test_of_scipy(n):
    ours, theirs = np.random.default_rng(n).normal(0.5, 1, size=(2, n))
    result = stats.permutation_test((ours, theirs), lambda a, b: np.mean(a - b), permutation_type="samples")
    assert sign_flip_p(ours - theirs) == pytest.approx(result.pvalue)


def test_sign_flip_p_of_many_seeds_takes_random_patterns():
    values = np.random.default_rng(3).normal(0.3, 1, size=20)
    exact = stats.permutation_test((values, np.zeros(20)), lambda a, b: np.mean(a - b), permutation_type="samples")
    assert sign_flip_p(values) == pytest.approx(exact.pvalue, abs=0.02)
    # of 2^40 patterns two are as far from 0, and neither is drawn: the observed one alone counts
    assert sign_flip_p(np.ones(40)) == 1 / 2**16


def test_verdict_is_above_below_or_inconclusive():
    assert permutation_test(pd.Series([3.0] * 6), 2).verdict == "above"
    assert permutation_test(pd.Series([1.0] * 6), 2).verdict == "below"
    assert permutation_test(pd.Series([3.0] * 5), 2).verdict == "inconclusive"  # p = 0.0625
    assert permutation_test(pd.Series([1.0, 3, 1, 3, 1, 4]), 2).verdict == "inconclusive"
    assert permutation_test(pd.Series([], dtype=float), 2).p != permutation_test(pd.Series([], dtype=float), 2).p


def test_paired_differences_are_of_common_seeds():
    ours, theirs = pd.Series({0: 0.5, 1: 0.6, 2: 0.7}), pd.Series({1: 0.5, 2: 0.5, 3: 0.1})
    assert paired(ours, theirs).round(9).to_dict() == {1: 0.1, 2: 0.2}


def test_sign_flip_without_a_difference_is_significant_in_a_twentieth_of_studies():
    """Where there is no difference, p <= 0.05 in at most a twentieth of all studies."""
    random = np.random.default_rng(0)
    said = [sign_flip_p(random.normal(size=8)) <= 0.05 for _ in range(2000)]
    assert 0.03 < np.mean(said) < 0.065  # 12 of 256 patterns: 0.047

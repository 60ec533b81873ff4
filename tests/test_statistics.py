"""Intervals and tests over seeds, by hand and against SciPy."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rlsparse.results.correction import holm, in_order
from rlsparse.results.crossed import Crossed, analyse, over_several
from rlsparse.results.sample import Sample
from rlsparse.results.statistics import estimate, mean_test, sign_flip_p


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


@pytest.mark.parametrize("n", [2, 3, 12])
def test_interval_and_p_over_seeds_are_those_of_the_t_test_of_scipy(n):
    values = np.random.default_rng(n).normal(0.5, 1, size=n)
    theirs = stats.ttest_1samp(values, 0.2)
    got, test = estimate(pd.Series(values)), mean_test(pd.Series(values), 0.2)
    assert (got.low, got.high) == pytest.approx(tuple(theirs.confidence_interval()))
    assert (got.seeds_low, got.seeds_high, got.questions) == (got.low, got.high, 0)
    if n == 2:  # no test of two seeds
        assert math.isnan(test.p)
        return
    assert test.p == pytest.approx(theirs.pvalue)
    assert test.above == pytest.approx(stats.ttest_1samp(values, 0.2, alternative="greater").pvalue)
    assert test.below == pytest.approx(stats.ttest_1samp(values, 0.2, alternative="less").pvalue)


def test_values_that_are_all_equal_have_the_p_of_the_permutation_test():
    # six seeds, all 3: two of the 64 sign patterns of the distance 1 are as far from 0
    test = mean_test(pd.Series([3.0] * 6), 2)
    assert (test.p, test.p_seeds, test.side, test.below) == (2 / 64, 2 / 64, "above", 1.0)
    assert mean_test(pd.Series([1.0] * 6), 2).side == "below"
    assert mean_test(pd.Series([2.0] * 6), 2).p == 1
    assert math.isnan(mean_test(pd.Series([], dtype=float), 2).p)


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
    signs = 1 - 2 * ((np.arange(2**20)[:, None] >> np.arange(20)) & 1)  # all 2^20 patterns, (2^20, 20)
    exact = np.mean(np.abs(signs @ values) >= abs(values.sum()) - 1e-12)
    assert sign_flip_p(values) == pytest.approx(exact, abs=0.01)  # 65,536 patterns: a standard error of 0.002
    # of 2^40 patterns two are as far from 0, and neither is drawn: the observed one alone counts
    assert sign_flip_p(np.ones(40)) == 1 / 2**16


def test_sign_flip_without_a_difference_is_significant_in_a_twentieth_of_studies():
    """Where there is no difference, p <= 0.05 in at most a twentieth of all studies."""
    random = np.random.default_rng(0)
    said = [sign_flip_p(random.normal(size=8)) <= 0.05 for _ in range(2000)]
    assert 0.03 < np.mean(said) < 0.065  # 12 of 256 patterns: 0.047


def test_analysis_of_variance_equals_hand_computed_mean_squares():
    # rows (seeds) 1 2 3 and 3 6 3: means 2 and 4, columns 2, 4, 3, mean 3
    got = analyse(np.array([[1.0, 2, 3], [3, 6, 3]]))
    assert got.of_seeds == pytest.approx(3 * (1 + 1) / 1)
    assert got.of_questions == pytest.approx(2 * (1 + 1 + 0) / 2)
    # what is left: 1 - 2 - 2 + 3 = 0, 2 - 2 - 4 + 3 = -1, 3 - 2 - 3 + 3 = 1, and the same with other signs below
    assert got.of_rest == pytest.approx(4 / (1 * 2))
    # (6 - 2) / 3 seeds, (2 - 2) / 2 questions
    assert got.variances == pytest.approx((4 / 3, 0, 2))


def test_spread_over_seeds_is_the_t_test_of_the_means_of_the_seeds():
    scores = np.random.default_rng(1).normal(size=(6, 40))
    theirs = stats.ttest_1samp(scores.mean(axis=1), 0.0)
    spread = analyse(scores).over_seeds()
    assert spread.interval() == pytest.approx(tuple(theirs.confidence_interval()))
    assert 2 * min(spread.p_above(0), spread.p_below(0)) == pytest.approx(theirs.pvalue)


def test_spread_over_both_adds_the_variance_of_questions():
    # error² = (MS_seeds + MS_questions − MS_rest) / (S·Q); with the mean squares 6, 2, 2 above it is 6 / 6
    assert analyse(np.array([[1.0, 2, 3], [3, 6, 3]])).two_way().error == pytest.approx(1.0)
    questions = np.random.default_rng(2).normal(size=200)
    scores = questions + 1e-6 * np.random.default_rng(3).normal(size=(8, 200))
    spread = analyse(scores).two_way()  # only questions vary: the t interval over questions
    theirs = stats.ttest_1samp(questions, 0.0)
    assert spread.freedom == pytest.approx(199, rel=1e-3)
    assert spread.interval() == pytest.approx(tuple(theirs.confidence_interval()), abs=1e-5)
    assert spread.error > 1000 * analyse(scores).over_seeds().error


@pytest.mark.parametrize(
    ("S", "of_seeds", "of_questions"), [(3, 0.03, 0.15), (6, 0.0, 0.3), (6, 0.0, 0.0), (16, 0.1, 0.0)]
)
def test_interval_to_new_seeds_and_questions_covers_the_mean(S, of_seeds, of_questions):
    """1,000 studies of a known model, 60 questions: 95 % of 1,000 have a standard deviation of 0.7 %."""
    random, Q, covered = np.random.default_rng(S), 60, 0
    for _ in range(1000):
        scores = (
            of_seeds * random.normal(size=(S, 1))
            + of_questions * random.normal(size=Q)
            + 0.4 * random.normal(size=(S, Q))
        )
        low, high = analyse(scores).over_both().interval()
        covered += low <= 0 <= high
    assert 925 <= covered <= 985


def test_sample_with_questions_has_the_wider_interval_and_its_p():
    scores = pd.DataFrame(np.random.default_rng(5).normal(0.1, 1, size=(6, 50)), index=range(6))
    sample = Sample(scores.mean(axis=1), scores)
    got, test = estimate(sample), mean_test(sample, 0.0)
    both, seeds = analyse(scores.to_numpy()).over_both(), analyse(scores.to_numpy()).over_seeds()
    assert (got.low, got.high) == pytest.approx(both.interval())
    assert (got.seeds_low, got.seeds_high) == pytest.approx(seeds.interval())
    assert got.questions == 50
    assert test.p == pytest.approx(2 * min(both.p_above(0), both.p_below(0)))


def test_samples_subtract_and_average_over_common_seeds_and_questions():
    one = Sample(pd.Series({0: 0.5, 1: 1.0}), pd.DataFrame([[0, 1, 0.5], [1, 1, 1]], columns=list("abc"), dtype=float))
    other = Sample(
        pd.Series({0: 0.25, 1: 0.5, 2: 1.0}), pd.DataFrame([[0, 0.5], [1, 0], [1, 1]], columns=list("ab"), dtype=float)
    )
    difference = one - other
    assert difference.by_seed.to_dict() == {0: 0.25, 1: 0.5}
    assert difference.scores.to_dict("list") == {"a": [0, 0], "b": [0.5, 1]}
    mean = Sample.mean([one, other])
    assert mean.by_seed.to_dict() == {0: 0.375, 1: 0.75}
    assert mean.scores.to_dict("list") == {"a": [0, 1], "b": [0.75, 0.5]}
    assert (one - Sample(pd.Series({0: 0.25}))).scores is None


def test_questions_that_one_side_was_not_asked_count_on_neither_side():
    # on a and b both are always right; the first was also asked c, and never right
    asked = pd.DataFrame([[1, 1, 0]] * 3, columns=list("abc"), dtype=float)
    one = Sample(asked.mean(axis=1), asked)
    other = Sample(pd.Series([1.0] * 3), pd.DataFrame([[1, 1]] * 3, columns=list("ab"), dtype=float))
    assert (one - other).by_seed.tolist() == [0, 0, 0]
    assert Sample.mean([one, other]).by_seed.tolist() == [1, 1, 1]


def test_bounds_over_both_are_never_inside_those_over_seeds():
    """Mean squares 2, 3 and 1 of 3 seeds and 1,000 questions: two-way error² (2 + 2) / 3000, df (4)² / (2² / 2 + ...)."""
    made = Crossed(0.1, 3, 1000, of_seeds=2.0, of_questions=3.0, of_rest=1.0)
    two_way, seeds, both = made.two_way(), made.over_seeds(), made.over_both()
    assert two_way.error == pytest.approx((4 / 3000) ** 0.5)
    assert two_way.freedom == pytest.approx(16 / (4 / 2 + 9 / 999 + 1 / (2 * 999)))
    # t(2) needs 4.30 · (2 / 3000)^½ = 0.111; t(8.0) needs 2.31 · (4 / 3000)^½ = 0.084
    assert both.interval() == seeds.interval() == pytest.approx((0.1 - 0.1111, 0.1 + 0.1111), abs=1e-4)
    assert both.p_above(0) == max(two_way.p_above(0), seeds.p_above(0))
    assert both.p_below(0) == max(two_way.p_below(0), seeds.p_below(0))
    assert both.around(0.3).interval() == pytest.approx((0.3 - 0.1111, 0.3 + 0.1111), abs=1e-4)


def test_twelve_comparisons_of_equal_methods_find_something_in_a_twentieth_of_studies():
    """Three seeds, 500 questions: at the levels of Holm's correction too. A baseline is shared; 400 studies."""
    random, found = np.random.default_rng(0), 0
    for _ in range(400):
        runs = 0.014 * random.normal(size=(13, 3, 1)) + 0.28 * random.normal(size=(13, 3, 500))
        runs += 0.07 * random.normal(size=(13, 1, 500))  # questions suit one method or another
        spreads = [analyse(one - runs[0]).over_both() for one in runs[1:]]
        found += min(holm([2 * min(one.p_above(0), one.p_below(0)) for one in spreads])) <= 0.05
    assert found / 400 < 0.08  # 0.05 + three standard deviations of 0.011; the two-way p alone has 0.15 here


def test_mean_over_benchmarks_has_the_error_of_their_seeds_and_of_the_questions_of_each():
    random = np.random.default_rng(4)
    one, other = random.normal(size=(5, 30)), 3 * random.normal(size=80) + random.normal(size=(5, 80))
    parts, values = [analyse(one), analyse(other)], (one.mean(axis=1) + other.mean(axis=1)) / 2
    two_way, seeds = over_several(parts, values).spreads
    # the variance of the questions of each set in the mean of two: a quarter of (MS_questions − MS_rest) / (S·Q)
    of_questions = sum(max(0, part.of_questions - part.of_rest) / (5 * part.questions) / 4 for part in parts)
    assert two_way.error**2 == pytest.approx(values.var(ddof=1) / 5 + of_questions)
    assert seeds.interval() == pytest.approx(stats.t.interval(0.95, 4, values.mean(), stats.sem(values)))
    alone = over_several(parts[1:], other.mean(axis=1))
    assert alone.interval() == pytest.approx(parts[1].over_both().interval())


def test_intervals_of_a_mean_over_benchmarks_cover_it():
    """A benchmark of 30 and one of 300 questions, whose questions differ by 30 points; 500 studies of four seeds."""
    random, covered = np.random.default_rng(1), 0
    for _ in range(500):
        sets = [0.3 * random.normal(size=Q) + 0.4 * random.normal(size=(4, Q)) for Q in (30, 300)]
        values = np.mean([one.mean(axis=1) for one in sets], axis=0) + 0.02 * random.normal(size=4)
        low, high = over_several([analyse(one) for one in sets], values).interval()
        covered += low <= 0 <= high
    assert 0.93 <= covered / 500 <= 0.99  # 0.95 has a standard deviation of 0.01


def test_seeds_that_are_equal_by_chance_have_no_interval_of_width_0():
    equal = estimate(pd.Series([0.5, 0.5]))
    assert math.isnan(equal.low)
    assert math.isnan(equal.high)
    three = estimate(pd.Series([0.5, 0.5, 0.5]))
    assert (three.low, three.high) == (0.5, 0.5)
    assert analyse(np.array([[1.0, 0, 1, 0], [0, 1, 1, 0]])).two_way().freedom >= 1


@pytest.mark.parametrize("bound", [0.5, 0.3, 0.05])
@pytest.mark.parametrize("collapsed", [0, 1, 7, 8])
def test_rates_have_the_exact_binomial_test(collapsed, bound):
    rate = Sample(pd.Series([1.0] * collapsed + [0.0] * (8 - collapsed)), is_rate=True)
    test = mean_test(rate, bound)
    higher, lower = (stats.binomtest(collapsed, 8, bound, side) for side in ("greater", "less"))
    assert (test.above, test.below) == pytest.approx((higher.pvalue, lower.pvalue))
    assert test.p == test.p_seeds == pytest.approx(min(1, 2 * min(higher.pvalue, lower.pvalue)))
    interval = stats.binomtest(collapsed, 8).proportion_ci()
    assert (test.estimate.low, test.estimate.high) == pytest.approx((interval.low, interval.high))


def test_differences_of_rates_have_the_test_of_mcnemar_on_either_side():
    # five of six collapse on one side alone: 2 of 2^5 sign patterns are as far from 0
    one = Sample(pd.Series([1.0] * 5 + [0.0]), is_rate=True)
    none = Sample(pd.Series([0.0] * 6), is_rate=True)
    discordant = stats.binomtest(5, 5, 0.5).pvalue
    assert mean_test(one - none, 0.0).p == mean_test(none - one, 0.0).p == pytest.approx(discordant) == 2 / 2**5
    assert mean_test(one - none, 0.0).above < 0.05 < mean_test(none - one, 0.0).above


def test_runs_that_were_asked_other_questions_are_not_compared():
    def answers(columns):
        frame = pd.DataFrame(np.ones((3, 3)), columns=list(columns))
        return Sample(frame.mean(axis=1), frame)

    assert (answers("abc") - answers("def")).by_seed.empty
    # the last seed of one side was asked other questions: it is left out
    mixed = pd.DataFrame(
        [[1, 0, 1, math.nan, math.nan]] * 2 + [[math.nan] * 3 + [0, 0]], columns=list("abcde"), dtype=float
    )
    difference = Sample(mixed.mean(axis=1), mixed) - answers("abc")
    assert difference.by_seed.to_dict() == pytest.approx({0: -1 / 3, 1: -1 / 3})
    assert difference.questions == 3
    # with the same change on both sides every seed is paired, and no question is common to all seeds
    both = Sample(mixed.mean(axis=1), mixed) - Sample(mixed.mean(axis=1), mixed)
    assert both.by_seed.to_dict() == {0: 0, 1: 0, 2: 0}
    assert both.questions == 0


def test_holm_corrects_by_the_number_of_hypotheses_that_are_left():
    # smallest first: 3 · 0.01 = 0.03; 2 · 0.02 = 0.04; 1 · 0.03 is raised to 0.04, so that the order stays
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.9]) == [1, 1]
    first, missing, last = holm([0.02, float("nan"), 0.04])
    assert (first, last) == (0.04, 0.04)
    assert math.isnan(missing)


def test_holm_finds_something_false_in_a_twentieth_of_studies():
    """Ten true hypotheses: the chance of a corrected p <= 0.05 is 1 - (1 - 0.005)^10 = 0.049 with independent tests."""
    random = np.random.default_rng(0)
    found = [min(holm(list(random.uniform(size=10)))) <= 0.05 for _ in range(4000)]
    assert 0.038 < np.mean(found) < 0.06


def test_primary_claim_is_tested_alone_and_before_the_others():
    # the primary one is not corrected; the other two are, by 2 and 1
    assert in_order([0.04, 0.01, 0.03], [True, False, False]) == pytest.approx([0.04, 0.04, 0.04])
    assert in_order([0.001, 0.01, 0.03], [True, False, False]) == pytest.approx([0.001, 0.02, 0.03])
    # where the primary one is not decided, nothing else is
    assert in_order([0.2, 0.001], [True, False]) == [0.2, 0.2]
    missing, after = in_order([float("nan"), 0.001], [True, False])
    assert math.isnan(missing)
    assert after == 1
    assert in_order([0.02, 0.04], [False, False]) == pytest.approx([0.04, 0.04])

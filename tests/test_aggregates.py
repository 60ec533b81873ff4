"""Aggregate metrics over tasks and seeds: by hand, by brute force, and against SciPy and rliable."""

import itertools
import time

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rlsparse.results.aggregates import (
    aggregate,
    aggregate_table,
    common_tasks,
    improvement,
    improvement_matrix,
    interquartile_mean,
    mean,
    median,
    optimality_gap,
    performance_profile,
)
from rlsparse.results.table import csv, latex, markdown


def random_scores(seed, methods=3, tasks=4, runs=6):
    """Return scores on a grid of 1/20, so that ties occur."""
    random = np.random.default_rng(seed)
    return {
        f"m{method}": {f"t{task}": random.integers(21, size=runs + task % 2) / 20 for task in range(tasks)}
        for method in range(methods)
    }


def test_metrics_equal_hand_computed_values():
    tasks = [np.array([0.1, 0.3]), np.array([0.5, 0.5, 0.8]), np.array([0.9, 1.0, 0.8])]
    # means of the tasks: 0.2, 0.6, 0.9
    assert mean(tasks) == pytest.approx(1.7 / 3)
    assert median(tasks) == pytest.approx(0.6)
    assert optimality_gap(tasks) == pytest.approx(1 - 1.7 / 3)
    # 8 runs: 0.1 and 0.3 of weight 1/6, then 0.5 0.5 0.8 0.8 0.9 1.0 of 1/9; between 1/4 and 3/4 of the weight there are
    # 1/12 of 0.3, 2/9 of 0.5, 1/9 of 0.8 and 1/12 of the other 0.8
    by_hand = (0.3 / 12 + 2 * 0.5 / 9 + 0.8 / 9 + 0.8 / 12) / 0.5
    assert interquartile_mean(tasks) == pytest.approx(by_hand)


def test_interquartile_mean_does_not_favour_the_task_with_more_runs():
    # 30 runs at 0.2 and 60 of them are the same method; so are 5 and 50 at 0.6: both tasks count half
    few = interquartile_mean([np.full(30, 0.2), np.full(5, 0.6)])
    assert few == pytest.approx(interquartile_mean([np.full(60, 0.2), np.full(60, 0.6)])) == pytest.approx(0.4)


def test_optimality_gap_does_not_count_what_a_score_has_above_one():
    # min(1.4, 1) = 1 and min(0.6, 1) = 0.6: 1 - 0.8
    assert optimality_gap([np.array([1.4, 0.6])]) == pytest.approx(0.2)


@pytest.mark.parametrize("runs", [1, 2, 3, 5, 8, 13])
def test_interquartile_mean_equals_the_trimmed_mean_of_scipy(runs):
    tasks = list(np.random.default_rng(runs).random((3, runs)))
    assert interquartile_mean(tasks) == pytest.approx(stats.trim_mean(np.concatenate(tasks), 0.25))


def test_metrics_of_resamples_equal_those_of_each_resample_alone():
    random = np.random.default_rng(0)
    tasks = [random.random((7, 4)), random.random((7, 9))]  # 7 resamples of tasks with 4 and 9 runs
    for metric in (mean, median, interquartile_mean, optimality_gap):
        alone = [float(metric([tasks[0][row], tasks[1][row]])) for row in range(7)]
        assert metric(tasks) == pytest.approx(np.array(alone))


def test_probability_of_improvement_equals_a_loop_over_all_pairs():
    scores = random_scores(1)
    x, y = scores["m0"], scores["m1"]
    of_tasks = []
    for task in x:
        pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in x[task] for b in y[task]]
        of_tasks.append(sum(pairs) / len(pairs))
    assert any(a == b for task in x for a in x[task] for b in y[task])  # ties are among them
    assert improvement(x, y).value == pytest.approx(sum(of_tasks) / len(of_tasks))


def test_probability_of_improvement_equals_the_mann_whitney_statistic_of_scipy():
    scores = random_scores(2)
    x, y = scores["m0"], scores["m1"]
    theirs = [stats.mannwhitneyu(x[task], y[task]).statistic / (len(x[task]) * len(y[task])) for task in x]
    assert improvement(x, y).value == pytest.approx(np.mean(theirs))


def test_interval_of_the_mean_is_that_of_all_resamples_of_each_task():
    """Two tasks with 2 and 3 runs have 2^2 · 3^3 = 108 equally likely resamples."""
    scores = {"a": np.array([0.1, 0.4]), "b": np.array([0.2, 0.9, 0.5])}
    everything = [
        (np.mean(a) + np.mean(b)) / 2
        for a in itertools.product(scores["a"], repeat=2)
        for b in itertools.product(scores["b"], repeat=3)
    ]
    low, high = np.quantile(everything, [0.025, 0.975])
    got = aggregate(scores, mean)
    assert (got.low, got.high) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))


def test_methods_are_resampled_independently():
    """All 3^3 · 3^3 pairs of resamples of two methods with the same runs are equally likely.

    If the runs were resampled together, every resample would have P = 0.5.
    """
    runs = np.array([0.2, 0.5, 0.8])
    resamples = [np.array(draw) for draw in itertools.product(runs, repeat=3)]
    probabilities = [
        np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a in x for b in y]) for x in resamples for y in resamples
    ]
    low, high = np.quantile(probabilities, [0.025, 0.975])
    got = improvement({"t": runs}, {"t": runs})
    assert got.value == 0.5
    assert (got.low, got.high) == (pytest.approx(low, abs=0.06), pytest.approx(high, abs=0.06))
    assert high - low > 0.8


def test_values_and_intervals_equal_those_of_rliable():
    """The numbers come from rliable 1.2.0, with arch 7.2.0, and 20,000, 1,000 and 10,000 resamples."""
    x = np.random.default_rng(0).random((8, 5))  # runs x tasks, as rliable has them
    y = x[::-1] * 0.8 + 0.1
    ours, theirs = ({f"t{task}": scores[:, task] for task in range(5)} for scores in (x, y))
    expected = {
        mean: (0.53668186, 0.44766564, 0.62667854),
        median: (0.49398903, 0.41404522, 0.65483058),
        interquartile_mean: (0.56707420, 0.44872000, 0.67806423),
        optimality_gap: (0.46331814, 0.37332146, 0.55233436),
    }
    for metric, (value, low, high) in expected.items():
        got = aggregate(ours, metric)
        assert got.value == pytest.approx(value, abs=1e-8)
        assert (got.low, got.high) == (pytest.approx(low, abs=0.012), pytest.approx(high, abs=0.012))
    got = improvement(ours, theirs)
    assert got.value == pytest.approx(0.51875)
    assert (got.low, got.high) == (pytest.approx(0.3749, abs=0.02), pytest.approx(0.65, abs=0.02))
    profile = performance_profile(ours, np.array([0.25, 0.5, 0.75]))
    assert profile.shares == pytest.approx(np.array([0.8, 0.6, 0.25]))
    # one run of 40 more or less is 0.025
    assert profile.low == pytest.approx(np.array([0.675, 0.45, 0.125]), abs=0.026)
    assert profile.high == pytest.approx(np.array([0.925, 0.75, 0.375]), abs=0.026)


def test_profile_equals_counted_shares():
    scores = {"a": np.array([0.1, 0.5, 0.5, 0.9]), "b": np.array([0.5, 0.6])}
    got = performance_profile(scores, np.array([0.0, 0.1, 0.5, 0.7, 1.0]))
    # a: 4, 3, 1, 1, 0 of 4 runs above; b: 2, 2, 1, 0, 0 of 2
    assert got.shares == pytest.approx(np.array([1, (3 / 4 + 1) / 2, (1 / 4 + 1 / 2) / 2, 1 / 8, 0]))
    assert (got.low <= got.shares).all()
    assert (got.shares <= got.high).all()
    assert got.high[2] > got.low[2]


def test_profile_intervals_are_those_of_the_binomial_distribution():
    """With one task, the number of runs above a threshold in a resample is binomial."""
    scores = {"t": np.linspace(0, 1, 20)}
    got = performance_profile(scores, np.array([0.5, 0.8]))
    for column, above in enumerate((10, 4)):  # of 20 runs: those from 10/19 on, and those from 16/19 on
        assert got.shares[column] == above / 20
        low, high = stats.binom.ppf([0.025, 0.975], 20, above / 20) / 20
        assert got.low[column] == pytest.approx(low, abs=0.051)  # one run
        assert got.high[column] == pytest.approx(high, abs=0.051)


@pytest.mark.parametrize("metric", [mean, interquartile_mean])
def test_intervals_contain_the_true_value_in_about_95_percent_of_studies(metric):
    """300 studies of 4 tasks with 10 runs each.

    The percentile bootstrap of 10 runs is too narrow by about √(9/10), which makes it 94 % instead of 95 %; the
    standard error of the share over 300 studies is 0.013.
    """
    random = np.random.default_rng(0)
    centres = np.array([0.2, 0.4, 0.5, 0.7])
    many = np.clip(random.normal(centres, 0.05, size=(200_000, 4)), 0, 1)
    truth = {mean: centres.mean(), interquartile_mean: stats.trim_mean(many, 0.25, axis=None)}[metric]
    hits = []
    for _ in range(300):
        runs = np.clip(random.normal(centres, 0.05, size=(10, 4)), 0, 1)
        got = aggregate({f"t{task}": runs[:, task] for task in range(4)}, metric)
        hits.append(got.low <= truth <= got.high)
    assert 0.89 < np.mean(hits) < 0.98


def test_interval_of_the_probability_of_improvement_contains_the_true_value():
    """X and Y are normal with the same deviation σ and means d apart: P(X > Y) = Φ(d / (σ√2))."""
    random = np.random.default_rng(1)
    truth = stats.norm.cdf(0.05 / (0.05 * np.sqrt(2)))
    hits = []
    for _ in range(200):
        x, y = ({f"t{t}": random.normal(m, 0.05, size=10) for t in range(4)} for m in (0.55, 0.5))
        got = improvement(x, y)
        hits.append(got.low <= truth <= got.high)
    assert 0.88 < np.mean(hits) <= 0.99


def test_one_run_of_a_task_gives_no_interval():
    got = aggregate({"a": np.array([0.4]), "b": np.array([0.5, 0.7])}, mean)
    assert got.value == pytest.approx(0.5)  # (0.4 + 0.6) / 2
    assert np.isnan([got.low, got.high]).all()
    table = aggregate_table({"x": {"a": np.array([0.4])}}, None)
    assert table.cells["mean, %"][0] == "40.0"
    profile = performance_profile({"a": np.array([0.4])}, np.array([0.3]))
    assert profile.shares[0] == 1
    assert np.isnan(profile.low[0])


def test_tasks_that_a_method_lacks_are_dropped_and_named():
    half = np.array([0.5, 0.5])
    got = common_tasks({"x": {"b": half, "a": half, "c": half}, "y": {"a": half, "c": np.array([]), "d": half}})
    assert {method: list(own) for method, own in got.scores.items()} == {"x": ["a"], "y": ["a"]}
    assert got.dropped == {"b": ["y"], "c": ["y"], "d": ["x"]}


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "no methods"),
        ({"x": {"a": np.array([0.5])}, "y": {"b": np.array([0.5])}}, "no task has runs of every method"),
        ({"x": {"a": np.array([0.5, 45.0])}}, "not shares"),
        ({"x": {"a": np.array([0.5, np.nan])}}, "not shares"),
        ({"x": {"a": np.ones((2, 2))}}, "shape"),
    ],
)
def test_scores_that_cannot_be_aggregated_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        common_tasks(scores)


def test_different_tasks_of_two_methods_are_refused():
    with pytest.raises(ValueError, match="different tasks"):
        improvement({"a": np.array([0.5])}, {"b": np.array([0.5])})


def test_tasks_are_matched_by_name_and_not_by_place():
    x, y = {"a": np.array([0.1, 0.2]), "b": np.array([0.8, 0.9])}, {"b": np.array([0.6]), "a": np.array([0.3])}
    # on a, X always loses; on b, it always wins
    assert improvement(x, y).value == 0.5
    assert improvement(x, {"a": y["a"], "b": np.array([0.85])}).value == 0.25
    assert improvement(x, {"b": np.array([0.85]), "a": y["a"]}).value == 0.25


def test_matrix_has_the_probability_of_each_pair():
    scores = random_scores(3)
    got = improvement_matrix(scores)
    assert list(got.index) == list(got.columns) == ["m0", "m1", "m2"]
    assert np.diag(got).tolist() == [0.5] * 3
    assert (got + got.T).to_numpy() == pytest.approx(np.ones((3, 3)))
    for row, column in itertools.permutations(scores, 2):
        theirs = [
            stats.mannwhitneyu(scores[row][t], scores[column][t]).statistic
            / (len(scores[row][t]) * len(scores[column][t]))
            for t in scores[row]
        ]
        assert got.loc[row, column] == pytest.approx(np.mean(theirs))


def test_table_has_the_metrics_in_percent_and_the_baseline_first():
    scores = {
        "b": {"t": np.array([0.5, 0.7]), "only b": np.array([0.1, 0.2])},
        "a": {"t": np.array([0.4, 0.6])},
    }
    got = aggregate_table(scores, "b")
    assert list(got.cells["method"]) == ["b", "a"]
    # (0.5 + 0.7) / 2, and with two runs the resamples have the means 0.5, 0.6 and 0.7
    assert got.cells["mean, %"][0] == "60.0 [50.0, 70.0]"
    assert got.cells["optimality gap, %"][0] == "40.0 [30.0, 50.0]"
    # of the pairs (0.4, 0.5), (0.4, 0.7), (0.6, 0.5), (0.6, 0.7) one is a win
    of_baseline, of_other = got.cells["P(better), %"]
    assert of_baseline == "–"
    assert of_other.startswith("25.0 [0.0, ")
    assert got.numbers["mean, %"].tolist() == pytest.approx([60, 50])
    assert got.numbers["runs"].tolist() == [2, 2]
    assert got.numbers["P(better), %"].isna().tolist() == [True, False]
    assert any("only b (no run of a)" in note for note in got.notes)
    assert any("2108.13264" in note for note in got.notes)


def test_table_without_a_baseline_has_no_probability_and_an_unknown_baseline_is_refused():
    assert "P(better), %" not in aggregate_table(random_scores(4), None).cells
    with pytest.raises(ValueError, match="not a method"):
        aggregate_table(random_scores(4), "grpo")


def test_same_scores_give_the_same_bytes_whatever_their_order_and_the_other_methods():
    scores = random_scores(5)
    reordered = {method: dict(reversed(own.items())) for method, own in reversed(scores.items())}
    first, second = (aggregate_table(one, "m0") for one in (scores, reordered))
    assert (markdown(first), csv(first), latex(first)) == (markdown(second), csv(second), latex(second))
    fewer = aggregate_table({name: scores[name] for name in ("m0", "m2")}, "m0")
    pd.testing.assert_series_equal(first.numbers.iloc[2], fewer.numbers.iloc[1], check_names=False)


def test_ten_methods_on_five_tasks_take_little_time():
    scores = random_scores(6, methods=10, tasks=5, runs=10)
    start = time.process_time()
    aggregate_table(scores, "m0")
    assert time.process_time() - start < 1  # second of processor time, whatever else runs

"""Aggregate metrics over several tasks (or models) and seeds, with 95 % intervals. All functions are pure.

The definitions are those of the library rliable (Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the
Statistical Precipice", arXiv 2108.13264). The library itself is archived. Its last release, 1.2.0, requires arch < 8,
and arch 7.2.0, the newest of these versions, cannot be imported with pandas 3.

Intervals are percentile intervals of a stratified bootstrap: every resample draws, within each task, as many runs as
the task has, with replacement. Two methods are resampled independently of each other, as in rliable. The pairing of
seeds is therefore not used. Tasks are fixed: an interval holds for new seeds of these tasks, not for new tasks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from rlsparse.results.crossed import Floats
from rlsparse.results.formatting import signed
from rlsparse.results.names import sorted_methods
from rlsparse.results.table import Table

RESAMPLES = 2_000
QUANTILES = [0.025, 0.975]
GAMMA = 1.0  # the score from which on the optimality gap of a run is 0
PROBABILITY = "P(better), %"
SOURCE = "Agarwal et al. 2021, arXiv 2108.13264"

TaskScores = Mapping[str, Floats]
Metric = Callable[[Sequence[Floats]], Floats]


@dataclass(frozen=True)
class Aggregate:
    """A metric over all tasks and runs of a method, with its interval.

    Attributes:
        value: the metric of the observed scores, as a share.
        low, high: bounds of the 95 % percentile bootstrap interval; NaN if a task has fewer than two runs.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Profile:
    """The performance profile of a method: the run-score distribution.

    Attributes:
        thresholds: shape (K,).
        shares: the share of runs with a score above each threshold, shape (K,).
        low, high: bounds of the pointwise 95 % intervals, shape (K,); NaN if a task has fewer than two runs.
    """

    thresholds: Floats
    shares: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class CommonScores:
    """The scores on the tasks that all methods have.

    Attributes:
        scores: method -> task -> scores, shape (S,); S may differ between methods and tasks. Tasks are sorted by name.
        dropped: each task that is left out, with the methods that have no run of it.
    """

    scores: dict[str, dict[str, Floats]]
    dropped: dict[str, list[str]]


def common_tasks(scores: Mapping[str, TaskScores]) -> CommonScores:
    """Return the scores on the tasks that all methods have, and the tasks that are left out.

    Args:
        scores: method -> task -> scores as shares in [0, 1], shape (S,), one per seed. A task without scores counts as
            a task that the method lacks.

    Raises:
        ValueError: no method, no common task, or scores that are not shares of shape (S,).
    """
    if not scores:
        raise ValueError("there are no methods to aggregate")
    for method, of_method in scores.items():
        for task, values in of_method.items():
            _check_scores(np.asarray(values, dtype=float), f"{method} on {task}")
    tasks = sorted({task for of_method in scores.values() for task in of_method})
    lacking = {task: [name for name, own in scores.items() if not np.size(own.get(task, ()))] for task in tasks}
    kept = [task for task in tasks if not lacking[task]]
    if not kept:
        raise ValueError(f"no task has runs of every method: {_dropped(lacking)}")
    common = {name: {task: np.asarray(own[task], dtype=float) for task in kept} for name, own in scores.items()}
    return CommonScores(common, {task: names for task, names in lacking.items() if names})


def mean(tasks: Sequence[Floats]) -> Floats:
    """Return the mean over tasks of the mean score of each task.

    Args:
        tasks: the scores of each task, shape (..., S) with a number of runs S that may differ between tasks.

    Returns:
        Shape (...).
    """
    return np.asarray(_task_means(tasks).mean(axis=-1))


def median(tasks: Sequence[Floats]) -> Floats:
    """Return the median over tasks of the mean score of each task; shapes as in ``mean``."""
    return np.asarray(np.median(_task_means(tasks), axis=-1))


def interquartile_mean(tasks: Sequence[Floats]) -> Floats:
    """Return the mean of the middle half of the runs of all tasks together; shapes as in ``mean``.

    Of n runs, the lowest ⌊n/4⌋ and the highest ⌊n/4⌋ are left out: the 25 % trimmed mean. rliable has equally many runs
    of each task. Where their numbers differ, every task counts the same: a run has the weight 1 / (runs of its task),
    and the share ⌊n/4⌋ / n of the weight is left out on each side.
    """
    pooled = np.concatenate(tasks, axis=-1)  # (..., n)
    n = pooled.shape[-1]
    of_runs = np.concatenate([np.full(task.shape[-1], 1 / (len(tasks) * task.shape[-1])) for task in tasks])  # (n,)
    order = pooled.argsort(axis=-1, kind="stable")  # (..., n)
    weights, cut = of_runs[order], (n // 4) / n  # (..., n)
    ends = weights.cumsum(axis=-1)  # (..., n)
    kept = (np.minimum(ends, 1 - cut) - np.maximum(ends - weights, cut)).clip(min=0)  # (..., n)
    return np.asarray((kept * np.take_along_axis(pooled, order, axis=-1)).sum(axis=-1) / (1 - 2 * cut))


def optimality_gap(tasks: Sequence[Floats]) -> Floats:
    """Return γ − the mean over tasks of the mean of min(score, γ), with γ = 1; shapes as in ``mean``."""
    return GAMMA - mean([np.minimum(task, GAMMA) for task in tasks])


def aggregate(scores: TaskScores, metric: Metric) -> Aggregate:
    """Return a metric of one method with its 95 % interval.

    Args:
        scores: task -> scores, shape (S,).
        metric: ``mean``, ``median``, ``interquartile_mean`` or ``optimality_gap``.
    """
    tasks = _sorted_tasks(scores)
    resampled = [task[drawn] for task, drawn in zip(tasks, _draws(tasks, stream=0), strict=True)]  # (RESAMPLES, S) each
    low, high = _interval(metric(resampled), tasks)
    return Aggregate(float(metric(tasks)), float(low), float(high))


def performance_profile(scores: TaskScores, thresholds: Floats) -> Profile:
    """Return the share of runs with a score above each threshold: the mean over tasks of the share of each task.

    Args:
        scores: task -> scores, shape (S,).
        thresholds: shape (K,).
    """
    tasks = _sorted_tasks(scores)
    above = [(task[:, None] > thresholds).astype(float) for task in tasks]  # (S, K) each
    counts = [_counts(drawn) for drawn in _draws(tasks, stream=0)]  # (RESAMPLES, S) each
    resampled = [count @ one / len(one) for count, one in zip(counts, above, strict=True)]  # (RESAMPLES, K) each
    low, high = _interval(np.mean(resampled, axis=0), tasks)
    shares = np.mean([one.mean(axis=0) for one in above], axis=0)  # (K,)
    return Profile(np.asarray(thresholds, dtype=float), shares, low, high)


def improvement(scores: TaskScores, other: TaskScores) -> Aggregate:
    """Return the probability that a run of a method has a higher score than a run of another, with its 95 % interval.

    It is the mean over tasks of P(X > Y) + P(X = Y) / 2, the Mann-Whitney U statistic divided by the number of pairs.

    Args:
        scores: task -> scores of X, shape (S,).
        other: task -> scores of Y, shape (S',), with the same tasks.

    Raises:
        ValueError: the methods have different tasks.
    """
    if set(scores) != set(other):
        raise ValueError(f"the methods have different tasks: {sorted(set(scores) ^ set(other))}")
    ours, theirs = _sorted_tasks(scores), _sorted_tasks(other)
    # different streams: with the same one, runs in the same place would be resampled together
    our_draws, their_draws = _draws(ours, stream=0), _draws(theirs, stream=1)
    resampled = []
    for x, y, our_drawn, their_drawn in zip(ours, theirs, our_draws, their_draws, strict=True):
        won = _counts(our_drawn) @ _wins(x, y)  # (RESAMPLES, S'), by run of Y
        resampled.append((won * _counts(their_drawn)).sum(axis=1) / (len(x) * len(y)))
    low, high = _interval(np.mean(resampled, axis=0), [*ours, *theirs])
    return Aggregate(_probability(ours, theirs), float(low), float(high))


def improvement_matrix(scores: Mapping[str, TaskScores]) -> pd.DataFrame:
    """Return the probability that the method of the row is better than the method of the column, as a share.

    Only the tasks that all methods have are used (see ``common_tasks``). The diagonal is 0.5, and the values of two
    cells that mirror each other sum to 1.

    Args:
        scores: method -> task -> scores as shares in [0, 1], shape (S,).
    """
    tasks = {method: _sorted_tasks(own) for method, own in common_tasks(scores).scores.items()}
    rows = [[_probability(ours, theirs) for theirs in tasks.values()] for ours in tasks.values()]
    return pd.DataFrame(rows, index=list(tasks), columns=list(tasks))


def aggregate_table(scores: Mapping[str, TaskScores], baseline: str | None) -> Table:
    """Return a table of aggregate metrics in percent, one row per method.

    Args:
        scores: method -> task -> scores as shares in [0, 1], shape (S,). Only tasks that all methods have are used.
        baseline: the method that the probability of improvement compares with; None for a table without it.

    Raises:
        ValueError: the baseline is not a method, or see ``common_tasks``.
    """
    if baseline is not None and baseline not in scores:
        raise ValueError(f"the baseline {baseline} is not a method: {', '.join(scores)}")
    common = common_tasks(scores)
    metrics: dict[str, Metric] = {
        "mean, %": mean,
        "median, %": median,
        "IQM, %": interquartile_mean,
        "optimality gap, %": optimality_gap,
    }
    rows, numbers = [], []
    for method in sorted_methods(list(common.scores), baseline):
        own = common.scores[method]
        found: dict[str, Aggregate | None] = {title: aggregate(own, metric) for title, metric in metrics.items()}
        if baseline is not None:
            found[PROBABILITY] = None if method == baseline else improvement(own, common.scores[baseline])
        runs = sum(len(task) for task in own.values())
        rows.append({"method": method, **{title: _cell(one) for title, one in found.items()}, "runs": str(runs)})
        unrounded = {key: value for title, one in found.items() for key, value in _numbers(title, one).items()}
        numbers.append({"method": method, **unrounded, "runs": runs})
    return Table(pd.DataFrame(rows), pd.DataFrame(numbers), _notes(common, baseline))


def _check_scores(values: Floats, name: str) -> None:
    if values.ndim != 1:
        raise ValueError(f"the scores of {name} have the shape {values.shape}, not (S,)")
    if not ((values >= 0) & (values <= 1)).all():  # False for NaN too
        raise ValueError(f"the scores of {name} are not shares in [0, 1]: {values.tolist()}")


def _task_means(tasks: Sequence[Floats]) -> Floats:
    return np.stack([task.mean(axis=-1) for task in tasks], axis=-1)


def _sorted_tasks(scores: TaskScores) -> list[Floats]:
    """Return the scores of each task in the order of their names, so that results do not depend on the order given."""
    return [np.asarray(scores[task], dtype=float) for task in sorted(scores)]


def _draws(tasks: Sequence[Floats], stream: int) -> list[npt.NDArray[np.integer[Any]]]:
    """Return the indices of the runs that each resample draws, shape (RESAMPLES, S) for each task."""
    random = np.random.default_rng([0, stream])
    return [random.integers(len(task), size=(RESAMPLES, len(task))) for task in tasks]


def _counts(drawn: npt.NDArray[np.integer[Any]]) -> Floats:
    """Return how often each resample has each run: (RESAMPLES, S) indices to (RESAMPLES, S) counts."""
    resamples, runs = drawn.shape
    cells = (np.arange(resamples)[:, None] * runs + drawn).ravel()  # (RESAMPLES * S,)
    return np.bincount(cells, minlength=resamples * runs).reshape(resamples, runs).astype(float)


def _wins(x: Floats, y: Floats) -> Floats:
    """Return 1 where a score of X is higher than a score of Y, 0.5 where they are equal and else 0: shape (S, S')."""
    return (x[:, None] > y).astype(float) + 0.5 * (x[:, None] == y)


def _probability(ours: Sequence[Floats], theirs: Sequence[Floats]) -> float:
    return float(np.mean([_wins(x, y).mean() for x, y in zip(ours, theirs, strict=True)]))


def _interval(resampled: Floats, tasks: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Return the bounds over the first axis; NaN if a task has one run, as resamples of one run do not vary."""
    low, high = np.quantile(resampled, QUANTILES, axis=0)
    if min(len(task) for task in tasks) < 2:
        low, high = np.full_like(low, np.nan), np.full_like(high, np.nan)
    return low, high


def _cell(one: Aggregate | None) -> str:
    if one is None:
        return "–"
    value, low, high = (signed(100 * number, 1) for number in (one.value, one.low, one.high))
    return value if one.low != one.low else f"{value} [{low}, {high}]"


def _numbers(title: str, one: Aggregate | None) -> dict[str, float]:
    if one is None:
        return {}
    return {title: 100 * one.value, f"{title} low": 100 * one.low, f"{title} high": 100 * one.high}


def _dropped(lacking: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{task} (no run of {', '.join(methods)})" for task, methods in lacking.items())


def _notes(common: CommonScores, baseline: str | None) -> list[str]:
    tasks = list(next(iter(common.scores.values())))
    lines = [
        f"Aggregated over {len(tasks)} task{'s' if len(tasks) > 1 else ''}: {', '.join(tasks)}. All definitions are "
        f"those of rliable ({SOURCE}). Brackets hold 95 % percentile intervals of {RESAMPLES:,} stratified bootstrap "
        "resamples, which draw runs within each task. They hold for new seeds of these tasks; pairing by seed is not "
        "used. A method with a single run of a task has no interval.",
        "mean: mean over tasks of the mean score of each task. median: median over tasks of the same means. IQM "
        "(interquartile mean): mean of the middle half of the runs of all tasks together, where each task has the same "
        "weight; extreme runs do not change it. optimality gap: how far runs stay below the score 100 % on average; as "
        "no score is above 100 %, it is 100 % minus the mean.",
    ]
    if baseline is not None:
        lines.append(
            f"P(better), the probability of improvement: the probability that a run of the method has a higher score "
            f"than a run of {baseline} on the same task, averaged over tasks. Ties count half; at 50 % neither is "
            "better. It does not say by how much a method is better."
        )
    if common.dropped:
        lines.append(f"Left out, because a method has no run of the task: {_dropped(common.dropped)}.")
    return lines

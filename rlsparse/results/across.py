"""Compare methods over several tasks and models: the runs of several studies, or of one that varies task or model."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from rlsparse.results.aggregates import TaskScores, aggregate_table
from rlsparse.results.measures import finished
from rlsparse.results.names import baseline_of
from rlsparse.results.study import ResultsError, Study
from rlsparse.results.table import Table

SETTING = ("task", "model")  # columns of results.csv, and groups of the command line
MEASURE = "final_sampled"


def scores_by_task(studies: Sequence[Study]) -> dict[str, TaskScores]:
    """Return method → task and model → final sampled accuracy by seed, as shares.

    A method is named by its words without those that choose the task or the model.
    """
    scores: dict[str, dict[str, list[float]]] = {}
    labels = _labels(studies)
    for number, study in enumerate(studies):
        runs = finished(study.runs).dropna(subset=[MEASURE])
        for (method, task, model), group in runs.groupby(["method", *SETTING]):
            name = _without_setting(str(method))
            label = labels[number, str(task), str(model)]
            scores.setdefault(name, {}).setdefault(label, []).extend(group.groupby("seed")[MEASURE].mean())
    return {
        name: {label: np.array(values, dtype=float) for label, values in by_task.items()}
        for name, by_task in scores.items()
    }


def across_table(studies: Sequence[Study], baseline: str | None) -> Table:
    """Return the aggregate metrics of the methods that all tasks have.

    Args:
        baseline: the method to compare with; None to choose it by name.

    Raises:
        ResultsError: there are fewer than two tasks or models, or no method has a run on two of them.
    """
    scores = scores_by_task(studies)
    tasks = {task for by_task in scores.values() for task in by_task}
    if len(tasks) < 2:
        raise ResultsError(
            f"--across: the runs are of {', '.join(tasks) or 'no task'} alone; give studies of two tasks or models"
        )
    several = {name: by_task for name, by_task in scores.items() if len(by_task) > 1}
    if not several:
        raise ResultsError("--across: no method has runs on two tasks or models under the same name")
    wanted = None if baseline is None else _without_setting(baseline)
    try:
        return aggregate_table(several, baseline_of(list(several), wanted if wanted in several else None))
    except ValueError as error:  # no task has all methods
        raise ResultsError(f"--across: {error}") from error


def _without_setting(method: str) -> str:
    """Return the name of a method without the words that choose the task or the model."""
    return " ".join(word for word in method.split(" ") if word.partition("=")[0] not in SETTING)


def _labels(studies: Sequence[Study]) -> Mapping[tuple[int, str, str], str]:
    """Return task and model in words, with the name of the study where several have the same."""
    keys = [
        (number, str(task), str(model))
        for number, study in enumerate(studies)
        for task, model in finished(study.runs)[list(SETTING)].drop_duplicates().itertuples(index=False)
    ]
    counts = Counter((task, model) for _, task, model in keys)
    return {
        (number, task, model): f"{task}, {model}" + (f" ({studies[number].name})" if counts[task, model] > 1 else "")
        for number, task, model in keys
    }

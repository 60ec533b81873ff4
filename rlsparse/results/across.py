"""Compare methods over several tasks and models: the runs of several studies, or of one that varies task or model."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from rlsparse.results.aggregates import TaskScores, aggregate_table
from rlsparse.results.measures import finished
from rlsparse.results.names import baseline_of, sorted_methods
from rlsparse.results.study import ResultsError, Study
from rlsparse.results.table import Table

SETTING = ("task", "model")  # columns of results.csv, and groups of the command line
MEASURE = "final_sampled"


def scores_by_task(studies: Sequence[Study]) -> dict[str, TaskScores]:
    """Return method → task and model → final sampled accuracy by seed, as shares.

    A method is named by its words without those that choose the task or the model.

    Raises:
        ResultsError: a study has no column for the task or the model.
    """
    for study in studies:
        if missing := [name for name in (*SETTING, MEASURE) if name not in study.runs]:
            raise ResultsError(
                f"--across {study.name}: its results.csv is older and has no column {missing[0]}; publish its runs "
                "again with --experiment and --out"
            )
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


def across_scores(studies: Sequence[Study], baseline: str | None = None) -> tuple[dict[str, TaskScores], str]:
    """Return the scores of the methods with several tasks or models, as ``scores_by_task``, and the baseline.

    Args:
        baseline: the method to compare with; None for that of the first study, or else the one with the fewest words.

    Raises:
        ResultsError: there are fewer than two tasks or models, no method has a run on two of them, or the baseline is
            none of these.
    """
    scores = scores_by_task(studies)
    tasks = {task for by_task in scores.values() for task in by_task}
    if len(tasks) < 2:
        raise ResultsError(
            f"--across: the runs are of {', '.join(tasks) or 'no task'} alone; give studies of two tasks or models"
        )
    several = {name: by_task for name, by_task in scores.items() if len(by_task) > 1}
    if not several:
        listed = "; ".join(f"{study.name} has {', '.join(sorted_methods(study.methods)[:3])}" for study in studies)
        raise ResultsError(
            "--across: no method has runs on two tasks or models under the same name. Names must be equal but for "
            f"task=... and model=...; {listed}"
        )
    if baseline is not None and _without_setting(baseline) not in several:
        listed = ", ".join(sorted_methods(list(several)))
        raise ResultsError(f"--baseline {baseline}: has no runs on two tasks or models; these have: {listed}")
    wanted = _without_setting(baseline or studies[0].baseline or "")
    chosen = baseline_of(list(several), wanted if wanted in several else None)
    assert chosen is not None
    return several, chosen


def across_table(studies: Sequence[Study], baseline: str | None = None) -> Table:
    """Return the aggregate metrics of the methods that all tasks have.

    Args:
        baseline: as in ``across_scores``.

    Raises:
        ResultsError: see ``across_scores``, or no task has all methods.
    """
    scores, chosen = across_scores(studies, baseline)
    try:
        return aggregate_table(scores, chosen)
    except ValueError as error:
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

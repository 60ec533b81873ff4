"""Methods over several tasks and models."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from rlsparse.results.across import across_table, scores_by_task
from rlsparse.results.study import ResultsError, Study


def study(name, **methods):
    """Method → (task, model, accuracies by seed)."""
    rows = [
        {
            "id": f"{method}{seed}",
            "method": method,
            "seed": seed,
            "status": "finished",
            "task": task,
            "model": model,
            "final_sampled": accuracy,
        }
        for method, (task, model, accuracies) in methods.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    return Study(name, pd.DataFrame(rows), pd.DataFrame(), pd.DataFrame(), [], pd.DataFrame(), None, None)


def test_scores_are_by_task_and_model_and_methods_lose_the_words_that_choose_them():
    one = study(
        "one", **{"grpo task=svamp": ("svamp", "tiny", [0.1, 0.3]), "grpo task=asdiv": ("asdiv", "tiny", [0.5])}
    )
    two = study("two", grpo=("svamp", "small", [0.7]), tspmo=("svamp", "small", [0.2]))
    scores = scores_by_task([one, two])
    assert {name: {task: list(found) for task, found in by_task.items()} for name, by_task in scores.items()} == {
        "grpo": {"svamp, tiny": [0.1, 0.3], "asdiv, tiny": [0.5], "svamp, small": [0.7]},
        "tspmo": {"svamp, small": [0.2]},
    }


def test_table_has_means_over_tasks_of_methods_that_have_several():
    one = study("one", grpo=("svamp", "tiny", [0.1, 0.3]), tspmo=("svamp", "tiny", [0.4, 0.4]))
    two = study("two", grpo=("svamp", "small", [0.5, 0.7]), tspmo=("svamp", "small", [0.8, 0.8]))
    table = across_table([one, two], "grpo")
    numbers = table.numbers.set_index("method")
    # grpo: (0.2 + 0.6) / 2; tspmo: (0.4 + 0.8) / 2, above every run of grpo on both
    assert numbers.loc["grpo", "mean, %"] == pytest.approx(40)
    assert numbers.loc["tspmo", "mean, %"] == pytest.approx(60)
    assert numbers.loc["tspmo", "P(better), %"] == pytest.approx(100)
    assert np.isnan(numbers.loc["grpo", "P(better), %"])


def test_two_studies_of_one_task_and_model_are_told_apart_by_name():
    scores = scores_by_task([study("a", grpo=("svamp", "tiny", [0.1])), study("b", grpo=("svamp", "tiny", [0.2]))])
    assert list(scores["grpo"]) == ["svamp, tiny (a)", "svamp, tiny (b)"]


def test_single_task_or_methods_without_common_names_are_refused():
    one = study("one", grpo=("svamp", "tiny", [0.1, 0.3]))
    with pytest.raises(ResultsError, match=r"--across: the runs are of svamp, tiny alone; give studies of two"):
        across_table([one], None)
    other = study("two", tspmo=("svamp", "small", [0.5]))
    with pytest.raises(ResultsError, match=r"under the same name.*; one has grpo; two has tspmo"):
        across_table([one, other], None)
    with pytest.raises(ResultsError, match="--baseline rgra: has no runs on two tasks or models; these have: grpo"):
        across_table([one, study("two", grpo=("svamp", "small", [0.5]))], "rgra")
    old = study("old", grpo=("svamp", "small", [0.5]))
    with pytest.raises(ResultsError, match=r"--across old: its results.csv is older and has no column task"):
        across_table([one, replace(old, runs=old.runs.drop(columns=["task", "model"]))])

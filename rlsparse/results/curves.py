"""Learning curves: one row per evaluation of each run, with the cost of the run up to that evaluation."""

from typing import Any

import pandas as pd

from rlsparse.storage.jsonl import read_rows
from rlsparse.storage.run_folder import RunFolder

EVALUATION = {"accuracy_sampled": "eval/accuracy_sampled", "accuracy_greedy": "eval/accuracy_greedy"}
STAGES = ("time/rollout", "time/reward", "time/train")
CURVES = ["method", "seed", "step", *EVALUATION, "tokens_generated", "tokens_updated", "seconds"]
BEFORE_FIRST = " †"  # marks what lies before the first evaluation after step 0
COLLAPSE_BELOW = 0.5  # a run that ends below this share of its best evaluation has collapsed


def read_curve(run: RunFolder) -> list[dict[str, Any]]:
    """Return the evaluations of a run in order, with the columns of ``CURVES`` except method and seed.

    ``seconds`` counts sampling, verifying and training up to the evaluation, but not the evaluations themselves. Lines
    that cannot be read are left out.
    """
    points, seconds, generated, updated = [], 0.0, 0, 0
    for row in read_rows(run.metrics):
        try:
            if row["kind"] == "train":
                seconds += sum(row[stage] for stage in STAGES)
                generated, updated = row["tokens/generated"], row["tokens/selected"]
            elif row["kind"] == "eval":
                measured = {column: float(row[name]) for column, name in EVALUATION.items()}
                cost = {"tokens_generated": generated, "tokens_updated": updated, "seconds": seconds}
                points.append({"step": int(row["step"]), **measured, **cost})
        except (ValueError, TypeError, KeyError, OverflowError):
            continue
    return points


def has_collapsed(curve: list[dict[str, Any]]) -> bool | None:
    """Return whether the last sampled accuracy is less than half of the best one (our definition).

    None without a curve.
    """
    if not curve:
        return None
    accuracies = [row["accuracy_sampled"] for row in curve]
    return bool(accuracies[-1] < COLLAPSE_BELOW * max(accuracies))


def accuracy_at_cost(curves: pd.DataFrame, cost: str, budget: float) -> "pd.Series[float]":
    """Return the sampled accuracy of each run at a given cost, interpolated linearly between evaluations.

    Args:
        curves: the curves of one method.
        cost: a column of ``curves`` that never decreases along a run.
        budget: the cost, in the unit of that column.

    Returns:
        Accuracies as shares, indexed by seed; the last accuracy for a run that ended at a lower cost.
    """
    import numpy as np

    return pd.Series(
        {
            seed: float(np.interp(budget, of_seed[cost], of_seed["accuracy_sampled"]))
            for seed, of_seed in curves.sort_values("step").groupby("seed")
        },
        dtype=float,
    )

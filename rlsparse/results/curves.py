"""Learning curves: a row an evaluation of each run of an experiment, with what the run had cost by then."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

EVALUATION = {"accuracy_sampled": "eval/accuracy_sampled", "accuracy_greedy": "eval/accuracy_greedy"}
STAGES = ("time/rollout", "time/reward", "time/train")
CURVES = ["method", "seed", "step", *EVALUATION, "tokens_generated", "tokens_updated", "seconds"]
KEPT = 0.5  # a run that ends below this share of the best evaluation it had has collapsed


def read_curve(file: Path) -> list[dict[str, Any]]:
    """The evaluations of a run, in order: columns of ``CURVES`` but method and seed.

    ``seconds`` are those of sampling, verifying and training up to the evaluation; evaluations are not counted.
    Lines that cannot be read are left out.
    """
    rows, seconds, generated, updated = [], 0.0, 0, 0
    for line in file.read_bytes().splitlines() if file.is_file() else []:
        try:
            row = json.loads(line)
            if row["kind"] == "train":
                seconds += sum(row[stage] for stage in STAGES)
                generated, updated = row["tokens/generated"], row["tokens/selected"]
            elif row["kind"] == "eval":
                measured = {column: float(row[name]) for column, name in EVALUATION.items()}
                cost = {"tokens_generated": generated, "tokens_updated": updated, "seconds": seconds}
                rows.append({"step": int(row["step"]), **measured, **cost})
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            continue
    return rows


def has_collapsed(curve: list[dict[str, Any]]) -> bool | None:
    """Whether the last sampled accuracy is less than half of the best before it (ours); None without a curve."""
    if not curve:
        return None
    accuracies = [row["accuracy_sampled"] for row in curve]
    return bool(accuracies[-1] < KEPT * max(accuracies))


def at_cost(curves: pd.DataFrame, cost: str, budget: float) -> "pd.Series[float]":
    """Sampled accuracy that each run had when it had cost so much, between evaluations by a straight line.

    Args:
        curves: of one method.
        cost: a column of it that only grows along a run.

    Returns:
        Shares by seed; a run that ended before is taken at its end.
    """
    import numpy as np

    return pd.Series(
        {
            seed: float(np.interp(budget, of_seed[cost], of_seed["accuracy_sampled"]))
            for seed, of_seed in curves.sort_values("step").groupby("seed")
        },
        dtype=float,
    )

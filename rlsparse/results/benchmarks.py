"""Benchmarks: a tidy table of the evaluations of the runs on them, and the table that a paper shows."""

import re
from pathlib import Path
from typing import Any

import pandas as pd

from rlsparse.results.formatting import interval
from rlsparse.results.measures import finished
from rlsparse.results.names import sorted_methods
from rlsparse.results.notes import OVER_SEEDS
from rlsparse.results.statistics import Estimate, estimate
from rlsparse.results.table import Table
from rlsparse.storage.atomic import read_object
from rlsparse.storage.run_folder import RunFolder

TIDY = ["method", "seed", "id", "benchmark", "when", "step", "questions"]  # and the metrics of an evaluation
BASE, FINAL = "base", "final"  # values of the column when: the first and the last evaluation of a run
MEAN = "mean"  # heading of the mean over benchmarks
AT_K = re.compile(r"(pass|maj)_at_(\d+)")
LARGEST = 1e9  # no metric of an evaluation is as large; NaN and infinity are excluded, too


def collect_benchmarks(folder: Path, runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each run, benchmark and end of the run, with the columns ``TIDY`` and the metrics.

    Values that are no numbers are left out.

    Args:
        folder: the folder of the experiment.
        runs: the tidy table of its runs, with the columns ``method``, ``seed``, ``id`` and ``status``.
    """
    rows: list[dict[str, Any]] = []
    for run in finished(runs).itertuples():
        summary = read_object(RunFolder(folder / str(run.id)).summary) or {}
        named = summary.get("benchmarks")
        for benchmark, ends in (named if isinstance(named, dict) else {}).items():
            for when in (BASE, FINAL):
                values = ends.get(when) if isinstance(ends, dict) else None
                if isinstance(values, dict):
                    about = {"method": run.method, "seed": run.seed, "id": run.id, "benchmark": benchmark, "when": when}
                    rows.append({**about, **{key: value for key, value in values.items() if _is_number(value)}})
    frame = pd.DataFrame(rows)
    return frame[[*TIDY, *(name for name in frame if name not in TIDY)]] if rows else pd.DataFrame()


def benchmark_table(found: pd.DataFrame, baseline: str | None) -> Table:
    """Return accuracies by benchmark, one row for each measure and method, and one for the models before training.

    Args:
        found: as ``collect_benchmarks`` returns it.
        baseline: the method that comes first.
    """
    names = list(dict.fromkeys(found["benchmark"]))
    groups = _groups(found, baseline)
    # a mean over other benchmarks could not be compared
    common = [name for name in names if all((group["benchmark"] == name).any() for _, group in groups)]
    rows, numbers = [], []
    for measure, title, factor in _measures(found):
        for method, group in groups:
            by_seed = factor * group.groupby(["seed", "benchmark"])[measure].mean().unstack().reindex(columns=names)
            values = {name: by_seed[name].dropna() for name in names}
            if len(common) > 1:  # of seeds that have all of them
                values[MEAN] = by_seed[common].mean(axis=1, skipna=False).dropna()
            estimates = {name: estimate(value) for name, value in values.items()}
            if factor == 100:
                estimates = {name: one.within(0, 100) for name, one in estimates.items()}
            seeds = str(group["seed"].nunique())
            shown = {name: interval(value, 1) for name, value in estimates.items()}
            rows.append({"method": method, "measure": title, **shown, "seeds": seeds})
            unrounded = {key: n for name, value in estimates.items() for key, n in _numbers(name, value).items()}
            numbers.append({"method": method, "measure": title, **unrounded, "seeds": seeds})
    counts = {name: sorted(found[found["benchmark"] == name]["questions"].dropna().unique()) for name in names}
    asked = ", ".join(f"{name} {' or '.join(f'{n:.0f}' for n in several)}" for name, several in counts.items())
    notes = [OVER_SEEDS]
    notes.append(f"Questions: {asked}. Accuracies are shares of the questions, in %; lengths are in tokens.")
    notes.append("greedy: one completion without sampling. avg@n: mean over n sampled completions of each question.")
    if 1 < len(common) < len(names):
        notes.append(f"mean: over the benchmarks that every row has: {', '.join(common)}.")
    return Table(pd.DataFrame(rows), pd.DataFrame(numbers), notes, left=2)


def _measures(found: pd.DataFrame) -> list[tuple[str, str, float]]:
    """Return column, title and factor of each measure that the table shows: of pass@k and maj@k the largest k."""
    chosen = [("accuracy_greedy", "greedy", 100.0), ("accuracy_sampled", "avg@n", 100.0)]
    for kind in ("pass", "maj"):
        ks = [int(match[2]) for name in found if (match := AT_K.fullmatch(str(name))) and match[1] == kind]
        if ks and max(ks) > 1:
            chosen.append((f"{kind}_at_{max(ks)}", f"{kind}@{max(ks)}", 100.0))
    chosen.append(("mean_length", "length", 1.0))
    return [one for one in chosen if one[0] in found and found[one[0]].notna().any()]


def _groups(found: pd.DataFrame, baseline: str | None) -> list[tuple[str, pd.DataFrame]]:
    """Return the rows of each line of the table with its name, the models before training first."""
    before, after = found[found["when"] == BASE], found[found["when"] == FINAL]
    untrained = before[before["step"] == 0]
    methods = sorted_methods(list(after["method"]), baseline)
    groups: list[tuple[str, pd.DataFrame]] = []
    if not untrained.empty and not _same(untrained, after):
        greedy = untrained.groupby(["method", "benchmark"])["accuracy_greedy"].mean().unstack()
        if bool((greedy.nunique() <= 1).all()):  # all methods start from one model
            groups.append(("before training", untrained))
        else:
            starts = sorted_methods(list(untrained["method"]), baseline)
            groups += [(f"{name}, before training", untrained[untrained["method"] == name]) for name in starts]
    trained = after[after["step"] > 0] if bool((after["step"] > 0).any()) else after
    return [*groups, *((name, trained[trained["method"] == name]) for name in methods)]


def _same(untrained: pd.DataFrame, after: pd.DataFrame) -> bool:
    """Return whether nothing was trained: the only evaluation of each run is that of a model as it was given."""
    return bool((after["step"] == 0).all()) and len(untrained) == len(after)


def _numbers(title: str, value: Estimate) -> dict[str, Any]:
    return {title: value.mean, f"{title} low": value.low, f"{title} high": value.high}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST

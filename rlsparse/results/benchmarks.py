"""Benchmarks: a tidy table of the evaluations of the runs on them, and the table that a paper shows."""

import re
from pathlib import Path
from typing import Any

import pandas as pd

from rlsparse.results.answers import Answers
from rlsparse.results.comparisons import corrected_tests
from rlsparse.results.formatting import interval, p_value
from rlsparse.results.measures import finished
from rlsparse.results.names import sorted_methods
from rlsparse.results.notes import P_HOLM, P_SEEDS, P, meaning
from rlsparse.results.sample import Sample, mean_over_benchmarks, with_answers
from rlsparse.results.statistics import Estimate, MeanTest, estimate
from rlsparse.results.table import Table
from rlsparse.storage.atomic import read_object
from rlsparse.storage.run_folder import RunFolder

TIDY = ["method", "seed", "id", "benchmark", "when", "step", "questions"]  # and the metrics of an evaluation
BASE, FINAL = "base", "final"  # values of the column when: the first and the last evaluation of a run
MEAN, DIFFERENCE = "mean", "difference, points"  # headings
BY_QUESTION = {"accuracy_greedy": "greedy", "accuracy_sampled": "right"}  # measures -> their answers, by question
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


def benchmark_table(found: pd.DataFrame, baseline: str | None, answers: Answers | None = None, looks: int = 1) -> Table:
    """Return accuracies by benchmark, one row for each measure and method, and one for the models before training.

    Accuracies have the difference from the baseline, of the mean over benchmarks; p-values are corrected for the number
    of methods of each measure.

    Args:
        found: as ``collect_benchmarks`` returns it.
        baseline: the method that comes first.
        answers: of the runs to each question; None where they are not known.
        looks: the number of planned looks at the results, by which corrected p-values are multiplied.
    """
    answers = answers or Answers.none()
    names = list(dict.fromkeys(found["benchmark"]))
    groups = _groups(found, baseline)
    # a mean over other benchmarks could not be compared
    common = [name for name in names if all((group["benchmark"] == name).any() for _, group in groups)]
    rows, numbers, asked_sets = [], [], set[int]()
    methods = [name for name, group in groups if (group["when"] == FINAL).all()]
    has_differences = baseline in methods and len(methods) > 1 and bool(common)
    for measure, title, factor in _measures(found):
        samples = {}
        for method, group in groups:
            of_each = {name: _sample(group[group["benchmark"] == name], measure, answers) for name in names}
            of_each = {name: one.scaled(factor) for name, one in of_each.items()}
            if len(common) > 1:
                of_each[MEAN] = mean_over_benchmarks({name: of_each[name] for name in common})
            samples[method] = of_each
        of_methods = {name: samples[name][MEAN if len(common) > 1 else common[0]] for name in methods if common}
        differences = {}
        if has_differences and factor == 100:
            differences = {
                name: one - of_methods[str(baseline)] for name, one in of_methods.items() if name != baseline
            }
        compared = corrected_tests({name: one for name, one in differences.items() if len(one.values)}, looks)
        for method, group in groups:
            estimates = {name: estimate(one) for name, one in samples[method].items()}
            asked_sets |= {one.questions for one in estimates.values() if measure in BY_QUESTION and one.n > 1}
            if factor == 100:
                estimates = {name: one.within(0, 100) for name, one in estimates.items()}
            seeds = str(group["seed"].nunique())
            shown = {name: interval(value, 1) for name, value in estimates.items()}
            unrounded = {key: n for name, value in estimates.items() for key, n in _numbers(name, value).items()}
            if has_differences:
                cells, exact = _difference_cells(compared.get(method))
                shown |= cells
                unrounded |= exact
            rows.append({"method": method, "measure": title, **shown, "seeds": seeds})
            numbers.append({"method": method, "measure": title, **unrounded, "seeds": seeds})
    counts = {name: sorted(found[found["benchmark"] == name]["questions"].dropna().unique()) for name in names}
    asked = ", ".join(f"{name} {' or '.join(f'{n:.0f}' for n in several)}" for name, several in counts.items())
    notes = meaning(asked_sets, has_differences)
    if has_differences:
        of = f"the mean over {', '.join(common)}" if len(common) > 1 else common[0]
        notes.append(f"{DIFFERENCE}: to {baseline}, in {of}. {P_HOLM} is corrected for the methods of each measure.")
    notes.append(f"Questions: {asked}. Accuracies are shares of the questions, in %; lengths are in tokens.")
    notes.append("greedy: one completion without sampling. avg@n: mean over n sampled completions of each question.")
    if max(asked_sets, default=0) > 0:
        notes.append("pass@k, maj@k, length: intervals and p are to new seeds on the same questions.")
    if 1 < len(common) < len(names):
        notes.append(f"mean: over the benchmarks that every row has: {', '.join(common)}.")
    return Table(pd.DataFrame(rows), pd.DataFrame(numbers), notes, left=2)


def _sample(group: pd.DataFrame, measure: str, answers: Answers) -> Sample:
    """Return a measure of a method on a benchmark by seed and, where the answers are known, by question.

    Args:
        group: the rows of its runs on this benchmark.
    """
    values = group.groupby("seed")[measure].mean().dropna()
    kind = BY_QUESTION.get(measure)
    if kind is None or group.empty:
        return Sample(values)
    (when,), (benchmark,) = set(group["when"]), set(group["benchmark"])
    scores = answers.of(list(group["id"]), when, kind, benchmark)  # (Q, R)
    return with_answers(values, scores, dict(zip(group["id"], group["seed"], strict=True)))


def _difference_cells(found: tuple[MeanTest, float] | None) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the cells of a difference, and its unrounded numbers."""
    if found is None:
        return dict.fromkeys((DIFFERENCE, P_SEEDS, P, P_HOLM), "–"), {}
    test, corrected = found
    difference = test.estimate.within(-100, 100)
    ps = {P_SEEDS: test.p_seeds, P: test.p, P_HOLM: corrected}
    cells = {DIFFERENCE: interval(difference, 1), **{name: p_value(p) for name, p in ps.items()}}
    known = {name: f"{p:.6g}" for name, p in ps.items() if p == p}
    return cells, {**_numbers(DIFFERENCE, difference), **known}


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

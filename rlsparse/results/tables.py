"""The tables of a study: what came out, what it cost, what it reached at equal cost, and how keys were tuned."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from rlsparse.results.curves import at_cost
from rlsparse.results.measures import COSTS, OUTCOMES, Measure, by_seed, collapsed_methods, finished, headline, present
from rlsparse.results.names import in_order
from rlsparse.results.shown import interval, p_value, values
from rlsparse.results.statistics import LEVEL, MEANING, Estimate, against, estimate, paired
from rlsparse.results.table import Table

BUDGETS = {"tokens_updated": "tokens updated", "seconds": "seconds of steps"}  # columns of the curves
EARLY = " †"
DEFINITIONS = (
    "final: sampled accuracy of the last evaluation; IQM: its interquartile mean; area under curve: mean of the "
    "evaluations after the start; collapsed: ended below half of the best evaluation it had, or diverged. Best mean in "
    "bold."
)


def outcome_table(runs: pd.DataFrame, baseline: str | None, not_counted: Sequence[str]) -> Table:
    """Method × outcome: mean and interval, paired difference to the baseline with its p, and how many collapsed."""
    methods, main = in_order(list(runs["method"]), baseline), headline(runs)
    rows, numbers = [], []
    for method in methods:
        row: dict[str, str] = {"method": method}
        number: dict[str, Any] = {"method": method}
        if "lr" in runs and runs["lr"].notna().any():
            row["lr"] = number["lr"] = values(runs[runs["method"] == method]["lr"])
        for measure in present(OUTCOMES, finished(runs)):
            found = estimate(by_seed(runs, method, measure.column) * measure.factor)
            row[measure.title] = interval(found, measure.decimals)
            number |= _numbers(measure.title, found)
            if measure is main:
                row["IQM"] = number["IQM"] = f"{found.iqm:.{measure.decimals}f}" if found.n else "–"
        if baseline is not None:
            against_it, behind = _difference(runs, method, baseline, main)
            row |= against_it
            number |= behind
        row |= _collapsed(runs, method)
        row["seeds"] = number["seeds"] = str(by_seed(runs, method, main.column).count())
        rows.append(row)
        numbers.append(number)
    notes = [MEANING, DEFINITIONS] + ([f"Differences are to {baseline}."] if baseline is not None else [])
    notes += setting_notes(runs) + version_notes(runs) + uncounted(not_counted)
    cells = pd.DataFrame(rows)
    return Table(cells, pd.DataFrame(numbers), notes, bold=_best(runs, methods, present(OUTCOMES, finished(runs))))


def cost_table(runs: pd.DataFrame, curves: pd.DataFrame, baseline: str | None = None) -> Table:
    """Method × cost, and the accuracy that each method had reached when it had cost what the cheapest costs in all."""
    methods = in_order(list(finished(runs)["method"]), baseline)
    columns = present(COSTS, finished(runs))
    rows: list[dict[str, str]] = []
    numbers: list[dict[str, object]] = []
    budgets = _budgets(curves, runs)
    for method in methods:
        row: dict[str, str] = {"method": method}
        number: dict[str, Any] = {"method": method}
        for cost, budget in budgets.items():
            own = curves[curves["method"] == method]
            reached = estimate(100 * at_cost(own, cost, budget))
            title = f"% at equal {BUDGETS[cost]}"
            before = budget < own[own["step"] > 0].groupby("seed")[cost].min().mean()
            row[title] = interval(reached, 1) + (EARLY if before else "")
            number |= _numbers(title, reached)
        for measure in columns:
            found = estimate(by_seed(runs, method, measure.column) * measure.factor)
            row[measure.title] = "–" if found.n == 0 else f"{found.mean:.{measure.decimals}f}"
            number |= _numbers(measure.title, found)
        rows.append(row)
        numbers.append(number)
    notes = ["Means over seeds; best in bold." + (f" {MEANING}" if budgets else ""), *_equal_cost_notes(budgets)]
    return Table(pd.DataFrame(rows), pd.DataFrame(numbers), notes, bold=_best(runs, methods, columns))


def tuning_table(trials: pd.DataFrame, runs: pd.DataFrame, baseline: str | None = None) -> Table | None:
    """Method × learning rate: area under the curve of the trials, with the rate that was chosen in bold.

    None where no learning rate was tuned.
    """
    if trials.empty or "lr" not in trials or trials["lr"].nunique() < 2:
        return None
    rates = sorted(trials["lr"].dropna().unique())
    score = trials.assign(score=trials["curve_mean"].where(trials["status"] == "finished", 0.0))
    means = 100 * score.groupby(["method", "lr"])["score"].mean().unstack().reindex(columns=rates)
    methods = in_order(list(means.index), baseline)
    chosen = {method: set(runs[runs["method"] == method]["lr"]) for method in methods}
    cells = pd.DataFrame({"method": methods})
    for rate in rates:
        cells[f"lr {rate:g}"] = ["–" if means[rate][m] != means[rate][m] else f"{means[rate][m]:.1f}" for m in methods]
    bold = {(row, f"lr {rate:g}") for row, m in enumerate(methods) for rate in rates if rate in chosen[m]}
    seeds = ", ".join(str(seed) for seed in sorted(trials["seed"].unique()))
    notes = [
        f"Area under the curve, %, mean over the trials on seeds {seeds}; in bold, what the method is compared at."
    ]
    edge = [method for method in methods if chosen[method] & {rates[0], rates[-1]}]
    if edge:
        notes.append(f"At the end of the range, so that a rate beyond it may be better: {', '.join(edge)}.")
    numbers = means.loc[methods].rename(columns=lambda rate: f"lr {rate:g}").reset_index()
    return Table(cells, numbers, notes, bold=bold)


def setting_notes(runs: pd.DataFrame) -> list[str]:
    """What the runs have in common: model, task, size."""
    about = {
        "task": "{}",
        "model": "{}",
        "steps": "{} steps",
        "prompts_per_step": "{} prompts a step",
        "group_size": "{} completions a prompt",
        "updates_per_rollout": "{} optimizer steps a rollout",
    }
    if "task" not in runs or runs["task"].isna().all():
        return []
    return ["Setting: " + ", ".join(form.format(values(runs[key])) for key, form in about.items() if key in runs) + "."]


def version_notes(runs: pd.DataFrame) -> list[str]:
    """A line for each package, or the code, of which the runs had more than one version."""
    lines = []
    for column, what in (("torch", "torch"), ("commit", "the code")):
        found = sorted(runs[column].dropna().astype(str).unique()) if column in runs else []
        if len(found) > 1:
            lines.append(f"Runs of more than one version of {what}: {', '.join(name[:10] for name in found)}.")
    if "changed" in runs and runs["changed"].notna().any():
        names = ", ".join(f"{run.id} ({run.changed})" for run in runs[runs["changed"].notna()].itertuples())
        lines.append(f"Versions changed in the middle of a run: {names}.")
    return lines


def uncounted(not_counted: Sequence[str]) -> list[str]:
    """A visible note: a paper that drops runs must say so too."""
    return ["Not counted: " + "; ".join(not_counted) + "."] if not_counted else []


def _difference(runs: pd.DataFrame, method: str, baseline: str, main: Measure) -> tuple[dict[str, str], dict[str, Any]]:
    title = f"difference, {'points' if main.factor == 100 else main.title.rsplit(' ', 1)[-1]}"
    if method == baseline:
        return {title: "–", "p": "–", "seeds say": "baseline"}, {}
    values, of_baseline = (main.factor * by_seed(runs, name, main.column) for name in (method, baseline))
    found = against(paired(values, of_baseline), 0.0)
    if found.estimate.n == 0:
        return {title: "–", "p": "–", "seeds say": "no common seed"}, {}
    better = {"max": "above", "min": "below"}[main.best or "max"]
    says = "inconclusive" if found.p > LEVEL else "better" if found.verdict == better else "worse"
    shown = {title: interval(found.estimate, main.decimals), "p": p_value(found.p), "seeds say": says}
    return shown, {**_numbers(title, found.estimate), "p": f"{found.p:.6g}"}


def _collapsed(runs: pd.DataFrame, method: str) -> dict[str, str]:
    if "collapsed" not in runs or runs["collapsed"].isna().all():
        return {}
    known = runs[runs["method"] == method]["collapsed"].dropna().astype(bool)
    return {"collapsed": f"{int(known.sum())} of {len(known)}"}


def _equal_cost_notes(budgets: dict[str, float]) -> list[str]:
    if not budgets:
        return []
    told = [f"{budget:,.{'3g' if budget < 100 else '0f'}} {BUDGETS[cost]}" for cost, budget in budgets.items()]
    return [
        f"Equal cost: sampled accuracy at {' and at '.join(told)}, what a run of the cheapest method that never "
        "collapsed takes in all; between evaluations by a straight line, so that a value before a method's first "
        f"evaluation after the start ({EARLY.strip()}) is hardly known. Seconds of steps are those of sampling, "
        "verifying and training, on this machine, with whatever else ran on it."
    ]


def _budgets(curves: pd.DataFrame, runs: pd.DataFrame) -> dict[str, float]:
    """For each cost, the smallest mean total of a method; none where there is nothing to compare.

    A method of which a run collapsed is passed over.
    """
    if curves.empty or curves["method"].nunique() < 2:
        return {}
    sound = curves[~curves["method"].isin(collapsed_methods(runs))]
    totals = (
        (curves if sound.empty else sound)
        .groupby(["method", "seed"])[list(BUDGETS)]
        .max()
        .groupby("method")
        .mean()
        .min()
    )
    return {cost: float(totals[cost]) for cost in BUDGETS if totals[cost] > 0}


def _best(runs: pd.DataFrame, methods: Sequence[str], measures: Sequence[Measure]) -> set[tuple[int, str]]:
    """The cells whose shown mean is best; none where there is nothing to compare."""
    bold: set[tuple[int, str]] = set()
    for measure in measures:
        means = [by_seed(runs, method, measure.column).mean() * measure.factor for method in methods]
        known = {row: round(mean, measure.decimals) for row, mean in enumerate(means) if mean == mean}
        if measure.best is None or len(set(known.values())) < 2:
            continue
        top = max(known.values()) if measure.best == "max" else min(known.values())
        bold |= {(row, measure.title) for row, mean in known.items() if mean == top}
    return bold


def _numbers(title: str, value: Estimate) -> dict[str, Any]:
    return {title: value.mean, f"{title} low": value.low, f"{title} high": value.high}

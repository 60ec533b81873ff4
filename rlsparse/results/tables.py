"""The tables of a study: outcomes, costs, accuracy at equal cost, and the tuning of the learning rate."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from rlsparse.results.comparisons import Comparison
from rlsparse.results.curves import BEFORE_FIRST, accuracy_at_cost
from rlsparse.results.formatting import interval, p_value, values
from rlsparse.results.measures import (
    COSTS,
    OUTCOMES,
    Measure,
    available,
    by_seed,
    collapsed_methods,
    finished,
    main_measure,
)
from rlsparse.results.names import sorted_methods
from rlsparse.results.notes import OVER_SEEDS, P_EQUIVALENCE, P_HOLM, P_SEEDS, P, meaning
from rlsparse.results.sample import Samples
from rlsparse.results.scaling import MIN_METHODS, noise_share
from rlsparse.results.statistics import FEWEST, LEVEL, Estimate, estimate
from rlsparse.results.table import Table

# columns of the curves
BUDGETS = {"tokens_generated": "tokens sampled", "tokens_updated": "tokens updated", "seconds": "seconds of steps"}
MANY = 1.25  # times the tokens of the method that samples the fewest: above it, tokens sampled are a cost of their own
DEFINITIONS = (
    "final: sampled accuracy of the last evaluation. IQM: interquartile mean of the final values. area under curve: "
    "mean of the evaluations after step 0. collapsed: the run ended below half of its best evaluation, or diverged. "
    "The best mean is in bold."
)


def outcome_table(
    samples: Samples,
    baseline: str | None,
    compared: Mapping[str, Comparison],
    not_counted: Sequence[str],
    margin: float | None = None,
) -> Table:
    """Return a table of outcomes, one row per method.

    It has mean and interval of each outcome, the paired difference to the baseline with its p-values and the verdict,
    and the number of collapsed runs.

    Args:
        baseline: the method to compare with; None for a table without differences.
        compared: the comparison of each other method with it.
        not_counted: a line for each run that is left out.
        margin: the largest difference that does not matter, as a share; None to test no equivalence.
    """
    runs = samples.runs
    methods, main = sorted_methods(list(runs["method"]), baseline), main_measure(runs)
    rows, numbers = [], []
    questions = {one.test.estimate.questions for one in compared.values()}
    for method in methods:
        row: dict[str, str] = {"method": method}
        number: dict[str, Any] = {"method": method}
        if "lr" in runs and runs["lr"].notna().any():
            row["lr"] = number["lr"] = values(runs[runs["method"] == method]["lr"])
        for measure in available(OUTCOMES, finished(runs)):
            found = estimate(samples.of(method, measure.column).scaled(measure.factor))
            found = found.within(0, 100) if measure.is_share else found
            row[measure.title] = interval(found, measure.decimals)
            number |= _numbers(measure.title, found)
            if measure is main:
                questions.add(found.questions)
                row["IQM"] = number["IQM"] = f"{found.iqm:.{measure.decimals}f}" if found.n else "–"
        if baseline is not None:
            difference, unrounded = _difference(compared.get(method), main, margin is not None)
            if method not in compared:
                difference["verdict"] = (
                    "baseline" if method == baseline else _incomparable(samples, method, baseline, main)
                )
            row |= difference
            number |= unrounded
        row |= _collapsed(runs, method)
        row["seeds"] = number["seeds"] = str(by_seed(runs, method, main.column).count())
        rows.append(row)
        numbers.append(number)
    notes = [*meaning(questions, differences=baseline is not None), DEFINITIONS]
    if baseline is not None:
        notes.append(f"Differences are to {baseline}.")
    if margin is not None and baseline is not None:
        width = f"{margin * main.factor:g}{' points' if main.factor == 100 else ''}"
        tests = f"twice the larger p of two one-sided tests, corrected among the methods, is at most {LEVEL:g}"
        notes.append(f"equivalent: within {width} of the baseline; {P_EQUIVALENCE}, {tests}.")
    notes += noise_note(samples) + setting_notes(runs) + version_notes(runs) + not_counted_note(not_counted)
    cells = pd.DataFrame(rows)
    return Table(cells, pd.DataFrame(numbers), notes, bold=_best(runs, methods, available(OUTCOMES, finished(runs))))


def cost_table(runs: pd.DataFrame, curves: pd.DataFrame, baseline: str | None = None) -> Table:
    """Return a table of costs, one row per method, with the accuracy of each method at equal cost.

    Equal cost is the total cost of the cheapest method: see ``_budgets``.
    """
    methods = sorted_methods(list(finished(runs)["method"]), baseline)
    columns = available(COSTS, finished(runs))
    rows: list[dict[str, str]] = []
    numbers: list[dict[str, object]] = []
    budgets = _budgets(curves, runs)
    for method in methods:
        row: dict[str, str] = {"method": method}
        number: dict[str, Any] = {"method": method}
        for cost, budget in budgets.items():
            own = curves[curves["method"] == method]
            reached = estimate(100 * accuracy_at_cost(own, cost, budget)).within(0, 100)
            title = f"% at equal {BUDGETS[cost]}"
            before = budget < own[own["step"] > 0].groupby("seed")[cost].min().mean()
            row[title] = interval(reached, 1) + (BEFORE_FIRST if before else "")
            number |= _numbers(title, reached)
        for measure in columns:
            found = estimate(by_seed(runs, method, measure.column) * measure.factor)
            row[measure.title] = "–" if found.n == 0 else f"{found.mean:.{measure.decimals}f}"
            number |= _numbers(measure.title, found)
        rows.append(row)
        numbers.append(number)
    note = "Costs are means over seeds; the best value is in bold."
    notes = [note, *([OVER_SEEDS] if budgets else []), *_equal_cost_notes(budgets)]
    return Table(pd.DataFrame(rows), pd.DataFrame(numbers), notes, bold=_best(runs, methods, columns))


def tuning_table(trials: pd.DataFrame, runs: pd.DataFrame, baseline: str | None = None) -> Table | None:
    """Return a table of the learning rates that were tried, one row per method, with the chosen rate in bold.

    The cells are the area under the curve, averaged over the trials; a diverged trial counts as 0.

    Returns:
        None if no learning rate was tuned.
    """
    if trials.empty or "lr" not in trials or trials["lr"].nunique() < 2:
        return None
    rates = sorted(trials["lr"].dropna().unique())
    score = trials.assign(score=trials["curve_mean"].where(trials["status"] == "finished", 0.0))
    means = 100 * score.groupby(["method", "lr"])["score"].mean().unstack().reindex(columns=rates)
    methods = sorted_methods(list(means.index), baseline)
    chosen = {method: set(runs[runs["method"] == method]["lr"]) for method in methods}
    cells = pd.DataFrame({"method": methods})
    for rate in rates:
        cells[f"lr {rate:g}"] = ["–" if means[rate][m] != means[rate][m] else f"{means[rate][m]:.1f}" for m in methods]
    bold = {(row, f"lr {rate:g}") for row, m in enumerate(methods) for rate in rates if rate in chosen[m]}
    seeds = ", ".join(str(seed) for seed in sorted(trials["seed"].unique()))
    notes = [
        f"Area under the curve, %: mean over the trials on seeds {seeds}. The learning rate at which the method is "
        "compared is in bold."
    ]
    edge = [method for method in methods if chosen[method] & {rates[0], rates[-1]}]
    if edge:
        notes.append(
            f"The chosen rate is at the end of the range, and a rate beyond it may be better: {', '.join(edge)}."
        )
    numbers = means.loc[methods].rename(columns=lambda rate: f"lr {rate:g}").reset_index()
    return Table(cells, numbers, notes, bold=bold)


def noise_note(samples: Samples) -> list[str]:
    """Return a note on the share of the differences between the gains of the methods that is noise; see noise_share."""
    methods = sorted_methods(list(finished(samples.runs)["method"]))
    if not {"base_sampled", "final_sampled"} <= set(samples.runs.columns):
        return []
    gains = {one: samples.of(one, "final_sampled") - samples.of(one, "base_sampled") for one in methods}
    known = {name: one.by_seed for name, one in gains.items() if len(one.by_seed) >= FEWEST}
    by_seed = pd.DataFrame(known).dropna()  # (S, M)
    if len(known) < MIN_METHODS or len(by_seed) < FEWEST:
        return []
    share = noise_share(by_seed.to_numpy().T)
    return [
        f"Noise between seeds is {100 * share:.0f} % of the variance between the mean gains of {len(known)} methods "
        f"over their start, on {len(by_seed)} common seeds (mean square of method and seed over that of the methods)."
    ]


def setting_notes(runs: pd.DataFrame) -> list[str]:
    """Return a note on the setting of the runs: task, model and sizes; no note if the task is not known."""
    minibatches = "minibatches" in runs and bool((runs["minibatches"] > 1).any())
    about = {
        "task": "{}",
        "model": "{}",
        "steps": "{} steps",
        "prompts_per_step": "{} prompts a step",
        "group_size": "{} completions a prompt",
        "minibatches": "{} minibatches a rollout",
        "updates_per_rollout": "{} passes a rollout" if minibatches else "{} optimizer steps a rollout",
    }
    if "task" not in runs or runs["task"].isna().all():
        return []
    shown = {key: values(runs[key]) for key in about if key in runs and (minibatches or key != "minibatches")}
    parts = [about[key].format(value) for key, value in shown.items()]
    single = {"steps": "step", "prompts": "prompt", "passes": "pass", "completions": "completion"}
    for number, (plain, value) in enumerate(zip(parts, shown.values(), strict=True)):
        if value == "1":
            parts[number] = " ".join(single.get(word, word) for word in plain.split(" "))
    return [f"Setting: {', '.join(parts)}."]


def version_notes(runs: pd.DataFrame) -> list[str]:
    """Return a note for each package, or the code, of which the runs used more than one version."""
    lines = []
    for column, what in (("torch", "torch"), ("commit", "the code")):
        found = sorted(runs[column].dropna().astype(str).unique()) if column in runs else []
        if len(found) > 1:
            lines.append(f"The runs used more than one version of {what}: {', '.join(name[:10] for name in found)}.")
    if "changed" in runs and runs["changed"].notna().any():
        changes = ", ".join(f"{run.id} ({run.changed})" for run in runs[runs["changed"].notna()].itertuples())
        lines.append(f"Versions changed in the middle of a run: {changes}.")
    return lines


def not_counted_note(not_counted: Sequence[str]) -> list[str]:
    """Return a note that names the runs that are left out; no note if there are none."""
    return ["Not counted: " + "; ".join(not_counted) + "."] if not_counted else []


def _difference(found: Comparison | None, main: Measure, has_margin: bool) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the cells of the difference to the baseline, and the unrounded numbers.

    Args:
        found: None for the baseline, and for a method without a common seed or question.
        has_margin: whether equivalence is tested.
    """
    title = f"difference, {'points' if main.factor == 100 else main.title.rsplit(' ', 1)[-1]}"
    columns = (title, P_SEEDS, P, P_HOLM, *([P_EQUIVALENCE] if has_margin else []), "verdict")
    if found is None:
        return dict.fromkeys(columns, "–"), {}
    test = found.test
    difference = test.estimate.within(-100, 100) if main.is_share else test.estimate
    cells = {
        title: interval(difference, main.decimals),
        P_SEEDS: p_value(test.p_seeds),
        P: p_value(test.p),
        P_HOLM: p_value(found.corrected),
        P_EQUIVALENCE: p_value(found.equivalent),
        "verdict": found.verdict,
    }
    cells = {column: cells[column] for column in columns}
    unrounded = {P_SEEDS: test.p_seeds, P: test.p, P_HOLM: found.corrected, P_EQUIVALENCE: found.equivalent}
    known = {name: f"{p:.6g}" for name, p in unrounded.items() if p == p}
    return cells, {**_numbers(title, difference), **known, "verdict": found.verdict}


def _incomparable(samples: Samples, method: str, baseline: str, main: Measure) -> str:
    """Return why a method is not compared with the baseline."""
    seeds = [set(samples.of(one, main.column).by_seed.index) for one in (method, baseline)]
    return "no common question" if seeds[0] & seeds[1] else "no common seed"


def _collapsed(runs: pd.DataFrame, method: str) -> dict[str, str]:
    if "collapsed" not in runs or runs["collapsed"].isna().all():
        return {}
    known = runs[runs["method"] == method]["collapsed"].dropna().astype(bool)
    return {"collapsed": f"{int(known.sum())} of {len(known)}"}


def _equal_cost_notes(budgets: dict[str, float]) -> list[str]:
    if not budgets:
        return []
    costs = [f"{budget:,.{'3g' if budget < 100 else '0f'}} {BUDGETS[cost]}" for cost, budget in budgets.items()]
    return [
        f"Equal cost: sampled accuracy at {' and at '.join(costs)}, the total cost of a run of the cheapest method "
        "that never collapsed. Accuracy between two evaluations is interpolated linearly; a value before the first "
        f"evaluation after step 0 is marked with {BEFORE_FIRST.strip()} and is uncertain. Seconds of steps count "
        "sampling, verifying and training; they depend on the machine and on its other load."
    ]


def _budgets(curves: pd.DataFrame, runs: pd.DataFrame) -> dict[str, float]:
    """Return for each cost the smallest mean total of a method, without methods of which a run collapsed.

    Empty if there are fewer than two methods. Tokens sampled count only where methods differ much in them, as with
    refill and replay; elsewhere the table of outcomes compares at equal tokens already.
    """
    if curves.empty or curves["method"].nunique() < 2:
        return {}
    kept = curves[~curves["method"].isin(collapsed_methods(runs))]
    used = curves if kept.empty else kept
    of_methods = used.groupby(["method", "seed"])[list(BUDGETS)].max().groupby("method").mean()
    totals, sampled = of_methods.min(), of_methods["tokens_generated"]
    costs = [cost for cost in BUDGETS if cost != "tokens_generated" or sampled.max() > MANY * sampled.min()]
    return {cost: float(totals[cost]) for cost in costs if totals[cost] > 0}


def _best(runs: pd.DataFrame, methods: Sequence[str], measures: Sequence[Measure]) -> set[tuple[int, str]]:
    """Return the cells with the best rounded mean of each measure; none for a measure whose means are all equal."""
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

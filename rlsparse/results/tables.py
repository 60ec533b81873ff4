"""Tables: method × measure, mean ± 95 % interval, best in bold; as Markdown, LaTeX (booktabs) and CSV."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from rlsparse.results.order import natural
from rlsparse.results.statistics import Estimate, estimate


@dataclass(frozen=True)
class Measure:
    """A column of the table.

    Attributes:
        column: of the tidy table.
        title: heading, with its unit.
        factor: from the stored unit to the heading's.
        decimals: shown.
        best: which end is best, "max" or "min"; None for a column in which nothing is.
        where: shown only where this other column has a value other than 0.
    """

    column: str
    title: str
    factor: float
    decimals: int
    best: str | None
    where: str | None = None


MEASURES = (
    Measure("base_sampled", "base, %", 100, 1, None),
    Measure("final_sampled", "final, %", 100, 1, "max"),
    Measure("final_greedy", "final greedy, %", 100, 1, "max"),
    Measure("base_loss", "base loss, nats", 1, 3, None),
    Measure("final_loss", "final loss, nats", 1, 3, "min"),
    Measure("curve_mean", "curve mean, %", 100, 1, "max"),
    Measure("frac_updated", "tokens updated, %", 100, 1, "min"),
    Measure("depth_mean", "depth of updated tokens", 1, 1, None, where="tokens_replayed"),
    Measure("frac_replayed", "tokens replayed, %", 100, 1, None, where="tokens_replayed"),
    Measure("off_policy_kl", "off-policy KL, nats", 1, 3, None),
    Measure("effective_sample_size", "effective samples, %", 100, 1, None),
    Measure("frac_idle", "idle steps, %", 100, 1, None, where="layers_skipped"),
    Measure("tokens_per_second", "rollout, tokens/s", 1, 0, "max", where="layers_skipped"),
    Measure("time_total", "time, s", 1, 1, "min"),
    Measure("time_step", "step, s", 1, 2, "min"),
    Measure("peak_memory_bytes", "memory, GiB", 2**-30, 2, "min"),
)


LATEX_SPECIAL = str.maketrans(
    {c: "\\" + c for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


def measured(runs: pd.DataFrame) -> list[Measure]:
    """The columns of the table: what any of its runs has a value of, and its study looks at."""
    return [
        one
        for one in MEASURES
        if one.column in runs and runs[one.column].notna().any() and (one.where is None or _used(runs, one.where))
    ]


def _used(runs: pd.DataFrame, column: str) -> bool:
    return column in runs and bool((runs[column].fillna(0) != 0).any())


def method_estimates(runs: pd.DataFrame) -> dict[str, dict[str, Estimate]]:
    """Method → measure column → estimate."""
    groups = {str(method): group for method, group in runs.groupby("method")}
    columns = measured(runs)
    return {
        method: {m.column: estimate(groups[method][m.column] * m.factor) for m in columns}
        for method in sorted(groups, key=natural)
    }


def best_methods(estimates: dict[str, dict[str, Estimate]], measure: Measure) -> set[str]:
    """The methods whose shown mean is best; none where there is nothing to compare."""
    means = {name: round(columns[measure.column].mean, measure.decimals) for name, columns in estimates.items()}
    known = {name: mean for name, mean in means.items() if mean == mean}
    if measure.best is None or len(known) < 2 or len(set(known.values())) < 2:
        return set()
    top = max(known.values()) if measure.best == "max" else min(known.values())
    return {name for name, mean in known.items() if mean == top}


def grid(runs: pd.DataFrame, number: Callable[[Estimate, int], str], bold: Callable[[str], str]) -> pd.DataFrame:
    """The table as text cells: a row a method, a column a measure, and the number of seeds."""
    estimates = method_estimates(runs)
    table: dict[str, list[str]] = {"method": list(estimates)}
    for measure in measured(runs):
        best = best_methods(estimates, measure)
        cells = []
        for method, columns in estimates.items():
            text = number(columns[measure.column], measure.decimals)
            cells.append(bold(text) if method in best else text)
        table[measure.title] = cells
    table["seeds"] = [str(columns["final_sampled"].n) for columns in estimates.values()]
    return pd.DataFrame(table)


def markdown(runs: pd.DataFrame, not_counted: list[str]) -> str:
    """The table in Markdown, with the runs that are not in it named below."""
    if runs.empty:
        return "No finished run.\n" + _notes(not_counted)
    table = grid(runs, lambda e, d: _text(e, d, " ± "), lambda text: f"**{text}**")
    aligned = ("left", *["right"] * (table.shape[1] - 1))
    text = table.to_markdown(index=False, colalign=aligned, disable_numparse=True)
    versions = "".join(f"\n{line}\n" for line in version_notes(runs))
    return f"{text}\n\nMean ± 95 % interval over seeds (Student t); best mean in bold.\n{versions}{_notes(not_counted)}"


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


def latex(runs: pd.DataFrame, not_counted: list[str]) -> str:
    """The table in LaTeX; needs the booktabs package."""
    notes = _latex_notes(not_counted)
    if runs.empty:
        return f"No finished run.\n{notes}"
    table = grid(runs, _latex_number, lambda text: rf"\textbf{{\boldmath {text}}}")
    escaped = table.assign(method=table["method"].map(_escape)).rename(columns=_escape)
    text = escaped.style.hide(axis="index").to_latex(hrules=True, column_format="l" + "r" * (table.shape[1] - 1))
    return text + notes


def csv(runs: pd.DataFrame) -> str:
    """The table in CSV: for each measure its mean and the half-width of its 95 % interval, unrounded."""
    rows = []
    for method, columns in method_estimates(runs).items():
        row: dict[str, object] = {"method": method, "seeds": columns["final_sampled"].n}
        for measure in measured(runs):
            row[measure.title] = columns[measure.column].mean
            row[f"{measure.title} ±"] = columns[measure.column].half_width
        rows.append(row)
    return pd.DataFrame(rows).to_csv(index=False, lineterminator="\n", float_format="%.6g")


def _text(value: Estimate, decimals: int, plus_minus: str) -> str:
    if value.n == 0:
        return "–"
    mean = f"{value.mean:.{decimals}f}"
    return mean if value.n == 1 else f"{mean}{plus_minus}{value.half_width:.{decimals}f}"


def _latex_number(value: Estimate, decimals: int) -> str:
    return "--" if value.n == 0 else "$" + _text(value, decimals, r" \pm ") + "$"


def _latex_notes(not_counted: list[str]) -> str:
    """A visible line under the table: a paper that drops runs must say so too."""
    if not not_counted:
        return ""
    return r"\par\smallskip{\footnotesize Not counted: " + "; ".join(map(_escape, not_counted)) + "}\n"


def _escape(text: str) -> str:
    return text.translate(LATEX_SPECIAL)


def _notes(not_counted: list[str]) -> str:
    if not not_counted:
        return ""
    return "\nNot counted:\n" + "".join(f"- {line}\n" for line in not_counted)

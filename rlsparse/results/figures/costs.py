"""Figure of accuracy against cost: tokens updated, seconds of steps and peak memory."""

from dataclasses import dataclass
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from rlsparse.results.figures.style import STYLE, WIDTH
from rlsparse.results.measures import by_seed, collapsed_methods
from rlsparse.results.names import short_name, sorted_methods
from rlsparse.results.statistics import estimate


@dataclass(frozen=True)
class Cost:
    """A cost on the x axis of a panel.

    Attributes:
        column: a column of the tidy table.
        title: label of the axis with unit.
        factor: multiplies the stored value to give the unit of the label.
        log: whether the axis is logarithmic.
    """

    column: str
    title: str
    factor: float = 1
    log: bool = False


COSTS = (
    Cost("tokens_updated", "tokens updated", log=True),
    Cost("time_steps", "seconds of steps"),
    Cost("peak_memory_bytes", "peak memory, GiB", 2**-30),
)
# evaluations are left out: they take the same time for all methods
STAGES = ("time_rollout", "time_reward", "time_train")
LONG = 75  # characters; a longer legend entry leaves no room for a second column


def cost_figure(runs: pd.DataFrame, baseline: str | None) -> Figure:
    """Draw one panel per cost with a numbered point per method; a dotted line is the Pareto front.

    Points are means over seeds with the 95 % bootstrap interval of the accuracy. The numbers are explained below the
    panels. A method with a collapsed run is not on the Pareto front.

    Args:
        runs: the tidy table of ``results.collect``.
        baseline: the method that gets number 1; None for no such method.
    """
    runs = runs.assign(
        tokens_updated=runs["tokens_generated"] * runs["frac_updated"],
        time_steps=runs.filter(items=STAGES).sum(axis=1, min_count=1),
    )
    methods = sorted_methods(list(runs["method"]), baseline)
    known = [cost for cost in COSTS if runs[cost.column].notna().any()]
    names = [short_name(method, baseline) for method in methods]
    legend = [f"{number}  {name}" for number, name in enumerate(names, start=1)]
    columns = 1 if max(map(len, legend)) > LONG else 2
    rows = -(-len(legend) // columns)
    with matplotlib.rc_context(STYLE):
        height = 3.2 + 0.16 * rows
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=(3.2, max(0.3, 0.16 * rows)))
        above, below = parts
        panels = above.subplots(1, len(known), sharey=True, squeeze=False)[0]
        for panel, cost in zip(panels, known, strict=True):
            _points(panel, runs, methods, cost)
        panels[0].set_ylabel("final accuracy, sampled, %")
        for i, line in enumerate(legend):
            column, row = divmod(i, rows)
            below.text(0.02 + 0.5 * column, 1 - (row + 0.5) / rows, line, fontsize=7, va="center")
    return figure


def pareto(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the Pareto front of pairs (cost, gain), sorted by cost.

    A point is on the front if no other point has a higher gain at no more cost, or a lower cost at no less gain.
    """
    front: list[tuple[float, float]] = []
    for cost, gain in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or gain > front[-1][1]:
            front.append((cost, gain))
    return front


def _points(panel: Any, runs: pd.DataFrame, methods: list[str], cost: Cost) -> None:
    collapsed, candidates = collapsed_methods(runs), []
    for number, method in enumerate(methods, start=1):
        x = cost.factor * by_seed(runs, method, cost.column).mean()
        accuracy = estimate(100 * by_seed(runs, method, "final_sampled"))
        if x == x and accuracy.n and method not in collapsed:
            candidates.append((x, accuracy.mean))
        if accuracy.n > 1:
            panel.plot([x, x], [accuracy.low, accuracy.high], color="0.6", lw=1, zorder=1)
        panel.plot(x, accuracy.mean, "o", color="white", mec="black", ms=10, zorder=2)
        panel.annotate(str(number), (x, accuracy.mean), ha="center", va="center", fontsize=6, zorder=3)
    front = pareto(candidates)
    panel.plot([x for x, _ in front], [y for _, y in front], color="0.3", lw=1, ls=":", zorder=0)
    if cost.log:
        panel.set_xscale("log")
        panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel(cost.title)

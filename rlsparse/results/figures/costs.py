"""Figure of accuracy against cost: tokens updated, seconds of steps and peak memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from rlsparse.results.figures.placing import beside
from rlsparse.results.figures.style import (
    COLOURS,
    COLUMN,
    DOUBLE,
    EDGE,
    LABEL,
    LINE,
    MAX_METHODS,
    SMALL,
    STYLE,
    TICKS,
    Key,
    axes_at,
    text_width,
    write,
)
from rlsparse.results.measures import collapsed_methods, finished
from rlsparse.results.names import short_name, sorted_methods
from rlsparse.results.statistics import Estimate, estimate


@dataclass(frozen=True)
class Cost:
    """A cost on the x axis of a panel.

    Attributes:
        column: a column of the tidy table.
        title: label of the axis with unit.
        factor: multiplies the stored value to give the unit of the label.
        log: whether the axis is logarithmic where costs differ more than ``SEVERAL`` times.
    """

    column: str
    title: str
    factor: float = 1
    log: bool = False


@dataclass(frozen=True)
class Point:
    """A method in a panel.

    Attributes:
        cost: its mean over seeds, in the unit of the axis.
        accuracy: over seeds, in percent.
        collapsed: whether a run of the method collapsed.
        on_front: whether the method is on the Pareto front of the panel.
    """

    cost: float
    accuracy: Estimate
    collapsed: bool
    on_front: bool


class Mark(NamedTuple):
    """A marker: its shape and the colours of its inside and edge."""

    marker: str
    mfc: str
    mec: str


COSTS = (
    Cost("tokens_updated", "tokens updated", log=True),
    Cost("time_steps", "seconds of steps"),
    Cost("peak_memory_bytes", "peak memory, GiB", 2**-30),
)
# evaluations are left out: they take the same time for all methods
STAGES = ("time_rollout", "time_reward", "time_train")
LEFT, GAP, HEIGHT = LABEL + 0.27, 0.22, 1.9  # inches: left of the first panel, between panels, of a panel
MARKER = 4.5  # points
ON_FRONT = COLOURS[0]
CROSS = Mark("x", COLOURS[1], COLOURS[1])
SEVERAL = 4


def cost_figure(runs: pd.DataFrame, baseline: str | None) -> Figure:
    """Draw one panel per cost with a numbered point per method; a dotted line is the Pareto front.

    Points are means over seeds with the 95 % t interval of the accuracy. The numbers are explained below the panels. Of
    more than ``MAX_METHODS`` methods, only the baseline and those on a front have a number and an interval. A method
    with a collapsed run is a cross, and it is not on the front.

    Args:
        runs: the tidy table of ``results.collect``, of which at least one finished run has a final accuracy and a cost.
        baseline: the method that gets number 1; None for no such method.
    """
    accuracies = _accuracies(runs)
    found = {cost: _points(runs, cost, accuracies) for cost in COSTS}
    panels = {cost: points for cost, points in found.items() if points}
    methods = sorted_methods([method for points in panels.values() for method in points], baseline)
    on_front = {method for points in panels.values() for method, one in points.items() if one.on_front}
    few = len(methods) <= MAX_METHODS
    named = [method for method in methods if few or method == baseline or method in on_front]
    width = COLUMN if len(panels) == 1 else DOUBLE
    key = Key([short_name(method, baseline) for method in named], width)
    notes = (
        [] if few else [f"numbered: the baseline and the methods on a front, {len(named)} of {len(methods)} methods"]
    )
    marks, columns = _marks(list(panels.values()), baseline), 2 if width == COLUMN else 4
    top = EDGE + LINE * (len(notes) + 0.5)
    below = top + HEIGHT + TICKS + LABEL + LINE * (0.5 + -(-len(marks) // columns))
    height = below + key.height + EDGE
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        write(figure, EDGE, EDGE, notes)
        pitch = (width - LEFT - 3 * EDGE + GAP) / len(panels)
        for i, (cost, points) in enumerate(panels.items()):
            panel = axes_at(figure, LEFT + i * pitch, top, pitch - GAP, HEIGHT)
            panel.tick_params(labelleft=i == 0)
            panel.set_ylim(*_limits(list(panels.values()), named))
            _draw(panel, cost, points, named, baseline)
            _number(panel, points, named, (pitch - GAP, HEIGHT))
        figure.axes[0].set_ylabel("final accuracy, sampled, %")
        figure.legend(
            handles=marks,
            loc="lower left",
            bbox_to_anchor=(EDGE / width, (height - below) / height),
            ncols=columns,
            frameon=False,
            borderpad=0,
            borderaxespad=0,
            handletextpad=0.3,
        )
        key.draw(figure, below)
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


def _accuracies(runs: pd.DataFrame) -> dict[str, Estimate]:
    """Return the final accuracy over seeds of each method, in percent."""
    by_seed = 100 * finished(runs).groupby(["method", "seed"])["final_sampled"].mean()
    return {str(method): estimate(values) for method, values in by_seed.groupby("method")}


def _points(runs: pd.DataFrame, cost: Cost, accuracies: Mapping[str, Estimate]) -> dict[str, Point]:
    """Return the methods whose cost and accuracy are known."""
    done, collapsed = finished(runs), collapsed_methods(runs)
    costs = {
        "tokens_updated": done["tokens_generated"] * done["frac_updated"],
        "time_steps": done.filter(items=STAGES).sum(axis=1, min_count=1),
    }
    values = costs.get(cost.column, done.get(cost.column, pd.Series(float("nan"), done.index)))
    by_seed = (cost.factor * values).groupby([done["method"], done["seed"]]).mean()
    means = by_seed.groupby("method").mean().dropna()
    known = {str(method): (float(x), accuracies[str(method)]) for method, x in means.items()}
    known = {method: (x, y) for method, (x, y) in known.items() if y.n}
    front = pareto([(x, y.mean) for method, (x, y) in known.items() if method not in collapsed])
    return {
        method: Point(x, y, method in collapsed, method not in collapsed and (x, y.mean) in front)
        for method, (x, y) in known.items()
    }


def _draw(panel: Axes, cost: Cost, points: Mapping[str, Point], named: Sequence[str], baseline: str | None) -> None:
    known = [points[method] for method in named if method in points and points[method].accuracy.n > 1]
    low, high = [one.accuracy.low for one in known], [one.accuracy.high for one in known]
    panel.vlines([one.cost for one in known], low, high, color="0.7", lw=0.8, zorder=1)
    alike: dict[Mark, list[Point]] = {}  # one line of markers each, as a line for each method would be slow
    for method, one in points.items():
        alike.setdefault(_mark(one, method == baseline), []).append(one)
    for mark, those in alike.items():
        x, y = [one.cost for one in those], [one.accuracy.mean for one in those]
        panel.plot(x, y, ls="none", ms=MARKER, mew=0.8, zorder=3, **mark._asdict())
    front = sorted((one.cost, one.accuracy.mean) for one in points.values() if one.on_front)
    panel.plot(
        [x for x, _ in front], [y for _, y in front], color=ON_FRONT, lw=1, ls=":", drawstyle="steps-post", zorder=2
    )
    panel.margins(x=0.08)
    panel.set_xlabel(cost.title)
    costs = [one.cost for one in points.values()]
    if cost.log and max(costs) > SEVERAL * min(costs) > 0:
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(costs) < 100 * min(costs) else (1,)))
        panel.xaxis.set_minor_locator(NullLocator())
    else:
        panel.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    panel.xaxis.set_major_formatter(lambda value, _: _thousands(value))


def _number(panel: Axes, points: Mapping[str, Point], named: Sequence[str], size: tuple[float, float]) -> None:
    """Write the numbers of the named methods next to their points.

    Args:
        size: width and height of the panel, in inches.
    """
    known = [method for method in named if method in points]
    others = [method for method in points if method not in known]
    data = np.array([(points[m].cost, points[m].accuracy.mean) for m in [*known, *others]])  # (n, 2)
    scale = np.array(size) * 72  # (2,): points
    panel.autoscale_view()
    places = panel.transAxes.inverted().transform(panel.transData.transform(data)) * scale  # (n, 2)
    texts = [str(named.index(method) + 1) for method in known]
    sizes = np.array([(72 * text_width(text, SMALL), SMALL) for text in texts])  # (m, 2)
    centres = beside(places, sizes, (float(scale[0]), float(scale[1])), MARKER)  # (m, 2)
    for text, (x, y) in zip(texts, centres / scale, strict=True):
        panel.text(x, y, text, fontsize=SMALL, ha="center", va="center_baseline", transform=panel.transAxes, zorder=4)


def _limits(panels: Sequence[Mapping[str, Point]], named: Sequence[str]) -> tuple[float, float]:
    """Return the limits of the y axis: all means and the intervals of the named methods, within 0 and 100 %."""
    ends = [one.accuracy.mean for points in panels for one in points.values()]
    for points in panels:
        shown = [points[method].accuracy for method in named if method in points and points[method].accuracy.n > 1]
        ends += [min(100.0, max(0.0, end)) for one in shown for end in (one.low, one.high)]
    room = 0.05 * (max(ends) - min(ends)) or 1.0
    return min(ends) - room, max(ends) + room


def _marks(panels: Sequence[Mapping[str, Point]], baseline: str | None) -> list[Line2D]:
    """Return what explains the markers and the line, as far as the figure has them."""
    points = [(method, one) for panel in panels for method, one in panel.items()]
    style: Any = {"ls": "none", "ms": MARKER, "mew": 0.8}
    marks = [Line2D([], [], color=ON_FRONT, ls=":", marker="o", ms=MARKER, label="Pareto front")]
    if baseline is not None:
        marks.append(Line2D([], [], label="baseline", **Mark("s", "white", "black")._asdict(), **style))
    if any(not one.on_front and not one.collapsed and method != baseline for method, one in points):
        marks.append(Line2D([], [], label="other methods", **Mark("o", "white", "black")._asdict(), **style))
    if any(one.collapsed for _, one in points):
        marks.append(Line2D([], [], label="a run collapsed", **CROSS._asdict(), **style))
    return marks


def _mark(one: Point, is_baseline: bool) -> Mark:
    if one.collapsed:
        return CROSS
    inside, edge = (ON_FRONT, ON_FRONT) if one.on_front else ("white", "black")
    return Mark("s" if is_baseline else "o", inside, edge)


def _thousands(value: float) -> str:
    """Return a number of tokens with k for thousands, M for millions and G for billions."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:g}{letter}"
    return f"{value:g}"

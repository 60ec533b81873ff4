"""Figure of learning curves with bands over seeds: few methods in one panel, or each method next to the baseline."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlsparse.results.figures.placing import Floats, spread
from rlsparse.results.figures.style import (
    COLOURS,
    COLUMN,
    DOUBLE,
    EDGE,
    LABEL,
    LINE,
    LINES,
    MARKERS,
    MAX_METHODS,
    STYLE,
    TICKS,
    axes_at,
    text_width,
    truncation_note,
    wrapped,
    write,
)
from rlsparse.results.names import short_name, sorted_methods
from rlsparse.results.statistics import estimate

TOGETHER = 6  # methods that one panel can show
NAMES = 1.4  # inches: the largest width of the labels of lines
LEFT = LABEL + 0.27  # inches: label and tick labels of the y axis
COLUMNS, PANEL_HEIGHT = 4, 1.15  # panels in a row; inches
HEIGHT = 1.9  # inches: of the panel with all methods
LEAD, GAP = 0.27, 0.14  # inches between a panel and the names next to it; between two panels
X_TITLE, Y_TITLE = "step", "held-out accuracy, sampled, %"


@dataclass(frozen=True)
class Curve:
    """A learning curve over seeds in percent, or another curve with a band.

    Attributes:
        steps, mean, low, high: shape (K,), by evaluation; the bounds are NaN for a single seed.
    """

    steps: Floats
    mean: Floats
    low: Floats
    high: Floats


def curves_figure(curves: pd.DataFrame, baseline: str | None) -> Figure:
    """Draw the mean sampled accuracy over seeds by step, with its 95 % t interval, within 0 and 100 %, as a band.

    Up to ``TOGETHER`` methods share a panel, with their names at the ends of their lines. More have a panel each, where
    the baseline is the grey dashed line; the figure has the first ``MAX_METHODS`` of them.

    Args:
        curves: the tidy table with the columns ``results.curves.CURVES``.
        baseline: the method that the others are compared with; None for no such method.
    """
    by_method = {str(method): _curve(rows) for method, rows in curves.groupby("method")}
    found = {method: by_method[method] for method in sorted_methods(list(by_method), baseline)}
    drawn = baseline if baseline in found else None
    with matplotlib.rc_context(STYLE):
        return _together(found, drawn) if len(found) <= TOGETHER else panel_figure(found, drawn, (X_TITLE, Y_TITLE))


def _curve(rows: pd.DataFrame) -> Curve:
    by_step = {step: estimate(100 * group) for step, group in rows.groupby("step")["accuracy_sampled"]}
    mean, low, high = (np.array([getattr(one, end) for one in by_step.values()]) for end in ("mean", "low", "high"))
    return Curve(np.array(list(by_step), dtype=float), mean, np.clip(low, 0, 100), np.clip(high, 0, 100))


def _together(curves: dict[str, Curve], baseline: str | None) -> Figure:
    """Draw all methods into one panel, with their names next to the ends of their lines."""
    names = {method: wrapped(short_name(method, baseline), NAMES) for method in curves}
    notes: list[str] = []
    if baseline in names and len(names[baseline]) > 1:
        notes = wrapped(f"baseline: {short_name(baseline, None)}", COLUMN - 2 * EDGE)
        names[baseline] = ["baseline"]
    heights = np.array([LINE * len(lines) + 0.04 for lines in names.values()])  # (n,)
    right = LEAD + max(text_width(line) for lines in names.values() for line in lines) + EDGE
    top = EDGE + LINE * (len(notes) + 0.5)
    width, height = COLUMN - LEFT - right, max(HEIGHT, float(heights.sum()))
    figure = Figure(figsize=(COLUMN, top + height + TICKS + LABEL + EDGE))
    write(figure, EDGE, EDGE, notes)
    panel = axes_at(figure, LEFT, top, width, height)
    low, high = _set_limits([panel], curves)
    end = panel.get_xlim()[1]
    ends = np.array([curve.mean[-1] for curve in curves.values()])  # (n,)
    placed = spread((high - ends) / (high - low) * height, heights, height)  # (n,): inches below the top
    inks = _inks(list(curves), baseline)
    for (method, curve), y in zip(curves.items(), placed, strict=True):
        color, ls, marker = inks[method]
        _draw(panel, curve, color=color, ls=ls)
        at_end = curve.steps[-1] == end
        label = high - y / height * (high - low)
        x = [curve.steps[-1] / end, 1 + 0.5 * LEAD / width, 1 + 0.75 * LEAD / width]  # in widths of the panel
        style: Any = {"color": color, "marker": marker, "ms": 3.5, "markevery": 2, "clip_on": False}
        style |= {"lw": 0.6, "ls": "-" if at_end else "none"}  # across other lines, a line to the name would confuse
        panel.plot(x, [curve.mean[-1], label, label], transform=panel.get_yaxis_transform(), **style)
        write(figure, LEFT + width + LEAD, top + y - LINE * len(names[method]) / 2, names[method])
    panel.set_xlabel(X_TITLE)
    panel.set_ylabel(Y_TITLE)
    return figure


def panel_figure(curves: Mapping[str, Curve], baseline: str | None, titles_of_axes: tuple[str, str]) -> Figure:
    """Draw a panel for each method but the baseline, which all panels show dashed; at most ``MAX_METHODS``.

    Args:
        curves: by method, in order.
        baseline: one of these; None for no such method.
        titles_of_axes: of the x axis and of the y axis.
    """
    every = [method for method in curves if method != baseline]
    methods = every[:MAX_METHODS]
    rows = [methods[at : at + COLUMNS] for at in range(0, len(methods), COLUMNS)]
    pitch = (DOUBLE - LEFT - EDGE) / COLUMNS  # inches from one panel to the next
    titles = {method: wrapped(short_name(method, baseline), pitch - GAP) for method in methods}
    notes = [] if baseline is None else [f"dashed: the baseline, {short_name(baseline, None)}"]
    if len(methods) < len(every):
        notes.append(truncation_note(len(methods), len(every)))
    lines = [line for note in notes for line in wrapped(note, DOUBLE - 2 * EDGE)]
    heads = [LINE * (max(len(titles[method]) for method in row) + 0.5) for row in rows]
    top = EDGE + LINE * len(lines)
    height = top + sum(heads) + PANEL_HEIGHT * len(rows) + TICKS + LABEL + EDGE
    figure = Figure(figsize=(DOUBLE, height))
    write(figure, EDGE, EDGE, lines)
    panels: list[Axes] = []
    for row, head in zip(rows, heads, strict=True):
        for column, method in enumerate(row):
            left = LEFT + column * pitch
            panel = axes_at(figure, left, top + head, pitch - GAP, PANEL_HEIGHT)
            if baseline is not None:
                _draw(panel, curves[baseline], color="0.4", ls=LINES[1])
            _draw(panel, curves[method], color=COLOURS[0], ls="-")
            write(figure, left, top + head - LINE * (len(titles[method]) + 0.25), titles[method])
            last = len(panels) + COLUMNS >= len(methods)  # none below
            panel.tick_params(labelleft=column == 0, labelbottom=last)
            panels.append(panel)
        top += head + PANEL_HEIGHT
    shown = [*methods, baseline] if baseline is not None else methods
    _set_limits(panels, {method: curves[method] for method in shown})
    for panel in panels:  # a wide number at the end of an axis must not touch the first one of the next panel
        end = panel.get_xlim()[1]
        ticks = [tick for tick in panel.get_xticks() if 0 <= tick <= end]
        panel.set_xticks(ticks)
        for label in panel.get_xticklabels()[-1:] if ticks[-1] == end else []:
            label.set_horizontalalignment("right")
    figure.text(0.5, EDGE / height, titles_of_axes[0], ha="center", va="bottom")
    figure.text(EDGE / DOUBLE, 0.5, titles_of_axes[1], rotation=90, ha="left", va="center")
    return figure


def _inks(methods: list[str], baseline: str | None) -> dict[str, tuple[str, Any, str]]:
    """Return colour, line style and marker of each method; the baseline is black and solid."""
    others = [method for method in methods if method != baseline]
    first = 0 if baseline is None else 1
    inks = {method: (COLOURS[i], LINES[i + first], MARKERS[i + first]) for i, method in enumerate(others)}
    return inks if baseline is None else {**inks, baseline: ("black", LINES[0], MARKERS[0])}


def _draw(panel: Axes, curve: Curve, color: str, ls: Any) -> None:
    panel.plot(curve.steps, curve.mean, lw=1.2, color=color, ls=ls)
    panel.fill_between(curve.steps, curve.low, curve.high, color=color, alpha=0.15, lw=0)


def _set_limits(panels: list[Axes], curves: dict[str, Curve]) -> tuple[float, float]:
    """Give all panels the same axes, which hold all curves and bands; return the limits of the y axis."""
    values = np.concatenate([part for one in curves.values() for part in (one.mean, one.low, one.high)])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = 0.04 * (high - low) or 1.0
    end = max(float(one.steps[-1]) for one in curves.values()) or 1.0
    for panel in panels:
        panel.set_xlim(0, end)
        panel.set_ylim(low - room, high + room)
        panel.locator_params(axis="x", nbins=4)
        panel.locator_params(axis="y", nbins=5)
    return low - room, high + room

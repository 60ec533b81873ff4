"""Forest plot: one row per difference with its two intervals, and a vertical line at 0."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from rlsparse.results.comparisons import Comparison
from rlsparse.results.effects import Effect
from rlsparse.results.figures.style import (
    COLUMN,
    EDGE,
    LABEL,
    LINE,
    MAX_ROWS,
    STYLE,
    TICKS,
    axes_at,
    text_width,
    truncation_note,
    wrapped,
    write,
)
from rlsparse.results.formatting import signed
from rlsparse.results.measures import Measure
from rlsparse.results.names import short_name
from rlsparse.results.statistics import LEVEL, MeanTest

NAMES = 1.45  # inches: the largest width of the labels of rows
GAP = 0.05  # inches between rows
THICK, THIN = 4.0, 1.0  # points
GREY = "0.6"


@dataclass(frozen=True)
class Row:
    """A row of a forest plot.

    Attributes:
        label: the text on the left.
        test: of the difference against 0, in the unit of the axis.
        corrected: its p-value, corrected for the number of tests; NaN where there is no test.
    """

    label: str
    test: MeanTest
    corrected: float


def difference_figure(
    compared: Mapping[str, Comparison], baseline: str, measure: Measure, margin: float | None
) -> Figure:
    """Draw the differences of methods to the baseline; see ``forest_figure``.

    Args:
        compared: the methods in the order of the rows, at least one.
        measure: what was compared.
        margin: the largest difference that does not matter, in the unit of the heading; None if there is none.
    """
    rows = [Row(short_name(method, baseline), one.test, one.corrected) for method, one in compared.items()]
    note = f"baseline: {short_name(baseline, None)}"
    return forest_figure(rows, f"difference in {_quantity(measure)}", margin, note)


def effect_figure(effects: Sequence[Effect], measure: Measure) -> Figure:
    """Draw the effects of components, each with its number of pairs of methods; see ``forest_figure``.

    Args:
        effects: in the order of the rows, at least one.
        measure: what the components have an effect on.
    """
    rows = [
        Row(f"{one.component}: {one.value} instead of {one.reference} ({one.pairs})", one.test, one.corrected)
        for one in effects
    ]
    return forest_figure(rows, f"effect on {_quantity(measure)}")


def forest_figure(rows: Sequence[Row], title: str, margin: float | None = None, note: str = "") -> Figure:
    """Draw mean differences with their 95 % intervals, from top to bottom.

    The thick line is the interval to new seeds on the same questions, the thin line the one to new seeds and new
    questions; a difference whose questions are not known has no thin line. A marker is filled if the corrected p is at
    most ``LEVEL``. The figure has the first ``MAX_ROWS`` rows.

    Args:
        rows: at least one.
        title: label of the axis, with its unit.
        margin: half the width of the grey band of differences that do not matter; None for no band.
        note: text above the rows.
    """
    shown = rows[:MAX_ROWS]
    labels = [wrapped(row.label, NAMES) for row in shown]
    notes = wrapped(note, COLUMN - 2 * EDGE) if note else []
    if len(shown) < len(rows):
        notes.append(truncation_note(len(shown), len(rows)))
    heights = [LINE * len(lines) + GAP for lines in labels]
    left = 2 * EDGE + max(text_width(line) for lines in labels for line in lines)
    width, top = COLUMN - left - 2 * EDGE, EDGE + LINE * len(notes) + GAP
    titles = wrapped(title, width)
    below = TICKS + LABEL + LINE * (len(titles) - 1)
    with matplotlib.rc_context(STYLE):
        marks = _marks(shown, margin)
        height = top + sum(heights) + below + LINE * 1.1 * len(marks) + EDGE
        figure = Figure(figsize=(COLUMN, height))
        write(figure, EDGE, EDGE, notes)
        panel = axes_at(figure, left, top, width, sum(heights))
        if margin is not None:
            panel.axvspan(-margin, margin, color="0.9", lw=0)
        panel.axvline(0, color="0.5", lw=0.8)
        at = 0.0
        for row, lines, room in zip(shown, labels, heights, strict=True):
            write(figure, EDGE, top + at + GAP / 2, lines)
            at += room
            _draw(panel, row, at - room / 2)
        panel.set_ylim(sum(heights), 0)
        panel.set_yticks([])
        panel.spines["left"].set_visible(False)
        panel.locator_params(axis="x", nbins=max(3, int(width / 0.4)))
        panel.xaxis.set_major_formatter(lambda value, _: signed(value, 10).rstrip("0").rstrip("."))
        panel.set_xlabel("\n".join(titles))
        place = (EDGE / COLUMN, EDGE / 2 / height)
        figure.legend(
            handles=marks, loc="lower left", bbox_to_anchor=place, frameon=False, borderpad=0, labelspacing=0.25
        )
    return figure


def _draw(panel: Any, row: Row, y: float) -> None:
    value = row.test.estimate
    if value.n > 1:
        panel.plot([value.seeds_low, value.seeds_high], [y, y], color=GREY, lw=THICK, solid_capstyle="butt")
    if value.questions:
        panel.plot([value.low, value.high], [y, y], color="black", lw=THIN, solid_capstyle="butt")
    panel.plot(value.mean, y, "o", color="black" if row.corrected <= LEVEL else "white", mec="black", mew=0.9, ms=4.5)


def _marks(rows: Sequence[Row], margin: float | None) -> list[Any]:
    """Return what explains the lines, the markers and the band, as far as the figure has them."""
    estimates = [row.test.estimate for row in rows]
    dot: Any = {"ls": "none", "marker": "o", "mec": "black", "mew": 0.9, "ms": 4.5}
    marks: list[Any] = []
    if any(one.n > 1 for one in estimates):
        marks.append(Line2D([], [], color=GREY, lw=THICK, label="95 %, new seeds on these questions"))
    if any(one.questions for one in estimates):
        marks.append(Line2D([], [], color="black", lw=THIN, label="95 %, new seeds and new questions"))
    marks.append(Line2D([], [], color="black", label=f"corrected p ≤ {LEVEL:g}; else open", **dot))
    if margin is not None:
        marks.append(Patch(color="0.9", lw=0, label=f"margin of equivalence, ±{margin:g}"))
    return marks


def _quantity(measure: Measure) -> str:
    """Return a measure in words, with the unit of its differences."""
    return measure.title.replace(", %", " accuracy, points")

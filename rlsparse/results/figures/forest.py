"""Forest plot: one row per difference with its interval, and a vertical line at 0."""

import matplotlib
from matplotlib.figure import Figure

from rlsparse.results.figures.style import STYLE, WIDTH
from rlsparse.results.statistics import LEVEL, PermutationTest

ROW_HEIGHT = 0.24  # inches


def forest_figure(rows: list[tuple[str, PermutationTest]], title: str) -> Figure:
    """Draw mean differences with 95 % bootstrap intervals; a marker is filled if p is at most ``LEVEL``.

    Args:
        rows: label and test against 0, from top to bottom.
        title: label of the axis, with its unit.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.0 + ROW_HEIGHT * len(rows)), layout="constrained")
        panel = figure.subplots()
        for row, (_, test) in enumerate(rows):
            value = test.estimate
            if value.n > 1:
                panel.plot([value.low, value.high], [row, row], color="black", lw=1.2)
            filled = "black" if test.p <= LEVEL else "white"
            panel.plot(value.mean, row, "o", color=filled, mec="black", ms=5)
        panel.axvline(0, color="0.5", lw=1)
        panel.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=7)
        panel.set_ylim(len(rows) - 0.5, -0.5)
        panel.grid(axis="y", visible=False)
        panel.set_xlabel(f"{title}   (filled: p ≤ {LEVEL:g})")
    return figure

"""Matrix of the probabilities that a run of one method ends above a run of another."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rlsparse.results.aggregates import improvement_matrix
from rlsparse.results.figures.style import (
    COLUMN,
    EDGE,
    LINE,
    MAX_METHODS,
    SMALL,
    STYLE,
    Key,
    axes_at,
    text_width,
    truncation_note,
    wrapped,
    write,
)
from rlsparse.results.measures import Measure, finished
from rlsparse.results.names import short_name, sorted_methods

CELL = 0.3  # inches: the largest height and width of a cell
DARKEST = 0.85  # share of black in the cell of 100 %
WHITE = 60  # percent: above it, the number in a cell is white


def probabilities(runs: pd.DataFrame, baseline: str | None, measure: Measure) -> pd.DataFrame:
    """Return the probability that a run of the row's method ends better than a run of the column's, as a share.

    It is the share of pairs of seeds in which it does, where ties count half (Mann and Whitney 1947). The diagonal is
    0.5. A seed that was run twice counts once, with the mean of its runs.

    Args:
        runs: the tidy table. Methods without a finished run that has the measure are left out; without any method, the
            matrix is empty.
        baseline: the method of the first row and column; None for no such method.
        measure: smaller values are better if its ``best`` is "min".
    """
    known = finished(runs).reindex(columns=["method", "seed", measure.column]).dropna()
    if known.empty:
        return pd.DataFrame()
    values = known.groupby(["method", "seed"])[measure.column].mean()
    # only the order of values counts, and ranks are shares, as improvement_matrix wants
    ranks = values.rank(ascending=measure.best != "min") / len(values)
    methods = sorted_methods(list(known["method"]), baseline)
    return improvement_matrix({method: {"": ranks.loc[[method]].to_numpy()} for method in methods})


def matrix_figure(shares: pd.DataFrame, baseline: str | None, measure: Measure) -> Figure:
    """Draw the probabilities as a grey matrix with their numbers in percent, for the first ``MAX_METHODS`` methods.

    Rows and columns have numbers, which are explained below.

    Args:
        shares: what ``probabilities`` returns, of at least two methods.
        baseline: what names are shortened by; None for no such method.
        measure: what runs are compared by.
    """
    shown = 100 * shares.iloc[:MAX_METHODS, :MAX_METHODS]
    n = len(shown)
    side = "below" if measure.best == "min" else "above"
    title = f"probability in % that the row ends {side} the column"
    notes = wrapped(title, COLUMN - 2 * EDGE)
    if n < len(shares):
        notes.append(truncation_note(n, len(shares)))
    key = Key([short_name(str(method), baseline) for method in shown.index], COLUMN)
    left = EDGE + text_width("00 ")
    cell = min(CELL, (COLUMN - left - EDGE) / n)
    top = EDGE + LINE * (len(notes) + 1.25)
    height = top + n * cell + 0.75 * LINE + key.height + EDGE
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN, height))
        write(figure, EDGE, EDGE, notes)
        panel = axes_at(figure, left, top, n * cell, n * cell)
        cells = np.ma.masked_where(np.eye(n, dtype=bool), shown.to_numpy())  # (n, n)
        edges = np.arange(n + 1)
        panel.pcolormesh(edges, edges, cells, cmap="Greys", vmin=0, vmax=100 / DARKEST, edgecolors="white", lw=0.5)
        for row, values in enumerate(cells):
            panel.text(-0.2, row + 0.5, str(row + 1), ha="right", va="center_baseline")
            panel.text(row + 0.5, -0.2, str(row + 1), ha="center", va="baseline")
            for column in [one for one in range(n) if one != row]:
                ink = "white" if values[column] > WHITE else "black"
                text = f"{values[column]:.0f}"
                panel.text(column + 0.5, row + 0.5, text, fontsize=SMALL, color=ink, ha="center", va="center_baseline")
        panel.set_xlim(0, n)
        panel.set_ylim(n, 0)
        panel.set_axis_off()
        key.draw(figure, height - EDGE - key.height)
    return figure

"""Figure of learning curves: each method with the baseline, with bands over seeds."""

from textwrap import fill
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from rlsparse.results.figures.style import MAX_METHODS, STYLE, WIDTH, truncation_note
from rlsparse.results.names import short_name, sorted_methods
from rlsparse.results.statistics import estimate

COLUMNS, ROW_HEIGHT = 4, 2.1  # panels in a row; inches


def curves_figure(curves: pd.DataFrame, baseline: str | None) -> Figure:
    """Draw one panel per method: mean sampled accuracy over seeds by step, with its 95 % bootstrap band.

    The figure has the first ``MAX_METHODS`` methods. The baseline is the grey dashed line in each panel.

    Args:
        curves: the tidy table with the columns ``results.curves.CURVES``.
        baseline: the method that all panels show; None for no such method.
    """
    every = [method for method in sorted_methods(list(curves["method"])) if method != baseline]
    methods = every[:MAX_METHODS] or [str(baseline)]
    rows = -(-len(methods) // COLUMNS)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.4 + ROW_HEIGHT * rows), layout="constrained")
        panels = figure.subplots(rows, min(COLUMNS, len(methods)), squeeze=False, sharex=True, sharey=True).flatten()
        for panel, method in zip(panels, methods, strict=False):
            if baseline is not None:
                _line(panel, curves[curves["method"] == baseline], color="0.6", ls="--")
            _line(panel, curves[curves["method"] == method], color="black", ls="-")
            panel.set_title(short_name(method, baseline).replace(" ", "\n"), fontsize=7, loc="left")
        for panel in panels[len(methods) :]:
            panel.set_axis_off()
        more = f"; {truncation_note(len(methods), len(every))}" if len(methods) < len(every) else ""
        figure.suptitle(fill(f"dashed: {short_name(str(baseline), None)}{more}", 150), fontsize=8)
        figure.supxlabel("step", fontsize=9)
        figure.supylabel("held-out accuracy, sampled, %", fontsize=9)
    return figure


def _line(panel: Any, curves: pd.DataFrame, **style: str) -> None:
    by_step = {
        step: estimate(100 * group["accuracy_sampled"]) for step, group in curves.sort_values("step").groupby("step")
    }
    steps = list(by_step)
    panel.plot(steps, [by_step[step].mean for step in steps], lw=1.4, **style)
    low, high = ([getattr(by_step[step], end) for step in steps] for end in ("low", "high"))
    panel.fill_between(steps, low, high, color=style["color"], alpha=0.2, lw=0)

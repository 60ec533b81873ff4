"""Figure of adapter ranks: a heat map of final ranks by module type and layer, and their history."""

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlsparse.results.figures.placing import spread
from rlsparse.results.figures.style import (
    COLOURS,
    DOUBLE,
    EDGE,
    LABEL,
    LINE,
    LINES,
    MAX_METHODS,
    STYLE,
    TICKS,
    axes_at,
    text_width,
    truncation_note,
    wrapped,
    write,
)
from rlsparse.results.names import sorted_methods

HEIGHT = 1.1  # inches: of a panel
HISTORY = 1.7  # inches: width of the panels with histories
BAR, LEAD = 0.1, 0.16  # inches: width of a colour bar; between the end of a line and its name
NUMBERS = LABEL + 0.22  # inches: tick labels and label of a y axis


def rank_figure(final: pd.DataFrame, history: pd.DataFrame) -> Figure:
    """Draw one row per method with means over seeds, for the first ``MAX_METHODS`` methods.

    Brighter cells have a higher rank; the line on the colour bar is the rank at the start.

    Args:
        final, history: tables as in ``results.ranks.Ranks``.
    """
    every = sorted_methods(list(final["method"]))
    methods = every[:MAX_METHODS]
    modules = list(dict.fromkeys(final["module"]))
    notes = [truncation_note(len(methods), len(every))] if len(methods) < len(every) else []
    titles = {method: wrapped(method, DOUBLE - 2 * EDGE) for method in methods}
    names = max(map(text_width, modules))
    left = 2 * EDGE + names
    heat = DOUBLE - left - HISTORY - names - LEAD - 2 * NUMBERS - BAR - 5 * EDGE  # inches: width of the heat maps
    heights = [LINE * (len(titles[method]) + 0.75) + HEIGHT + TICKS for method in methods]
    top = EDGE + LINE * len(notes)
    height = top + sum(heights) + LABEL + EDGE
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(DOUBLE, height))
        write(figure, EDGE, EDGE, notes)
        for method, room in zip(methods, heights, strict=True):
            at = top + room - TICKS - HEIGHT
            write(figure, EDGE, at - LINE * (len(titles[method]) + 0.25), titles[method])
            of_method = history[history["method"] == method]
            panel = axes_at(figure, left, at, heat, HEIGHT)
            bar = axes_at(figure, left + heat + 2 * EDGE, at, BAR, HEIGHT)
            image = _heat_map(panel, final[final["method"] == method], modules)
            figure.colorbar(image, cax=bar, label="rank")
            bar.axhline(float(of_method[of_method["step"] == 0]["rank"].mean()), color="black", lw=2)
            lines = axes_at(figure, DOUBLE - EDGE - names - LEAD - HISTORY, at, HISTORY, HEIGHT)
            ends = _lines(lines, of_method, modules)
            _name(figure, lines, ends, (DOUBLE - EDGE - names, at))
            lines.set_ylabel("mean rank")
            if method == methods[-1]:
                panel.set_xlabel("layer")
                lines.set_xlabel("step")
            top += room
    return figure


def _heat_map(panel: Axes, final: pd.DataFrame, modules: list[str]) -> Any:
    means = final.groupby(["module", "layer"])["rank"].mean().unstack().loc[modules]
    edges = np.arange(means.shape[1] + 1), np.arange(len(modules) + 1)
    image = panel.pcolormesh(*edges, means.to_numpy(), cmap="viridis")
    panel.set_ylim(len(modules), 0)
    panel.grid(visible=False)
    panel.set_yticks([row + 0.5 for row in range(len(modules))], modules)
    ticks = range(0, means.shape[1], max(1, means.shape[1] // 8))
    panel.set_xticks([at + 0.5 for at in ticks], [str(means.columns[at]) for at in ticks])
    return image


def _lines(panel: Axes, history: pd.DataFrame, modules: list[str]) -> dict[str, float]:
    """Draw the mean rank of each module type by step; return the last one of each."""
    means = history.groupby(["module", "step"])["rank"].mean()
    ends = {}
    for i, module in enumerate(modules):
        by_step = means.loc[module]
        style: Any = {"color": COLOURS[i % len(COLOURS)], "ls": LINES[i % len(LINES)], "lw": 1.2}
        panel.plot(by_step.index, by_step.to_numpy(), drawstyle="steps-post", **style)
        ends[module] = float(by_step.iloc[-1])
    panel.set_xlim(0, max(1, int(history["step"].max())))
    panel.locator_params(nbins=4)
    return ends


def _name(figure: Figure, panel: Axes, ends: dict[str, float], corner: tuple[float, float]) -> None:
    """Write the names of the modules next to the ends of their lines, and join the two.

    Args:
        ends: the last mean rank of each module.
        corner: of the names, left and top, in inches.
    """
    low, high = panel.get_ylim()
    panel.set_ylim(low, high)  # they stay when the joining lines are drawn
    heights = np.full(len(ends), LINE * 0.9)  # (n,)
    wanted = (high - np.array(list(ends.values()))) / (high - low) * HEIGHT  # (n,): inches below the top
    left, top = corner
    for i, (module, y) in enumerate(zip(ends, spread(wanted, heights, HEIGHT), strict=True)):
        at = high - y / HEIGHT * (high - low)
        x = [1, 1 + 0.8 * LEAD / HISTORY]
        style: Any = {"color": COLOURS[i % len(COLOURS)], "lw": 0.8, "clip_on": False}
        panel.plot(x, [ends[module], at], transform=panel.get_yaxis_transform(), **style)
        write(figure, left, top + y - LINE / 2, [module])

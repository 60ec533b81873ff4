"""Figure of layer skipping: rollout tokens/s against final sampled accuracy."""

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rlsparse.results.figures.placing import beside
from rlsparse.results.figures.style import (
    COLOURS,
    COLUMN,
    EDGE,
    LABEL,
    LINE,
    MARKERS,
    MAX_METHODS,
    SMALL,
    STYLE,
    TICKS,
    axes_at,
    text_width,
    truncation_note,
    wrapped,
    write,
)
from rlsparse.results.names import sorted_methods
from rlsparse.results.statistics import estimate

LEFT, HEIGHT = LABEL + 0.27, 2.2  # inches: left of the panel, height of the panel
MARKER = 4.5  # points


def speed_figure(runs: pd.DataFrame) -> Figure:
    """Draw one point per method: means over seeds, with the 95 % t interval of the accuracy.

    Methods that differ only in layer skipping share colour and marker; the first ``MAX_METHODS`` such groups are drawn.
    The number next to a point is the number of layers that were skipped.

    Args:
        runs: the tidy table of ``results.collect``.
    """
    words = runs["method"].str.split(" ")
    rest = words.map(lambda names: " ".join(name for name in names if not name.startswith("layer_skip")))
    every = sorted_methods(list(rest))
    groups = every[:MAX_METHODS]
    labels = ["\n".join(wrapped(name, COLUMN - 0.35)) for name in groups]
    notes = wrapped("numbers: layers skipped", COLUMN - 2 * EDGE)
    if len(groups) < len(every):
        notes.append(truncation_note(len(groups), len(every)))
    top, keys = EDGE + LINE * (len(notes) + 0.5), LINE * 1.1 * sum(label.count("\n") + 1 for label in labels)
    height = top + HEIGHT + TICKS + LABEL + 0.5 * LINE + keys + EDGE
    width = COLUMN - LEFT - 2 * EDGE
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN, height))
        write(figure, EDGE, EDGE, notes)
        panel = axes_at(figure, LEFT, top, width, HEIGHT)
        points: list[tuple[float, float, float]] = []  # speed, accuracy and layers skipped of each method
        handles = []
        for i, (name, label) in enumerate(zip(groups, labels, strict=True)):
            style: Any = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "ms": MARKER}
            points += _draw(panel, runs[rest == name], style)
            handles.append(Line2D([], [], ls="none", label=label, **style))
        panel.margins(x=0.08)
        panel.set_xlabel("rollout, tokens/s")
        panel.set_ylabel("final accuracy, sampled, %")
        _number(panel, points, (width, HEIGHT))
        place = (EDGE / COLUMN, EDGE / height)
        figure.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=place,
            frameon=False,
            borderpad=0,
            borderaxespad=0,
            labelspacing=0.25,
            handlelength=1,
        )
    return figure


def _draw(panel: Axes, runs: pd.DataFrame, style: dict[str, Any]) -> list[tuple[float, float, float]]:
    """Draw the methods of a group; return speed, accuracy and number of layers skipped of each."""
    points = []
    for _, of_method in runs.groupby("method"):
        accuracy = estimate(100 * of_method["final_sampled"])
        speed = float(of_method["tokens_per_second"].mean())
        if accuracy.n > 1:
            ends = [max(0.0, accuracy.low), min(100.0, accuracy.high)]
            panel.plot([speed, speed], ends, color=style["color"], lw=0.8)
        panel.plot(speed, accuracy.mean, ls="none", **style)
        points.append((speed, accuracy.mean, float(of_method["layers_skipped"].mean())))
    return points


def _number(panel: Axes, points: list[tuple[float, float, float]], size: tuple[float, float]) -> None:
    """Write the numbers of layers next to the points, where they are known.

    Args:
        points: speed, accuracy and number of layers skipped.
        size: width and height of the panel, in inches.
    """
    ordered = sorted(points, key=lambda point: point[2] != point[2])  # the unknown ones last
    texts = [f"{skipped:g}" for _, _, skipped in ordered if skipped == skipped]
    scale = np.array(size) * 72  # (2,): points
    data = np.array([(speed, accuracy) for speed, accuracy, _ in ordered])  # (n, 2)
    panel.autoscale_view()
    places = panel.transAxes.inverted().transform(panel.transData.transform(data)) * scale  # (n, 2)
    sizes = np.array([(72 * text_width(text, SMALL), SMALL) for text in texts]).reshape(-1, 2)  # (m, 2)
    centres = beside(places, sizes, (float(scale[0]), float(scale[1])), MARKER)  # (m, 2)
    for text, (x, y) in zip(texts, centres / scale, strict=True):
        panel.text(x, y, text, fontsize=SMALL, ha="center", va="center_baseline", transform=panel.transAxes)

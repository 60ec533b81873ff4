"""Figure of layer skipping: rollout tokens/s against final sampled accuracy."""

from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from rlsparse.results.figures.style import MARKERS, MAX_METHODS, STYLE, WIDTH, truncation_note
from rlsparse.results.names import sorted_methods
from rlsparse.results.statistics import estimate


def speed_figure(runs: pd.DataFrame) -> Figure:
    """Draw one point per method: means over seeds, with the 95 % bootstrap interval of the accuracy.

    Methods that differ only in layer skipping share shade and marker; the first ``MAX_METHODS`` such groups are drawn.
    The number next to a point is the number of layers that were skipped.

    Args:
        runs: the tidy table of ``results.collect``.
    """
    words = runs["method"].str.split(" ")
    rest = words.map(lambda names: " ".join(name for name in names if not name.startswith("layer_skip")))
    every = sorted_methods(list(rest))
    shades = matplotlib.colormaps["viridis"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.5), layout="constrained")
        panel = figure.subplots()
        for i, name in enumerate(every[:MAX_METHODS]):
            by_method = runs[rest == name].groupby("method")
            speed, skipped = by_method["tokens_per_second"].mean(), by_method["layers_skipped"].mean()
            found = {method: estimate(100 * finals) for method, finals in by_method["final_sampled"]}
            accuracy = pd.DataFrame({m: {"mean": e.mean, "low": e.low, "high": e.high} for m, e in found.items()}).T
            spread = [accuracy["mean"] - accuracy["low"], accuracy["high"] - accuracy["mean"]]
            style: Any = {"fmt": MARKERS[i % len(MARKERS)], "color": shades(0.85 * i / max(1, len(every) - 1))}
            panel.errorbar(speed, accuracy["mean"], yerr=spread, capsize=2, lw=0.8, label=name, **style)
            for method in skipped.dropna().index:
                at = (speed[method], accuracy["mean"][method])
                panel.annotate(f"{skipped[method]:g}", at, (4, 4), textcoords="offset points", fontsize=7)
        panel.set_xlabel("rollout, tokens/s")
        panel.set_ylabel("final accuracy, sampled, %")
        panel.legend(fontsize=7, frameon=False, title="numbers: layers skipped", title_fontsize=7)
        if len(every) > MAX_METHODS:
            figure.suptitle(truncation_note(MAX_METHODS, len(every)), fontsize=9)
    return figure

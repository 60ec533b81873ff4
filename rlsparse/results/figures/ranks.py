"""Figure of adapter ranks: a heat map of final ranks by module type and layer, and their history."""

from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from rlsparse.results.figures.style import MAX_METHODS, STYLE, WIDTH, truncation_note
from rlsparse.results.names import sorted_methods

ROW_HEIGHT = 2.4  # inches
LINES = ("-", "--", ":", "-.")


def rank_figure(final: pd.DataFrame, history: pd.DataFrame) -> Figure:
    """Draw one row per method with means over seeds, for the first ``MAX_METHODS`` methods.

    Brighter cells have a higher rank; the line on the colour bar is the rank at the start.

    Args:
        final, history: tables as in ``results.ranks.Ranks``.
    """
    every = sorted_methods(list(final["method"]))
    methods = every[:MAX_METHODS]
    modules = list(dict.fromkeys(final["module"]))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, ROW_HEIGHT * len(methods)), layout="constrained")
        panels = figure.subplots(len(methods), 2, squeeze=False, width_ratios=(3, 2))
        for (heat, line), method in zip(panels, methods, strict=True):
            of_method = history[history["method"] == method]
            image = _heat_map(heat, final[final["method"] == method], modules)
            bar = figure.colorbar(image, ax=heat, label="rank")
            bar.ax.axhline(float(of_method[of_method["step"] == 0]["rank"].mean()), color="black", lw=2)
            heat.set_title(method, loc="left", fontsize=9)
            _lines(line, of_method, modules)
        panels[-1][0].set_xlabel("layer")
        panels[-1][1].set_xlabel("step")
        panels[0][1].legend(fontsize=6, frameon=False, ncols=2)
        if len(methods) < len(every):
            figure.suptitle(truncation_note(len(methods), len(every)), fontsize=9)
    return figure


def _heat_map(panel: Any, final: pd.DataFrame, modules: list[str]) -> Any:
    means = final.groupby(["module", "layer"])["rank"].mean().unstack().loc[modules]
    image = panel.imshow(means.to_numpy(), aspect="auto", cmap="viridis")
    panel.grid(visible=False)
    panel.set_yticks(range(len(modules)), modules)
    ticks = range(0, means.shape[1], max(1, means.shape[1] // 8))
    panel.set_xticks(ticks, [str(means.columns[i]) for i in ticks])
    return image


def _lines(panel: Any, history: pd.DataFrame, modules: list[str]) -> None:
    means = history.groupby(["module", "step"])["rank"].mean()
    shades = matplotlib.colormaps["viridis"]
    for i, module in enumerate(modules):
        by_step = means.loc[module]
        style = {"color": shades(0.85 * i / max(1, len(modules) - 1)), "ls": LINES[i % len(LINES)], "lw": 1.2}
        panel.plot(by_step.index, by_step.to_numpy(), drawstyle="steps-post", label=module, **style)
    panel.set_ylabel("mean rank")

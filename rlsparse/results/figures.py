"""Figures from tidy tables, as SVG; the same table gives the same bytes."""

from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from rlsparse.results.order import natural

STYLE: Any = {"svg.hashsalt": "rlsparse", "svg.fonttype": "none", "font.size": 9}
ROW_HEIGHT, WIDTH = 2.4, 9.0  # inches


def rank_figure(final: pd.DataFrame, history: pd.DataFrame, file: Path) -> None:
    """Where the rank went, a row a method: the final rank of each module type and layer, and its way there.

    Means over seeds. The colours are centred on the rank at the start: red has gained, blue has lost.

    Args:
        final, history: tables as in ``results.ranks.Ranks``.
    """
    methods = sorted(final["method"].unique(), key=natural)
    modules = list(dict.fromkeys(final["module"]))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, ROW_HEIGHT * len(methods)), layout="constrained")
        panels = figure.subplots(len(methods), 2, squeeze=False, width_ratios=(3, 2))
        for (heat, line), method in zip(panels, methods, strict=True):
            of_method = history[history["method"] == method]
            start = float(of_method[of_method["step"] == 0]["rank"].mean())
            image = _heat_map(heat, final[final["method"] == method], modules, start)
            figure.colorbar(image, ax=heat, label="rank")
            heat.set_title(method, loc="left", fontsize=9)
            _lines(line, of_method, modules)
        panels[-1][0].set_xlabel("layer")
        panels[-1][1].set_xlabel("step")
        panels[0][1].legend(fontsize=6, frameon=False, ncols=2)
        figure.savefig(file, metadata={"Date": None})


def _heat_map(panel: Any, final: pd.DataFrame, modules: list[str], start: float) -> Any:
    means = final.groupby(["module", "layer"])["rank"].mean().unstack().loc[modules]
    low, high = min(float(means.min().min()), start - 1), max(float(means.max().max()), start + 1)
    image = panel.imshow(means.to_numpy(), aspect="auto", cmap="RdBu_r", norm=TwoSlopeNorm(start, low, high))
    panel.set_yticks(range(len(modules)), modules)
    ticks = range(0, means.shape[1], max(1, means.shape[1] // 8))
    panel.set_xticks(ticks, [str(means.columns[i]) for i in ticks])
    return image


def _lines(panel: Any, history: pd.DataFrame, modules: list[str]) -> None:
    means = history.groupby(["module", "step"])["rank"].mean()
    for i, module in enumerate(modules):
        by_step = means.loc[module]
        panel.plot(by_step.index, by_step.to_numpy(), drawstyle="steps-post", label=module, color=f"C{i}", lw=1.2)
    panel.set_ylabel("mean rank")

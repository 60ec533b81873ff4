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
MARKERS = "osD^vPX*"
MOST = 12  # methods in a figure, by name; a hundred take half a minute and metres of paper


def rank_figure(final: pd.DataFrame, history: pd.DataFrame, file: Path) -> None:
    """Where the rank went, a row a method: the final rank of each module type and layer, and its way there.

    The first ``MOST`` methods. Means over seeds. The colours are centred on the rank at the start: red has gained, blue
    has lost.

    Args:
        final, history: tables as in ``results.ranks.Ranks``.
    """
    every = sorted(final["method"].unique(), key=natural)
    methods = every[:MOST]
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
        if len(methods) < len(every):
            figure.suptitle(_cut_short(len(methods), len(every)), fontsize=9)
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


def speed_figure(runs: pd.DataFrame, file: Path) -> None:
    """What skipping layers buys and costs: rollout tokens/s against final sampled accuracy, a point a method.

    Means over seeds; the bars reach from the worst to the best seed. Colour and marker tell what else differs (the
    first ``MOST``), the number beside a point how many layers were skipped.

    Args:
        runs: the tidy table of ``results.collect``.
    """
    words = runs["method"].str.split(" ")
    rest = words.map(lambda names: " ".join(name for name in names if not name.startswith("layer_skip")))
    every = sorted(set(rest), key=natural)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.5), layout="constrained")
        panel = figure.subplots()
        for i, name in enumerate(every[:MOST]):
            by_method = runs[rest == name].groupby("method")
            speed, skipped = by_method["tokens_per_second"].mean(), by_method["layers_skipped"].mean()
            accuracy = 100 * by_method["final_sampled"].agg(["mean", "min", "max"])
            spread = [accuracy["mean"] - accuracy["min"], accuracy["max"] - accuracy["mean"]]
            marker = MARKERS[i % len(MARKERS)]
            panel.errorbar(speed, accuracy["mean"], yerr=spread, fmt=marker, capsize=2, lw=0.8, label=name)
            for method in skipped.dropna().index:
                at = (speed[method], accuracy["mean"][method])
                panel.annotate(f"{skipped[method]:g}", at, (4, 4), textcoords="offset points", fontsize=7)
        panel.set_xlabel("rollout, tokens/s")
        panel.set_ylabel("final accuracy, sampled, %")
        panel.legend(fontsize=7, frameon=False, title="numbers: layers skipped", title_fontsize=7)
        if len(every) > MOST:
            figure.suptitle(_cut_short(MOST, len(every)), fontsize=9)
        figure.savefig(file, metadata={"Date": None})


def _cut_short(shown: int, count: int) -> str:
    return f"the first {shown} of {count} methods; the table has them all"

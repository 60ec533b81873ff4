"""Figure of performance profiles over several tasks and models (Agarwal et al. 2021, arXiv 2108.13264)."""

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rlsparse.results.aggregates import TaskScores, common_tasks, performance_profile
from rlsparse.results.figures.curves import Curve, panel_figure
from rlsparse.results.figures.style import STYLE
from rlsparse.results.names import sorted_methods

THRESHOLDS = np.linspace(0, 1, 101)  # (K,)


def profile_figure(scores: Mapping[str, TaskScores], baseline: str | None) -> Figure:
    """Draw the share of runs that end above each accuracy, with pointwise 95 % intervals, a panel for each method.

    Args:
        scores: method -> task -> scores as shares, as ``aggregates.common_tasks`` takes them.
        baseline: the method that all panels show; None for no such method.
    """
    common = common_tasks(scores).scores
    curves = {}
    for method in sorted_methods(list(common), baseline):
        found = performance_profile(common[method], THRESHOLDS)
        curves[method] = Curve(100 * found.thresholds, 100 * found.shares, 100 * found.low, 100 * found.high)
    with matplotlib.rc_context(STYLE):
        return panel_figure(curves, baseline, ("accuracy, %", "runs that end above it, %"))

"""Size and style of all figures, and saving them so that the same table always gives the same bytes."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

STYLE: Any = {"svg.hashsalt": "rlsparse", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False}
STYLE |= {"axes.spines.right": False, "axes.grid": True, "grid.color": "0.9", "axes.axisbelow": True}
WIDTH = 9.0  # inches
MARKERS = "osD^vPX*"
MAX_METHODS = 12  # methods in a figure; a hundred would take half a minute and several metres of paper
DPI = 150  # of the PNG


def save(figure: Figure, file: Path) -> None:
    """Write ``<file>.svg`` and ``<file>.png``."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(file.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(file.with_suffix(".png"), dpi=DPI, metadata={"Software": None})


def truncation_note(shown: int, count: int) -> str:
    """Return a note that a figure shows only some of the methods."""
    return f"the first {shown} of {count} methods; the table has all"

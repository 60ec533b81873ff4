"""What all figures share: size, style, and files that are the same bytes for the same table."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

STYLE: Any = {"svg.hashsalt": "rlsparse", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False}
STYLE |= {"axes.spines.right": False, "axes.grid": True, "grid.color": "0.9", "axes.axisbelow": True}
WIDTH = 9.0  # inches
MARKERS = "osD^vPX*"
MOST = 12  # methods in a figure, by name; a hundred take half a minute and metres of paper
DOTS = 150  # a inch, of the PNG


def save(figure: Figure, file: Path) -> None:
    """Write ``<file>.svg`` and ``<file>.png``."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(file.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(file.with_suffix(".png"), dpi=DOTS, metadata={"Software": None})


def cut_short(shown: int, count: int) -> str:
    """The line that says so."""
    return f"the first {shown} of {count} methods; the table has them all"

"""Sizes, text, colours and markers of all figures, and saving them so that the same table always gives the same bytes.

Figures are made for a paper with two columns: their text has 8 pt at the size in which they are drawn. Every line of
text is measured before it is placed, so that no layout has to be computed again and again.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

COLUMN, DOUBLE = 3.3, 6.8  # inches: the width of a column, and of a grid of panels across both columns
TEXT, SMALL = 8, 7  # points: all text, and numbers in cells or next to points
LINE = 0.145  # inches: the distance of two lines of text
EDGE = 0.04  # inches: free space at the edges of a figure
TICKS, LABEL = 0.2, 0.18  # inches: height of tick labels below axes, and of an axis label below these
FONT = "DejaVu Sans"  # matplotlib has it everywhere, so that widths are the same everywhere
STYLE: Any = {
    "svg.hashsalt": "rlsparse",
    "svg.fonttype": "none",
    "font.family": FONT,
    "font.size": TEXT,
    "axes.labelsize": TEXT,
    "axes.titlesize": TEXT,
    "xtick.labelsize": TEXT,
    "ytick.labelsize": TEXT,
    "legend.fontsize": TEXT,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.pad": 2,
    "ytick.major.pad": 2,
    "axes.labelpad": 2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "text.parse_math": False,  # a $ in the name of a method is a $
}
# Okabe and Ito 2008, without the yellow, which is too light for a line on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "black")
LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (9, 2)))
MARKERS = "osD^vPX*"
MAX_METHODS = 12  # methods in a figure with a panel, a row of cells or a line for each of them
MAX_ROWS = 30  # rows of a forest plot, which fill a page
DPI = 300  # of the PNG
SUFFIXES = ("svg", "png")
NO_DATE: dict[str, Any] = {"svg": {"Date": None}, "png": {"Software": None}}


def save(figure: Figure, file: Path, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Write ``<file>.<suffix>`` for each suffix, of ``SUFFIXES``."""
    with matplotlib.rc_context(STYLE):
        for suffix in suffixes:
            figure.savefig(file.with_suffix(f".{suffix}"), dpi=DPI, metadata=NO_DATE[suffix])


def truncation_note(shown: int, count: int) -> str:
    """Return a note that a figure shows only some of the methods."""
    return f"the first {shown} of {count} methods; the table has all"


@cache
def text_width(text: str, size: float = TEXT) -> float:
    """Return the width of a line of text of a size in points, in inches."""
    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(family=FONT, size=size), ismath=False)
    return float(width) / 72


def wrapped(text: str, room: float) -> list[str]:
    """Return the lines of a text, each at most ``room`` inches wide.

    Lines break at spaces; a word that is wider than a line also breaks after ``=``, ``,``, ``_``, ``.`` and ``[``, and
    where that is not enough, anywhere.
    """
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if text_width(joined) <= room:
            lines[-1] = joined
        else:
            lines += _broken(word, room)
    return [line for line in lines if line] or [""]


def _broken(word: str, room: float) -> list[str]:
    """Return a word in pieces that are at most ``room`` inches wide."""
    pieces = []
    while text_width(word) > room:
        fits = max(1, sum(text_width(word[:end]) <= room for end in range(1, len(word))))
        after = max((at + 1 for at in range(fits) if word[at] in "=,_.["), default=fits)
        pieces.append(word[:after])
        word = word[after:]
    return [*pieces, word]


def axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes to a figure; the place of their upper left corner and their size are in inches."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def write(figure: Figure, left: float, top: float, lines: Sequence[str], **style: Any) -> None:
    """Write lines of text into a figure, one below the other; the place of their upper left corner is in inches."""
    across, down = figure.get_size_inches()
    for row, line in enumerate(lines):
        at = 1 - (top + (row + 0.5) * LINE) / down
        figure.text(left / across, at, line, va="center_baseline", **style)


class Key:
    """The names of numbered methods, set in columns below a figure.

    Attributes:
        height: in inches.
    """

    def __init__(self, names: Sequence[str], width: float) -> None:
        """Set the names.

        Args:
            names: of the methods 1, 2 and so on.
            width: of the figure, in inches; a figure across two columns has two columns of names.
        """
        columns = 2 if width > COLUMN else 1
        self._width = (width - 2 * EDGE) / columns
        self._indent = text_width("00  ")
        entries = [(str(n), wrapped(name, self._width - self._indent)) for n, name in enumerate(names, start=1)]
        half = sum(len(lines) for _, lines in entries) / columns
        self._columns: list[list[tuple[str, list[str]]]] = [[] for _ in range(columns)]
        taken = 0
        for number, lines in entries:
            self._columns[min(columns - 1, int(taken / half))].append((number, lines))
            taken += len(lines)
        self.height = LINE * max(sum(len(lines) for _, lines in column) for column in self._columns)

    def draw(self, figure: Figure, top: float) -> None:
        """Write the names, from ``top`` inches below the upper edge of the figure on."""
        for i, column in enumerate(self._columns):
            left, row = EDGE + i * self._width, 0
            for number, lines in column:
                write(figure, left, top + row * LINE, [number])
                write(figure, left + self._indent, top + row * LINE, lines)
                row += len(lines)

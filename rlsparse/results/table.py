"""A table of texts, and its three formats: Markdown, LaTeX (booktabs) and CSV."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd

LATEX_SPECIAL = str.maketrans(
    {c: "\\" + c for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
    | {"−": "$-$", "–": "--", "×": r"$\times$", "→": r"$\to$", "≤": r"$\le$", "≥": r"$\ge$", "±": r"$\pm$"}
    | {"α": r"$\alpha$", "β": r"$\beta$", "λ": r"$\lambda$", "μ": r"$\mu$", "π": r"$\pi$", "ρ": r"$\rho$"}
    | {"σ": r"$\sigma$", "ε": r"$\varepsilon$", "γ": r"$\gamma$"}
)
WRAP_ABOVE = 24  # characters; a wider column of text is set as paragraphs, or as numbers that are explained below
LINE = 78  # characters of \footnotesize in a line of an article
GAP = 1.7  # characters that a column takes in addition to its text
PAGE = 44  # lines of \footnotesize on a page, with room for rules and headings


@dataclass(frozen=True)
class Table:
    """A table with its notes and the unrounded numbers.

    Attributes:
        cells: the texts of the cells, with the headings as column names.
        numbers: the content of the CSV file: unrounded numbers.
        notes: lines below the table.
        left: number of columns, from the first, that are text and aligned left.
        bold: row and heading of each bold cell.
    """

    cells: pd.DataFrame
    numbers: pd.DataFrame
    notes: list[str]
    left: int = 1
    bold: set[tuple[int, str]] = field(default_factory=set)


def markdown(table: Table) -> str:
    """Return a Markdown pipe table with the notes as paragraphs below it."""
    cells = table.cells.map(lambda text: text.replace("|", "\\|"))
    with_bold = _with_bold(cells, table.bold, lambda text: f"**{text}**")
    aligned = ("left",) * table.left + ("right",) * (cells.shape[1] - table.left)
    text = with_bold.to_markdown(index=False, colalign=aligned, disable_numparse=True)
    return "\n\n".join([text, *table.notes]) + "\n"


def latex(table: Table) -> str:
    """Return LaTeX tabulars with booktabs rules and the notes below them; the document needs the booktabs package.

    A table that is wider than a line of an article, or longer than its page, continues in another tabular below. Long
    names are replaced by numbers, which are explained below the table.
    """
    cells, first = table.cells, str(table.cells.columns[0])
    columns = list(cells.columns)
    key: list[str] = []
    if table.left == 1 < len(columns) and _width(cells[first]) > WRAP_ABOVE:
        key = [f"{row}: {name}" for row, name in enumerate(cells[first], start=1)]
        cells = cells.assign(**{first: [str(row) for row in range(1, len(cells) + 1)]})
    texts, numbers = columns[: table.left], columns[table.left :]
    wrapped = [name for name in texts if _width(cells[name]) > WRAP_ABOVE]
    plain = sum(_width(cells[name]) + GAP for name in texts if name not in wrapped)
    paragraphs = 0.0 if not wrapped else 0.35 if numbers else 1 - plain / LINE  # share of a line
    share = paragraphs / max(1, len(wrapped)) - 0.03
    kinds = "".join(rf"p{{{share:.2f}\linewidth}}" if name in wrapped else "l" for name in texts)
    escaped = _with_bold(cells.map(escape), table.bold, lambda text: rf"\textbf{{{text}}}")
    for name in wrapped:
        escaped[name] = [rf"\raggedright {_breakable(text)}" for text in escaped[name]]
    parts = [
        _tabular(escaped.iloc[rows][[*texts, *part]], kinds + "r" * len(part))
        for part in _blocks(cells[numbers], LINE * (1 - paragraphs) - plain)
        for rows in _pages(cells[wrapped], share * LINE)
    ]
    lines = [rf"\par {_breakable(escape(' '.join(line.split())))}" for line in key]
    lines += [rf"\par\smallskip {_breakable(escape(' '.join(note.split())))}" for note in table.notes]
    body = "\n\\par\\medskip\n".join(parts)
    head = r"{\footnotesize\setlength{\tabcolsep}{3pt}\setlength{\parindent}{0pt}\raggedright"
    return "\n".join([head, body, *lines, r"\par}"]) + "\n"


def _tabular(cells: pd.DataFrame, form: str) -> str:
    text: str = cells.rename(columns=escape).style.hide(axis="index").to_latex(hrules=True, column_format=form)
    return text.rstrip("\n")


def _blocks(numbers: pd.DataFrame, room: float) -> list[list[str]]:
    """Return the columns in order, split into blocks that fit into a width; one empty block without columns.

    Args:
        room: the width in characters.
    """
    blocks: list[list[str]] = [[]]
    left = room
    for name in numbers.columns:
        width = _width(numbers[name]) + GAP
        if width > left and blocks[-1]:
            blocks.append([])
            left = room
        blocks[-1].append(name)
        left -= width
    return blocks


def _pages(paragraphs: pd.DataFrame, room: float) -> list[slice]:
    """Return the rows in order, split into slices that fit on a page.

    Args:
        paragraphs: the columns that are set as paragraphs.
        room: characters in a line of a paragraph.
    """
    pages, first, taken = [], 0, 0.0
    for row in range(len(paragraphs)):
        lines = max((1 + len(text) // (0.8 * room) for text in paragraphs.iloc[row]), default=1)
        if taken + lines > PAGE and row > first:
            pages.append(slice(first, row))
            first, taken = row, 0.0
        taken += lines
    return [*pages, slice(first, None)]


def _width(column: "pd.Series[str]") -> int:
    """Return the length of the longest text of a column, including its heading."""
    return max(len(str(column.name)), *column.str.len())


def _breakable(text: str) -> str:
    """Allow line breaks inside long words of escaped text (``token_sampler.budget=16``), but not inside numbers."""
    return re.sub(r"(\\_|[=/]|[.,:](?!\d))(?=\S)", r"\1\\allowbreak{}", text)


def csv(table: Table) -> str:
    """Return the unrounded numbers as CSV."""
    return table.numbers.to_csv(index=False, lineterminator="\n", float_format="%.6g")


def escape(text: str) -> str:
    """Escape the special characters of LaTeX."""
    return text.translate(LATEX_SPECIAL)


def _with_bold(cells: pd.DataFrame, bold: set[tuple[int, str]], wrap: Callable[[str], str]) -> pd.DataFrame:
    """Return the cells with ``wrap`` applied to the bold ones."""
    wrapped = cells.copy()
    for row, heading in bold:
        wrapped.loc[row, heading] = wrap(str(wrapped.loc[row, heading]))
    return wrapped

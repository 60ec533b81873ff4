"""A table of texts, once, and its three forms: Markdown, LaTeX (booktabs) and CSV."""

import re
from dataclasses import dataclass, field

import pandas as pd

LATEX_SPECIAL = str.maketrans(
    {c: "\\" + c for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
    | {"−": "$-$", "–": "--", "×": r"$\times$", "→": r"$\to$", "≤": r"$\le$", "≥": r"$\ge$", "±": r"$\pm$"}
    | {"α": r"$\alpha$", "β": r"$\beta$", "λ": r"$\lambda$", "μ": r"$\mu$", "π": r"$\pi$", "ρ": r"$\rho$"}
    | {"σ": r"$\sigma$", "ε": r"$\varepsilon$", "γ": r"$\gamma$"}
)
WRAPPED = 24  # characters above which a column of text is set as a paragraph, or as numbers with a key below
LINE, GAP = 78, 1.7  # characters of \footnotesize in a line of an article; what a column takes beside its text
PAGE = 44  # lines of it on a page, with room for rules and headings


@dataclass(frozen=True)
class Table:
    """What is shown, and the numbers behind it.

    Attributes:
        cells: texts, a column a heading.
        numbers: what the CSV holds: unrounded.
        notes: lines below it.
        left: how many columns, from the first, are text.
        bold: (row, heading) of the cells that stand out.
    """

    cells: pd.DataFrame
    numbers: pd.DataFrame
    notes: list[str]
    left: int = 1
    bold: set[tuple[int, str]] = field(default_factory=set)


def markdown(table: Table) -> str:
    """A pipe table, and the notes as paragraphs."""
    cells = table.cells.map(lambda text: text.replace("|", "\\|"))
    shown = _with_bold(cells, table.bold, lambda text: f"**{text}**")
    aligned = ("left",) * table.left + ("right",) * (cells.shape[1] - table.left)
    text = shown.to_markdown(index=False, colalign=aligned, disable_numparse=True)
    return "\n\n".join([text, *table.notes]) + "\n"


def latex(table: Table) -> str:
    """Tabulars with booktabs rules, and the notes below them; needs the booktabs package.

    What is wider than a line of an article, or longer than its page, goes on in a tabular below. Long names are
    numbered, and the numbers explained under the table.
    """
    cells, first = table.cells, str(table.cells.columns[0])
    columns = list(cells.columns)
    key: list[str] = []
    if table.left == 1 < len(columns) and _width(cells[first]) > WRAPPED:
        key = [f"{row}: {name}" for row, name in enumerate(cells[first], start=1)]
        cells = cells.assign(**{first: [str(row) for row in range(1, len(cells) + 1)]})
    texts, numbers = columns[: table.left], columns[table.left :]
    wrapped = [name for name in texts if _width(cells[name]) > WRAPPED]
    plain = sum(_width(cells[name]) + GAP for name in texts if name not in wrapped)
    paragraphs = 0.0 if not wrapped else 0.35 if numbers else 1 - plain / LINE  # their share of a line
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
    """Its columns in order, in as many lines as they take; one empty line where there are none."""
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
    """The rows in order, as many at a time as a page holds; ``room``: characters of a paragraph's line."""
    pages, first, taken = [], 0, 0.0
    for row in range(len(paragraphs)):
        lines = max((1 + len(text) // (0.8 * room) for text in paragraphs.iloc[row]), default=1)
        if taken + lines > PAGE and row > first:
            pages.append(slice(first, row))
            first, taken = row, 0.0
        taken += lines
    return [*pages, slice(first, None)]


def _width(column: "pd.Series[str]") -> int:
    """Characters of its longest text, the heading included."""
    return max(len(str(column.name)), *column.str.len())


def _breakable(text: str) -> str:
    """Escaped text whose long words (``token_sampler.budget=16``) may end a line within; numbers do not."""
    return re.sub(r"(\\_|[=/]|[.,:](?!\d))(?=\S)", r"\1\\allowbreak{}", text)


def csv(table: Table) -> str:
    """The numbers."""
    return table.numbers.to_csv(index=False, lineterminator="\n", float_format="%.6g")


def escape(text: str) -> str:
    """Text that LaTeX sets as it stands."""
    return text.translate(LATEX_SPECIAL)


def _with_bold(cells: pd.DataFrame, bold: set[tuple[int, str]], wrap: object) -> pd.DataFrame:
    assert callable(wrap)
    shown = cells.copy()
    for row, heading in bold:
        shown.loc[row, heading] = wrap(shown.loc[row, heading])
    return shown

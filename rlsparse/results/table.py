"""A table of texts, once, and its three forms: Markdown, LaTeX (booktabs) and CSV."""

from dataclasses import dataclass, field

import pandas as pd

LATEX_SPECIAL = str.maketrans(
    {c: "\\" + c for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
    | {"−": "$-$", "–": "--", "×": r"$\times$", "→": r"$\to$", "≤": r"$\le$", "≥": r"$\ge$", "±": r"$\pm$"}
    | {"α": r"$\alpha$", "β": r"$\beta$", "λ": r"$\lambda$", "μ": r"$\mu$", "π": r"$\pi$", "ρ": r"$\rho$"}
    | {"σ": r"$\sigma$", "ε": r"$\varepsilon$", "γ": r"$\gamma$"}
)
WRAPPED = 40  # characters above which a column is set as a paragraph


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
    """A tabular with booktabs rules, and the notes below it; needs the booktabs package."""
    cells = _with_bold(table.cells.map(escape), table.bold, lambda text: rf"\textbf{{{text}}}")
    widest = [table.cells[name].str.len().max() for name in table.cells.columns[: table.left]]
    wrapped = sum(width > WRAPPED for width in widest)
    share = 0.7 / max(1, wrapped)
    kinds = [rf"p{{{share:.2f}\linewidth}}" if width > WRAPPED else "l" for width in widest]
    form = "".join(kinds) + "r" * (cells.shape[1] - table.left)
    text = cells.rename(columns=escape).style.hide(axis="index").to_latex(hrules=True, column_format=form)
    notes = [rf"\par\smallskip{{\footnotesize {escape(' '.join(note.split()))}}}" for note in table.notes]
    return "\n".join([text.rstrip("\n"), *notes]) + "\n"


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

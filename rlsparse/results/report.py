"""Write one HTML page of studies: claims, tables, figures, configs and versions. The page loads no other file."""

import base64
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from rlsparse.results.claims import NOT_RUN
from rlsparse.results.study import Study, write_figures
from rlsparse.results.table import Table

TEMPLATE = "report.html.j2"
TITLES = {
    "table": "Outcomes",
    "benchmarks": "Benchmarks",
    "claims": "Published claims, and the verdicts of our runs",
    "effects": "Effects of the components",
    "interactions": "Interactions of the components",
    "costs": "Costs, and accuracy at equal cost",
    "saturation": "Saturation: fits of the learning curves",
    "tuning": "Tuning of the learning rate",
    "ranks": "Final ranks by module type",
}
FOREST = (
    "Thick lines: 95 % intervals to new seeds on the same questions. Thin lines: 95 % intervals to new seeds and new "
    "questions, drawn where the answers to each question are known. A marker is filled if p, corrected by Holm's "
    "procedure, is at most 0.05."
)
OVER_SEEDS = "95 % t interval over seeds (to new seeds on the same questions)"
FIGURES = {
    "differences": f"Differences to the baseline, in the order of the table. {FOREST} The grey band, if there is one, "
    "holds the differences that do not matter.",
    "curves": f"Learning curves: mean and {OVER_SEEDS}. The baseline is black, or dashed if each method has a panel.",
    "costs": f"Accuracy against tokens updated, seconds and memory: mean and {OVER_SEEDS}. The dotted line is the "
    "Pareto front: no other method is more accurate at the same or a lower cost. Methods with a collapsed run are not "
    "on it.",
    "probabilities": "Probability that a run of the method of the row ends better than a run of the method of the "
    "column: the share of all pairs of their seeds, where ties count half. It does not say by how much.",
    "effects": f"Effects of the components, in parentheses the number of pairs of methods. {FOREST}",
    "speed": f"Rollout speed against final accuracy: mean and {OVER_SEEDS}.",
    "ranks": "Final rank by module type and layer, and mean rank during training. The line on the colour bar is the "
    "rank at the start.",
}
INTERVAL = re.compile(r"\[[^\]]*\]")  # in the cell of a number; a line may break before it, not in it
VERSIONS = ("rlsparse", "python", "torch", "transformers", "peft", "commit", "device")


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        source: the figure as a data URI.
        caption: the text below it.
        inches: the width at which its text has 8 pt.
    """

    source: str
    caption: str
    inches: float


def write_report(file: Path, studies: Mapping[Path, Study]) -> None:
    """Write the page.

    Raises:
        OSError: the file cannot be written.
    """
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    environment.filters["table"] = html_table
    page = environment.get_template(TEMPLATE).render(
        studies=[_study(study) for study in studies.values()], titles=TITLES, verdicts=_verdicts(studies)
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page, encoding="utf-8")


def html_table(table: Table) -> Markup:
    """Return a table as HTML; each cell carries its heading, which is shown next to it on a narrow screen."""
    head = "".join(
        f'<th scope="col"{_align(table, i)}>{_text(name)}</th>' for i, name in enumerate(table.cells.columns)
    )
    body = "".join(f"<tr>{_row(table, row)}</tr>" for row in range(len(table.cells)))
    notes = "".join(f"<p>{_text(note)}</p>" for note in table.notes)
    return Markup(
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f'<div class="notes">{notes}</div>'
    )


def _row(table: Table, row: int) -> str:
    cells = []
    for i, (name, text) in enumerate(table.cells.iloc[row].items()):
        content = INTERVAL.sub(r'<span class="interval">\g<0></span>', _text(text)) if i >= table.left else _text(text)
        content = f"<strong>{content}</strong>" if (row, name) in table.bold else f"<span>{content}</span>"
        verdict = f' data-verdict="{_text(text)}"' if name == "verdict" else ""
        cells.append(f'<td data-label="{_text(name)}"{_align(table, i)}{verdict}>{content}</td>')
    return "".join(cells)


def _align(table: Table, column: int) -> str:
    return "" if column < table.left else ' class="number"'


def _text(text: object) -> str:
    return str(Markup.escape(text))


def _study(study: Study) -> dict[str, object]:
    """Return the variables of the template for one study."""
    made = study.tables
    with tempfile.TemporaryDirectory() as scratch:
        names = write_figures(Path(scratch), study, ("svg",)) if made else []
        pictures = [_picture(Path(scratch) / f"{name}.svg", FIGURES[name]) for name in names]
    return {
        "name": study.name,
        "runs": len(study.runs),
        "methods": study.runs["method"].nunique(),
        "tables": made,
        "pictures": pictures,
        "not_counted": study.not_counted,
        "config": study.config,
        "versions": _versions(study.runs),
    }


def _picture(file: Path, caption: str) -> Picture:
    content = file.read_bytes()
    points = re.search(rb'<svg[^>]* width="([\d.]+)pt"', content)
    assert points is not None, f"{file}: has no width"
    source = f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}"
    return Picture(source, caption, float(points[1]) / 72)


def _versions(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the versions that the runs used, by name."""
    found = [(name, runs[name].dropna().astype(str).unique()) for name in VERSIONS if name in runs]
    return [(name, ", ".join(sorted(values))) for name, values in found if len(values)]


def _verdicts(studies: Mapping[Path, Study]) -> list[tuple[int, str, str, str]]:
    """Return number and name of the study, claim and verdict, for each claim whose verdict is not "not run"."""
    outcomes = [(n, study.name, one) for n, study in enumerate(studies.values(), 1) for one in study.outcomes]
    return [(n, name, one.claim.claim, one.verdict) for n, name, one in outcomes if one.verdict != NOT_RUN]

"""Write one HTML page of studies: claims, tables, figures, configs and versions. The page loads no other file."""

import base64
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from rlsparse.results.claims import NOT_RUN
from rlsparse.results.study import Study, tables, write_figures
from rlsparse.results.table import Table

TEMPLATE = "report.html.j2"
TITLES = {
    "table": "Outcomes",
    "benchmarks": "Benchmarks",
    "claims": "Published claims, and the verdicts of our runs",
    "effects": "Effects of the components",
    "costs": "Costs, and accuracy at equal cost",
    "tuning": "Tuning of the learning rate",
    "ranks": "Final ranks by module type",
}
FIGURES = {
    "curves": "Learning curves: mean and 95 % bootstrap band over seeds. The dashed line is the baseline.",
    "costs": "Accuracy against tokens updated, seconds and memory. The dotted line is the Pareto front; methods with a "
    "collapsed run are not on it.",
    "effects": "Effects of the components with 95 % bootstrap intervals. A marker is filled if p is at most 0.05.",
    "speed": "Rollout speed against final accuracy.",
    "ranks": "Final rank by module type and layer, and mean rank during training.",
}
VERSIONS = ("rlsparse", "python", "torch", "transformers", "peft", "commit", "device")


@dataclass(frozen=True)
class Picture:
    """A figure as a data URI with its caption."""

    name: str
    source: str
    caption: str


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
        content = f"<strong>{_text(text)}</strong>" if (row, name) in table.bold else _text(text)
        verdict = f' data-verdict="{_text(text)}"' if name == "verdict" else ""
        cells.append(f'<td data-label="{_text(name)}"{_align(table, i)}{verdict}>{content}</td>')
    return "".join(cells)


def _align(table: Table, column: int) -> str:
    return "" if column < table.left else ' class="number"'


def _text(text: object) -> str:
    return str(Markup.escape(text))


def _study(study: Study) -> dict[str, object]:
    """Return the variables of the template for one study."""
    made = tables(study)
    with tempfile.TemporaryDirectory() as scratch:
        names = write_figures(Path(scratch), study) if made else []
        pictures = [Picture(name, _data_uri(Path(scratch) / f"{name}.svg"), FIGURES[name]) for name in names]
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


def _data_uri(file: Path) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _versions(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the versions that the runs used, by name."""
    found = [(name, runs[name].dropna().astype(str).unique()) for name in VERSIONS if name in runs]
    return [(name, ", ".join(sorted(values))) for name, values in found if len(values)]


def _verdicts(studies: Mapping[Path, Study]) -> list[tuple[int, str, str, str]]:
    """Return number and name of the study, claim and verdict, for each claim whose verdict is not "not run"."""
    outcomes = [(n, study.name, one) for n, study in enumerate(studies.values(), 1) for one in study.outcomes()]
    return [(n, name, one.claim.claim, one.verdict) for n, name, one in outcomes if one.verdict != NOT_RUN]

"""``python -m rlsparse.results``: tables and figures of every experiment, from what is on disk.

For an experiment under ``--runs``: ``results.csv`` (a row a run), ``curves.csv`` (a row an evaluation), ``trials.csv``
(runs that tuned a key) and the tables made of them, into its own folder. For a study under ``--studies`` (a folder
with a committed ``results.csv``): its tables again, from those files. ``--out`` publishes one experiment's results as
a study. The same files give the same bytes.

Tables, each as Markdown, LaTeX (booktabs) and CSV: ``table`` (outcomes, differences to the baseline), ``claims``
(published claims of the study's ``claims.yaml``, and what our runs say of them), ``effects`` (of the components, where
they were varied together), ``costs`` (what it took, and accuracy at equal cost), ``tuning`` and ``ranks``.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from rlsparse.results.collect import collect
from rlsparse.results.ranks import collect_ranks
from rlsparse.results.stated import FILE as CLAIMS
from rlsparse.results.stated import ClaimError, read_claims
from rlsparse.results.study import (
    RESULTS,
    WouldBeLost,
    keep,
    read_study,
    refuse_loss,
    write_figures,
    write_tables,
    write_verdicts,
)
from rlsparse.storage.atomic import read_yaml


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m rlsparse.results", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of experiments (runs_dir of the runs)")
    parser.add_argument("--experiment", help="only this one")
    parser.add_argument("--studies", type=Path, help="folder of committed studies whose tables to write again")
    parser.add_argument("--out", type=Path, help="write the experiment's results and tables here; needs --experiment")
    parser.add_argument("--figures", action="store_true", help="draw the figures, too (SVG and PNG)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write one HTML page of all of it here")
    parser.add_argument("--show", action="store_true", help="print the tables")
    options = parser.parse_args()
    if options.out and not options.experiment:
        parser.error("--out needs --experiment NAME")
    problem = _problem(options)
    if problem:
        sys.exit(f"error: {problem}")
    try:
        _make(options)
    except (ClaimError, WouldBeLost) as error:
        sys.exit(f"error: {error}")


def _problem(options: argparse.Namespace) -> str | None:
    """What cannot be right about the paths."""
    runs, experiment, studies, out = options.runs, options.experiment, options.studies, options.out
    if studies and not studies.is_dir():
        return f"--studies {studies}: there is no such folder; give the one that holds the studies' folders"
    if not runs.is_dir() and not studies:
        return f"--runs {runs}: there is no such folder; give the runs_dir of the runs"
    if experiment and not (runs / experiment).is_dir():
        return f"--experiment {experiment}: there is no {runs / experiment}"
    if out and out.exists() and not out.is_dir():
        return f"--out {out}: is a file; give a folder"
    if not experiment and not studies and not _experiments(runs, None):
        return f"--runs {runs}: holds no experiment; give the runs_dir of the runs"
    return None


def _make(options: argparse.Namespace) -> None:
    folders = []
    experiments = {options.out or one: one for one in _experiments(options.runs, options.experiment)}
    for folder in experiments:  # nothing is written where a claims file is no good
        if (file := _claims_of(folder, options.studies) / CLAIMS).is_file():
            read_claims(file)
    for folder, experiment in experiments.items():
        found = collect(experiment)
        if options.out:
            refuse_loss(folder, found)
        keep(folder, found, collect_ranks(experiment, found.runs), _first_config(experiment, found.runs))
        folders.append(folder)
    if options.studies and not options.experiment:
        folders += sorted(file.parent for file in options.studies.glob(f"*/{RESULTS}"))
    for folder in folders:
        _write(folder, _claims_of(folder, options.studies), options)
    studies = {folder: read_study(folder, _claims_of(folder, options.studies)) for folder in folders}
    names = [folder.name for folder in folders]
    for folder in experiments:
        if names.count(folder.name) > 1:  # a study of the same name stands beside it
            studies[folder] = replace(studies[folder], name=str(folder))
    for study in studies.values():
        for outcome in study.outcomes():
            why = f" ({outcome.reason})" if outcome.reason else ""
            print(f"{study.name}: {outcome.claim.claim}: {outcome.verdict}{why}")
    if options.studies and not options.experiment:
        write_verdicts(options.studies, [one for folder, one in studies.items() if folder.parent == options.studies])
    if options.report:
        from rlsparse.results.report import write_report

        write_report(options.report, studies)
        print(f"report: {options.report}")


def _first_config(experiment: Path, runs: pd.DataFrame) -> dict[str, Any] | None:
    configs = (read_yaml(experiment / run_id / "config.yaml") for run_id in runs["id"])
    return next((config for config in configs if config is not None), None)


def _claims_of(folder: Path, studies: Path | None) -> Path:
    """An experiment's claims are those of the study of its name."""
    return folder if studies is None else studies / folder.name


def _experiments(runs: Path, only: str | None) -> list[Path]:
    if only is not None:
        return [runs / only]
    return sorted(p for p in runs.iterdir() if p.is_dir() and not p.name.startswith(".")) if runs.is_dir() else []


def _write(folder: Path, claims: Path, options: argparse.Namespace) -> None:
    study = read_study(folder, claims)
    written = write_tables(folder, study)
    print(f"tables: {folder}/{', '.join(written)} (and .tex, .csv)")
    if options.show:
        for name in written:
            print(f"\n{folder.name}\n\n{(folder / name).read_text(encoding='utf-8')}")
    if options.figures:
        print(f"figures: {', '.join(f'{folder / name}.svg' for name in write_figures(folder, study))}")


if __name__ == "__main__":
    main()

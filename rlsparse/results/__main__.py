"""Write the tables and figures of experiments and studies: ``python -m rlsparse.results``.

For each experiment under ``--runs``, the command writes into its folder ``results.csv`` (one row per run),
``curves.csv`` (one row per evaluation), ``trials.csv`` (runs that tuned a key) and the tables made from these files.
For each study under ``--studies`` (a folder with a committed ``results.csv``), it writes the tables again from the
files of the study. ``--out`` publishes the results of one experiment as a study. The same files always give the same
bytes.

Each table is written as Markdown, LaTeX (booktabs) and CSV: ``table`` (outcomes and differences to the baseline),
``claims`` (the published claims in ``claims.yaml`` and the verdicts of our runs), ``effects`` (effects of the
components, if several were varied together), ``costs`` (costs, and accuracy at equal cost), ``tuning`` and ``ranks``.

``--across`` compares methods over the tasks and models of several experiments or studies; with ``--out`` and
``--figures`` it also draws their performance profiles.

``--plan`` writes nothing. For each experiment and study, it prints how many more seeds or questions would settle the
inconclusive claims, and which differences other numbers of seeds and questions would tell.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from rlsparse.results.across import across_scores, across_table
from rlsparse.results.answers import collect_answers
from rlsparse.results.benchmarks import collect_benchmarks
from rlsparse.results.claims_file import FILE as CLAIMS
from rlsparse.results.claims_file import ClaimError, read_claims
from rlsparse.results.collect import collect
from rlsparse.results.planning import plan_text, study_of_runs
from rlsparse.results.ranks import collect_ranks
from rlsparse.results.rounds import ROUNDS, STUDIES, RoundsError, rounds_text
from rlsparse.results.study import (
    FORMATS,
    RESULTS,
    Measured,
    OverwriteError,
    ResultsError,
    Study,
    check_overwrite,
    read_study,
    write_figures,
    write_results,
    write_tables,
    write_verdicts,
)
from rlsparse.results.table import markdown
from rlsparse.storage.atomic import read_yaml
from rlsparse.storage.run_folder import RunFolder, path_argument
from rlsparse.storage.streams import command


@command()
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m rlsparse.results", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs",
        type=path_argument,
        default=Path("runs"),
        help="folder of experiments (runs_dir of your runs; default: runs)",
    )
    parser.add_argument("--experiment", help="name of one experiment (default: all)")
    parser.add_argument(
        "--studies", type=path_argument, help="folder of committed studies whose tables are written again"
    )
    parser.add_argument(
        "--out", type=path_argument, help="folder for the results and tables of the experiment; needs --experiment"
    )
    parser.add_argument(
        "--baseline",
        metavar="METHOD",
        help="compare with this method, by its name in the tables; needs --experiment or --across",
    )
    parser.add_argument("--figures", action="store_true", help="also draw the figures (SVG and PNG)")
    parser.add_argument(
        "--report", type=path_argument, metavar="FILE", help="write one HTML page with all results to FILE"
    )
    parser.add_argument("--show", action="store_true", help="print the tables")
    parser.add_argument(
        "--plan", action="store_true", help="print how many seeds and questions are needed, and write nothing"
    )
    parser.add_argument(
        "--across",
        nargs="+",
        metavar="NAME",
        help="compare methods over tasks and models: names of experiments and studies; prints one table, and writes "
        "it with --out",
    )
    options = parser.parse_args()
    if options.out and not (options.experiment or options.across):
        parser.error("--out needs --experiment NAME, or --across NAMES")
    if options.baseline and not (options.experiment or options.across):
        parser.error("--baseline needs --experiment NAME, or --across NAMES")
    if options.across and options.figures and not options.out:
        parser.error("--figures with --across needs --out DIR")
    if options.plan and (options.out or options.figures or options.report or options.show):
        parser.error(
            "--plan writes nothing and prints no other tables; leave out --out, --figures, --report and --show"
        )
    problem = _path_problem(options)
    if problem:
        sys.exit(f"error: {problem}")
    try:
        if options.across:
            _write_across(options)
        elif options.plan:
            _print_plans(options)
        else:
            _write_all(options)
    except (ClaimError, OverwriteError, ResultsError, RoundsError) as error:
        sys.exit(f"error: {error}")


def _path_problem(options: argparse.Namespace) -> str | None:
    """Return an error message for a path that cannot be used; None if all can."""
    runs, experiment, studies, out = options.runs, options.experiment, options.studies, options.out
    if studies and not studies.is_dir():
        return f"--studies {studies}: there is no such folder; give the folder that contains the studies"
    if not runs.is_dir() and not studies:
        return f"--runs {runs}: there is no such folder; give the runs_dir of your runs"
    if experiment and not (runs / experiment).is_dir():
        return f"--experiment {experiment}: there is no folder {runs / experiment}"
    if out and out.exists() and not out.is_dir():
        return f"--out {out}: is a file; give a folder"
    if not experiment and not studies and not _experiment_folders(runs, None):
        return f"--runs {runs}: holds no experiment; give the runs_dir of your runs"
    return None


def _write_all(options: argparse.Namespace) -> None:
    """Write the results, tables, figures and report that the options ask for, and print the verdicts."""
    folders = []
    experiments = {options.out or one: one for one in _experiment_folders(options.runs, options.experiment)}
    for folder in experiments:  # all claims files are checked before anything is written
        if (file := _claims_folder(folder, options.studies) / CLAIMS).is_file():
            read_claims(file)
    for folder, experiment in experiments.items():
        found = collect(experiment)
        if options.out:
            check_overwrite(folder, found)
        runs = found.runs
        more = Measured(
            collect_ranks(experiment, runs),
            collect_benchmarks(experiment, runs),
            collect_answers(experiment, runs),
            rounds_text(experiment),
        )
        if options.out and more.rounds is None:  # those of earlier runs
            (folder / ROUNDS).unlink(missing_ok=True)
        write_results(folder, found, more, _first_config(experiment, found.runs))
        folders.append(folder)
    if options.studies and not options.experiment:
        folders += sorted(file.parent for file in options.studies.glob(f"*/{RESULTS}"))
    studies = {folder: read_study(folder, _claims_folder(folder, options.studies)) for folder in folders}
    if options.baseline:
        studies = {folder: study.compared_with(options.baseline) for folder, study in studies.items()}
    for folder, study in studies.items():
        _write_study(folder, study, options)
    names = [folder.name for folder in folders]
    for folder in experiments:
        if names.count(folder.name) > 1:  # a study has the same name as the experiment
            studies[folder] = replace(studies[folder], name=str(folder))
    for study in studies.values():
        for outcome in study.outcomes:
            why = f" ({outcome.reason})" if outcome.reason else ""
            print(f"{study.name}: {outcome.claim.claim}: {outcome.verdict}{why}")
    if options.studies and not options.experiment:
        write_verdicts(options.studies, [one for folder, one in studies.items() if folder.parent == options.studies])
    if options.report:
        from rlsparse.results.report import write_report

        write_report(options.report, studies)
        print(f"report: {options.report}")


def _write_across(options: argparse.Namespace) -> None:
    """Print the table of several experiments or studies together, and write it into ``--out``.

    Raises:
        ResultsError: a name is neither a study nor an experiment, or there is nothing to compare.
    """
    studies = []
    for name in options.across:
        committed = options.studies / name if options.studies else None
        if committed is not None and (committed / RESULTS).is_file():
            studies.append(read_study(committed))
        elif (options.runs / name).is_dir():
            studies.append(study_of_runs(options.runs / name, _claims_folder(options.runs / name, options.studies)))
        else:
            raise ResultsError(f"--across {name}: is neither a study under --studies nor an experiment under --runs")
    table = across_table(studies, options.baseline)
    print(markdown(table), end="")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        for suffix, write in FORMATS.items():
            (options.out / f"across.{suffix}").write_text(write(table), encoding="utf-8")
        if options.figures:
            from rlsparse.results.figures.profiles import profile_figure  # imports matplotlib
            from rlsparse.results.figures.style import save

            save(profile_figure(*across_scores(studies, options.baseline)), options.out / "profiles")
            print(f"figures: {options.out / 'profiles'}.svg")


def _print_plans(options: argparse.Namespace) -> None:
    """Print the plan of each experiment and study.

    Raises:
        ResultsError: there is neither.
    """
    studies = [
        study_of_runs(experiment, _claims_folder(experiment, options.studies))
        for experiment in _experiment_folders(options.runs, options.experiment)
    ]
    if options.studies and not options.experiment:
        studies += [read_study(file.parent) for file in sorted(options.studies.glob(f"*/{RESULTS}"))]
    if not studies:
        raise ResultsError(f"--studies {options.studies}: holds no study; give the folder that contains the studies")
    if options.baseline:
        studies = [study.compared_with(options.baseline) for study in studies]
    print("\n".join(map(plan_text, studies)), end="")


def _first_config(experiment: Path, runs: pd.DataFrame) -> dict[str, Any] | None:
    """Return the config of the first run whose config can be read; None if there is no such run."""
    configs = (read_yaml(RunFolder(experiment / run_id).config) for run_id in runs["id"])
    return next((config for config in configs if config is not None), None)


def _claims_folder(folder: Path, studies: Path | None) -> Path:
    """Return the folder with the claims of an experiment: the study of the same name.

    Args:
        studies: the folder of studies; None for ``experiments``, where a sweep finds them too, or else ``folder``.
    """
    if studies is None:
        return STUDIES / folder.name if (STUDIES / folder.name / CLAIMS).is_file() else folder
    return studies / folder.name


def _experiment_folders(runs: Path, only: str | None) -> list[Path]:
    if only is not None:
        return [runs / only]
    return sorted(p for p in runs.iterdir() if p.is_dir() and not p.name.startswith(".")) if runs.is_dir() else []


def _write_study(folder: Path, study: Study, options: argparse.Namespace) -> None:
    """Write the tables and, with ``--figures``, the figures of one study."""
    written = write_tables(folder, study)
    print(f"tables: {folder}/{', '.join(written)} (and .tex, .csv)")
    if options.show:
        for name in written:
            print(f"\n{folder.name}\n\n{(folder / name).read_text(encoding='utf-8')}")
    if options.figures:
        print(f"figures: {', '.join(f'{folder / name}.svg' for name in write_figures(folder, study))}")


if __name__ == "__main__":
    main()

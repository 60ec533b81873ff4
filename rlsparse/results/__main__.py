"""``python -m rlsparse.results``: the tables of every experiment, from what is on disk.

For an experiment under ``--runs``: ``results.csv`` and ``table.{md,tex,csv}`` into its own folder, and where ranks
could move, ``ranks_{final,history}.csv``, ``ranks.md`` and the figure ``ranks.svg``; where rollouts skipped layers,
``speed.svg``. For a study under ``--studies`` (a folder with a committed ``results.csv``): its tables and figures
again, from those files. ``--out`` publishes one experiment's results as a study. The same files give the same bytes.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from rlsparse.results.collect import collect
from rlsparse.results.ranks import Ranks, collect_ranks, rank_table
from rlsparse.results.tables import csv, latex, markdown

RESULTS, NOT_COUNTED = "results.csv", "not_counted.txt"
SPEED = "speed.svg"
RANKS_FINAL, RANKS_HISTORY = "ranks_final.csv", "ranks_history.csv"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m rlsparse.results", description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of experiments (runs_dir of the runs)")
    parser.add_argument("--experiment", help="only this one")
    parser.add_argument("--studies", type=Path, help="folder of committed studies whose tables to write again")
    parser.add_argument("--out", type=Path, help="write the experiment's results and tables here; needs --experiment")
    parser.add_argument("--show", action="store_true", help="print the tables")
    options = parser.parse_args()
    if options.out and not options.experiment:
        parser.error("--out needs --experiment NAME")
    if not options.runs.is_dir() and not options.studies:
        sys.exit(f"error: --runs {options.runs}: there is no such folder; give the runs_dir of the runs")
    if options.experiment and not (options.runs / options.experiment).is_dir():
        sys.exit(f"error: --experiment {options.experiment}: there is no {options.runs / options.experiment}")
    for folder in _experiments(options.runs, options.experiment):
        found = collect(folder)
        out = options.out or folder
        out.mkdir(parents=True, exist_ok=True)
        (out / RESULTS).write_text(found.runs.to_csv(index=False, lineterminator="\n"), encoding="utf-8")
        ranks = collect_ranks(folder, found.runs)
        not_counted = found.not_counted + ranks.unread
        (out / NOT_COUNTED).write_text("".join(f"{line}\n" for line in not_counted), encoding="utf-8")
        _write_ranks(out, ranks)
        _write_tables(out, options.show)
    if options.studies and not options.experiment:
        for file in sorted(options.studies.glob(f"*/{RESULTS}")):
            _write_tables(file.parent, options.show)


def _experiments(runs: Path, only: str | None) -> list[Path]:
    if only is not None:
        return [runs / only]
    return sorted(p for p in runs.iterdir() if p.is_dir() and not p.name.startswith(".")) if runs.is_dir() else []


def _write_tables(folder: Path, show: bool) -> None:
    """Tables from ``results.csv`` and ``not_counted.txt`` alone, so that a committed study can be checked."""
    runs = pd.read_csv(folder / RESULTS)
    notes = folder / NOT_COUNTED
    not_counted = notes.read_text(encoding="utf-8").splitlines() if notes.is_file() else []
    (folder / "table.md").write_text(markdown(runs, not_counted), encoding="utf-8")
    (folder / "table.tex").write_text(latex(runs, not_counted), encoding="utf-8")
    (folder / "table.csv").write_text(csv(runs), encoding="utf-8")
    if show:
        print(f"\n{folder.name}\n\n{markdown(runs, not_counted)}")
    print(f"tables: {folder / 'table.md'}, table.tex, table.csv, {RESULTS}")
    (folder / SPEED).unlink(missing_ok=True)
    if "layers_skipped" in runs and (runs["layers_skipped"].fillna(0) > 0).any():
        from rlsparse.results.figures import speed_figure  # matplotlib, which most tables do without

        speed_figure(runs, folder / SPEED)
        print(f"figure: {folder / SPEED}")
    if (folder / RANKS_FINAL).is_file():
        final, history = pd.read_csv(folder / RANKS_FINAL), pd.read_csv(folder / RANKS_HISTORY)
        from rlsparse.results.figures import rank_figure

        (folder / "ranks.md").write_text(rank_table(final), encoding="utf-8")
        rank_figure(final, history, folder / "ranks.svg")
        if show:
            print(f"\n{rank_table(final)}")
        print(f"ranks: {folder / 'ranks.md'}, ranks.svg, {RANKS_FINAL}, {RANKS_HISTORY}")


def _write_ranks(folder: Path, ranks: Ranks) -> None:
    for file, table in ((RANKS_FINAL, ranks.final), (RANKS_HISTORY, ranks.history)):
        (folder / file).unlink(missing_ok=True)
        if not table.empty:
            (folder / file).write_text(table.to_csv(index=False, lineterminator="\n"), encoding="utf-8")


if __name__ == "__main__":
    main()

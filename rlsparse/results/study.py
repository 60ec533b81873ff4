"""A study on disk: its collected results, and the tables and figures that are made from them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rlsparse.results.answers import ANSWERS, QUESTIONS, Answers
from rlsparse.results.benchmarks import benchmark_table
from rlsparse.results.claims import ClaimOutcome, claims_table, judge
from rlsparse.results.claims_file import FILE as CLAIMS
from rlsparse.results.claims_file import Claims, read_claims
from rlsparse.results.collect import Collected
from rlsparse.results.effects import Effect, effects, effects_table
from rlsparse.results.measures import finished, main_measure
from rlsparse.results.names import baseline_of
from rlsparse.results.ranks import Ranks, rank_table
from rlsparse.results.statistics import PermutationTest
from rlsparse.results.table import Table, csv, latex, markdown
from rlsparse.results.tables import cost_table, outcome_table, tuning_table
from rlsparse.storage.atomic import UTF8

RESULTS, TRIALS, CURVES, NOT_COUNTED = "results.csv", "trials.csv", "curves.csv", "not_counted.txt"
BENCHMARKS = "benchmark_runs.csv"
RANKS_FINAL, RANKS_HISTORY, CONFIG = "ranks_final.csv", "ranks_history.csv", "run_config.yaml"
NEEDED = ("id", "method", "status")  # columns of results.csv without which nothing can be computed
OMITTED = ("runs_dir", "out", "tracker", "threads", "sweep", "experiment", "seed")
TABLES = ("table", "benchmarks", "claims", "effects", "costs", "tuning", "ranks")
FIGURES = ("curves", "costs", "effects", "speed", "ranks")
FORMATS: dict[str, Callable[[Table], str]] = {"md": markdown, "tex": latex, "csv": csv}


@dataclass(frozen=True)
class Study:
    """The results in a folder.

    Attributes:
        name: the name of the study.
        runs, trials, curves, not_counted: as in ``results.collect.Collected``; all but ``runs`` may be empty.
        benchmarks: evaluations on benchmarks, as ``collect_benchmarks`` returns them; may be empty.
        ranks: ranks of the runs whose adapter can change them; None without such runs.
        claims: the published claims and the baseline; None without a claims file.
        config: the config of one of the runs as YAML, without keys that cannot change a result; empty if unknown.
        answers: of the runs to each question; may be empty.
    """

    name: str
    runs: pd.DataFrame
    trials: pd.DataFrame
    curves: pd.DataFrame
    not_counted: list[str]
    benchmarks: pd.DataFrame
    ranks: Ranks | None
    claims: Claims | None
    config: str = ""
    answers: Answers = field(default_factory=lambda: Answers(pd.DataFrame(), pd.DataFrame()))

    @property
    def baseline(self) -> str | None:
        """The method that the others are compared with; None if there is no such method."""
        wanted = self.claims.baseline if self.claims is not None else None
        return baseline_of(list(dict.fromkeys(finished(self.runs)["method"])), wanted)

    def effects(self) -> list[Effect]:
        """Return the effects of the components; none if fewer than two components were varied."""
        found = effects(finished(self.runs), self.baseline)
        return found if len({one.component for one in found}) > 1 else []

    def outcomes(self) -> list[ClaimOutcome]:
        """Return the outcome of each claim."""
        return [judge(claim, self.runs) for claim in self.claims.claims] if self.claims is not None else []


@dataclass(frozen=True)
class Measured:
    """What is collected of the runs beside their tidy table."""

    ranks: Ranks
    benchmarks: pd.DataFrame
    answers: Answers


class ResultsError(ValueError):
    """A file of results cannot be read. The message names the file and the remedy."""


class OverwriteError(ValueError):
    """Writing would delete published results that exist nowhere else."""


def check_overwrite(folder: Path, found: Collected) -> None:
    """Check that all published runs in a folder are among the runs that will replace them.

    Raises:
        OverwriteError: some are not. The message names the file, the missing runs and the remedies.
    """
    if not (folder / RESULTS).is_file():
        return
    try:
        published = set(pd.read_csv(folder / RESULTS, dtype=str)["id"])
    except (ValueError, KeyError) as error:  # the errors of pandas are ValueErrors
        raise OverwriteError(f"--out {folder}: its {RESULTS} cannot be read; delete it to replace it") from error
    missing = published - set(found.runs["id"])
    if missing:
        raise OverwriteError(
            f"--out {folder}: the experiment lacks {len(missing)} of the {len(published)} runs in its {RESULTS} (the "
            f"first is {min(missing)}); give another folder, or delete that file to replace it"
        )


def write_results(folder: Path, found: Collected, more: Measured, config: Mapping[str, Any] | None) -> None:
    """Write the collected results; tables and figures are made from these files alone.

    Args:
        more: ranks, benchmarks and answers of the runs.
        config: the config of one of the runs; None if none can be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    frames = {RESULTS: found.runs, TRIALS: found.trials, CURVES: found.curves}
    frames |= {RANKS_FINAL: more.ranks.final, RANKS_HISTORY: more.ranks.history, BENCHMARKS: more.benchmarks}
    frames |= {ANSWERS: more.answers.rows, QUESTIONS: more.answers.questions}
    for file, frame in frames.items():
        if frame.empty and file != RESULTS:
            (folder / file).unlink(missing_ok=True)
        else:
            (folder / file).write_text(frame.to_csv(index=False, lineterminator="\n"), encoding="utf-8")
    lines = found.not_counted + more.ranks.unreadable
    (folder / NOT_COUNTED).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if config is not None:
        (folder / CONFIG).write_text(yaml.safe_dump(_without_omitted(config), sort_keys=False), encoding="utf-8")


def _without_omitted(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without paths and without keys that cannot change a result."""
    kept = {key: value for key, value in config.items() if key not in OMITTED}
    for group in ("model", "task"):
        kept[group] = {key: value for key, value in kept.get(group, {}).items() if key != "path"}
    return kept


def read_study(folder: Path, claims: Path | None = None) -> Study:
    """Return the study in a folder.

    Args:
        claims: the folder with the claims file; None for ``folder`` itself.

    Raises:
        ClaimError: the claims file has an error.
        ResultsError: a file of results cannot be read.
    """
    trials, curves, benchmarks = (_frame(folder / file) for file in (TRIALS, CURVES, BENCHMARKS))
    notes = folder / NOT_COUNTED
    not_counted = notes.read_text(encoding=UTF8).splitlines() if notes.is_file() else []
    ranks = None
    if (folder / RANKS_FINAL).is_file():
        ranks = Ranks(_frame(folder / RANKS_FINAL), _frame(folder / RANKS_HISTORY), [])
    file = (claims or folder) / CLAIMS
    published = read_claims(file) if file.is_file() else None
    config = (folder / CONFIG).read_text(encoding=UTF8) if (folder / CONFIG).is_file() else ""
    runs = _frame(folder / RESULTS)
    if missing := [name for name in NEEDED if name not in runs]:
        raise ResultsError(f"{folder / RESULTS}: has no column {missing[0]}; its columns must be separated by commas")
    answers = Answers(_frame(folder / ANSWERS), _frame(folder / QUESTIONS))
    return Study(folder.name, runs, trials, curves, not_counted, benchmarks, ranks, published, config, answers)


def _frame(file: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(file) if file.is_file() else pd.DataFrame()
    except ValueError as error:  # those of pandas, and bytes that are no UTF-8
        raise ResultsError(f"{file}: cannot be read ({' '.join(str(error).split())}); save it as CSV, UTF-8") from error


def tables(study: Study) -> dict[str, Table]:
    """Return the tables of a study by file name, in the order of ``TABLES``, without those that would be empty."""
    if finished(study.runs).empty:
        return {}
    outcomes, found = study.outcomes(), study.effects()
    main = None
    if finished(study.runs)[main_measure(study.runs).column].notna().any():  # else nothing was trained
        main = outcome_table(study.runs, study.baseline, study.not_counted)
    if main is not None and study.baseline is None and study.claims is not None:
        main.notes.insert(0, f"No differences: no method is named {study.claims.baseline}, the baseline of {CLAIMS}.")
    made = {
        "table": main,
        "benchmarks": None if study.benchmarks.empty else benchmark_table(study.benchmarks, study.baseline),
        "claims": claims_table(outcomes) if outcomes else None,
        "effects": effects_table(study.runs, found) if found else None,
        "costs": cost_table(study.runs, study.curves, study.baseline),
        "tuning": tuning_table(study.trials, study.runs, study.baseline),
        "ranks": rank_table(study.ranks.final) if study.ranks is not None else None,
    }
    return {name: table for name, table in made.items() if table is not None}


def write_tables(folder: Path, study: Study) -> list[str]:
    """Write each table in each format, and remove the tables of an earlier call.

    Returns:
        The names of the Markdown files.
    """
    made = tables(study)
    _remove(folder, [f"{name}.{suffix}" for name in TABLES for suffix in FORMATS])
    if not made:
        trials = f" {len(study.trials)} trials have ended." if len(study.trials) else ""
        lines = [f"No finished run.{trials}", *(f"- {line}" for line in study.not_counted)]
        (folder / "table.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
        return ["table.md"]
    for name, table in made.items():
        for suffix, write in FORMATS.items():
            (folder / f"{name}.{suffix}").write_text(write(table), encoding="utf-8")
    return [f"{name}.md" for name in made]


def write_verdicts(folder: Path, studies: Sequence[Study]) -> None:
    """Write the claims of all studies with their verdicts as one table: ``claims.{md,tex,csv}``."""
    found = [(study.name, one) for study in studies for one in study.outcomes()]
    if found:
        table = claims_table([one for _, one in found], [name for name, _ in found])
        for suffix, write in FORMATS.items():
            (folder / f"claims.{suffix}").write_text(write(table), encoding="utf-8")


def write_figures(folder: Path, study: Study) -> list[str]:
    """Write each figure as SVG and PNG, and remove the figures of an earlier call.

    Returns:
        The names of the figures without suffix, in the order of ``FIGURES``.
    """
    from rlsparse.results.figures.costs import cost_figure  # imports matplotlib, which tables do not need
    from rlsparse.results.figures.curves import curves_figure
    from rlsparse.results.figures.forest import forest_figure
    from rlsparse.results.figures.ranks import rank_figure
    from rlsparse.results.figures.speed import speed_figure
    from rlsparse.results.figures.style import save

    runs, main = finished(study.runs), main_measure(study.runs)
    made = {}
    if not study.curves.empty:
        made["curves"] = curves_figure(study.curves, study.baseline)
    if runs["method"].nunique() > 1 and main.column == "final_sampled":
        made["costs"] = cost_figure(runs, study.baseline)
    if rows := _forest_rows(study):
        made["effects"] = forest_figure(rows, f"effect on {main.title.replace(', %', ', points')}")
    if "layers_skipped" in runs and (runs["layers_skipped"].fillna(0) > 0).any():
        made["speed"] = speed_figure(runs)
    if study.ranks is not None:
        made["ranks"] = rank_figure(study.ranks.final, study.ranks.history)
    _remove(folder, [f"{name}.{suffix}" for name in FIGURES for suffix in ("svg", "png")])
    for name, figure in made.items():
        save(figure, folder / name)
    return list(made)


def _remove(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _forest_rows(study: Study) -> list[tuple[str, PermutationTest]]:
    """Return label and test of each effect."""
    return [
        (f"{one.component}: {one.value} instead of {one.reference} ({one.pairs})", one.test) for one in study.effects()
    ]

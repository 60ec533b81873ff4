"""A study on disk: its collected results, and the tables and figures that are made from them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rlsparse.results.answers import ANSWERS, QUESTIONS, Answers
from rlsparse.results.benchmarks import benchmark_table
from rlsparse.results.claims import ClaimOutcome, claims_table, judge_all
from rlsparse.results.claims_file import FILE as CLAIMS
from rlsparse.results.claims_file import Claims, read_claims
from rlsparse.results.collect import Collected
from rlsparse.results.comparisons import Comparison, compare_all
from rlsparse.results.effects import INTERACTION, Effect, effects, effects_table, interactions
from rlsparse.results.measures import finished, main_measure
from rlsparse.results.names import baseline_of, sorted_methods
from rlsparse.results.ranks import Ranks, rank_table
from rlsparse.results.rounds import ROUNDS, Rounds, read_rounds
from rlsparse.results.sample import Samples
from rlsparse.results.scaling import MIN_EVALUATIONS, saturation_table
from rlsparse.results.sorting import natural_key
from rlsparse.results.table import Table, csv, latex, markdown
from rlsparse.results.tables import cost_table, outcome_table, tuning_table
from rlsparse.storage.atomic import UTF8

RESULTS, TRIALS, CURVES, NOT_COUNTED = "results.csv", "trials.csv", "curves.csv", "not_counted.txt"
BENCHMARKS = "benchmark_runs.csv"
RANKS_FINAL, RANKS_HISTORY, CONFIG = "ranks_final.csv", "ranks_history.csv", "run_config.yaml"
NEEDED = ("id", "method", "status")  # columns of results.csv without which nothing can be computed
OMITTED = ("runs_dir", "out", "tracker", "threads", "sweep", "experiment", "seed")
TABLES = ("table", "benchmarks", "claims", "effects", "interactions", "costs", "saturation", "tuning", "ranks")
FIGURES = ("differences", "curves", "costs", "probabilities", "effects", "speed", "ranks")
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
        rounds: the looks of a sweep that added seeds until its claims were decided; None of other sweeps.
        chosen: the method to compare with; None for the one of the claims file or, without one, the first.
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
    answers: Answers = field(default_factory=Answers.none)
    rounds: Rounds | None = None
    chosen: str | None = None

    def within_rounds(self) -> "Study":
        """Return the study without runs with seeds that no planned look has: the correction does not count these looks.

        They count as long as a planned look has not been made, since it may be the one at these seeds.
        """
        if self.rounds is None or not self.rounds.looks or len(self.rounds.looks) < self.rounds.planned_looks:
            return self
        planned = set(self.rounds.looks[-1].seeds)
        extra = sorted(set(self.runs["seed"].astype(str)) - planned, key=natural_key)
        if not extra:
            return self
        runs, curves, benchmarks = (
            frame[~frame["seed"].astype(str).isin(extra)] if len(frame) else frame
            for frame in (self.runs, self.curves, self.benchmarks)
        )
        why = f"seeds {', '.join(extra)}: every planned look was made without them ({ROUNDS})"
        return replace(self, runs=runs, curves=curves, benchmarks=benchmarks, not_counted=[*self.not_counted, why])

    @property
    def methods(self) -> list[str]:
        """The names of the methods with finished runs."""
        return list(dict.fromkeys(finished(self.runs)["method"]))

    @property
    def baseline(self) -> str | None:
        """The method that the others are compared with; None if there is no such method."""
        of_claims = self.claims.baseline if self.claims is not None else None
        return baseline_of(self.methods, self.chosen or of_claims)

    def compared_with(self, method: str) -> "Study":
        """Return the study with another baseline.

        Raises:
            ResultsError: no finished run has this method.
        """
        if method not in self.methods:
            listed = ", ".join(sorted_methods(self.methods)) or "none"
            raise ResultsError(f"--baseline {method}: {self.name} has no such method; it has {listed}")
        return replace(self, chosen=method)

    @cached_property
    def samples(self) -> Samples:
        """The measures of the runs, by seed and question."""
        return Samples(self.runs, self.answers)

    @property
    def margin(self) -> float | None:
        """The largest difference that does not matter, in the unit of the main measure; None where none is given."""
        return self.claims.margin if self.claims is not None else None

    @property
    def looks(self) -> int:
        """The number of planned looks at the results, for which p-values are corrected."""
        return self.rounds.planned_looks if self.rounds is not None else 1

    @cached_property
    def comparisons(self) -> dict[str, Comparison]:
        """The comparison of each method with the baseline."""
        if self.baseline is None:
            return {}
        main = main_measure(self.runs)
        return compare_all(self.samples, self.baseline, main, self.margin, self.looks)

    @cached_property
    def effects(self) -> list[Effect]:
        """The effects of the components; none if fewer than two components were varied."""
        found = effects(self.samples, self.baseline, self.looks)
        return found if len({one.component for one in found}) > 1 else []

    @cached_property
    def interactions(self) -> list[Effect]:
        """The interactions of pairs of components; none where no four methods differ in two components alone."""
        return interactions(self.samples, self.baseline, self.looks)

    @cached_property
    def outcomes(self) -> list[ClaimOutcome]:
        """The outcome of each claim."""
        return judge_all(self.claims.claims, self.samples, self.looks) if self.claims is not None else []

    @cached_property
    def tables(self) -> dict[str, Table]:
        """The tables by file name, in the order of ``TABLES``, without those that would be empty."""
        return _tables(self)


@dataclass(frozen=True)
class Measured:
    """What is collected of the runs beside their tidy table.

    Attributes:
        rounds: the text of the file of rounds; None where there is none.
    """

    ranks: Ranks
    benchmarks: pd.DataFrame
    answers: Answers
    rounds: str | None = None


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
    if more.rounds is not None:
        (folder / ROUNDS).write_text(more.rounds, encoding="utf-8")
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
    if answers.rows.empty != answers.questions.empty:
        raise ResultsError(f"{folder}: {ANSWERS} and {QUESTIONS} belong together; add the other, or delete both")
    rounds = read_rounds(folder)
    study = Study(folder.name, runs, trials, curves, not_counted, benchmarks, ranks, published, config, answers, rounds)
    return study.within_rounds()


def _frame(file: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(file) if file.is_file() else pd.DataFrame()
    except ValueError as error:  # those of pandas, and bytes that are no UTF-8
        raise ResultsError(f"{file}: cannot be read ({' '.join(str(error).split())}); save it as CSV, UTF-8") from error


def _tables(study: Study) -> dict[str, Table]:
    if finished(study.runs).empty:
        return {}
    outcomes, found, together = study.outcomes, study.effects, study.interactions
    main = None
    if finished(study.runs)[main_measure(study.runs).column].notna().any():  # else nothing was trained
        main = outcome_table(study.samples, study.baseline, study.comparisons, study.not_counted, study.margin)
    if main is not None and study.baseline is None and study.claims is not None:
        main.notes.insert(0, f"No differences: no method is named {study.claims.baseline}, the baseline of {CLAIMS}.")
    judged = claims_table(outcomes) if outcomes else None
    for table in (main, judged):
        if table is not None and study.rounds is not None:
            table.notes.insert(0, study.rounds.note())
    made = {
        "table": main,
        "benchmarks": None
        if study.benchmarks.empty
        else benchmark_table(study.benchmarks, study.baseline, study.answers),
        "claims": judged,
        "effects": effects_table(study.runs, found) if found else None,
        "interactions": effects_table(study.runs, together, INTERACTION) if together else None,
        "costs": cost_table(study.runs, study.curves, study.baseline),
        "saturation": _saturation(study),
        "tuning": tuning_table(study.trials, study.runs, study.baseline),
        "ranks": rank_table(study.ranks.final) if study.ranks is not None else None,
    }
    return {name: table for name, table in made.items() if table is not None}


def _benchmarks(study: Study) -> Table | None:
    if study.benchmarks.empty:
        return None
    return benchmark_table(study.benchmarks, study.baseline, study.answers, study.looks)


def _saturation(study: Study) -> Table | None:
    """Return the table of the curves' asymptotes; None where no curve has enough evaluations for a fit."""
    if study.curves.empty or study.curves.groupby(["method", "seed"]).size().max() <= MIN_EVALUATIONS:
        return None
    return saturation_table(study.curves, study.baseline)


def write_tables(folder: Path, study: Study) -> list[str]:
    """Write each table in each format, and remove the tables of an earlier call.

    Returns:
        The names of the Markdown files.
    """
    made = study.tables
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
    found = [(study.name, one) for study in studies for one in study.outcomes]
    if found:
        table = claims_table([one for _, one in found], [name for name, _ in found])
        for suffix, write in FORMATS.items():
            (folder / f"claims.{suffix}").write_text(write(table), encoding="utf-8")


def write_figures(folder: Path, study: Study, suffixes: Sequence[str] = ("svg", "png")) -> list[str]:
    """Write each figure in each format, and remove the figures of an earlier call.

    Args:
        suffixes: of the files: "svg", "png" or both.

    Returns:
        The names of the figures without suffix, in the order of ``FIGURES``.
    """
    from rlsparse.results.figures.costs import cost_figure  # imports matplotlib, which tables do not need
    from rlsparse.results.figures.curves import curves_figure
    from rlsparse.results.figures.forest import difference_figure, effect_figure
    from rlsparse.results.figures.matrix import matrix_figure, probabilities
    from rlsparse.results.figures.ranks import rank_figure
    from rlsparse.results.figures.speed import speed_figure
    from rlsparse.results.figures.style import save

    runs, main, baseline = finished(study.runs), main_measure(study.runs), study.baseline
    margin = None if study.margin is None else study.margin * main.factor
    made = {}
    if baseline is not None and (compared := study.comparisons):
        made["differences"] = difference_figure(compared, baseline, main, margin)
    if not study.curves.empty:
        made["curves"] = curves_figure(study.curves, baseline)
    costs = runs.reindex(columns=["method", "final_sampled", "tokens_generated", "frac_updated"]).dropna()
    if costs["method"].nunique() > 1:
        made["costs"] = cost_figure(study.runs, baseline)
    if len(shares := probabilities(runs, baseline, main)) > 1:
        made["probabilities"] = matrix_figure(shares, baseline, main)
    if found := study.effects:
        made["effects"] = effect_figure(found, main)
    if "layers_skipped" in runs and (runs["layers_skipped"].fillna(0) > 0).any():
        made["speed"] = speed_figure(runs)
    if study.ranks is not None:
        made["ranks"] = rank_figure(study.ranks.final, study.ranks.history)
    _remove(folder, [f"{name}.{suffix}" for name in FIGURES for suffix in ("svg", "png")])
    for name, figure in made.items():
        save(figure, folder / name, suffixes)
    return list(made)


def _remove(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)

"""A study on disk: the tables that were collected, and what is made of them. The same files give the same bytes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rlsparse.results.claims import Outcome, claims_table, judge
from rlsparse.results.collect import Collected
from rlsparse.results.effects import Effect, effects, effects_table
from rlsparse.results.measures import finished, headline
from rlsparse.results.names import baseline_of
from rlsparse.results.ranks import Ranks, rank_table
from rlsparse.results.stated import FILE as CLAIMS
from rlsparse.results.stated import Claims, read_claims
from rlsparse.results.statistics import Test
from rlsparse.results.table import Table, csv, latex, markdown
from rlsparse.results.tables import cost_table, outcome_table, tuning_table

RESULTS, TRIALS, CURVES, NOT_COUNTED = "results.csv", "trials.csv", "curves.csv", "not_counted.txt"
RANKS_FINAL, RANKS_HISTORY, CONFIG = "ranks_final.csv", "ranks_history.csv", "run_config.yaml"
NOT_TOLD = ("runs_dir", "out", "tracker", "threads", "sweep", "experiment", "seed")
TABLES = ("table", "claims", "effects", "costs", "tuning", "ranks")
FIGURES = ("curves", "costs", "effects", "speed", "ranks")
FORMS: dict[str, Callable[[Table], str]] = {"md": markdown, "tex": latex, "csv": csv}


@dataclass(frozen=True)
class Study:
    """What a folder of results holds.

    Attributes:
        runs, trials, curves: as in ``results.collect.Collected``; the last two may be empty.
        ranks: of the runs whose adapter can move them; None where there are none.
        claims: published ones, and the baseline; None where nobody has written them down.
        config: of one of its runs, without what changes no number; empty where it is not known.
    """

    name: str
    runs: pd.DataFrame
    trials: pd.DataFrame
    curves: pd.DataFrame
    not_counted: list[str]
    ranks: Ranks | None
    claims: Claims | None
    config: str = ""

    @property
    def baseline(self) -> str | None:
        """The method that others are compared with."""
        wanted = self.claims.baseline if self.claims is not None else None
        return baseline_of(list(dict.fromkeys(finished(self.runs)["method"])), wanted)

    def effects(self) -> list[Effect]:
        """Of its components; none where only one was varied, which is what the differences to the baseline are."""
        found = effects(finished(self.runs), self.baseline)
        return found if len({one.component for one in found}) > 1 else []

    def outcomes(self) -> list[Outcome]:
        """What its runs say of each of its claims."""
        return [judge(claim, self.runs) for claim in self.claims.claims] if self.claims is not None else []


class WouldBeLost(ValueError):
    """What is to be written would drop results that are in no other place."""


def refuse_loss(folder: Path, found: Collected) -> None:
    """Let nothing be published over runs that it does not hold itself.

    Raises:
        WouldBeLost: names the file, what it holds, and the two ways on.
    """
    if not (folder / RESULTS).is_file():
        return
    try:
        there = set(pd.read_csv(folder / RESULTS, dtype=str)["id"])
    except (ValueError, KeyError) as error:  # pandas' own are of these kinds
        raise WouldBeLost(f"--out {folder}: its {RESULTS} cannot be read; delete it to replace it") from error
    lost = there - set(found.runs["id"])
    if lost:
        raise WouldBeLost(
            f"--out {folder}: of the {len(there)} runs in its {RESULTS} the experiment lacks {len(lost)} ({min(lost)}, "
            "...); give another folder, or delete that file to replace it"
        )


def keep(folder: Path, found: Collected, ranks: Ranks, config: Mapping[str, Any] | None) -> None:
    """Write what was collected, so that all else can be made from it.

    Args:
        config: of one of the runs; None where none can be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    frames = {RESULTS: found.runs, TRIALS: found.trials, CURVES: found.curves}
    frames |= {RANKS_FINAL: ranks.final, RANKS_HISTORY: ranks.history}
    for file, frame in frames.items():
        if frame.empty and file != RESULTS:
            (folder / file).unlink(missing_ok=True)
        else:
            (folder / file).write_text(frame.to_csv(index=False, lineterminator="\n"), encoding="utf-8")
    lines = found.not_counted + ranks.unread
    (folder / NOT_COUNTED).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if config is not None:
        (folder / CONFIG).write_text(yaml.safe_dump(_told(config), sort_keys=False), encoding="utf-8")


def _told(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without what changes no number, and without where things lay."""
    kept = {key: value for key, value in config.items() if key not in NOT_TOLD}
    for group in ("model", "task"):
        kept[group] = {key: value for key, value in kept.get(group, {}).items() if key != "path"}
    return kept


def read_study(folder: Path, claims: Path | None = None) -> Study:
    """From its files.

    Args:
        claims: where its claims are; None for the folder itself.

    Raises:
        ClaimError: its claims cannot be used.
    """
    trials, curves = (_frame(folder / file) for file in (TRIALS, CURVES))
    notes = folder / NOT_COUNTED
    not_counted = notes.read_text(encoding="utf-8").splitlines() if notes.is_file() else []
    ranks = None
    if (folder / RANKS_FINAL).is_file():
        ranks = Ranks(pd.read_csv(folder / RANKS_FINAL), pd.read_csv(folder / RANKS_HISTORY), [])
    file = (claims or folder) / CLAIMS
    stated = read_claims(file) if file.is_file() else None
    config = (folder / CONFIG).read_text(encoding="utf-8") if (folder / CONFIG).is_file() else ""
    return Study(folder.name, pd.read_csv(folder / RESULTS), trials, curves, not_counted, ranks, stated, config)


def _frame(file: Path) -> pd.DataFrame:
    return pd.read_csv(file) if file.is_file() else pd.DataFrame()


def tables(study: Study) -> dict[str, Table]:
    """File name → table, in the order of a page; those of ``TABLES`` that the study has anything for."""
    if finished(study.runs).empty:
        return {}
    outcomes, found = study.outcomes(), study.effects()
    main = outcome_table(study.runs, study.baseline, study.not_counted)
    if study.baseline is None and study.claims is not None:
        main.notes.insert(0, f"No differences: no method is named {study.claims.baseline}, the baseline of {CLAIMS}.")
    made = {
        "table": main,
        "claims": claims_table(outcomes) if outcomes else None,
        "effects": effects_table(study.runs, found) if found else None,
        "costs": cost_table(study.runs, study.curves, study.baseline),
        "tuning": tuning_table(study.trials, study.runs, study.baseline),
        "ranks": rank_table(study.ranks.final) if study.ranks is not None else None,
    }
    return {name: table for name, table in made.items() if table is not None}


def write_tables(folder: Path, study: Study) -> list[str]:
    """Each table in each of its forms; names of the files that were written. Those of an earlier time are gone."""
    made = tables(study)
    _remove(folder, [f"{name}.{form}" for name in TABLES for form in FORMS])
    if not made:
        tried = f" Of the trials, {len(study.trials)} have ended." if len(study.trials) else ""
        lines = [f"No finished run.{tried}", *(f"- {line}" for line in study.not_counted)]
        (folder / "table.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
        return ["table.md"]
    for name, table in made.items():
        for form, write in FORMS.items():
            (folder / f"{name}.{form}").write_text(write(table), encoding="utf-8")
    return [f"{name}.md" for name in made]


def write_verdicts(folder: Path, studies: Sequence[Study]) -> None:
    """What the runs of all studies say of the claims, in one table: ``claims.{md,tex,csv}``."""
    found = [(study.name, one) for study in studies for one in study.outcomes()]
    if found:
        table = claims_table([one for _, one in found], [name for name, _ in found])
        for form, write in FORMS.items():
            (folder / f"claims.{form}").write_text(write(table), encoding="utf-8")


def write_figures(folder: Path, study: Study) -> list[str]:
    """Each figure as SVG and PNG; their names without ending, in the order of a page."""
    from rlsparse.results.figures.costs import cost_figure  # matplotlib, which tables do without
    from rlsparse.results.figures.curves import curves_figure
    from rlsparse.results.figures.forest import forest_figure
    from rlsparse.results.figures.ranks import rank_figure
    from rlsparse.results.figures.speed import speed_figure
    from rlsparse.results.figures.style import save

    runs, main = finished(study.runs), headline(study.runs)
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
    _remove(folder, [f"{name}.{form}" for name in FIGURES for form in ("svg", "png")])
    for name, figure in made.items():
        save(figure, folder / name)
    return list(made)


def _remove(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _forest_rows(study: Study) -> list[tuple[str, Test]]:
    return [
        (f"{one.component}: {one.value} instead of {one.reference} ({one.pairs})", one.test) for one in study.effects()
    ]

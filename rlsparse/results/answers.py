"""The answers of the runs of a study to each held-out question, as files that a study can keep.

``answers.csv`` has a row for each run and end of the run, and for each benchmark: how many of the sampled answers to
each question are right, and whether the greedy one is, in the order of the questions in ``questions.csv``.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rlsparse.results.measures import finished
from rlsparse.storage.jsonl import read_rows
from rlsparse.storage.run_folder import RunFolder

ANSWERS, QUESTIONS = "answers.csv", "questions.csv"
HELD_OUT = "held_out"  # the name of these questions in answers.jsonl
BASE, FINAL = "base", "final"
# columns of results.csv that are means over questions -> end of the run, and kind of the answer
MEASURES = {
    "base_sampled": (BASE, "right"),
    "base_greedy": (BASE, "greedy"),
    "final_sampled": (FINAL, "right"),
    "final_greedy": (FINAL, "greedy"),
}


@dataclass(frozen=True)
class Answers:
    """The answers of some runs.

    Attributes:
        rows: columns id, when, benchmark, questions (the set that was asked), samples, right and greedy; the last two
            hold numbers separated by spaces, one for each question of the set. Without benchmarks, the column is left
            out.
        questions: columns questions and question, in the order of the numbers above.
    """

    rows: pd.DataFrame
    questions: pd.DataFrame

    @classmethod
    def none(cls) -> "Answers":
        """Return no answers."""
        return cls(pd.DataFrame(), pd.DataFrame())

    @property
    def empty(self) -> bool:
        return self.rows.empty

    def scores(self, ids: Sequence[str], measure: str) -> pd.DataFrame:
        """Return the share of right answers of each held-out question; see ``of``.

        Args:
            ids: of the runs.
            measure: a key of ``MEASURES``.
        """
        return self.of(ids, *MEASURES[measure])

    def of(self, ids: Sequence[str], when: str, kind: str, benchmark: str = HELD_OUT) -> pd.DataFrame:
        """Return the share of right answers of each question, one row for each question and a column for each run.

        A question that a run was not asked is missing there. A run without answers has no column.

        Args:
            ids: of the runs.
            when: end of the run.
            kind: "right" of sampled answers, or "greedy".
            benchmark: the name of the benchmark, or ``HELD_OUT``.
        """
        if self.empty:
            return pd.DataFrame()
        names = self.rows["benchmark"] if "benchmark" in self.rows else pd.Series(HELD_OUT, self.rows.index)
        wanted = self.rows[(self.rows["when"] == when) & (names == benchmark) & self.rows["id"].isin(list(ids))]
        asked = {key: list(names) for key, names in self.questions.groupby("questions")["question"]}
        columns = {}
        for row in wanted.to_dict("records"):
            numbers = np.array(str(row[kind]).split(), dtype=float)
            columns[row["id"]] = pd.Series(
                numbers / (row["samples"] if kind == "right" else 1), asked[row["questions"]]
            )
        return pd.DataFrame(columns)


def collect_answers(folder: Path, runs: pd.DataFrame) -> Answers:
    """Return the answers of the finished runs of an experiment; runs whose answers cannot be read have no row.

    Args:
        folder: the folder of the experiment.
        runs: the tidy table of its runs, with the columns ``id`` and ``status``.
    """
    rows: list[dict[str, Any]] = []
    sets: dict[str, list[str]] = {}
    for run_id in finished(runs)["id"]:
        try:
            rows += _answers_of(RunFolder(folder / str(run_id)), sets)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    questions = [{"questions": key, "question": one} for key, asked in sets.items() for one in asked]
    frame = pd.DataFrame(rows)
    if not frame.empty and (frame["benchmark"] == HELD_OUT).all():
        frame = frame.drop(columns="benchmark")
    return Answers(frame, pd.DataFrame(questions))


def _answers_of(run: RunFolder, sets: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Return the rows of a run, and add the questions that it was asked to ``sets``, by their key."""
    by_benchmark: dict[str, list[dict[str, Any]]] = {}
    for row in read_rows(run.answers):
        by_benchmark.setdefault(row["benchmark"], []).append(row)
    return [row for name, found in by_benchmark.items() for row in _answers_to(name, found, run.path.name, sets)]


def _answers_to(
    benchmark: str, found: Sequence[dict[str, Any]], run_id: str, sets: dict[str, list[str]]
) -> list[dict[str, Any]]:
    """Return the rows of a run on a benchmark, as ``_answers_of``."""
    steps = sorted({row["step"] for row in found})
    if benchmark == HELD_OUT and len(steps) < 2:  # a run has at least an evaluation before and one after training
        return []
    rows = []
    for when, step in ((BASE, steps[0]), (FINAL, steps[-1])):
        asked = [row for row in found if row["step"] == step]
        names = [str(row["question"]) for row in asked]
        (samples,) = {int(row["samples"]) for row in asked}
        key = hashlib.sha256(" ".join(names).encode()).hexdigest()[:10]
        if len(set(names)) < len(names):
            return []
        sets[key] = names
        right, greedy = ([int(row[kind]) for row in asked] for kind in ("right", "greedy"))
        rows.append(
            {
                "id": run_id,
                "when": when,
                "benchmark": benchmark,
                "questions": key,
                "samples": samples,
                "right": " ".join(map(str, right)),
                "greedy": " ".join(map(str, greedy)),
            }
        )
    return rows

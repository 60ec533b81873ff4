"""Tasks from the hub, or from a local folder of jsonl files with the same columns."""

import json
import re
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rlsparse.batch import Problem
from rlsparse.components.component import Digest
from rlsparse.components.task.base import Rows, Task
from rlsparse.config.schema import ConfigError

Row = dict[str, Any]
SPLITS = ("train", "test")


@dataclass(frozen=True)
class HubTask(Task):
    """A data set of the hub with a train and a test split, or a local folder with the same columns.

    Attributes:
        hub: id of the data set. hub_config: its configuration. revision: branch, tag or commit.
        path: a folder with train.jsonl and test.jsonl; beats the hub.
    """

    columns: ClassVar[tuple[str, ...]]

    hub: str
    hub_config: str | None
    revision: str | None
    path: str | None

    @abstractmethod
    def problem(self, row: Row) -> Problem:
        """Return the problem that a row of the data set states.

        Args:
            row: has a value in each of ``columns``.
        """

    def load(self) -> Rows:
        where = f"task.path={self.path}" if self.path is not None else f"task.hub={self.hub}"
        splits = []
        for split in SPLITS:
            rows = _local_rows(self.path, split) if self.path is not None else self._hub_rows(split)
            if not rows:
                raise ConfigError(f"{where}: {split} has no rows; give at least one")
            for number, row in enumerate(rows, start=1):
                missing = [column for column in self.columns if row.get(column) is None]
                if missing:
                    raise ConfigError(
                        f"{where}: {split} row {number} lacks {', '.join(missing)}; "
                        f"task={self.name} needs the columns {', '.join(self.columns)}"
                    )
            splits.append([self.problem(row) for row in rows])
        return Rows(train=splits[0], test=splits[1])

    def identity(self, digest: Digest) -> dict[str, Any]:
        """Return the fields, with the content of a local folder in the place of its path and of the hub's names."""
        values = super().identity(digest)
        if self.path is None:
            return values
        return {**values, "hub": None, "hub_config": None, "revision": None, "path": digest(self.path)}

    def _hub_rows(self, split: str) -> list[Row]:
        from datasets import load_dataset  # only here: a local folder must not need it

        try:
            return list(load_dataset(self.hub, self.hub_config, split=split, revision=self.revision))
        except Exception as error:  # the client of the hub raises a dozen kinds for "no such set" and "no network"
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"task.hub={self.hub}: cannot be loaded: {reason}. Give a local folder with train.jsonl and "
                "test.jsonl as task.path=DIR"
            ) from error


@dataclass(frozen=True)
class Svamp(HubTask):
    """SVAMP, Patel et al. 2021 (2103.07191).

    The solution is the equation of the row without its decimal points, ``= answer``, and the answer after ``####``.
    """

    columns: ClassVar[tuple[str, ...]] = ("question_concat", "Equation", "Answer")

    def problem(self, row: Row) -> Problem:
        answer = str(row["Answer"]).removesuffix(".0")
        equation = re.sub(r"\.0\b", "", str(row["Equation"]))
        return Problem(
            question=str(row["question_concat"]),
            answer=answer,
            solution=f"{equation} = {answer}\n#### {answer}",
        )


@dataclass(frozen=True)
class Gsm8k(HubTask):
    """GSM8K, Cobbe et al. 2021 (2110.14168); the final answer stands after ``####``."""

    columns: ClassVar[tuple[str, ...]] = ("question", "answer")

    def problem(self, row: Row) -> Problem:
        solution = str(row["answer"])
        return Problem(question=str(row["question"]), answer=solution.rsplit("####", 1)[-1].strip(), solution=solution)


def _local_rows(path: str, split: str) -> list[Row]:
    file = Path(path) / f"{split}.jsonl"
    if not file.is_file():
        raise ConfigError(f"task.path={path}: there is no {file.name}; give a folder with train.jsonl and test.jsonl")
    rows = []
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # not splitlines: JSON strings may hold other separators
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"task.path={path}: {file.name} cannot be read as UTF-8 text ({error})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"task.path={path}: {file.name} line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ConfigError(f"task.path={path}: {file.name} line {number} is not a JSON object")
        rows.append(row)
    return rows

"""Tasks from the hub, or from a local folder of jsonl files with the same columns."""

import math
import os
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from rlsparse.batch import Problem
from rlsparse.components.component import Digest, one_line
from rlsparse.components.task.base import Rows, Task, text_problem
from rlsparse.components.task.rows import Number, Rounded, Row, is_blank, read_json, read_json_lines, with_text
from rlsparse.config.run_id import files_digest
from rlsparse.config.schema import ConfigError

SPLITS = ("train", "test")
EXACT = 2**53  # from here on, there are whole numbers that no float of 64 bits holds


@dataclass(frozen=True)
class HubTask(Task):
    """A data set of the hub with a train and a test split, or a local folder with the same columns.

    Attributes:
        columns: the columns that a row needs. The first one has the question, which may be a conversation: then its
            last turn is the question, and the problem gets the earlier ones as context.
        hub: id of the data set, or a local folder as ``datasets.load_dataset`` takes it. hub_config: its configuration.
        revision: branch, tag or commit.
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
            row: has text in each of ``columns``, a number as it is written in the file.

        Raises:
            ConfigError: the row states no problem; the message says which column must change.
        """

    def load(self) -> Rows:
        return Rows(*(self._problems_of(split) for split in SPLITS))

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.path is not None and not self.path.strip():
            yield "path=: names no folder; give one with train.jsonl and test.jsonl, or task.path=null"
        if self.path is None and not self.hub.strip():
            yield "hub=: names no data set; give its id on the hub, or a folder as task.path=DIR"
        if self.path is None and os.path.isdir(self.hub) and set(self.hub) & set("*?["):
            yield f"hub={self.hub}: datasets reads *, ? and [ in the name of a folder as a pattern; rename the folder"
        if self.path is None and self.revision is not None and os.path.isdir(self.hub):
            yield f"revision={self.revision}: task.hub={self.hub} is a folder, which has no revisions; give null"

    def identity(self, digest: Digest) -> dict[str, Any]:
        """Return the fields, with the content of local files in the place of the names of a folder or of the hub."""
        values = super().identity(digest)
        if self.path is not None:
            files = tuple(_split_file(self.path, split) for split in SPLITS)
            return {**values, "hub": None, "hub_config": None, "revision": None, "path": digest(files)}
        if os.path.isdir(self.hub):
            # in order, and each split by itself: the files of both may have the same names
            contents = {split: [digest((file,)) for file in self._folder_files(split)] for split in SPLITS}
            return {**values, "hub": contents}
        return values

    @property
    def _where(self) -> str:
        return f"task.path={self.path}" if self.path is not None else f"task.hub={self.hub}"

    def _problems_of(self, split: str) -> list[Problem]:
        rows = self._rows(split)
        if not rows:
            raise ConfigError(f"{self._where}: {split} has no rows; give at least one")
        return [self._checked(f"{self._where}: {place}", row) for place, row in rows]

    def _checked(self, place: str, row: Row) -> Problem:
        """Return the problem of a row.

        Args:
            place: of the row, for messages.
        """
        try:
            row, context = with_text(row, self.columns)
            with one_line(f"problem of task={self.label}"):
                problem = self.problem(row)
            if wrong := text_problem(problem):
                raise ConfigError(wrong)
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from error
        return replace(problem, context=context) if context else problem

    def _rows(self, split: str) -> list[tuple[str, Row]]:
        """Return the rows of a split, each with its place for messages."""
        if self.path is not None:
            file = _split_file(self.path, split)
            try:
                return [(f"{file.name} line {number}", row) for number, row in read_json_lines(file)]
            except ConfigError as error:
                raise ConfigError(f"{self._where}: {error}") from error
        return [(f"{split} row {number}", row) for number, row in enumerate(self._hub_rows(split), start=1)]

    def _hub_rows(self, split: str) -> list[Row]:
        from datasets import load_dataset  # only here: a local folder of task.path must not need it

        cache = None
        if os.path.isdir(self.hub):
            files = self._folder_files(split)
            if {file.suffix for file in files} <= {".json", ".jsonl"}:
                # not with datasets, which rounds long numbers and crashes where brackets are nested deeply
                with self._one_message():
                    return [row for file in files for row in read_json(file)]
            cache = _cache_folder([file for one in SPLITS for file in self._folder_files(one)])
        with self._one_message():
            rows = load_dataset(self.hub, self.hub_config, split=split, revision=self.revision, cache_dir=cache)
            as_written = _as_written(rows, self.columns)
            return [{**row, **{name: change(row[name]) for name, change in as_written.items()}} for row in rows]

    def _folder_files(self, split: str) -> list[Path]:
        """Return the files that ``datasets`` reads for a split, where ``hub`` is a local folder, in their order."""
        from datasets import load_dataset_builder

        with self._one_message():
            found = load_dataset_builder(self.hub, self.hub_config).config.data_files or {}
            if split not in found:
                raise ConfigError(f"has no split {split}, only {', '.join(map(str, found)) or 'none'}")
        return [Path(file) for file in found[split]]

    @contextmanager
    def _one_message(self) -> Iterator[None]:
        """Turn an exception of the client of the hub into a ConfigError with the key, its value and a remedy."""
        from datasets import logging

        level = logging.get_verbosity()
        logging.set_verbosity(logging.CRITICAL)  # it would print its errors too
        try:
            yield
        except ConfigError as error:
            raise ConfigError(f"{self._where}: {error}") from error
        except Exception as error:  # the client raises a dozen kinds for "no such set" and "no network"
            cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" else None
            reason = (str(cause or error).strip().splitlines() or [type(error).__name__])[0]
            remedy = "Give a local folder with train.jsonl and test.jsonl as task.path=DIR"
            if self.hub_config is not None and os.path.isdir(self.hub):
                remedy += ", or task.hub_config=null"
            raise ConfigError(f"{self._where}: cannot be loaded: {reason.rstrip('.')}. {remedy}") from error
        finally:
            logging.set_verbosity(level)


@dataclass(frozen=True)
class Svamp(HubTask):
    """SVAMP, Patel et al. 2021 (2103.07191).

    The solution is the equation of the row without its decimal points, ``= answer``, and the answer after ``####``.
    """

    columns: ClassVar[tuple[str, ...]] = ("question_concat", "Equation", "Answer")

    def problem(self, row: Row) -> Problem:
        answer = row["Answer"].removesuffix(".0")
        equation = re.sub(r"\.0\b", "", row["Equation"])
        return Problem(row["question_concat"], answer=answer, solution=f"{equation} = {answer}\n#### {answer}")


@dataclass(frozen=True)
class Gsm8k(HubTask):
    """GSM8K, Cobbe et al. 2021 (2110.14168); the final answer stands after ``####``."""

    columns: ClassVar[tuple[str, ...]] = ("question", "answer")

    def problem(self, row: Row) -> Problem:
        answer = row["answer"].rsplit("####", 1)[-1].strip()
        if "####" in row["answer"]:  # a verifier reads that line alone
            answer = answer.partition("\n")[0].strip()
        if is_blank(answer):
            raise ConfigError("column answer has nothing after its last ####; write the final answer there")
        return Problem(row["question"], answer=answer, solution=row["answer"])


def _split_file(path: str, split: str) -> Path:
    """Return the file of a split in a folder.

    Raises:
        ConfigError: there is no such folder or file.
    """
    folder, file = Path(path), Path(path, f"{split}.jsonl")
    remedy = "give a folder with train.jsonl and test.jsonl"
    if folder.is_file():
        raise ConfigError(f"task.path={path}: is a file; {remedy}")
    if not file.is_file():
        missing = f"no {file.name}" if folder.is_dir() else "no such folder"
        raise ConfigError(f"task.path={path}: there is {missing}; {remedy}")
    return file


def _cache_folder(files: Sequence[Path]) -> str:
    """Return a cache folder for the content of some files: ``datasets`` knows them by name and time alone."""
    from datasets import config

    return str(Path(config.HF_DATASETS_CACHE, f"local-{files_digest(files)[:16]}"))


def _as_written(rows: Any, columns: Sequence[str]) -> dict[str, Callable[[Any], Any]]:
    """Return by column a function that restores what ``datasets`` has changed in a value.

    A float of 32 bits is read as one of 64 with other digits (0.1 as 0.10000000149011612), and a class as its number.
    """
    found: dict[str, Callable[[Any], Any]] = {}
    for name in columns:
        feature: Any = (rows.features or {}).get(name)
        if hasattr(feature, "int2str"):
            found[name] = partial(_class_name, feature)
        elif getattr(feature, "dtype", None) in ("float16", "float32"):
            found[name] = partial(_short_float, getattr(np, feature.dtype))
        elif getattr(feature, "dtype", None) == "float64" and rows.info.builder_name in ("csv", "json"):
            found[name] = _unless_rounded
    return found


def _class_name(feature: Any, value: Any) -> Any:
    return feature.int2str(value) if isinstance(value, int) and value >= 0 else None  # -1 is no class


def _short_float(kind: Any, value: Any) -> Any:
    return value if value is None or not math.isfinite(value) else Number(str(kind(value)))


def _unless_rounded(value: Any) -> Any:
    return Rounded(value) if value is not None and EXACT <= abs(value) < math.inf else value

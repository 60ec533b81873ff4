"""Tasks whose rows are read: from the hub, or from local files. Splits, filters and numbers of rows."""

import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from rlsparse.batch import Problem
from rlsparse.components.component import MOST_ROWS, Digest, Range
from rlsparse.components.task.base import SPLITS, Rows, Task, asked, text_problem
from rlsparse.components.task.files import (
    PlacedRows,
    cache_folder,
    find_files,
    format_of,
    one_message,
    read_files,
    refuse_empty,
    refuse_missing_parts,
    rows_of,
    some,
)
from rlsparse.components.task.rows import Row, named
from rlsparse.config.ranges import shown
from rlsparse.config.schema import ConfigError

SHOWN = 8  # values of a column in a message


@dataclass(frozen=True)
class StoredTask(Task):
    """A data set of the hub, or of local files.

    Attributes:
        hub: id of the data set, or a local folder as ``datasets.load_dataset`` takes it; None where there is none.
        hub_config: its configuration. revision: branch, tag or commit.
        path: a local folder with a file for each split, or one file; beats the hub.
        split: by ``train`` and ``test``, the name of the split with these rows, or None for none.
        test_share: share of the rows of ``split.train`` that are held out, in the place of ``split.test``.
        max_rows: the most rows of each split: one number, or one by ``train`` and ``test``; None for all.
        filter: by column, the value or the values of the rows that are used; None for all rows.
    """

    neutral: ClassVar[Mapping[str, Any]] = {
        **Task.neutral,
        "split": {"train": "train", "test": "test"},
        "test_share": None,
        "max_rows": {"train": None, "test": None},
        "filter": {},
    }

    hub: str | None
    hub_config: str | None
    revision: str | None
    path: str | None
    split: dict[str, Any]
    test_share: Annotated[float | None, Range(0, 1, above=True, below=True)]
    max_rows: dict[str, Any] | int | None
    filter: dict[str, Any] | None

    def is_used(self, row: Row) -> bool:
        """Return whether a row is used; the others are left out and counted."""
        return True

    @abstractmethod
    def problem_of(self, row: Row) -> Problem:
        """Return the problem that a row states.

        Raises:
            ConfigError: it states none; the message names the column.
        """

    @property
    @abstractmethod
    def read_columns(self) -> tuple[str, ...]:
        """Return the columns that ``problem_of`` reads."""

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS if self.test_share is not None else tuple(one for one in SPLITS if self._names[one] is not None)

    def load(self) -> Rows:
        return self.load_splits(SPLITS)

    def load_splits(self, splits: Sequence[str]) -> Rows:
        if self.path is None and self.hub is None:
            raise ConfigError(
                f"task.path=null: task={self.label} has no data set on the hub; give its file as task.path=FILE"
            )
        if self.test_share is not None:
            return self._divided(self.test_share)
        for split in splits:
            if self._names[split] is None:
                raise ConfigError(self._no_split(split))
        if self.path is not None and len(splits) > 1 and Path(self.path).is_file():
            raise ConfigError(
                f"task.path={self.path}: is a file, and task={self.label} needs training and held-out rows; give a "
                "folder with train.jsonl and test.jsonl, or hold out a share of the file: task.test_share=0.1"
            )
        notes: list[str] = []
        found = {split: self._problems_of(split, self._rows(split), notes) for split in splits}
        return Rows(found.get("train", []), found.get("test", []), tuple(notes))

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self._place_problems()
        yield from unknown_keys("split", self.split, SPLITS)
        for split in SPLITS:
            name = self.split.get(split)
            if name is not None and (not isinstance(name, str) or not name.strip()):
                yield f"split.{split}={shown(name)}: must be the name of a split, or null for none"
        if self.test_share is not None and self.split.get("train") is None:
            yield f"test_share={self.test_share}: is a share of the rows of task.split.train, which is null; name it"
        rows = self.max_rows if isinstance(self.max_rows, dict) else {"": self.max_rows}
        yield from unknown_keys("max_rows", rows, (*SPLITS, ""))
        for split, most in rows.items():
            key = f"max_rows.{split}".rstrip(".")
            if most is not None and (type(most) is not int or not 1 <= most <= MOST_ROWS):
                yield f"{key}={shown(most)}: must be a whole number in [1, {MOST_ROWS}], or null for all rows"
        for column, wanted in (self.filter or {}).items():
            values = wanted if isinstance(wanted, list) else [wanted]
            if not values or any(isinstance(one, list | dict) for one in values):
                yield f"filter.{column}={shown(wanted)}: must be a value, or a list of values such as [easy,hard]"

    def _place_problems(self) -> Iterator[str]:
        if self.path is not None:
            if not self.path.strip():
                yield "path=: names no folder; give one with train.jsonl and test.jsonl, or task.path=null"
        elif self.hub is None:  # load reports it
            return
        elif not self.hub.strip():
            yield "hub=: names no data set; give its id on the hub, or a folder as task.path=DIR"
        elif os.path.isfile(self.hub):
            yield f"hub={self.hub}: is a file; give it as task.path={self.hub}"
        elif os.path.isdir(self.hub) and set(self.hub) & set("*?["):
            yield f"hub={self.hub}: datasets reads *, ? and [ in the name of a folder as a pattern; rename the folder"
        elif self.revision is not None and os.path.isdir(self.hub):
            yield f"revision={self.revision}: task.hub={self.hub} is a folder, which has no revisions; give null"

    def identity(self, digest: Digest) -> dict[str, Any]:
        """Return the fields, with the content of local files in the place of the names of a folder or of the hub."""
        most = self.max_rows if isinstance(self.max_rows, dict) else dict.fromkeys(SPLITS, self.max_rows)
        used = {"split": self._names, "max_rows": most, "filter": self.filter or {}}
        values = {key: value for key, value in super().identity(digest).items() if key not in used}
        values |= {key: value for key, value in used.items() if value != self.neutral[key]}
        if self.path is not None:
            files = tuple(dict.fromkeys(file for split in SPLITS for file in self._files_if_any(split)))
            return {**values, "hub": None, "hub_config": None, "revision": None, "path": digest(files)}
        if self.hub is not None and os.path.isdir(self.hub):
            # in order, and each split by itself: the files of both may have the same names
            contents = {split: [digest((file,)) for file in self._files_if_any(split)] for split in SPLITS}
            return {**values, "hub": contents}
        return values

    @property
    def _where(self) -> str:
        return f"task.path={self.path}" if self.path is not None else f"task.hub={self.hub}"

    @property
    def _names(self) -> dict[str, str | None]:
        """Return the name of the split that each kind of rows is read from."""
        return {
            "train": self.split.get("train"),
            "test": None if self.test_share is not None else self.split.get("test"),
        }

    def _divided(self, share: float) -> Rows:
        """Return the rows of ``split.train``, of which a hash of the question holds out a share."""
        notes: list[str] = []
        rows = self._problems_of("", self._rows("train"), notes)
        held_out = [_hash(problem) < share for problem in rows]
        found = {
            split: [problem for problem, held in zip(rows, held_out, strict=True) if held == (split == "test")]
            for split in SPLITS
        }
        for split, kept in found.items():
            if not kept:
                change = "raise" if split == "test" else "lower"
                raise ConfigError(
                    f"task.test_share={share}: leaves no {split} rows of the {len(rows)} of {self._where}; {change} it"
                )
        train, test = (found[split][: self._most(split)] for split in SPLITS)
        return Rows(train, test, tuple(notes))

    def _most(self, split: str) -> int | None:
        most: Any = self.max_rows.get(split) if isinstance(self.max_rows, dict) else self.max_rows
        return most

    def _problems_of(self, split: str, rows: PlacedRows, notes: list[str]) -> list[Problem]:
        """Return the problems of the rows of a split.

        Args:
            split: empty for all given rows, however many.
            notes: gets a line if rows are left out.
        """
        chosen = self._filtered(split or "train", rows)
        kept = [(place, row) for place, row in chosen if self.is_used(row)]
        if len(kept) < len(chosen):
            notes.append(
                f"task={self.label}: {len(chosen) - len(kept)} of {len(chosen)} {split or 'given'} rows have no answer "
                "and are left out"
            )
        return [self._checked(place, row) for place, row in kept[: self._most(split) if split else None]]

    def _checked(self, place: str, row: Row) -> Problem:
        """Return the problem of a row.

        Args:
            place: of the row, for messages.
        """
        try:
            problem = self.problem_of(row)
            if wrong := text_problem(problem):
                raise ConfigError(wrong)
        except ConfigError as error:
            raise ConfigError(f"{self._where}: {place}: {error}") from error
        return problem

    def _filtered(self, split: str, rows: PlacedRows) -> PlacedRows:
        if not self.filter:
            return rows
        columns = dict.fromkeys(str(name) for _, row in rows for name in row)
        for column in self.filter:
            if column not in columns:
                raise ConfigError(
                    f"task.filter.{column}: the {split} rows of {self._where} have no such column, only "
                    f"{named(columns)}"
                )
        kept = [
            (place, row)
            for place, row in rows
            if all(_chosen(row.get(column), wanted) for column, wanted in self.filter.items())
        ]
        if not kept:
            found = "; ".join(f"{column} has {_values(column, rows)}" for column in self.filter)
            raise ConfigError(f"task.filter={self.filter}: leaves no {split} rows of {self._where}, where {found}")
        return kept

    def _rows(self, split: str) -> PlacedRows:
        """Return all rows of a split, each with its place for messages."""
        name = self._names[split]
        assert name is not None
        with self._message():
            found = self._read(split, name)
            if not found:
                raise ConfigError(f"{split} has no rows; give at least one")
            return found

    def _no_split(self, split: str) -> str:
        if split == "test":
            return (
                f"task.split.test=null: task={self.label} has no held-out rows; name a split, or hold out a share of "
                "the training rows: task.test_share=0.1"
            )
        return (
            f"task.split.train=null: task={self.label} is for evaluation and has no training rows; train on another "
            f"task and give this one as eval.benchmarks=[{self.label}], or train on a part of its rows: "
            f"task.split.train={self.split.get('test')} task.test_share=0.2"
        )

    @contextmanager
    def _message(self) -> Iterator[None]:
        """Put the key and its value before a message."""
        try:
            yield
        except ConfigError as error:
            raise ConfigError(f"{self._where}: {error}") from error

    def _read(self, split: str, name: str) -> PlacedRows:
        if self.path is not None:
            files = self._local_files(split, name)
            if not Path(self.path).is_file():  # one part may be given alone
                refuse_missing_parts(files)
            refuse_empty(files, split)
            return read_files(files, self.read_columns)
        return [(f"{split} row {number}", row) for number, row in enumerate(self._hub_rows(split, name), start=1)]

    def _local_files(self, split: str, name: str) -> list[Path]:
        path = Path(self.path or "")
        return [path] if path.is_file() else find_files(path, name, f"task.split.{split}")

    def _files_if_any(self, split: str) -> list[Path]:
        """Return the local files of a split; none where they are missing, which loading reports if it needs them."""
        name = self._names[split]
        try:
            if name is None:
                return []
            return self._local_files(split, name) if self.path is not None else self._folder_files(split, name)
        except ConfigError:
            return []

    def _hub_rows(self, split: str, name: str) -> list[Row]:
        from datasets import load_dataset  # only here: a local folder of task.path must not need it

        assert self.hub is not None
        cache = None
        if os.path.isdir(self.hub):
            files = self._folder_files(split, name)
            refuse_missing_parts(files)
            refuse_empty(files, split)
            if all(format_of(file) for file in files):
                # not with datasets, which rounds long numbers, reads 007 as 7, crashes where brackets nest deeply, and
                # refuses a parquet file for a column that is not needed
                return [row for _, row in read_files(files, self.read_columns)]
            every = [file for one in SPLITS for file in self._files_if_any(one)]
            cache = cache_folder(list(dict.fromkeys(every)))
        with one_message(self._remedy):
            rows = load_dataset(self.hub, self.hub_config, split=name, revision=self.revision, cache_dir=cache)
            return rows_of(rows, self.read_columns)

    def _folder_files(self, split: str, name: str) -> list[Path]:
        """Return the files that ``datasets`` reads for a split, where ``hub`` is a local folder, in their order."""
        from datasets import load_dataset_builder

        with one_message(self._remedy):
            found = load_dataset_builder(self.hub, self.hub_config).config.data_files or {}
        if name not in found:
            raise ConfigError(
                f"has no split {name}, only {some(map(str, found)) or 'none'}; name one as task.split.{split}"
            )
        return [Path(file) for file in found[name]]

    @property
    def _remedy(self) -> str:
        remedy = "give a local folder with train.jsonl and test.jsonl as task.path=DIR"
        if self.hub_config is not None and self.hub is not None and os.path.isdir(self.hub):
            remedy += ", or task.hub_config=null"
        return remedy


def unknown_keys(key: str, node: Mapping[str, Any], known: Sequence[str]) -> Iterator[str]:
    """Yield a line for each key of a mapping in the config that it must not have."""
    for name in node:
        if name not in known:
            yield f"{key}.{name}: no such key; here there are {', '.join(filter(None, known))}"


def _hash(problem: Problem) -> float:
    """Return a number in [0, 1) that depends on what a row asks, and on nothing else."""
    return int.from_bytes(hashlib.sha256(asked(problem).encode()).digest()[:6], "big") / 2**48


def _chosen(value: Any, wanted: Any) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    return any(_equal(one, other) for one in values for other in (wanted if isinstance(wanted, list) else [wanted]))


def _equal(value: Any, wanted: Any) -> bool:
    """Return whether a value of a row is the one that a filter names; all but numbers are compared as text."""
    if isinstance(value, int | float) and isinstance(wanted, int | float) and not isinstance(value, bool):
        return value == wanted and not isinstance(wanted, bool)
    if value is None or value == "":
        return wanted is None or wanted == ""
    if isinstance(value, bool) or isinstance(wanted, bool):
        return _plain(value).lower() == _plain(wanted).lower()
    return _plain(value) == _plain(wanted)


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _values(column: str, rows: PlacedRows) -> str:
    """Return the first different values of a column, for a message."""
    found = list(dict.fromkeys(repr(row.get(column)) for _, row in rows))
    return ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} others" if len(found) > SHOWN else "")

"""Rows of local files by their format, and of data sets that ``datasets`` reads."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rlsparse.components.task.rows import Number, Rounded, Row, named, read_csv, read_json, read_json_lines
from rlsparse.config.run_id import files_digest
from rlsparse.config.schema import ConfigError
from rlsparse.model.source import POINTER

EXACT = 2**53  # from here on, there are whole numbers that no float of 64 bits holds
TEXT = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")  # formats that may also be packed with gzip
FORMATS = "jsonl, json, csv, tsv or parquet"
SHARD = re.compile(r"-(\d+)-of-(\d+)(-[0-9a-f]+)?$")  # what the name of a part of a split on the hub ends with
SHOWN = 5  # names in a message
UNREAD = ("Image", "Audio", "Video")  # columns of these kinds are left out: reading them needs further packages

PlacedRows = list[tuple[str, Row]]  # each with its place, for messages


def format_of(file: Path) -> str | None:
    """Return the format of a file by its name, such as ``.jsonl`` for train.jsonl.gz; None for any other file."""
    packed = file.suffix == ".gz"
    ending = Path(file.name.removesuffix(".gz")).suffix.lower()
    return ending if ending in TEXT or (ending == ".parquet" and not packed) else None


def split_of(file: Path) -> str:
    """Return the split that a file holds by its name, such as ``train`` for train-00000-of-00002.parquet."""
    return SHARD.sub("", _stem(file))


def find_files(folder: Path, split: str, key: str) -> list[Path]:
    """Return the file of a split in a folder or in its subfolder ``data``, or the parts of the split in their order.

    Args:
        key: that names the split, for messages.

    Raises:
        ConfigError: there is none, or there are several formats of it.
    """
    if not folder.is_dir():
        raise ConfigError("there is no such folder or file; give a folder with train.jsonl and test.jsonl")
    places = [place for place in (folder, folder / "data") if place.is_dir()]
    files = [file for place in places for file in sorted(place.iterdir()) if file.is_file() and format_of(file)]
    found = sorted((file for file in files if split_of(file) == split), key=_part)
    if not files:
        raise ConfigError(f"there is no {split}.jsonl; give a folder with train.jsonl and test.jsonl")
    if not found:
        raise ConfigError(
            f"there is no {split}.jsonl; give a folder with {split}.jsonl (or .json, .csv, .parquet), or {key}=NAME "
            f"with the name of a split that is there: {some({split_of(file) for file in files})}"
        )
    if len({(file.parent, file.name.partition(".")[2], bool(SHARD.search(_stem(file)))) for file in found}) > 1:
        names = some(str(file.relative_to(folder)) for file in found)
        raise ConfigError(f"has several files of the split {split}: {names}; keep one, or give the file as task.path")
    return found


def some(names: Iterable[str]) -> str:
    """Return the first names in order, for a message."""
    found = sorted(set(names))
    others = len(found) - SHOWN
    return ", ".join(found[:SHOWN]) + (f" and {others} others" if others > 0 else "")


def refuse_missing_parts(files: Sequence[Path]) -> None:
    """Refuse parts of a split whose names say that there are others.

    Args:
        files: of one split. A file whose name does not end in ``-00000-of-00002`` or similar is accepted.

    Raises:
        ConfigError: a part is missing or stands there twice, or the names state different numbers of parts.
    """
    parts = {file: found for file in files if (found := SHARD.search(_stem(file)))}
    if not parts:
        return
    example = next(iter(parts))
    counts = sorted({int(found[2]) for found in parts.values()})
    if len(counts) > 1:
        names = some(file.name for file in parts)
        raise ConfigError(
            f"has parts of {counts[0]} and of {counts[1]} files of the split {split_of(example)}: {names}; keep those "
            "of one number"
        )
    (count,), numbers = counts, [int(found[1]) for found in parts.values()]
    if twice := [number for number, times in Counter(numbers).items() if times > 1]:
        names = some(file.name for file, found in parts.items() if int(found[1]) == twice[0])
        raise ConfigError(f"has a part of the split {split_of(example)} twice: {names}; keep one")
    first = 0 if 0 in numbers or count not in numbers else 1
    if missing := [number for number in range(first, first + count) if number not in numbers]:
        digits = len(parts[example][1])
        lacking = f"{split_of(example)}-{missing[0]:0{digits}}-of-{parts[example][2]}"
        more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise ConfigError(
            f"lacks the part {lacking}{more} of the split {split_of(example)}: the names of the files say that there "
            f"are {count}; copy or download all of them"
        )


def _stem(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).stem


def _part(file: Path) -> int:
    found = SHARD.search(_stem(file))
    return int(found[1]) if found else 0


def refuse_empty(files: Sequence[Path], split: str) -> None:
    """Refuse a file of 0 bytes, which is left where a copy or a download has failed.

    Raises:
        ConfigError: the first such file.
    """
    for file in files:
        if file.is_file() and file.stat().st_size == 0:
            raise ConfigError(f"{split} has no rows: {file.name} has 0 bytes; copy or download it again")


def read_files(files: Sequence[Path], columns: Sequence[str]) -> PlacedRows:
    """Return the rows of files.

    Args:
        columns: whose values must be as they are written.

    Raises:
        ConfigError: a file cannot be read; the message does not name the key.
    """
    found: PlacedRows = []
    for file in files:
        kind = format_of(file)
        if kind is None:
            raise ConfigError(f"{file.name} is no {FORMATS} file; give one")
        if kind in (".jsonl", ".ndjson"):
            found += [(f"{file.name} line {number}", row) for number, row in read_json_lines(file)]
        elif kind in (".csv", ".tsv"):
            found += [(f"{file.name} line {number}", row) for number, row in read_csv(file)]
        else:
            rows = read_json(file) if kind == ".json" else read_parquet(file, columns)
            found += [(f"{file.name} row {number}", row) for number, row in enumerate(rows, start=1)]
    return found


def read_parquet(file: Path, columns: Sequence[str]) -> list[Row]:
    """Return the rows of a parquet file.

    A column that cannot be read is left out if it is not needed.

    Args:
        columns: that are needed. Their values are as they are written: a float of 32 bits has its own digits, and a
            class of ``datasets`` its name.

    Raises:
        ConfigError: the file or a needed column of it cannot be read.
    """
    from pyarrow import ArrowException  # comes with datasets
    from pyarrow.parquet import ParquetFile

    try:
        with file.open("rb") as opened:
            if opened.read(len(POINTER)) == POINTER:
                raise ConfigError(f"{file.name} is a pointer of git-lfs, not the file; run git lfs pull in the folder")
        with ParquetFile(file) as table:
            names = [field.name for field in table.schema_arrow]
            if twice := [name for name in columns if names.count(name) > 1]:
                raise ConfigError(f"{file.name} has the column {named(twice[:1])} twice; keep one")
            values = {name: _column(table, name, name in columns) for name in names if names.count(name) == 1}
            count = table.metadata.num_rows
    except (ArrowException, OSError) as error:
        reason = _first_line(error)
        raise ConfigError(f"{file.name} cannot be read ({reason}); copy or download the file again") from error
    there = {name: column for name, column in values.items() if column is not None}
    return [{name: column[number] for name, column in there.items()} for number in range(count)]


def _column(table: Any, name: str, needed: bool) -> list[Any] | None:
    """Return the values of a column of a parquet file; None if they cannot be read and are not needed.

    Raises:
        ConfigError: they cannot be read, and are needed.
    """
    from pyarrow import ArrowException

    feature = _features(table.schema_arrow.metadata).get(name)
    feature = feature if isinstance(feature, dict) else {}
    if feature.get("_type") in UNREAD:
        return None
    try:
        values: list[Any] = table.read(columns=[name])[name].to_pylist()
    except (ArrowException, ValueError, OverflowError, ImportError) as error:
        if not needed:
            return None
        raise ConfigError(
            f"column {named([name])} cannot be read ({_first_line(error)}); store it as text, or copy or download the "
            "file again"
        ) from error
    change = _stored_as(table.schema_arrow.field(name).type, feature) if needed else None
    return values if change is None else [change(value) for value in values]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _features(metadata: Any) -> dict[str, Any]:
    """Return by column what ``datasets`` says of it in a parquet file that it has written."""
    try:
        content = json.loads((metadata or {}).get(b"huggingface", b"{}"))
        return dict(content["info"]["features"])
    except (ValueError, KeyError, TypeError):
        return {}


def _stored_as(kind: Any, feature: dict[str, Any]) -> Callable[[Any], Any] | None:
    """Return a function that gives a value of a parquet column as it is written; None where it is so already."""
    from pyarrow import types

    if feature.get("_type") == "ClassLabel" and types.is_integer(kind):
        classes = feature.get("names") or []
        return lambda value: classes[value] if value is not None and 0 <= value < len(classes) else None
    if types.is_float16(kind) or types.is_float32(kind):
        return partial(_short_float, np.float16 if types.is_float16(kind) else np.float32)
    return None


def rows_of(rows: Any, columns: Sequence[str]) -> list[Row]:
    """Return the rows of a split that ``datasets`` has read, with the values of some columns as they are written."""
    unread = [name for name, feature in (rows.features or {}).items() if type(feature).__name__ in UNREAD]
    rows = rows.remove_columns(unread)
    as_written = _as_written(rows, columns)
    return [{**row, **{name: change(row[name]) for name, change in as_written.items()}} for row in rows]


@contextmanager
def one_message(remedy: str) -> Iterator[None]:
    """Turn an exception of ``datasets`` into a ConfigError of one line.

    Args:
        remedy: what the user can do.
    """
    from datasets import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # it would print its errors too
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # it raises a dozen kinds for "no such set" and "no network"
        cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" else None
        raise ConfigError(
            f"cannot be loaded: {_first_line(cause or error)}. {remedy[0].upper()}{remedy[1:]}"
        ) from error
    finally:
        logging.set_verbosity(level)


def cache_folder(files: Sequence[Path]) -> str:
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

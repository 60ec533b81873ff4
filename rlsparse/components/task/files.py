"""Rows of local files by their format, and of data sets that ``datasets`` reads."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rlsparse.components.task.rows import Number, Rounded, Row, read_csv, read_json, read_json_lines
from rlsparse.config.run_id import files_digest
from rlsparse.config.schema import ConfigError

EXACT = 2**53  # from here on, there are whole numbers that no float of 64 bits holds
OWN = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")  # formats that are read here, also packed with gzip
FORMATS = "jsonl, json, csv, tsv or parquet"
SHARD = re.compile(r"-\d+-of-\d+(-[0-9a-f]+)?$")  # what the name of a part of a split on the hub ends with
UNREAD = ("Image", "Audio", "Video")  # columns of these kinds are left out: reading them needs further packages

PlacedRows = list[tuple[str, Row]]  # each with its place, for messages


def format_of(file: Path) -> str | None:
    """Return the format of a file by its name, such as ``.jsonl`` for train.jsonl.gz; None for any other file."""
    packed = file.suffix == ".gz"
    ending = Path(file.name.removesuffix(".gz")).suffix.lower()
    return ending if ending in OWN or (ending == ".parquet" and not packed) else None


def split_of(file: Path) -> str:
    """Return the split that a file holds by its name, such as ``train`` for train-00000-of-00002.parquet."""
    return SHARD.sub("", Path(file.name.removesuffix(".gz")).stem)


def find_files(folder: Path, split: str) -> list[Path]:
    """Return the file of a split in a folder or in its subfolder ``data``, or the parts of the split in their order.

    Raises:
        ConfigError: there is none, or there are several formats of it.
    """
    if not folder.is_dir():
        raise ConfigError("there is no such folder or file; give a folder with train.jsonl and test.jsonl")
    places = [place for place in (folder, folder / "data") if place.is_dir()]
    files = [file for place in places for file in sorted(place.iterdir()) if file.is_file() and format_of(file)]
    found = [file for file in files if split_of(file) == split]
    if not files:
        raise ConfigError(f"there is no {split}.jsonl; give a folder with train.jsonl and test.jsonl")
    if not found:
        others = ", ".join(sorted({split_of(file) for file in files}))
        raise ConfigError(
            f"there is no {split}.jsonl; give a folder with {split}.jsonl (or .json, .csv, .parquet), or the name of "
            f"another file there as task.split: {others}"
        )
    if len({(file.parent, file.name.partition(".")[2], bool(SHARD.search(_stem(file)))) for file in found}) > 1:
        names = ", ".join(str(file.relative_to(folder)) for file in found)
        raise ConfigError(f"has several files of the split {split}: {names}; keep one, or give the file as task.path")
    return found


def _stem(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).stem


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
    """Return the rows of a parquet file; see ``read_files``."""
    from datasets import load_dataset

    with one_message("copy or download the file again"), _no_progress_bar():
        rows = load_dataset("parquet", data_files=[str(file)], split="train", cache_dir=cache_folder([file]))
        return rows_of(rows, columns)


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
        reason = (str(cause or error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"cannot be loaded: {reason.rstrip('.')}. {remedy[0].upper()}{remedy[1:]}") from error
    finally:
        logging.set_verbosity(level)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()


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

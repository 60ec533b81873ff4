"""JSON lines: an append-only file of objects, one a line, each written whole or not at all."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class JsonLines:
    """Appends rows to a file. A row is with the operating system when ``write`` returns."""

    def __init__(self, path: Path, size: int = 0) -> None:
        """
        Args:
            size: bytes of an earlier file to append to; what follows them is cut off.

        Raises:
            ValueError: the file is shorter than that.
        """
        self._file = path.open("ab", buffering=0)
        if self._file.tell() < size:
            raise ValueError(f"{path} has {self._file.tell()} bytes, where a checkpoint knows of {size}")
        self._file.truncate(size)
        self._size = size
        self._digest = hashlib.sha256(path.read_bytes())

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row.

        Raises:
            OSError: there is no room for the row; those before it are unchanged.
        """
        # half of a surrogate pair, which UTF-8 has no bytes for, is written as \\udXXX, as in JSON itself
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self._size)
            raise
        self._size += len(line)
        self._digest.update(line)

    def mark(self) -> dict[str, Any]:
        """Flush to disk and return length and hash of what is written so far: see ``begins_with``."""
        os.fsync(self._file.fileno())
        return {"bytes": self._size, "sha256": self._digest.hexdigest()}

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def begins_with(path: Path, mark: Mapping[str, Any]) -> bool:
    """Return whether a file begins with what it held when it was marked."""
    try:
        with path.open("rb") as file:
            begin = file.read(mark["bytes"])
    except OSError:
        return False
    return len(begin) == mark["bytes"] and hashlib.sha256(begin).hexdigest() == mark["sha256"]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file; those that cannot be read, such as half a line at the end, are left out."""
    return list(rows_of(_read(path)))


def read_last_rows(path: Path, size: int) -> list[Row]:
    """Return the rows of the last ``size`` bytes of a file that may be growing."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            lines = file.read()
    except OSError:
        return []
    return list(rows_of(lines))


def rows_of(lines: bytes) -> Iterator[Row]:
    """Yield the rows of some lines that are JSON objects."""
    for line in lines.split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""

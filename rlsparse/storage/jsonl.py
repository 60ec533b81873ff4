"""JSON lines: append-only files with one JSON object per line, each line written completely or not at all."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlsparse.storage.atomic import sync_descriptor, write_whole

Row = dict[str, Any]


class JsonLines:
    """Appends rows to a file. A row is visible to other processes when ``write`` returns."""

    def __init__(self, path: Path, size: int = 0) -> None:
        """Open a file for appending.

        Args:
            path: the file; it is created if it does not exist.
            size: number of bytes of an existing file to keep; the rest is cut off.

        Raises:
            ValueError: the file is shorter than that.
        """
        self._file = path.open("ab", buffering=0)
        if self._file.tell() < size:
            raise ValueError(f"{path} has {self._file.tell()} bytes, but the checkpoint was written at {size}")
        self._file.truncate(size)
        self._size = size
        self._digest = hashlib.sha256(path.read_bytes())

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row.

        Raises:
            OSError: the row cannot be written, for example on a full disk; the rows before it are unchanged.
        """
        # half of a surrogate pair has no UTF-8 encoding; it is written as \\udXXX, as in JSON
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

    def flush(self) -> None:
        """Flush the file to disk."""
        sync_descriptor(self._file.fileno())

    def fingerprint(self) -> dict[str, Any]:
        """Flush the file to disk and return length and hash of its content so far, for ``begins_with``."""
        self.flush()
        return {"bytes": self._size, "sha256": self._digest.hexdigest()}

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a file with these rows in the place of an existing one, whole or not at all."""
    write_whole(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))


def begins_with(path: Path, fingerprint: Mapping[str, Any]) -> bool:
    """Return whether a file begins with the content that it had when the fingerprint was taken."""
    try:
        with path.open("rb") as file:
            begin = file.read(fingerprint["bytes"])
    except OSError:
        return False
    return len(begin) == fingerprint["bytes"] and hashlib.sha256(begin).hexdigest() == fingerprint["sha256"]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file; lines that cannot be read, such as an incomplete last line, are skipped."""
    return list(rows_of(_read(path)))


def read_last_rows(path: Path, size: int) -> list[Row]:
    """Return the rows in the last ``size`` bytes of a file that another process may be writing."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            lines = file.read()
    except OSError:
        return []
    return list(rows_of(lines))


def rows_of(lines: bytes) -> Iterator[Row]:
    """Yield the JSON objects among some lines; other lines are skipped."""
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

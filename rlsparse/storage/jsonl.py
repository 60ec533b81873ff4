"""The truth about a run: JSON lines, written whole or not at all, one a row."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class JsonLines:
    """An append-only file of JSON objects, one a line, with the operating system when ``write`` returns."""

    def __init__(self, path: Path, size: int = 0) -> None:
        """
        Args:
            size: bytes of an earlier file to go on after; what it has beyond them is cut off.

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
        """
        Raises:
            OSError: there is no room for the row; those before it are as they were.
        """
        # half of a surrogate pair, which UTF-8 has no bytes for, stands as JSON's own \\udXXX
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
        """What is written so far, on disk when this returns: see ``holds``."""
        os.fsync(self._file.fileno())
        return {"bytes": self._size, "sha256": self._digest.hexdigest()}

    def close(self) -> None:
        self._file.close()


def holds(path: Path, mark: Mapping[str, Any]) -> bool:
    """Whether a file begins with what it held when it was marked."""
    try:
        with path.open("rb") as file:
            begin = file.read(mark["bytes"])
    except OSError:
        return False
    return len(begin) == mark["bytes"] and hashlib.sha256(begin).hexdigest() == mark["sha256"]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of such a file."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]

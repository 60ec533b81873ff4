"""The truth about a run: JSON lines, flushed as they are written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class JsonLines:
    """An append-only file of JSON objects, one a line, on disk when ``write`` returns to the operating system."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

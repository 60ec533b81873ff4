"""Atomic writes of small files, which survive a power failure, and reading of files that may be damaged."""

import json
import os
from pathlib import Path
from typing import Any

import yaml

FAST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # seven times as fast, if PyYAML was built with it
SHALLOW = 2**13  # characters; deeper nesting than fits in them would crash the process in the fast loader


def write_whole(path: Path, text: str) -> None:
    """Write a file atomically; its content is on disk when this returns.

    Raises:
        OSError: the file cannot be written; an existing one is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # half of a surrogate pair has no UTF-8 encoding; it is written as \\udXXX, as in JSON
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Flush a file, or the list of files of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None if the file does not exist or cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_yaml(path: Path) -> dict[str, Any] | None:
    """Return the YAML mapping in a file; None if the file does not exist or cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
        loader = FAST if len(text) <= SHALLOW else yaml.SafeLoader  # both create plain values only
        value = loader(text).get_single_data()
    except Exception:  # PyYAML also raises errors of other classes than its own
        return None
    return value if isinstance(value, dict) else None

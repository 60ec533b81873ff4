"""Small files that are there whole or not at all whenever the plug is pulled, and reading broken ones."""

import json
import os
from pathlib import Path
from typing import Any

import yaml

FAST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # seven times as fast, where PyYAML was built with it
SHALLOW = 2**13  # characters that cannot be nested so deep that the fast one's recursion ends the process


def write_whole(path: Path, text: str) -> None:
    """Write a file, on disk when this returns.

    Raises:
        OSError: it cannot be written; an earlier one is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # half of a surrogate pair, which UTF-8 has no bytes for, becomes \\udXXX, which is what JSON says too
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
    """Have the disk hold a file, or a folder's list of its files."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_object(path: Path) -> dict[str, Any] | None:
    """A file's JSON object; None where there is none, or none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_yaml(path: Path) -> dict[str, Any] | None:
    """A file's YAML mapping; None where there is none, or none that can be read."""
    try:
        text = path.read_text(encoding="utf-8")
        loader = FAST if len(text) <= SHALLOW else yaml.SafeLoader  # both make plain values only
        value = loader(text).get_single_data()
    except Exception:  # PyYAML raises more than its own errors
        return None
    return value if isinstance(value, dict) else None

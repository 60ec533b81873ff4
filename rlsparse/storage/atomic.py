"""Atomic writes of small files, which survive a power failure, and reading of files that may be damaged."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import yaml

FAST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # seven times as fast, if PyYAML was built with it
CANNOT_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # some network file systems cannot flush a folder
UTF8 = "utf-8-sig"  # with or without the byte order mark that some editors and spreadsheets write first
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
            sync_descriptor(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Flush a file, or the list of files of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def sync_descriptor(descriptor: int) -> None:
    """Flush an open file to disk, if its file system can do this.

    Raises:
        OSError: the disk is full or broken.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None if the file does not exist or cannot be read."""
    try:
        value = json.loads(path.read_text(encoding=UTF8))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_yaml(path: Path) -> dict[str, Any] | None:
    """Return the YAML mapping in a file; None if the file does not exist or cannot be read."""
    try:
        text = path.read_text(encoding=UTF8)
        loader = FAST if len(text) <= SHALLOW else yaml.SafeLoader  # both create plain values only
        value = loader(text).get_single_data()
    except Exception:  # PyYAML also raises errors of other classes than its own
        return None
    return value if isinstance(value, dict) else None

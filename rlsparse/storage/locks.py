"""One process a run: a lock that its holder's death lets go of, and no way out of the run's folder."""

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, LeaseCompromise, SoftFileLease, Timeout

from rlsparse.config.schema import ConfigError
from rlsparse.storage.atomic import read_object, write_whole
from rlsparse.storage.run_folder import RunFolder

OTHERS = ("wandb",)  # folders of other programs, whose links nothing of ours follows
ASKING = 2.0  # seconds: whoever only asks who holds a lock holds it for a moment
EXPIRY = 30.0  # seconds without a sign of life of its holder, after which a lease is anybody's
LOST = 75  # exit code: try again later (sysexits.h)


def _flock(folder: Path) -> BaseFileLock:
    return FileLock(RunFolder(folder).lock, timeout=ASKING, fallback_to_soft=False)


def _lease(folder: Path) -> BaseFileLock:
    return SoftFileLease(
        RunFolder(folder).lease, lease_duration=EXPIRY, on_compromise=_lost, timeout=EXPIRY + ASKING, poll_interval=0.5
    )


# how processes exclude each other -> the lock of a run's folder
LOCKS: dict[str, Callable[[Path], BaseFileLock]] = {"flock": _flock, "lease": _lease}


@contextmanager
def claimed(folder: Path, kind: str) -> Iterator[bool]:
    """Inside, the run's folder is ours alone, if the value is True; False where another process works on it.

    Args:
        kind: see the key ``sweep.lock``.

    Raises:
        ConfigError: the folder cannot be written, has links in it, or lies where there is no such lock.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        refuse_links(folder)
        lock = LOCKS[kind](folder)
        lock.acquire()
    except Timeout:
        yield False
        return
    except OSError as error:
        if kind == "flock" and error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise ConfigError(f"sweep.lock=flock: the file system of {folder} has no such locks; take lease") from error
        raise ConfigError(
            f"runs_dir: {folder} cannot be written ({error}); give a folder that you may write"
        ) from error
    try:
        with suppress(OSError):  # only for those who ask; a full disk is for the run itself to report
            write_whole(RunFolder(folder).holder, json.dumps(_ourselves()))
        yield True
    finally:
        with suppress(OSError):
            RunFolder(folder).holder.unlink(missing_ok=True)
        lock.release()


def holder(folder: Path) -> dict[str, Any] | None:
    """Who works on the run; None where nobody does."""
    about = read_object(RunFolder(folder).holder) or {}
    if _is_locked(RunFolder(folder).lock) or (_is_leased(RunFolder(folder).lease) and not _is_dead(about)):
        return about
    return None


def _is_locked(file: Path) -> bool:
    if not file.is_file() or file.is_symlink():
        return False
    lock = FileLock(file, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # not ours to write: whose lock it is cannot be told
        return False
    lock.release()
    return False


def _is_leased(file: Path) -> bool:
    try:
        return time.time() - file.stat().st_mtime < EXPIRY
    except OSError:
        return False


def _is_dead(about: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is no more: its lease goes on for a while without it."""
    if about.get("host") != socket.gethostname() or not isinstance(about.get("pid"), int):
        return False
    try:
        os.kill(about["pid"], 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _ourselves() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}


def refuse_links(folder: Path) -> None:
    """A link in a run's folder could lead our writes, and our cutting back of files, anywhere.

    Raises:
        ConfigError: there is one.
    """
    inside = [path for path in folder.iterdir() if path.name not in OTHERS]
    deeper = [path for one in inside if one.is_dir() and not one.is_symlink() for path in one.rglob("*")]
    others = [folder / name for name in OTHERS]
    for path in (folder, *others, *inside, *deeper):
        if path.is_symlink():
            raise ConfigError(f"runs_dir: {path} is a link; a run writes into its own folder only: remove the link")


def _lost(compromise: LeaseCompromise) -> None:
    """Another process has the run, after we gave no sign of life: not a byte more from us."""
    print(f"the lease on a run was lost ({compromise}); another process may go on with it", file=sys.stderr, flush=True)
    os._exit(LOST)

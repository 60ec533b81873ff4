"""Locks on the folder of a run: one process works on a run at a time, and writes nowhere else."""

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

ACQUIRE_TIMEOUT = 2.0  # seconds; a process that only checks for a holder has the lock for less time than that
EXPIRY = 30.0  # seconds after the last renewal of a lease, when another process may take it
LOST = 75  # exit code of a process that lost its lease: EX_TEMPFAIL of sysexits.h, "try again later"


def _flock(folder: Path) -> BaseFileLock:
    return FileLock(RunFolder(folder).lock, timeout=ACQUIRE_TIMEOUT, fallback_to_soft=False)


def _lease(folder: Path) -> BaseFileLock:
    return SoftFileLease(
        RunFolder(folder).lease,
        lease_duration=EXPIRY,
        on_compromise=_exit_on_lost_lease,
        timeout=EXPIRY + ACQUIRE_TIMEOUT,
        poll_interval=0.5,
    )


# value of the key sweep.lock -> the lock of the folder of a run
LOCKS: dict[str, Callable[[Path], BaseFileLock]] = {"flock": _flock, "lease": _lease}


@contextmanager
def claimed(folder: Path, kind: str) -> Iterator[bool]:
    """Lock the folder of a run within the context; the value is False if another process has locked it.

    The folder is created if it does not exist. A lock ends with its process, also if that is killed.

    Args:
        kind: the key ``sweep.lock``.

    Raises:
        ConfigError: the folder is not writable, has links in it, or its file system does not support this lock.
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
            raise ConfigError(
                f"sweep.lock=flock: the file system of {folder} does not support it; take sweep.lock=lease"
            ) from error
        raise ConfigError(
            f"runs_dir: {folder} cannot be written ({error}); give a folder that you may write"
        ) from error
    try:
        with suppress(OSError):  # this file is only for information; the run itself reports a full disk
            write_whole(RunFolder(folder).holder, json.dumps(_this_process()))
        yield True
    finally:
        with suppress(OSError):
            RunFolder(folder).holder.unlink(missing_ok=True)
        lock.release()


def holder(folder: Path) -> dict[str, Any] | None:
    """Return host, process id and start of the process that works on the run; None if there is none."""
    about = read_object(RunFolder(folder).holder) or {}
    if _is_locked(RunFolder(folder).lock) or (_is_leased(RunFolder(folder).lease) and not _has_died(about)):
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
    except OSError:  # a file without write permission cannot be tested
        return False
    lock.release()
    return False


def _is_leased(file: Path) -> bool:
    try:
        return time.time() - file.stat().st_mtime < EXPIRY
    except OSError:
        return False


def _has_died(about: dict[str, Any]) -> bool:
    """Return whether the holder was a process of this machine that has ended; its lease expires only later."""
    if about.get("host") != socket.gethostname() or not isinstance(about.get("pid"), int):
        return False
    try:
        os.kill(about["pid"], 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}


def refuse_links(folder: Path) -> None:
    """Check that the folder of a run has no symbolic links, which could make the run write or truncate other files.

    Raises:
        ConfigError: the folder, or something in it, is a link.
    """
    other_programs = [RunFolder(folder).wandb]  # they may contain links, since this package does not follow them
    inside = [path for path in folder.iterdir() if path not in other_programs]
    deeper = [path for one in inside if one.is_dir() and not one.is_symlink() for path in one.rglob("*")]
    for path in (folder, *other_programs, *inside, *deeper):
        if path.is_symlink():
            raise ConfigError(f"runs_dir: {path} is a link; a run writes into its own folder only: remove the link")


def _exit_on_lost_lease(compromise: LeaseCompromise) -> None:
    """End this process at once, so that it writes nothing more: another process may have locked the run."""
    print(f"the lease on a run was lost ({compromise}); another process may resume it", file=sys.stderr, flush=True)
    os._exit(LOST)

"""The CPUs of this machine: how many this process may use, and which other runs of this user compute on them.

The threads of an operation of torch wait for each other. If there are more threads than CPUs, some of them wait for a
CPU while the others wait for them. Two runs with all CPUs each are therefore much slower than one after the other.

Each run has a locked file in a folder of its user while it computes. The kernel releases the lock when the process
ends, also when it is killed, so no file has to be trusted that a dead process has left.
"""

import fcntl
import json
import math
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
LOAD = Path("/proc/loadavg")
# Threads of other programs, averaged over a minute; fewer cause no warning. A thread that computes without a pause
# reaches this load average after 83 seconds: 1 - exp(-83 / 60) = 0.75.
LEAST_LOAD = 0.75


@dataclass(frozen=True)
class Work:
    """What a run computes with on this machine.

    Attributes:
        threads: CPU threads of each process.
        processes: number of its processes on this machine: the ranks of torchrun, else 1.
        cpus: numbers of the CPUs that it may use.
    """

    threads: int
    processes: int
    cpus: frozenset[int]

    @property
    def total(self) -> int:
        """The threads of all its processes."""
        return self.threads * self.processes


@dataclass(frozen=True)
class Machine:
    """The CPUs of a machine and what else computes on them.

    Attributes:
        cpus: number of CPUs of the machine.
        quota: CPU time per second that this process may use, in CPUs; None for no limit.
        others: the other runs of this user that compute now.
        busy: threads of all programs except this process that have computed for a minute; see ``busy_threads``.
    """

    cpus: int
    quota: float | None
    others: Sequence[Work]
    busy: float

    @classmethod
    def now(cls, folder: Path) -> "Machine":
        """Return the state of this machine.

        Args:
            folder: of the files of the runs; see ``runs_folder``.
        """
        return cls(os.cpu_count() or 1, cpu_quota(), other_runs(folder), busy_threads())

    def limited(self, cpus: frozenset[int]) -> int:
        """Return how many of some CPUs this process can keep busy: at most its quota, rounded up."""
        return len(cpus) if self.quota is None else max(1, min(len(cpus), math.ceil(self.quota)))


def oversubscription(own: Work, machine: Machine) -> str | None:
    """Return a warning if a run computes on a machine that has too few CPUs for all threads; None if it has enough.

    A process with one thread never waits for threads of its own. If all runs have one thread each, they share the CPUs
    without a loss, and there is no warning. These cases are checked in this order:

    1. The run has more threads than CPUs that it may use.
    2. The run and the other runs of this user that may use the same CPUs have more threads than these CPUs.
    3. The run, the other runs and all other programs have more threads than the machine has CPUs. The threads of other
       programs are ``machine.busy`` without those of the other runs. Fewer than ``LEAST_LOAD`` do not count.

    Args:
        own: the run.
    """
    cpus = machine.limited(own.cpus)
    have = f"this run computes with {_threads(own.total)}"
    if own.threads > 1 and own.total > cpus:
        return f"{have} on {_count(cpus, 'CPU')}, which makes it much slower; {_remedy(cpus, own.processes)}"
    rivals = [one for one in machine.others if one.cpus & own.cpus]
    of_rivals = sum(one.total for one in rivals)
    shared = machine.limited(own.cpus.union(*(one.cpus for one in rivals)))
    if own.total + of_rivals > shared and any(one.threads > 1 for one in (own, *rivals)):
        processes = own.processes + sum(one.processes for one in rivals)
        remedy = f"{_remedy(shared, processes)} to each, or run them one after the other"
        other = f"{_count(len(rivals), 'other run')} with {_threads(of_rivals)} on {_count(shared, 'CPU')}"
        return f"{have}, and {other}; {'both' if len(rivals) == 1 else 'all'} get much slower; {remedy}"
    of_others = sum(one.total for one in machine.others)
    foreign = machine.busy - of_others
    free = machine.cpus - of_others - foreign
    if own.threads > 1 and foreign >= LEAST_LOAD and own.total > free:
        return (
            f"{have} on a machine with {_count(machine.cpus, 'CPU')}, on which other programs compute with about "
            f"{foreign:.1f} threads (load average of the last minute); both get much slower; "
            f"{_remedy(math.floor(free), own.processes)}, or wait until they have ended"
        )
    return None


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _threads(number: int) -> str:
    return _count(number, "thread")


def _remedy(cpus: int, processes: int) -> str:
    return f"give threads={max(1, cpus // processes)}"


def first_number(text: str | None) -> int | None:
    """Return the number that the value of a variable begins with; None where it is not set or is no number above 0.

    OMP_NUM_THREADS may be a list such as ``4,2``, for threads within threads.
    """
    first = (text or "").partition(",")[0].strip()
    return int(first) if re.fullmatch(r"0*[1-9]\d{0,8}", first, re.ASCII) else None


def usable_cpus() -> int:
    """Return how many CPUs this process can keep busy: those that it may use, at most its quota, rounded up."""
    return Machine(os.cpu_count() or 1, cpu_quota(), (), 0).limited(allowed_cpus())


def allowed_cpus() -> frozenset[int]:
    """Return the numbers of the CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))  # macOS binds no process to CPUs


def cpu_quota(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> float | None:
    """Return the CPU time per second that the cgroups of this process allow, in CPUs; None for no limit.

    The limit of every cgroup above that of the process counts, too. Inside a container the folders above it are not
    visible, and the limit of the container is in the topmost folder.

    Args:
        cgroups: where the cgroups are mounted, of version 1 or 2.
        membership: names the cgroups of the process, as ``/proc/self/cgroup``.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux
        return None
    limits = []
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
        if not controllers:
            top = cgroups
        elif "cpu" in controllers.split(","):
            top = cgroups / "cpu"  # where the controllers are mounted together, this is a link to their folder
        else:
            continue
        place = Path(path.lstrip("/"))
        limits += [_quota(top / folder) for folder in (place, *place.parents)]
    return min((limit for limit in limits if limit is not None), default=None)


def _quota(folder: Path) -> float | None:
    """Return the limit of one cgroup: ``cpu.max`` of version 2, or the two files of version 1."""
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        used, of = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return used / of if used > 0 else None
    return None


def busy_threads(load: Path = LOAD, tasks: Path = Path("/proc/self/task")) -> float:
    """Return how many threads of all programs except this process have computed for a minute and still do.

    This is the smaller one of two numbers. The load average of the last minute does not follow a short peak, but it
    falls slowly after a program has ended, and it contains the threads of this process. The number of threads that can
    run at this moment, without those of this process, contains neither. It is 0 where there are no such files.

    Args:
        load: the file with the load average and the number of threads that can run, as ``/proc/loadavg``.
        tasks: the folder of the threads of this process, as ``/proc/self/task``.
    """
    own = 0  # counted first: a thread that ends between the two readings must not count as another program
    with suppress(OSError):
        for task in tasks.iterdir():
            with suppress(OSError, IndexError):  # it has ended
                own += (task / "stat").read_text().rpartition(")")[2].split()[0] == "R"
    with suppress(OSError, ValueError, IndexError):
        average, _, _, running = load.read_text().split()[:4]
        return max(0.0, min(float(average), int(running.partition("/")[0]) - own))
    return 0.0


def runs_folder() -> Path:
    """Return the folder in which the runs of this user on this machine have a file each while they compute."""
    host = re.sub(r"[^\w-]", "_", socket.gethostname())  # the folder may be shared by machines or containers
    return Path(tempfile.gettempdir()) / f"rlsparse-cpus-{os.getuid()}-{host}"


@contextmanager
def listed(work: Work, folder: Path) -> Iterator[None]:
    """Have this process listed in a folder within the context, so that other runs find it with ``other_runs``.

    A run that cannot be listed, because the folder is not private or has no space, computes all the same.

    Args:
        folder: is made if it does not exist.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            stack.enter_context(_entry(work, folder))
        yield


@contextmanager
def _entry(work: Work, folder: Path) -> Iterator[None]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(folder)
    name = f"{os.getpid()}-{secrets.token_hex(4)}"
    hidden, visible = folder / f".{name}", folder / name
    try:
        with hidden.open("x") as opened:
            # lockf, not flock: a child process that outlives this one must not keep the lock
            fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            json.dump({**asdict(work), "cpus": sorted(work.cpus)}, opened)
            opened.flush()
            hidden.rename(visible)  # no other process sees the file before it is locked and whole
            yield
    finally:
        for file in (hidden, visible):
            with suppress(OSError):
                file.unlink(missing_ok=True)


def check_private(folder: Path) -> None:
    """Check that a folder belongs to this user, and nobody else can read or write it.

    Raises:
        PermissionError: it does not, or somebody can; or it is a symbolic link or no folder.
    """
    status = folder.lstat()
    if folder.is_symlink() or not folder.is_dir() or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is not private")


def other_runs(folder: Path) -> list[Work]:
    """Return what the other processes that are listed in a folder compute with; files of dead processes are removed.

    Args:
        folder: need not exist.
    """
    found = []
    with suppress(OSError):
        check_private(folder)
        for file in sorted(folder.glob("[0-9]*-*")):
            # to close a second opening of its own file would release the lock of this process
            if not file.name.startswith(f"{os.getpid()}-"):
                with suppress(OSError, ValueError, KeyError, TypeError), file.open() as opened:
                    if _is_locked(opened):
                        found.append(_read(opened))
                    else:
                        file.unlink()
    return found


def _is_locked(opened: IO[str]) -> bool:
    """Return whether a process has locked a file; the lock of this test is shared, so two tests do not meet."""
    try:
        fcntl.lockf(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    return False


def _read(opened: IO[str]) -> Work:
    content = json.load(opened)
    return Work(int(content["threads"]), int(content["processes"]), frozenset(map(int, content["cpus"])))

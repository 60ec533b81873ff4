"""Time by stage, and peak memory."""

import ctypes
import gc
import resource
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


class Clock:
    """Measures the seconds that each stage takes, including work on the device.

    Attributes:
        total: seconds by stage since the start of the run.
        last: seconds by stage since the latest lap.
    """

    def __init__(self, device: torch.device, earlier: Mapping[str, float] | None = None) -> None:
        """Start the clock.

        Args:
            device: the device of the run.
            earlier: seconds by stage, and their ``total``, from the checkpoint of a run that resumes.
        """
        earlier = earlier or {}
        self._before = earlier.get("total", 0.0)
        self.total: dict[str, float] = defaultdict(float, {k: v for k, v in earlier.items() if k != "total"})
        self.last: dict[str, float] = defaultdict(float)
        self._device = device
        self._begin = time.perf_counter()
        self._stage: tuple[str, float] | None = None

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the time within the context as time of a stage."""
        self.start(stage)
        yield
        self.stop()

    def start(self, stage: str) -> None:
        """Start a stage, which lasts until ``stop``."""
        self._stage = stage, time.perf_counter()

    def stop(self) -> None:
        """End the current stage, if there is one."""
        if self._stage is None:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        stage, start = self._stage
        seconds = time.perf_counter() - start
        self.last[stage] += seconds
        self.total[stage] += seconds
        self._stage = None

    def lap(self) -> None:
        """Start a new step: the seconds in ``last`` are counted from here."""
        self._stage = None
        self.last.clear()

    def elapsed(self) -> float:
        """Return the seconds since the clock was started, plus those of earlier processes of the run."""
        return self._before + time.perf_counter() - self._begin


def reuse_freed_memory() -> None:
    """Make glibc keep freed memory: returning pages and requesting them again takes a few per cent of a step."""
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the highest value that glibc accepts
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def free_memory(device: torch.device) -> None:
    """Free the memory of earlier runs and reset the peak, so that each run of a sweep is measured separately."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError, AttributeError):  # otherwise freed pages would count in the peak of the next run
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # not Linux, or not allowed: the peak is then that of the process
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: memory allocated by torch on a GPU, else resident memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

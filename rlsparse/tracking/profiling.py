"""What a run costs: seconds by stage and the peak of its memory."""

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
    """Seconds by stage, device work included.

    Attributes:
        total: seconds by stage since the start.
        last: seconds by stage since the latest lap.
    """

    def __init__(self, device: torch.device, earlier: Mapping[str, float] | None = None) -> None:
        """
        Args:
            earlier: seconds by stage of a run that goes on, and in all (``total``).
        """
        earlier = earlier or {}
        self._before = earlier.get("total", 0.0)
        self.total: dict[str, float] = defaultdict(float, {k: v for k, v in earlier.items() if k != "total"})
        self.last: dict[str, float] = defaultdict(float)
        self._device = device
        self._start = time.perf_counter()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds = time.perf_counter() - start
        self.last[stage] += seconds
        self.total[stage] += seconds

    def lap(self) -> None:
        """A new step begins."""
        self.last.clear()

    def elapsed(self) -> float:
        """Seconds since the clock was made, and those of the run before that."""
        return self._before + time.perf_counter() - self._start


def reuse_freed_memory() -> None:
    """Have glibc keep what is freed: pages given back and taken again at every step cost some per cent of its time."""
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # its highest value
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def free_memory(device: torch.device) -> None:
    """Let go of earlier runs' memory and start a new peak, so that a run in a sweep's process pays for itself only."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError, AttributeError):  # freed pages go back, or they would count towards the next run's peak
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # not Linux, or not allowed: the peak is then the process's
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes: torch's peak on a GPU, else the process's peak resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

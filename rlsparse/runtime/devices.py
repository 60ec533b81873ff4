"""The device of a run, and the number of CPU threads."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rlsparse.config.schema import ConfigError

SMALL_MODEL = 10_000_000  # parameters; below this, one thread is faster than several


def resolve_device(name: str) -> torch.device:
    """Return the torch device for the key ``device``; ``auto`` is a GPU if there is one, else the CPU.

    Raises:
        ConfigError: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ConfigError(f"device={name}: torch has no such device here; take auto, cpu, or cuda on a GPU") from error
    if device.type == "meta":
        raise ConfigError(f"device={name}: this device holds no numbers; take auto, cpu, or cuda on a GPU")
    return device


def device_kind(name: str) -> str:
    """Return the kind of a device (cpu, cuda, mps), which this machine need not have.

    Raises:
        ConfigError: torch does not know this kind.
    """
    try:
        return torch.device(name).type
    except RuntimeError as error:
        raise ConfigError(f"device={name}: torch has no such device; take auto, cpu, or cuda on a GPU") from error


@contextmanager
def cpu_threads(threads: int | None, parameters: int) -> Iterator[None]:
    """Set the number of CPU threads of torch within the context.

    The number is ``threads`` if it is given; else 1 for a small model; else the CPUs that SLURM has assigned to this
    process; else the default of torch, which follows OMP_NUM_THREADS (joblib, Ray and torchrun set that variable).

    Args:
        threads: the key ``threads``.
        parameters: number of parameters of the model.
    """
    before = torch.get_num_threads()
    given = None if "OMP_NUM_THREADS" in os.environ else os.environ.get("SLURM_CPUS_PER_TASK")
    share = int(given) if given else before
    torch.set_num_threads(threads or (1 if parameters < SMALL_MODEL else share))
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""The device of a run, and the number of CPU threads."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from rlsparse.config.schema import ConfigError
from rlsparse.runtime.distributed import World
from rlsparse.runtime.machine import (
    Machine,
    Work,
    allowed_cpus,
    first_number,
    listed,
    oversubscription,
    runs_folder,
    usable_cpus,
)

log = logging.getLogger(__name__)
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


def auto_threads(parameters: int, environment: Mapping[str, str], default: int, cpus: int) -> int:
    """Return the number of CPU threads that ``threads=auto`` stands for.

    It is 1 for a small model; else OMP_NUM_THREADS, which joblib, Ray and torchrun set to the share of each process;
    else the CPUs that SLURM has assigned; else the default of torch, one thread for each physical core. The last two
    are at most the CPUs that this process may use.

    Args:
        parameters: number of parameters of the model.
        environment: the environment variables.
        default: number of threads that torch uses if it is not told another one.
        cpus: number of CPUs that this process may use.
    """
    if parameters < SMALL_MODEL:
        return 1
    given = first_number(environment.get("OMP_NUM_THREADS"))
    return given or min(first_number(environment.get("SLURM_CPUS_PER_TASK")) or default, cpus)


@contextmanager
def cpu_threads(threads: int | str | None, parameters: int) -> Iterator[None]:
    """Set the number of CPU threads of torch within the context.

    Args:
        threads: the key ``threads``: a number, or ``auto`` or None for ``auto_threads``.
        parameters: number of parameters of the model.
    """
    before = torch.get_num_threads()
    chosen = threads if isinstance(threads, int) else auto_threads(parameters, os.environ, before, usable_cpus())
    torch.set_num_threads(chosen)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def sharing_cpus(device: torch.device, world: World) -> Iterator[None]:
    """List a run among those that compute on this machine within the context, and log a warning if they are too many.

    A run on a GPU counts as one thread: it uses the others for short moments only.

    Args:
        device: of the run.
        world: its ranks, which all have as many threads as this process.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world.size > 1 else 1
    work = Work(threads, ranks, allowed_cpus())
    with listed(work, runs_folder()):  # first, so that of two runs that start together at least one finds the other
        if line := oversubscription(work, Machine.now(runs_folder())):
            log.warning("warning: %s", line)
        yield

"""One GPU for each of several runs on a machine: a run that starts takes a free one."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


def slots_folder() -> Path:
    """Return the folder of locks by which all runs of this user on this machine, of any sweep, share the GPUs."""
    visible = re.sub(r"[^\w-]", "_", os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    return Path(tempfile.gettempdir()) / f"rlsparse-gpus-{os.getuid()}-{visible}"


@contextmanager
def reserve_gpu(folder: Path, slots: int, gpus: int) -> Iterator[str]:
    """Within the context, reserve one of the slots and return the name of its GPU.

    Slot k is on GPU k mod ``gpus``, so that runs spread evenly if there are more runs than GPUs. The slot of a process
    that has died is free.

    Args:
        folder: folder of the locks of the slots.
        slots: number of runs that are done at the same time.
        gpus: number of GPUs of this machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        slot = 0
        while True:
            try:
                held.enter_context(FileLock(folder / f"slot-{slot}", timeout=0, fallback_to_soft=False))
                break
            except Timeout:
                slot += 1
                if slot == slots:  # more runs than slots should not happen; share a GPU instead of waiting
                    break
        yield f"cuda:{slot % gpus}"

"""One GPU for each of several runs of a machine: whoever begins takes the next one that is free."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


def places_folder() -> Path:
    """Where this user's runs on this machine keep off each other's GPUs, those of other sweeps too."""
    visible = re.sub(r"[^\w-]", "_", os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    return Path(tempfile.gettempdir()) / f"rlsparse-gpus-{os.getuid()}-{visible}"


@contextmanager
def own_gpu(folder: Path, places: int, gpus: int) -> Iterator[str]:
    """The name of a GPU, ours inside.

    Place k is on GPU k mod ``gpus``, so that runs spread evenly where there are more of them; a dead run's is free.

    Args:
        folder: where the places' locks are.
        places: runs at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        place = 0
        while True:
            try:
                held.enter_context(FileLock(folder / f"place-{place}", timeout=0, fallback_to_soft=False))
                break
            except Timeout:
                place += 1
                if place == places:  # more runs than places: nobody should, and no lock is worth waiting for
                    break
        yield f"cuda:{place % gpus}"

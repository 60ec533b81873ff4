"""The slow imports of a run (torch, transformers, peft), which the command line does not need to report an error."""

import atexit
import ctypes
import gc
import resource
import warnings
from contextlib import suppress
from functools import cache
from importlib import import_module

M_ARENA_MAX = -8  # number of the option in glibc


@cache
def import_all() -> None:
    """Import the modules that a run needs, without garbage collection: this takes an eighth less time.

    The imported objects are never freed, so they are also excluded from later collections (``gc.freeze``).
    """
    spare_addresses()
    was_on = gc.isenabled()
    gc.disable()
    try:
        for module in ("rlsparse.execution.preflight", "rlsparse.train", "peft"):
            import_module(module)
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
        atexit.register(gc.unfreeze)  # otherwise triton prints warnings at exit


def spare_addresses() -> None:
    """Have glibc share its memory among threads where the address space is limited (``ulimit -v``).

    Otherwise each thread reserves up to 128 MiB of addresses, and torch ends without a message where none are left.
    """
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def quieten() -> None:
    """Turn off the progress bars of model loading and deprecation warnings of libraries about each other."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")

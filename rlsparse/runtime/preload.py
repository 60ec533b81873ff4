"""The imports that a run needs and a misspelt key does not: torch, transformers, peft."""

import atexit
import gc
import warnings
from functools import cache
from importlib import import_module


@cache
def import_all() -> None:
    """Import them: it takes seconds, an eighth less where no garbage collector walks a million new objects meanwhile.

    What they brought stays for good, so the collector need not look at it in later runs either.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        for module in ("rlsparse.execution.preflight", "rlsparse.train", "peft"):
            import_module(module)
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
        atexit.register(gc.unfreeze)  # triton laments at exit over what was never collected


def quieten() -> None:
    """Silence loaders' bars and deprecation notices of one library about another, which would bury our own lines."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")

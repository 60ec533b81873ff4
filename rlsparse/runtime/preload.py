"""The slow imports of a run (torch, transformers, peft), which the command line does not need to report an error."""

import atexit
import gc
import warnings
from functools import cache
from importlib import import_module


@cache
def import_all() -> None:
    """Import the modules that a run needs, without garbage collection: this takes an eighth less time.

    The imported objects are never freed, so they are also excluded from later collections (``gc.freeze``).
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
        atexit.register(gc.unfreeze)  # otherwise triton prints warnings at exit


def quieten() -> None:
    """Turn off the progress bars of model loading and deprecation warnings of libraries about each other."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")

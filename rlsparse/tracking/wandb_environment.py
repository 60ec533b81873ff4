"""The environment of the processes that use W&B: which of its variables count, and where it may write.

This module does not import wandb.
"""

import atexit
import os
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

from rlsparse.tracking.wandb_names import usable_tags

# variables that would give all runs of a sweep one id, one name or one place; the folder of each run decides instead
NOT_USED = (
    "WANDB_RUN_ID",
    "WANDB_NAME",
    "WANDB_RUN_GROUP",
    "WANDB_JOB_TYPE",
    "WANDB_RESUME",
    "WANDB_RESUME_FROM",
    "WANDB_FORK_FROM",
    "WANDB_SWEEP_ID",
)
MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")  # of WANDB_MODE
TRUE = ("1", "true", "yes", "on")


def prepare_environment() -> None:
    """Prepare the environment of this process before wandb is imported.

    The variables in ``NOT_USED`` are removed, and empty tags in ``WANDB_TAGS``. A folder of W&B that cannot be written,
    as without a home folder, is replaced by a temporary folder; W&B would print its log on the terminal or fail.
    """
    for name in NOT_USED:
        os.environ.pop(name, None)
    tags = environment_tags()
    os.environ.pop("WANDB_TAGS", None)
    if tags:
        os.environ["WANDB_TAGS"] = ",".join(tags)
    _give_writable_folders()
    os.environ.setdefault("WANDB_SILENT", "true")


def environment_tags() -> list[str]:
    """Return the tags of ``WANDB_TAGS``."""
    return usable_tags(os.environ.get("WANDB_TAGS", "").split(","))


def is_disabled() -> bool:
    """Return whether ``WANDB_MODE`` or ``WANDB_DISABLED`` turns W&B off."""
    return os.environ.get("WANDB_MODE") == "disabled" or _is_true("WANDB_DISABLED")


def mode_problem(mode: str) -> str | None:
    """Return why W&B has no mode for a run; None if it has one.

    Args:
        mode: the key ``tracker.mode``.
    """
    given = os.environ.get("WANDB_MODE")
    if mode != "auto" or not given or given in MODES:
        return None
    return f"WANDB_MODE={given}: must be one of {', '.join(MODES)}; or give tracker.mode"


def root_folder(run: Path) -> Path:
    """Return the folder in which W&B makes its folder ``wandb``: ``WANDB_DIR`` if it can be written, else the run's."""
    given = os.environ.get("WANDB_DIR")
    return Path(given).expanduser().absolute() if given and _is_writable(given) else run


def wandb_folder(root: Path) -> Path:
    """Return the folder that W&B makes in a folder: ``wandb``, or ``.wandb`` where there is one already."""
    hidden = root / ".wandb"
    return hidden if hidden.exists() else root / "wandb"


def _is_true(name: str) -> bool:
    return os.environ.get(name, "").lower() in TRUE


@cache
def _is_writable(given: str) -> bool:
    """Return whether a ``WANDB_DIR`` can be written; for one that cannot, a line is printed once."""
    error = _write_error(Path(given).expanduser())
    if error is not None:
        where = "the files of W&B are in the folders of the runs"
        print(f"W&B: WANDB_DIR={given} cannot be written ({error.strerror}); {where}", file=sys.stderr)
    return error is None


def _write_error(folder: Path) -> OSError | None:
    """Return why no file can be made in a folder, which is made if it does not exist; None if one can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error


def _give_writable_folders() -> None:
    """Name other folders for the cache and the temporary files of wandb where it could not write the usual ones."""
    if not os.environ.get("HOME"):
        known = os.path.expanduser("~")  # that of the user database; unchanged where the user is not in it
        os.environ["HOME"] = known if os.path.isabs(known) else _temporary("home")
    home = os.environ["HOME"]
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # W&B refuses a relative one
        cache = os.environ["XDG_CACHE_HOME"] = f"{home}/.cache"
    data = os.environ.get("XDG_DATA_HOME") or f"{home}/.local/share"
    used = {
        "XDG_CACHE_HOME": cache,
        "WANDB_CACHE_DIR": os.environ.get("WANDB_CACHE_DIR") or f"{cache}/wandb",
        "WANDB_DATA_DIR": os.environ.get("WANDB_DATA_DIR") or f"{data}/wandb",
    }
    for name, folder in used.items():
        if _write_error(Path(folder).expanduser()):
            os.environ[name] = _temporary(name.lower())


def _temporary(name: str) -> str:
    """Return a new folder that is removed when this process ends."""
    folder = tempfile.mkdtemp(prefix=f"rlsparse-{name}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder

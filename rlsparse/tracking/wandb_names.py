"""Names that W&B accepts: it refuses a run with a name that is too long or has one of some characters.

This module does not import wandb.
"""

import hashlib
import os
import re
from collections.abc import Iterable

from rlsparse.tracking.metrics import SAMPLE_TABLE

LONGEST_NAME = 128  # characters of a project, of a group, and of the name of a run
LONGEST_LABEL = 64  # characters of a tag and of a job type
LONGEST_ID = LONGEST_NAME - len(f"run--{SAMPLE_TABLE}")  # W&B stores the table of samples as run-<id>-samples
LONGEST_ID_BYTES = 220  # W&B makes a folder named offline-run-<date>_<time>-<id>; file systems take 255
NOT_IN_PROJECT = "/\\#?%:"
DEFAULT_PROJECT = "rlsparse"
HASH = 10  # hexadecimal digits


def shortened(text: str, limit: int, limit_bytes: int | None = None) -> str:
    """Return a text that fits: one that is too long is cut off and ends with a hash of the whole text.

    Args:
        limit: the largest number of characters.
        limit_bytes: the largest number of bytes in UTF-8; None for no such limit.
    """
    size = limit_bytes or 4 * limit
    encoded = text.encode("utf-8", "backslashreplace")  # half of a surrogate pair has no UTF-8 encoding
    whole = encoded.decode()
    if len(whole) <= limit and len(encoded) <= size:
        return whole
    ending = f"-{hashlib.sha256(encoded).hexdigest()[:HASH]}"
    return encoded[: size - len(ending)].decode(errors="ignore")[: limit - len(ending)] + ending


def wandb_id(experiment: str, run_id: str) -> str:
    """Return the id of a run on W&B: experiment and run id; the same run always has the same one."""
    text = f"{experiment}-{run_id}"
    allowed = re.sub(r"[^\w.-]", "_", text)
    if allowed != text:  # different texts must stay different
        allowed += f"-{hashlib.sha256(text.encode('utf-8', 'backslashreplace')).hexdigest()[:HASH]}"
    return shortened(allowed, LONGEST_ID, LONGEST_ID_BYTES)


def group_name(experiment: str) -> str:
    """Return the W&B group of the runs of an experiment."""
    return shortened(experiment, LONGEST_NAME)


def usable_tags(tags: Iterable[object]) -> list[str]:
    """Return the tags that W&B accepts, each once: empty ones are left out, and long ones are shortened."""
    words = (" ".join(str(tag).split()) for tag in tags)
    return list(dict.fromkeys(shortened(word, LONGEST_LABEL) for word in words if word))


def project_name(given: str | None) -> str:
    """Return the W&B project of a run: the given one, else that of ``WANDB_PROJECT``, else ``DEFAULT_PROJECT``."""
    return given if given is not None else os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT


def project_problem(given: str | None, key: str = "tracker.project") -> str | None:
    """Return why W&B would refuse the project of a run; None if it accepts the project.

    Args:
        given: the value of the key; None if it has none.
        key: where the value comes from.
    """
    name = project_name(given)
    source = f"{key if given is not None else 'WANDB_PROJECT'}={name}"
    if not name.strip():
        return f"{source}: names no W&B project; give a name, or null for {DEFAULT_PROJECT}"
    if len(name) > LONGEST_NAME:
        return f"{source}: W&B takes at most {LONGEST_NAME} characters in a project; this has {len(name)}"
    if any(character in NOT_IN_PROJECT or not character.isprintable() for character in name):
        return f"{source}: W&B takes none of {' '.join(NOT_IN_PROJECT)} in a project; choose another name"
    return None

"""Checkpoints: all that a run needs to go on, written whole or not at all, and never trusted unread.

A checkpoint is a folder ``step-000120`` with ``tensors.safetensors``, ``state.json`` and ``SHA256SUMS``. It is written
under another name, synced and renamed, so that a folder of that name is complete; one whose sums do not fit is passed
over.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlsparse.storage.atomic import sync

KEPT = 2
log = logging.getLogger(__name__)
FORMAT = 1  # of what a checkpoint holds; one of another number is not gone on with
TENSORS, STATE, SUMS = "tensors.safetensors", "state.json", "SHA256SUMS"


@dataclass(frozen=True)
class Checkpoint:
    """What was saved.

    Attributes:
        step: the last one that was done.
        tensors: by name.
        state: everything else, as JSON knows it.
    """

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write it into ``folder`` and let go of all but the last two.

    Raises:
        OSError: it cannot be written; the earlier ones are untouched.
    """
    folder.mkdir(exist_ok=True)
    target = folder / _name(checkpoint.step)
    temporary = folder / f".{target.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
        save_file(tensors, temporary / TENSORS)
        (temporary / STATE).write_text(
            json.dumps({"format": FORMAT, "step": checkpoint.step, **checkpoint.state}), encoding="utf-8"
        )
        (temporary / SUMS).write_text(_sums(temporary), encoding="utf-8")
        for file in (TENSORS, STATE, SUMS):
            sync(temporary / file)
        sync(temporary)
        shutil.rmtree(target, ignore_errors=True)  # of a damaged one of this step, which was passed over
        temporary.rename(target)
        sync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in _steps(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path, fits: Callable[[Checkpoint], bool]) -> Checkpoint | None:
    """Return the newest checkpoint that is whole; None where there is none. Damaged ones are logged and skipped.

    Args:
        fits: whether the other files of the run begin as they did when it was written.
    """
    for found in _steps(folder):
        try:
            checkpoint = _read(found)
            if not fits(checkpoint):
                raise ValueError("the run's files no longer begin as they did")
            return checkpoint
        except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
            log.warning("warning: %s is damaged and skipped (%s)", found, error)
    return None


def _read(folder: Path) -> Checkpoint:
    if (folder / SUMS).read_text(encoding="utf-8") != _sums(folder):
        raise ValueError("its SHA256SUMS do not fit")
    state: Mapping[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    if state["format"] != FORMAT:
        raise ValueError(f"it is of format {state['format']}, and this version reads {FORMAT}")
    rest = {key: value for key, value in state.items() if key not in ("format", "step")}
    return Checkpoint(int(state["step"]), load_file(folder / TENSORS), rest)


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _steps(folder: Path) -> list[Path]:
    """The complete checkpoints, newest first."""
    return sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []


def _sums(folder: Path) -> str:
    lines = []
    for name in (STATE, TENSORS):
        with (folder / name).open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines)

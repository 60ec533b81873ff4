"""Checkpoints: everything that a run needs to resume, written atomically and verified when it is read.

A checkpoint is a folder ``step-000120`` with ``tensors.safetensors``, ``state.json`` and ``SHA256SUMS``. It is written
under a temporary name, flushed to disk and renamed, so a folder with the final name is complete. A checkpoint whose
checksums do not match is skipped.
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

KEPT = 2  # checkpoints
log = logging.getLogger(__name__)
FORMAT = 1  # version of the content of a checkpoint; a run does not resume from another version
TENSORS, STATE, SUMS = "tensors.safetensors", "state.json", "SHA256SUMS"


@dataclass(frozen=True)
class Checkpoint:
    """Holds the saved state of a run.

    Attributes:
        step: the last completed step.
        tensors: tensors by name.
        state: everything else, as values that JSON can hold.
    """

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]

    def release(self) -> None:
        """Free the tensors, after a run has taken them over: they may be three times as large as the model."""
        self.tensors.clear()


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint into ``folder`` and delete all but the last two.

    Raises:
        OSError: the checkpoint cannot be written; the earlier ones are unchanged.
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
        shutil.rmtree(target, ignore_errors=True)  # a damaged checkpoint of this step that was skipped
        temporary.rename(target)
        sync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in _steps(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path, fits: Callable[[Checkpoint], bool]) -> Checkpoint | None:
    """Return the newest complete checkpoint; None if there is none. Damaged checkpoints are logged and skipped.

    Args:
        folder: the folder of the checkpoints.
        fits: returns whether the other files of the run still begin with their content at the time of the checkpoint.
    """
    for found in _steps(folder):
        try:
            checkpoint = _read(found)
            if not fits(checkpoint):
                raise ValueError("other files of the run have changed since it was written")
            return checkpoint
        except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
            log.warning("warning: %s is damaged and skipped (%s)", found, error)
    return None


def _read(folder: Path) -> Checkpoint:
    if (folder / SUMS).read_text(encoding="utf-8") != _sums(folder):
        raise ValueError("its files do not match SHA256SUMS")
    state: Mapping[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    if state["format"] != FORMAT:
        raise ValueError(f"it has format {state['format']}; this version reads format {FORMAT}")
    rest = {key: value for key, value in state.items() if key not in ("format", "step")}
    return Checkpoint(int(state["step"]), load_file(folder / TENSORS), rest)


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _steps(folder: Path) -> list[Path]:
    """Return the folders of the complete checkpoints, newest first."""
    return sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []


def _sums(folder: Path) -> str:
    lines = []
    for name in (STATE, TENSORS):
        with (folder / name).open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines)

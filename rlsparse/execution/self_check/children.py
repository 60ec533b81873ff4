"""Processes that a self-check starts for runs that are interrupted, limited in memory, or shared by several ranks."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlsparse.execution.self_check.findings import Figure, Setting
from rlsparse.storage.jsonl import read_rows
from rlsparse.storage.run_folder import RunFolder
from rlsparse.storage.summary import read_summary

MODULE = "rlsparse.execution.self_check.child"
TIMEOUT = 1800  # seconds
# a small run of the embedded model; every completion has something to teach (raw rewards, none of them 0)
RUN = (
    "model=tiny",
    "dtype=float32",
    "threads=1",
    "tracker=none",
    "advantage=raw_reward",
    "reward.wrong=-1",
    "task.train_rows=200",
    "eval.max_rows=16",
)


class ChildError(RuntimeError):
    """A process has ended with an error."""


@dataclass(frozen=True)
class Ended:
    """What a process has written.

    Attributes:
        results: of the runs, as ``child.runs`` returns them.
        log: standard error.
    """

    results: Any
    log: str


def do_runs(setting: Setting, runs: Sequence[Mapping[str, Any]], **more: Any) -> Ended:
    """Do runs one after the other in a process of their own; see ``child.runs`` for the arguments.

    Raises:
        ChildError: the process has failed.
    """
    return start([], {"kind": "runs", "device": setting.device, "runs": list(runs), **more})


def start(launcher: Sequence[str], order: Mapping[str, Any]) -> Ended:
    """Start ``child.py`` with an order and wait for its end.

    Args:
        launcher: arguments of Python before the module; empty for a single process.

    Raises:
        ChildError: the process has failed, or has not ended in time.
    """
    code = str(Path(__file__).parent.parent.parent.parent)
    paths = [code, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",  # each arena of glibc reserves addresses, which may be limited
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic products need it
    }
    command = [sys.executable, *launcher, "-m", MODULE, json.dumps(order)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise ChildError(f"the process has not ended within {TIMEOUT} seconds") from error
    if done.returncode != 0:
        raise ChildError(f"exit code {done.returncode}: {_last_error(done.stderr)}")
    lines = done.stdout.strip().splitlines()
    return Ended(json.loads(lines[-1]) if lines else None, done.stderr)


def _last_error(text: str) -> str:
    """Return the last line of a log that looks like an exception; else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no message"]
    errors = [line for line in lines if re.match(r"(\[rank\d+\]: )?[\w.]*(Error|Exception|Lost)\b", line)]
    return (errors or lines)[-1]


@dataclass(frozen=True)
class Outcome:
    """What a run has written that must not depend on how it was executed.

    Attributes:
        rows: of ``metrics.jsonl``, without times.
        samples: the bytes of ``samples.jsonl`` and ``answers.jsonl``.
        adapter: the bytes of the weights.
        tensors: the weights, (n,) float32.
        peak: peak memory, bytes.
    """

    status: str
    rows: list[dict[str, Any]]
    samples: bytes
    adapter: bytes
    tensors: torch.Tensor
    peak: int


def outcome(runs: Path) -> Outcome:
    """Return what the one run of experiment ``default`` under a folder has written."""
    from safetensors.torch import load

    folder = run_folder(runs)
    summary = read_summary(folder.path) or {}
    weights = (folder.adapter / "adapter_model.safetensors").read_bytes()
    return Outcome(
        status=summary.get("status", "cut off"),
        rows=[without_times(row) for row in read_rows(folder.metrics)],
        samples=folder.samples.read_bytes() + folder.answers.read_bytes(),
        adapter=weights,
        tensors=torch.cat([tensor.flatten() for _, tensor in sorted(load(weights).items())]),
        peak=int(summary.get("peak_memory_bytes", 0)),
    )


def run_folder(runs: Path) -> RunFolder:
    """Return the folder of the one run of experiment ``default``."""
    (config,) = runs.glob("default/*/config.yaml")
    return RunFolder(config.parent)


def without_times(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of metrics without what differs from one execution to the next."""
    return {name: v for name, v in row.items() if not name.startswith("time/") and name != "rollout/tokens_per_second"}


def greatest_ratio(
    found: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]], relative: float, absolute: float
) -> Figure:
    """Return the greatest difference of the numbers of two lists of rows over what is allowed; at most 1 passes.

    The allowed difference of a number is the larger one of ``relative`` times its expected size and ``absolute``. Rows
    with other names or texts differ by infinity.
    """
    name = f"metrics, difference over {relative:g} relative or {absolute:g}"
    ratios = [0.0]
    for row, other in zip(found, expected, strict=False):
        for key in row.keys() | other.keys():
            a, b = row.get(key), other.get(key)
            if isinstance(a, (int, float)) and isinstance(b, (int, float)):
                ratio = abs(a - b) / max(relative * abs(b), absolute)
                ratios.append(math.inf if math.isnan(ratio) else ratio)  # max() may pass over NaN
            elif a != b:
                ratios.append(math.inf)
    if len(found) != len(expected):
        ratios.append(math.inf)
    return Figure(name, max(ratios), most=1.0)

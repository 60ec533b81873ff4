"""Start runs in processes that can be killed, and read the results that must not depend on it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ROOT

STEPS = 24
SETTING = (
    "tracker=none",
    f"train.steps={STEPS}",
    "train.prompts_per_step=4",
    "train.group_size=4",
    "train.checkpoint_every=2",
    "eval.every=8",
    "eval.max_rows=16",
)


class ForkServer:
    """Runs the process of ``fork_server.py``, which forks once for each run."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.fork_server"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self._line() == "ready"

    def run(self, overrides: list[str], wait: Callable[[], object] | None = None, number: int = signal.SIGKILL) -> int:
        """Do a run and return its wait status; a signal is sent to it once ``wait`` returns.

        Args:
            wait: None to let the run end by itself.
        """
        assert self._process.stdin is not None
        print(json.dumps(overrides), file=self._process.stdin, flush=True)
        child = int(self._line())
        if wait is not None:
            wait()
            os.kill(child, number)  # the process id stays taken until the server waits for it, below
        print(file=self._process.stdin, flush=True)
        return int(self._line())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def until_steps(runs: Path, count: int) -> None:
    """Wait until the runs have logged ``count`` training steps together."""
    deadline = time.monotonic() + 120
    while sum(file.read_text().count('"kind": "train"') for file in runs.glob("default/*/metrics.jsonl")) < count:
        assert time.monotonic() < deadline, "no training step within two minutes"
        time.sleep(0.05)


def until_then(seconds: float, runs: Path) -> None:
    """Wait ``seconds``, or until the run has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not any(runs.glob("default/*/summary.json")):
        time.sleep(0.01)


def only_run(runs: Path) -> Path:
    """Return the folder of the one run of experiment ``default``."""
    (file,) = runs.glob("default/*/config.yaml")
    return file.parent


def without_times(row: dict) -> dict:
    """Return a row of metrics without the keys that differ from one execution to the next."""
    return {k: v for k, v in row.items() if not k.startswith("time/") and k != "rollout/tokens_per_second"}


def outcome(folder: Path) -> dict:
    """Return what must not depend on interruptions: all rows, samples, numbers and the bytes of the adapter."""
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("time", "peak_memory_bytes"):
        del summary[name]
    return {
        "metrics": [without_times(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()],
        "samples": (folder / "samples.jsonl").read_text(),
        "answers": (folder / "answers.jsonl").read_bytes(),
        "summary": summary,
        "adapter": (folder / "adapter" / "adapter_model.safetensors").read_bytes(),
    }


def outcome_of(folder: Path) -> dict:
    """Return the outcome without the overrides, which name the folder of the run."""
    found = outcome(folder)
    del found["summary"]["overrides"]
    return found


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a process and return its exit code and output."""
    text, _ = process.communicate(timeout=400)
    return process.returncode, text


def heed_interrupts() -> None:
    """Restore SIGINT, which is ignored by processes that a shell has started in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)

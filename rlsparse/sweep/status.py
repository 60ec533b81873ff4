"""``python -m rlsparse.status``: what became of each run of a sweep: finished, running, cut off, failed, missing."""

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rlsparse.storage.atomic import read_yaml
from rlsparse.storage.jsonl import read_last_rows
from rlsparse.storage.locks import holder
from rlsparse.storage.run_folder import RunFolder
from rlsparse.storage.summary import read_summary
from rlsparse.sweep.plan import read_plan

TAIL = 2**16  # bytes: more than a few lines of metrics.jsonl


@dataclass(frozen=True)
class RunState:
    """How a run stands.

    Attributes:
        name: its overrides, or its id where nobody planned it.
        state: finished, diverged, failed, running, cut off or missing.
        about: what else there is to say: the cause, the step and the time left.
    """

    id: str
    name: str
    state: str
    about: str = ""


def run_state(folder: Path, name: str) -> RunState:
    """Of the run in this folder, which need not exist."""
    held = holder(folder) if folder.is_dir() else None
    if held is not None:
        where = f"on {held['host']}, process {held['pid']}" if {"host", "pid"} <= set(held) else ""
        return RunState(folder.name, name, "running", ", ".join(filter(None, [_progress(folder), where])))
    summary = read_summary(folder)
    if summary is not None:
        return RunState(folder.name, name, summary["status"], summary.get("error") or "")
    if RunFolder(folder).summary.exists():
        return RunState(folder.name, name, "failed", "its summary.json cannot be read")
    if RunFolder(folder).config.is_file():
        return RunState(folder.name, name, "cut off", _progress(folder))
    return RunState(folder.name, name, "missing")


def sweep_states(experiment: Path) -> list[RunState]:
    """Of every run that was planned or begun in an experiment's folder, planned ones first and in their order."""
    planned = read_plan(experiment)
    begun = sorted(path.parent.name for path in experiment.glob("*/config.yaml")) if experiment.is_dir() else []
    ids = dict.fromkeys([*planned, *begun])
    return [run_state(experiment / run_id, " ".join(planned.get(run_id, [])) or run_id) for run_id in ids]


def _progress(folder: Path) -> str:
    """The last step, of how many, and what the rest will take at the pace of the last steps."""
    rows = read_last_rows(RunFolder(folder).metrics, TAIL)
    steps = [row for row in rows if row.get("kind") == "train"]
    if not steps:
        return "no step done"
    done, total = steps[-1].get("step"), _steps(folder)
    try:
        seconds = sum(row[f"time/{stage}"] for row in steps for stage in ("rollout", "reward", "train")) / len(steps)
    except (KeyError, TypeError):
        total = None
    if total is None or not isinstance(done, int):
        return f"step {done}"
    return f"step {done} of {total}, {(total - done) * seconds:.0f} s of training left"


def _steps(folder: Path) -> int | None:
    try:
        return int((read_yaml(RunFolder(folder).config) or {})["train"]["steps"])
    except (ValueError, TypeError, KeyError, OverflowError):
        return None


def line(one: RunState) -> str:
    """A run's, for a person."""
    return f"{one.state}: {one.name}" + (f" ({one.about})" if one.about else "")


def report(states: list[RunState]) -> str:
    """Lines for a person: what is not simply finished, then how many of each kind."""
    open_lines = [line(one) for one in states if one.state != "finished"]
    counts = Counter(one.state for one in states)
    runs = "run" if len(states) == 1 else "runs"
    return "\n".join(
        [*open_lines, f"{len(states)} {runs}: " + ", ".join(f"{n} {state}" for state, n in counts.items())]
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m rlsparse.status", description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of experiments (runs_dir of the runs)")
    parser.add_argument("--experiment", help="only this one")
    options = parser.parse_args()
    if not options.runs.is_dir():
        sys.exit(f"error: --runs {options.runs}: there is no such folder; give the runs_dir of the runs")
    if options.experiment and not (options.runs / options.experiment).is_dir():
        sys.exit(f"error: --experiment {options.experiment}: there is no {options.runs / options.experiment}")
    names = [options.experiment] if options.experiment else sorted(p.name for p in options.runs.iterdir() if p.is_dir())
    for name in names:
        if not name.startswith("."):
            print(f"{name}\n{report(sweep_states(options.runs / name))}\n")


if __name__ == "__main__":
    main()

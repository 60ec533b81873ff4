"""Print the state of each run of a sweep: ``python -m rlsparse.status``.

The states are finished, diverged, failed, running, cut off (started, but not finished) and missing (not started).
"""

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rlsparse.storage.atomic import read_yaml
from rlsparse.storage.jsonl import read_last_rows
from rlsparse.storage.locks import holder
from rlsparse.storage.run_folder import RunFolder, path_argument
from rlsparse.storage.streams import command
from rlsparse.storage.summary import read_summary
from rlsparse.sweep.plan import read_plan

TAIL = 2**16  # bytes; more than a few lines of metrics.jsonl


@dataclass(frozen=True)
class RunState:
    """The state of a run.

    Attributes:
        id: the run id.
        name: the overrides of the run; its id if it was not planned by a sweep.
        state: finished, diverged, failed, running, cut off or missing.
        detail: the error of a failed run; step, remaining time and process of a running one.
    """

    id: str
    name: str
    state: str
    detail: str = ""


def run_state(folder: Path, name: str) -> RunState:
    """Return the state of the run in a folder, which need not exist."""
    process = holder(folder) if folder.is_dir() else None
    if process is not None:
        where = f"on {process['host']}, process {process['pid']}" if {"host", "pid"} <= set(process) else ""
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
    """Return the states of all planned runs of an experiment in their order, then those of other started runs."""
    planned = read_plan(experiment)
    folders = experiment.iterdir() if experiment.is_dir() else ()
    started = sorted(path.name for path in folders if RunFolder(path).config.exists())
    ids = dict.fromkeys([*planned, *started])
    return [run_state(experiment / run_id, " ".join(planned.get(run_id, [])) or run_id) for run_id in ids]


def _progress(folder: Path) -> str:
    """Return the last step, the number of steps, and the remaining time at the pace of the last steps."""
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
    """Return the number of steps in the config of a run; None if it cannot be read."""
    try:
        return int((read_yaml(RunFolder(folder).config) or {})["train"]["steps"])
    except (ValueError, TypeError, KeyError, OverflowError):
        return None


def format_state(one: RunState) -> str:
    """Return the state of a run as a line."""
    return f"{one.state}: {one.name}" + (f" ({one.detail})" if one.detail else "")


def format_states(states: list[RunState]) -> str:
    """Return a line for each run that is not finished, and a last line with the number of runs in each state."""
    unfinished = [format_state(one) for one in states if one.state != "finished"]
    counts = Counter(one.state for one in states)
    runs = "run" if len(states) == 1 else "runs"
    return "\n".join(
        [*unfinished, f"{len(states)} {runs}: " + ", ".join(f"{n} {state}" for state, n in counts.items())]
    )


@command()
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m rlsparse.status", description=__doc__)
    parser.add_argument(
        "--runs",
        type=path_argument,
        default=Path("runs"),
        help="folder of experiments (runs_dir of your runs; default: runs)",
    )
    parser.add_argument("--experiment", help="name of one experiment (default: all)")
    options = parser.parse_args()
    if not options.runs.is_dir():
        sys.exit(f"error: --runs {options.runs}: there is no such folder; give the runs_dir of your runs")
    if options.experiment and not (options.runs / options.experiment).is_dir():
        sys.exit(f"error: --experiment {options.experiment}: there is no folder {options.runs / options.experiment}")
    names = [options.experiment] if options.experiment else sorted(p.name for p in options.runs.iterdir() if p.is_dir())
    for name in names:
        if not name.startswith("."):
            print(f"{name}\n{format_states(sweep_states(options.runs / name))}\n")


if __name__ == "__main__":
    main()

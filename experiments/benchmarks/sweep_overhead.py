"""Measure the time that a sweep takes beside its runs, in one process (hydra/launcher=local): sweep_overhead.json.

The time of a sweep minus the times in the summaries of its runs, for many short runs and for one: the difference is
the cost of each further run (composing, checking, locking, writing, seeding).

python experiments/benchmarks/sweep_overhead.py
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from tabulate import tabulate

RUNS, REPETITIONS = 20, 3
SMALL = ["train.steps=2", "train.prompts_per_step=2", "train.group_size=4", "eval.max_rows=8", "tracker=none"]


def main() -> None:
    one, many = zip(*((_sweep(1), _sweep(RUNS)) for _ in range(REPETITIONS)), strict=True)
    overheads = [(b[1] - a[1]) / (RUNS - 1) for a, b in zip(one, many, strict=True)]
    report = {
        "a run, by its own clock": _spread([taken / RUNS for taken, _ in many]),
        "beside each run": _spread(overheads),
        "beside the first run: start-up": _spread([rest for _, rest in one]),
    }
    Path(__file__).with_name("sweep_overhead.json").write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


def _sweep(runs: int) -> tuple[float, float]:
    """Return the seconds in the summaries of the runs of a sweep, and the other seconds of the sweep."""
    with tempfile.TemporaryDirectory() as folder:
        seeds = f"seed=range({runs})"
        command = [sys.executable, "-m", "rlsparse.run", "-m", seeds, *SMALL, f"runs_dir={folder}"]
        start = perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        wall = perf_counter() - start
        totals = [json.loads(file.read_text())["time"]["total"] for file in Path(folder).glob("*/*/summary.json")]
    assert len(totals) == runs
    return sum(totals), wall - sum(totals)


def _spread(values: list[float]) -> list[float]:
    """Return the median, the minimum and the maximum."""
    return [round(value, 3) for value in (median(values), min(values), max(values))]


def table(report: dict[str, list[float]]) -> str:
    """Return the report as Markdown."""
    rows = [[name, "{:.2f} ({:.2f} to {:.2f})".format(*seconds)] for name, seconds in report.items()]
    return tabulate(rows, ["", "seconds (spread)"], tablefmt="pipe")


if __name__ == "__main__":
    main()

"""Measure start-up: --help, one run, and two runs of a sweep in one process: startup.json.

The last case finds no compiled module and stores none, as where PYTHONDONTWRITEBYTECODE is set and the packages were
installed without being compiled.

python experiments/benchmarks/startup.py
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from tabulate import tabulate

UNCOMPILED = "one run, no module compiled"


def main() -> None:
    run = [sys.executable, "-m", "rlsparse.run"]
    cases = {"one run": ["seed=0"], "two runs": ["-m", "seed=0,1"], UNCOMPILED: ["seed=0"]}
    times = {"help": [_seconds([*run, "--help"]) for _ in range(5)], **{name: [] for name in cases}}
    for _ in range(3):
        for name, seeds in cases.items():
            with tempfile.TemporaryDirectory() as folder:
                small = ["train.steps=1", "eval.max_rows=1", "tracker=none", f"runs_dir={folder}"]
                uncompiled = {"PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": "1"}
                times[name].append(_seconds([*run, *seeds, *small], **(uncompiled if name == UNCOMPILED else {})))
    medians = {name: round(median(seconds), 2) for name, seconds in times.items()}
    medians["second run of a sweep"] = round(medians["two runs"] - medians["one run"], 2)
    Path(__file__).with_name("startup.json").write_text(json.dumps(medians, indent=1) + "\n")
    print(medians)


def table(report: dict[str, float]) -> str:
    """Return the report as Markdown."""
    return tabulate([[name, f"{seconds:.2f}"] for name, seconds in report.items()], ["", "seconds"], tablefmt="pipe")


def _seconds(command: list[str], **variables: str) -> float:
    start = perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **variables})
    return perf_counter() - start


if __name__ == "__main__":
    main()

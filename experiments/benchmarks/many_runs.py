"""Measure status and tables on a results folder of 1,000 runs, copies of two short runs: many_runs.json.

python experiments/benchmarks/many_runs.py
"""

import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from tabulate import tabulate

METHODS, SEEDS, REPETITIONS = 100, 10, 5
SMALL = ["train.steps=40", "train.prompts_per_step=2", "train.group_size=4", "eval.max_rows=8", "tracker=none"]
COMMANDS = {"status": "rlsparse.sweep.status", "tables": "rlsparse.results.__main__"}
# folder -> adapter of its runs, and whether they are finished; the others were interrupted after their last step
FOLDERS = {
    "finished": ("lora", True),
    "cut off": ("lora", False),
    "finished, with ranks that move": ("l1ra_short", True),
}


def main() -> None:
    report: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for adapter in dict.fromkeys(adapter for adapter, _ in FOLDERS.values()):
            command = [sys.executable, "-m", "rlsparse.run", f"adapter={adapter}", *SMALL]
            subprocess.run([*command, f"runs_dir={place / 'real' / adapter}"], check=True, capture_output=True)
        for name, (adapter, is_finished) in FOLDERS.items():
            (run,) = (place / "real" / adapter).glob("default/*/")
            copies(run, place / name / "many", is_finished)
        for command, module in COMMANDS.items():
            report[command] = {"import alone": _times([sys.executable, "-c", f"import {module}"])}
            for name in FOLDERS:
                report[command][name] = _times([sys.executable, "-m", module, "--runs", str(place / name)])
            print(table(report))
    Path(__file__).with_name("many_runs.json").write_text(json.dumps(report, indent=1) + "\n")


def copies(run: Path, experiment: Path, is_finished: bool) -> None:
    """Copy a run as if its learning rate and its seed had been swept, and write the plan of that sweep."""
    draw = random.Random(0)
    summary = json.loads((run / "summary.json").read_text())
    config = (run / "config.yaml").read_text()
    plan: dict[str, list[str]] = {}
    for number in range(METHODS * SEEDS):
        method, seed = divmod(number, SEEDS)
        rate = f"train.lr={1e-4 * (method + 1):.1e}"
        run_id = f"{summary['algorithm']}-s{seed}-{_hash(number)[:10]}"
        plan[run_id] = [f"seed={seed}", rate, *summary["overrides"]]
        copy = experiment / run_id
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("adapter"))
        (copy / "config.yaml").write_text(config.replace("seed: 0\n", f"seed: {seed}\n", 1))
        if is_finished:
            about = {"id": run_id, "seed": seed, "method_hash": _hash(rate), "overrides": plan[run_id]}
            final = {**summary["final"], "accuracy_sampled": draw.random()}
            (copy / "summary.json").write_text(json.dumps({**summary, **about, "final": final}, indent=1))
        else:
            (copy / "summary.json").unlink()
    (experiment / "plan.json").write_text(json.dumps({"latest": [*plan.values()], "points": plan}, indent=1))


def _hash(what: object) -> str:
    return hashlib.sha256(str(what).encode()).hexdigest()


def _times(command: list[str]) -> list[float]:
    """Return the median, the minimum and the maximum of the seconds that a command takes."""
    times = []
    for _ in range(REPETITIONS):
        start = perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(perf_counter() - start)
    return [round(value, 2) for value in (median(times), min(times), max(times))]


def table(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    rows = [
        [name, *("{:.2f} ({:.2f} to {:.2f})".format(*report[command][name]) for command in report)]
        for name in ("import alone", *FOLDERS)
    ]
    return tabulate(rows, ["seconds (spread)", *report], tablefmt="pipe")


if __name__ == "__main__":
    main()

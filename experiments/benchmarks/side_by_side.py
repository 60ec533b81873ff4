"""Compare a sweep of four algorithms and three seeds in one process with the same sweep under joblib, in turns.

python experiments/benchmarks/side_by_side.py writes side_by_side.json.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from tabulate import tabulate

SWEEP = ["-m", "algorithm=sgrpo,tspmo,grpo,rgra", "seed=0,1,2"]
LAUNCHERS = ("local", "joblib")
TRACKERS = ("none", "wandb")
REPEATS = 2


def main() -> None:
    report: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "runs": 12}
    for tracker in TRACKERS:
        seconds: dict[str, list[float]] = {name: [] for name in LAUNCHERS}
        for _ in range(REPEATS):
            outcomes = []
            for launcher in LAUNCHERS:
                with tempfile.TemporaryDirectory() as folder:
                    seconds[launcher].append(_sweep(launcher, tracker, folder))
                    outcomes.append(_numbers(Path(folder)))
            assert outcomes[0] == outcomes[1], "the results depend on the launcher"
        ratios = [one / other for one, other in zip(seconds["local"], seconds["joblib"], strict=True)]
        report[tracker] = {
            **{name: [round(one, 1) for one in times] for name, times in seconds.items()},
            "times faster": [round(ratio, 2) for ratio in sorted(ratios)],
        }
        print(tracker, report[tracker], flush=True)
    Path(__file__).with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")


def table(report: dict[str, Any]) -> str:
    """Return the report as Markdown: medians, and the smallest and largest ratio of two consecutive sweeps."""
    rows = []
    for tracker in TRACKERS:
        one = report[tracker]
        ratios = one["times faster"]
        spread = f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        rows.append([f"tracker={tracker}", *(f"{median(one[name]):.1f}" for name in LAUNCHERS), spread])
    return tabulate(rows, ["", "local, s", "joblib, s", "times faster"], tablefmt="pipe", disable_numparse=True)


def _sweep(launcher: str, tracker: str, folder: str) -> float:
    """Do the sweep, with one thread for each run, and return its seconds, start-up included."""
    command = [sys.executable, "-m", "rlsparse.run", *SWEEP, f"hydra/launcher={launcher}", f"tracker={tracker}"]
    start = perf_counter()
    subprocess.run(
        [*command, "threads=1", f"runs_dir={folder}"],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"},
    )
    return perf_counter() - start


def _numbers(folder: Path) -> dict[str, Any]:
    """Return the results of all runs, which must not depend on the launcher."""
    summaries = [json.loads(file.read_text()) for file in folder.glob("default/*/summary.json")]
    return {one["id"]: [one[key] for key in ("base", "final", "curve_mean", "tokens")] for one in summaries}


if __name__ == "__main__":
    main()

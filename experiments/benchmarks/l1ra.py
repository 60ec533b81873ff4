"""Compare a step with L1RA with the same step with LoRA of the same rank budget, in turns: l1ra.json.

python experiments/benchmarks/l1ra.py --model DIR
"""

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

import contenders
from race import Contender, Measured, race, ratios
from tabulate import tabulate
from workload import Work

RANKS = (4, 8, 16)
EVERYWHERE = "adapter.target_modules=all-linear"
# a rank update after each quarter of the steps, more often than in a run
SIDES = {"lora": ["adapter=lora"], "l1ra": ["adapter=l1ra_short", "adapter.update_every=0.25"]}
ALGORITHMS = ("grpo", "tspmo")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="folder or hub id")
    arguments.add_argument("--steps", type=int, default=16, help="steps of each side; the first one is not counted")
    arguments.add_argument("--new-tokens", type=int, default=32, help="few, so that the share of the adapter is large")
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    report: dict[str, Any] = {}
    for algorithm in ALGORITHMS:
        for rank in RANKS:
            work = Work(
                options.model, algorithm, new_tokens=options.new_tokens, steps=options.steps, threads=options.threads
            )
            runners = {
                name: Contender(contenders.ours, work, [*side, EVERYWHERE, f"lora_rank={rank}"])
                for name, side in SIDES.items()
            }
            report[f"{algorithm}, rank {rank}"] = _compared(race(runners, warmup=1))
    Path(__file__).with_name("l1ra.json").write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


def _compared(measured: dict[str, Measured]) -> dict[str, Any]:
    lora, l1ra = measured["lora"], measured["l1ra"]
    wall = ratios(l1ra, lora, "wall")
    middle = wall[len(wall) // 4 : len(wall) - len(wall) // 4]
    return {
        "step": round(median(wall), 3),
        "half of the steps": [round(middle[0], 2), round(middle[-1], 2)],
        "update": round(median(ratios(l1ra, lora, "time/train")), 3),
        "memory": round(l1ra.peak / lora.peak, 3),
        "lora_seconds": round(lora.median("wall"), 2),
    }


def table(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    rows = [
        [
            case,
            f"{one['step']:.2f}",
            "{:.2f} to {:.2f}".format(*one["half of the steps"]),
            f"{one['update']:.2f}",
            f"{one['memory']:.2f}",
        ]
        for case, one in report.items()
    ]
    head = ["L1RA / LoRA", "time of a step", "half of the steps lie in", "its update alone", "peak memory"]
    return tabulate(rows, head, tablefmt="pipe", disable_numparse=True)


if __name__ == "__main__":
    main()

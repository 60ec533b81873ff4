"""Compare how long an evaluation takes to read its prompts: some at a time, or all at once; in turns in one process.

python experiments/benchmarks/prefill.py --model DIR --data DIR   # DATA: the folder of SVAMP
"""

import argparse
import json
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from rlsparse.algorithm import Algorithm
from rlsparse.config.compose import compose
from rlsparse.model.loading import load_policy
from rlsparse.rollout import Request, fast
from rlsparse.runtime.rng import stream
from rlsparse.tracking.profiling import reuse_freed_memory
from rlsparse.training.data import encode_task

COUNTS = (8, 16, 32, 128)  # prompts at a time; the last one is all


def measure(model: str, data: str, repeats: int) -> dict[str, Any]:
    """Return the seconds until the first token of 128 greedy completions, by prompts at a time, after a first round."""
    torch.set_num_threads(2)
    reuse_freed_memory()
    config = compose(["model=smollm2", f"model.path={model}", "task=svamp", f"task.path={data}", "device=cpu"])
    algorithm = Algorithm.build(
        compose(["model=smollm2", "task=svamp", f"task.path={data}", "rollout.max_new_tokens=1"])
    )
    policy = load_policy(config.model, torch.device("cpu"), "auto")
    prompts = encode_task(policy, algorithm.task, 64, COUNTS[-1]).test
    seconds: dict[int, list[float]] = {count: [] for count in COUNTS}
    kept = fast.PREFILL
    for round_ in range(repeats + 1):
        for count in COUNTS:
            fast.PREFILL = count
            start = perf_counter()
            algorithm.rollout.generate(policy, Request(prompts, 1, greedy=True), stream(0, "bench"))
            if round_:
                seconds[count].append(perf_counter() - start)
    fast.PREFILL = kept
    return {"prompts": len(prompts), "seconds": {str(count): times for count, times in seconds.items()}}


def table(report: dict[str, Any]) -> str:
    """Return how many times faster than reading all prompts at once, as a Markdown table."""
    seconds = report["seconds"]
    everything = seconds[str(COUNTS[-1])]
    lines = ["| prompts at a time | times faster than all at once (spread) |", "|--:|:--|"]
    for count in COUNTS[:-1]:
        gains = [whole / part for whole, part in zip(everything, seconds[str(count)], strict=True)]
        lines.append(f"| {count} | {median(gains):.2f} ({min(gains):.2f} to {max(gains):.2f}) |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write the json file, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    report = measure(options.model, options.data, options.repeats)
    Path(__file__).with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


if __name__ == "__main__":
    main()

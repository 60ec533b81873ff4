"""Compare rollouts with and without fused products (rollout.fuse), in turns in one process.

python experiments/benchmarks/fused.py --model DIR
"""

import argparse
import dataclasses
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rollouts import sampler
from tabulate import tabulate
from workload import Work

from rlsparse.rollout import Request
from rlsparse.runtime.rng import stream

ROUNDS = 6  # the first is not counted


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", required=True, help="folder of SmolLM2")
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    works = {
        "SmolLM2, 32 rows": Work(options.model, "grpo", threads=options.threads),
        "SmolLM2, 64 rows": Work(options.model, "grpo", prompts=8, threads=options.threads),
        "tiny, 64 rows, 1 thread": Work("tiny", "grpo", prompts=8, new_tokens=24, threads=1),
    }
    rows = [[name, *measured(work)] for name, work in works.items()]
    headers = ["", "tokens/s", "without", "times faster (spread)"]
    align = ["left", *["right"] * 3]
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True, colalign=align))


def measured(work: Work) -> list[Any]:
    """Return tokens per second with fused products and without, and the ratio with its spread."""
    engine, policy, prompts = sampler(work)
    sides = {fuse: dataclasses.replace(engine, fuse=fuse) for fuse in (True, False)}
    seconds: dict[bool, list[float]] = {fuse: [] for fuse in sides}
    for _ in range(ROUNDS):
        for fuse, side in sides.items():
            start = perf_counter()
            side.generate(policy, Request(prompts, work.group_size), stream(0, "bench"))
            if policy.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[fuse].append(perf_counter() - start)
    tokens = len(prompts) * work.group_size * work.new_tokens
    speeds = [f"{tokens / median(seconds[fuse][1:]):.0f}" for fuse in sides]
    gains = sorted(slow / fast for fast, slow in zip(seconds[True][1:], seconds[False][1:], strict=True))
    return [*speeds, f"{median(gains):.2f} ({gains[0]:.2f} to {gains[-1]:.2f})"]


if __name__ == "__main__":
    main()

"""Measure the speed of rollouts with and without skipped decoder layers, in turns: layer_skip.json.

python experiments/benchmarks/layer_skip.py --model DIR
"""

import argparse
import json
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rollouts import sampler
from tabulate import tabulate
from workload import Work

from rlsparse.rollout import Request
from rlsparse.rollout.layer_skip import SkipLayers, without_layers
from rlsparse.runtime.rng import stream

RATIOS = (0.0, 0.05, 0.10, 0.15, 0.25)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="folder or hub id")
    arguments.add_argument("--rounds", type=int, default=9, help="rollouts of each ratio; the first one is not counted")
    arguments.add_argument("--new-tokens", type=int, default=128)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--device", default="cpu")
    options = arguments.parse_args()
    work = Work(options.model, "grpo", new_tokens=options.new_tokens, threads=options.threads, device=options.device)
    report = measure(work, options.rounds)
    Path(__file__).with_name("layer_skip.json").write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


def measure(work: Work, rounds: int) -> dict[str, Any]:
    """Return for each ratio the layers skipped, tokens/s, and the gains over the whole model in the same round."""
    engine, policy, prompts = sampler(work)
    request = Request(prompts, work.group_size)
    drawing = stream(0, "layer_skip")
    seconds: dict[float, list[float]] = {ratio: [] for ratio in RATIOS}
    skipped = dict.fromkeys(RATIOS, 0)
    for round_ in range(rounds):
        for ratio in RATIOS:
            left_out = SkipLayers(ratio, "random", None).choose(policy.depth, drawing)
            skipped[ratio] = len(left_out)
            start = perf_counter()
            with without_layers(policy, left_out):
                engine.generate(policy, request, stream(round_, "bench"))
            if policy.device.type == "cuda":
                torch.cuda.synchronize()
            if round_:
                seconds[ratio].append(perf_counter() - start)
            print(f"round {round_}, {len(left_out)} of {policy.depth} layers skipped", flush=True)
    tokens = len(prompts) * work.group_size * work.new_tokens
    return {
        f"{ratio:.2f}": {
            "skipped": skipped[ratio],
            "layers": policy.depth,
            "tokens_per_second": round(tokens / median(times), 1),
            "gains": [round(whole / part, 4) for whole, part in zip(seconds[0.0], times, strict=True)],
        }
        for ratio, times in seconds.items()
    }


def table(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    rows = []
    for ratio, one in report.items():
        ideal, gain = 1 / (1 - one["skipped"] / one["layers"]), median(one["gains"])
        rows.append(
            [
                f"{100 * float(ratio):.0f} %",
                f"{one['skipped']} of {one['layers']}",
                f"{one['tokens_per_second']:.0f}",
                f"{gain:.2f} ({min(one['gains']):.2f} to {max(one['gains']):.2f})",
                f"{ideal:.2f}",
                f"{100 * gain / ideal:.0f} %",
                f"{100 * (gain - 1) / (ideal - 1):.0f} %" if ideal > 1 else "–",
            ]
        )
    head = [
        "ratio",
        "layers skipped",
        "tokens/s",
        "times the whole model's (spread)",
        "ideal",
        "of the ideal",
        "of the extra speed",
    ]
    return tabulate(rows, head, tablefmt="pipe", disable_numparse=True)


if __name__ == "__main__":
    main()

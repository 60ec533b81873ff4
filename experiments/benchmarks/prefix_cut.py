"""Compare the time of an update with cut completions (the prefix cut of NAT) with that of full GRPO, in turns.

python experiments/benchmarks/prefix_cut.py --model DIR   # DIR: the folder of SmolLM2-135M
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
from ideas import swapped

from rlsparse.algorithm import Algorithm
from rlsparse.batch import Rollout, ScoredBatch, TokenBatch
from rlsparse.config.compose import compose
from rlsparse.model.loading import load_policy
from rlsparse.model.packing import PACKED, can_pack, layout
from rlsparse.model.policy import Policy
from rlsparse.runtime.distributed import ALONE
from rlsparse.runtime.oom import MemoryLimits
from rlsparse.runtime.rng import stream
from rlsparse.tracking.profiling import reuse_freed_memory
from rlsparse.training import microbatch
from rlsparse.training.microbatch import FitMicrobatches
from rlsparse.training.update import Updater

PROMPTS, GROUP, PROMPT, COMPLETION = 4, 8, 85, 120  # tokens of a prompt and of a completion; none ends early
FULL, CUT, PADDED = "full GRPO", "prefix_cut", "prefix_cut, padded to the widest completion"


Side = tuple[Updater, list[ScoredBatch]]  # what takes the updates, and the batch that it takes them on


def sides(model: str, threads: int, overrides: dict[str, list[str]]) -> dict[str, Side]:
    """Return a side for each list of overrides, by name; all sides share the model and the adapter."""
    torch.set_num_threads(threads)
    reuse_freed_memory()
    common = ["algorithm=grpo", "model=smollm2", f"model.path={model}", "device=cpu"]
    config = compose(common)
    policy = load_policy(config.model, torch.device("cpu"), config.dtype)
    optimizer = Algorithm.build(config).adapter.attach(policy, config.lora_rank, 0).optimizer(0.0, weight_decay=0.0)
    obstacle = can_pack(policy)
    if obstacle is not None:
        raise SystemExit(f"the packed path cannot be used: {obstacle}")

    def side(own: list[str]) -> Side:
        config = compose([*common, *own])
        algorithm = Algorithm.build(config)
        fit = FitMicrobatches(config.train, MemoryLimits.of(PROMPTS * GROUP, config.train))
        updater = Updater(policy, PACKED, optimizer, algorithm, config.train, fit, ALONE, policy.reference)
        return updater, scored(policy, algorithm)

    return {name: side(own) for name, own in overrides.items()}


def measure(model: str, threads: int, repeats: int) -> dict[str, Any]:
    """Return wall-clock and CPU seconds of the updates of each side, after a first round, and the share of tokens."""
    both = sides(model, threads, {FULL: [], CUT: ["token_sampler=prefix_cut"]})
    (full, everything), (cut, first_tokens) = both[FULL], both[CUT]
    updates = {
        FULL: lambda: full(everything),
        CUT: lambda: cut(first_tokens),
        PADDED: lambda: padded(lambda: cut(first_tokens)),
    }
    wall: dict[str, list[float]] = {name: [] for name in updates}
    cpu: dict[str, list[float]] = {name: [] for name in updates}
    for round_ in range(repeats + 1):
        for name, update in updates.items():
            start, start_cpu = perf_counter(), process_time()
            update()
            if round_:
                wall[name].append(perf_counter() - start)
                cpu[name].append(process_time() - start_cpu)
                print(name, f"{wall[name][-1]:.2f} s", flush=True)
    share = float((first_tokens[0].scales != 0).float().mean())
    return {"threads": threads, "share of tokens": share, "seconds": wall, "CPU seconds": cpu}


def scored(policy: Policy, algorithm: Algorithm) -> list[ScoredBatch]:
    """Return a batch of random tokens with random advantages, the same for every algorithm."""
    generator = torch.Generator().manual_seed(0)
    B = PROMPTS * GROUP
    zeros = torch.zeros(B, COMPLETION)
    rollout = Rollout(
        prompt_ids=torch.randint(policy.vocabulary, (PROMPTS, PROMPT), generator=generator),
        prompt_lengths=torch.full((PROMPTS,), PROMPT),
        completion_ids=torch.randint(policy.vocabulary, (B, COMPLETION), generator=generator),
        lengths=torch.full((B,), COMPLETION),
        ended=torch.zeros(B, dtype=torch.bool),
        log_probs=zeros,
        entropy=zeros,
    )
    advantages = torch.randn(B, 1, generator=generator).expand(B, COMPLETION)
    selection = algorithm.select(advantages, rollout, stream(0, "token_sampler"))
    return algorithm.scored(TokenBatch(rollout, advantages, selection, range(PROMPTS)))


def padded(update: Callable[[], Any]) -> None:
    """Take an update without the layout of cut completions, as before there was one."""
    with swapped(layout, "cut_short", lambda *_: False), swapped(microbatch, "cut_short", lambda *_: False):
        update()


def table(report: dict[str, Any]) -> str:
    """Return how the time of each side relates to that of full GRPO, as a Markdown table."""
    lines = ["| | time / full GRPO (spread) | CPU time / full GRPO (spread) | seconds |", "|:--|:--|:--|--:|"]
    for name, seconds in report["seconds"].items():
        if name == FULL:
            continue
        ratios = [_ratios(report[unit], name) for unit in ("seconds", "CPU seconds")]
        lines.append(f"| {name} | {ratios[0]} | {ratios[1]} | {median(seconds):.2f} |")
    lines.append(f"| {FULL} | 1 | 1 | {median(report['seconds'][FULL]):.2f} |")
    return "\n".join([*lines, "", f"Share of the tokens in the loss of prefix_cut: {report['share of tokens']:.3f}"])


def _ratios(seconds: dict[str, list[float]], name: str) -> str:
    found = [one / full for one, full in zip(seconds[name], seconds[FULL], strict=True)]
    return f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def main() -> None:
    """Measure, write the json file, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    report = measure(options.model, options.threads, options.repeats)
    Path(__file__).with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


if __name__ == "__main__":
    main()

"""What each idea brings: a rollout or an update with one idea switched off, in turns with all of them on: ideas.json.

python experiments/benchmarks/ideas.py --model DIR
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from contenders import our_overrides
from tabulate import tabulate
from torch import Tensor
from vs_trl import CASES
from workload import Work, rewards

from rlsparse.batch import ScoredBatch
from rlsparse.components.adapter import ADAPTERS
from rlsparse.components.advantage import token_advantages
from rlsparse.components.objective.aggregation import token_scales
from rlsparse.components.task import load_task
from rlsparse.components.token_sampler import TOKEN_SAMPLERS
from rlsparse.config.compose import compose_config
from rlsparse.model import packing as packed
from rlsparse.model.packing import layout, packed_log_probs
from rlsparse.model.policy import load_policy, token_log_probs
from rlsparse.rollout import ENGINES, fast
from rlsparse.runtime.rng import stream
from rlsparse.tracking.profiling import reuse_freed_memory
from rlsparse.training.data import encode_task
from rlsparse.training.microbatch import FitMicrobatches
from rlsparse.training.update import update

Switch = Callable[[], AbstractContextManager[None]]


@contextmanager
def swapped(owner: Any, name: str, other: Any) -> Iterator[None]:
    """Inside, ``owner.name`` is another."""
    kept = getattr(owner, name)
    setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def whole_logits(hidden: Tensor, head: Any, targets: Tensor, temperature: float) -> Tensor:
    """The same log-probs with all logits at once, kept for autograd."""
    return (head(hidden).float() / temperature).log_softmax(dim=1).gather(1, targets[:, None]).squeeze(1)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", required=True, help="folder")
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    reuse_freed_memory()
    report = {}
    for case, (algorithm, layers, overrides) in CASES.items():
        work = Work(options.model, algorithm, layers, threads=options.threads)
        report[case] = _case(work, overrides)
        print(case, json.dumps(report[case]), flush=True)
    Path(__file__).with_name("ideas.json").write_text(json.dumps(report, indent=1) + "\n")


def _case(work: Work, overrides: list[str]) -> dict[str, Any]:
    config = compose_config(our_overrides(work) + overrides)
    policy = dataclasses.replace(load_policy(config.model, torch.device("cpu"), config.dtype), eos_ids=())
    data = encode_task(policy, load_task(config.task), config.task, config.rollout, config.eval)
    prompts = data.train[: work.prompts]
    adapter = ADAPTERS[config.adapter.name](policy, config.adapter, config.lora_rank, 0)
    optimizer = adapter.optimizer(0.0, weight_decay=0.0)

    def sampled(engine: str) -> Any:
        sampling = dataclasses.replace(config.rollout, name=engine)
        return ENGINES[engine](policy, prompts, sampling, work.group_size, stream(0, "ideas"), keep_states=True)

    rollout = sampled("fast")
    drawn = torch.tensor(next(rewards(work))).reshape(work.prompts, work.group_size)
    advantages = token_advantages(drawn, rollout, config.advantage, config.negative_feedback)
    select = TOKEN_SAMPLERS[config.token_sampler.name]
    selection = select(advantages, rollout, config.token_sampler, stream(0, "t"))
    scales = token_scales(selection, advantages, config.objective, range(work.prompts), work.new_tokens, config.kl)
    batch = ScoredBatch(rollout, advantages, scales)
    trunkless = dataclasses.replace(batch, rollout=dataclasses.replace(rollout, trunk=None))

    def trained(path: Any = packed_log_probs, on: ScoredBatch = batch) -> None:
        update(policy, path, optimizer, on, config, FitMicrobatches(config.train))

    def during(switch: Switch, run: Callable[[], Any]) -> Callable[[], Any]:
        def inside() -> None:
            with switch():
                run()

        return inside

    rollouts = {
        "all on": lambda: sampled("fast"),
        "plain engine": lambda: sampled("plain"),
        "adapter not merged": during(lambda: swapped(policy, "merged", nullcontext), lambda: sampled("fast")),
        "weights not laid out": during(lambda: swapped(fast, "prepacked", nullcontext), lambda: sampled("fast")),
    }
    updates = {
        "all on": trained,
        "plain rows": lambda: trained(token_log_probs),
        "logits kept": during(lambda: swapped(packed, "chosen_log_probs", whole_logits), trained),
        "attention kept": during(lambda: swapped(packed, "checkpoint", _kept), trained),
    }
    if work.algorithm == "tspmo":
        updates["no prefix tree"] = during(lambda: swapped(packed, "stretches", layout._by_group), trained)
    if policy.first_adapted > 0:
        updates["trunk computed again"] = lambda: trained(on=trunkless)
    return {"rollout": _in_turns(rollouts), "update": _in_turns(updates)}


def _kept(function: Callable[..., Any], *inputs: Any, **_: Any) -> Any:
    return function(*inputs)


def _in_turns(sides: dict[str, Callable[[], Any]], rounds: int = 3) -> dict[str, float]:
    """Seconds of all on, and how many times longer each of the others takes; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(rounds):
        for name, run in sides.items():
            start = perf_counter()
            run()
            if round_:
                seconds[name].append(perf_counter() - start)
    on = seconds["all on"]
    longer = {n: round(median(x / y for x, y in zip(s, on, strict=True)), 2) for n, s in seconds.items()}
    return {"all on, seconds": round(median(on), 2), **{n: x for n, x in longer.items() if n != "all on"}}


def table(report: dict[str, Any]) -> str:
    """The report as Markdown: a row for each idea, a column for each case."""
    cases = list(report)
    rows = []
    for part in ("rollout", "update"):
        switches = dict.fromkeys(switch for case in cases for switch in report[case][part])
        rows += [[f"{part}: {switch}", *(report[case][part].get(switch, "") for case in cases)] for switch in switches]
    return tabulate(rows, ["", *cases], tablefmt="pipe", disable_numparse=True)


if __name__ == "__main__":
    main()

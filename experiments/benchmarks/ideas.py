"""Measure each idea: a rollout or an update with one idea switched off, in turns with all of them on: ideas.json.

python experiments/benchmarks/ideas.py --model DIR
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
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

from rlsparse.algorithm import Algorithm
from rlsparse.batch import Rollout, ScoredBatch
from rlsparse.config.compose import compose
from rlsparse.model import packing
from rlsparse.model.loading import load_policy
from rlsparse.model.packing import PACKED, layout
from rlsparse.model.policy import PLAIN
from rlsparse.rollout import Request, RolloutEngine
from rlsparse.runtime.distributed import ALONE
from rlsparse.runtime.oom import MemoryLimits
from rlsparse.runtime.rng import stream
from rlsparse.tracking.profiling import reuse_freed_memory
from rlsparse.training.data import encode_task
from rlsparse.training.microbatch import FitMicrobatches
from rlsparse.training.update import Updater

Switch = Callable[[], AbstractContextManager[None]]


@contextmanager
def swapped(owner: Any, name: str, other: Any) -> Iterator[None]:
    """Within the context, ``owner.name`` is another object."""
    kept = getattr(owner, name)
    setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def whole_logits(hidden: Tensor, head: Any, targets: Tensor, temperature: float) -> Tensor:
    """Return the log-probabilities from all logits at once, which autograd keeps."""
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
    overrides = our_overrides(work) + overrides
    config, plain_config = compose(overrides), compose([*overrides, "rollout=plain"])
    built = Algorithm.build(config)
    fast: Any = built.rollout
    policy = dataclasses.replace(load_policy(config.model, torch.device("cpu"), config.dtype), eos_ids=())
    data = encode_task(policy, built.task, work.new_tokens, config.eval.max_rows)
    request = Request(data.train[: work.prompts], work.group_size, keep_states=True)
    adapter = built.adapter.attach(policy, config.lora_rank, 0)
    optimizer = adapter.optimizer(0.0, weight_decay=0.0)
    limits = MemoryLimits.of(fast.max_rows, config.train)

    def sampled(engine: RolloutEngine) -> Rollout:
        return engine.generate(policy, request, stream(0, "ideas"))

    rollout = sampled(fast)
    drawn = torch.tensor(next(rewards(work))).reshape(work.prompts, work.group_size)
    advantages = built.token_advantages(drawn, rollout)
    selection = built.token_sampler(advantages, rollout, stream(0, "t"))
    batch = ScoredBatch(rollout, advantages, built.token_scales(selection, advantages, range(work.prompts)))
    without_states = dataclasses.replace(batch, rollout=dataclasses.replace(rollout, frozen_states=None))

    def trained(path: Any = PACKED, on: ScoredBatch = batch) -> None:
        fit = FitMicrobatches(config.train, limits)
        Updater(policy, path, optimizer, built, config.train, fit, ALONE, policy.reference)([on])

    def during(switch: Switch, run: Callable[[], Any]) -> Callable[[], Any]:
        def inside() -> None:
            with switch():
                run()

        return inside

    rollouts = {
        "all on": lambda: sampled(fast),
        "plain engine": lambda: sampled(Algorithm.build(plain_config).rollout),
        "adapter not merged": lambda: sampled(dataclasses.replace(fast, merge_adapter=False)),
        "products not fused": lambda: sampled(dataclasses.replace(fast, fuse=False)),
        "weights not laid out": lambda: sampled(dataclasses.replace(fast, prepack_weights=False)),
    }
    updates = {
        "all on": trained,
        "plain rows": lambda: trained(PLAIN),
        "logits kept": during(lambda: swapped(packing, "chosen_log_probs", whole_logits), trained),
        "attention kept": during(lambda: swapped(packing, "checkpoint", _kept), trained),
    }
    if work.algorithm == "tspmo":
        updates["no prefix tree"] = during(lambda: swapped(packing, "pack", layout._by_group), trained)
    if policy.first_adapted > 0:
        updates["trunk computed again"] = lambda: trained(on=without_states)
    return {"rollout": _in_turns(rollouts), "update": _in_turns(updates)}


def _kept(function: Callable[..., Any], *inputs: Any, **_: Any) -> Any:
    return function(*inputs)


def _in_turns(sides: dict[str, Callable[[], Any]], rounds: int = 3) -> dict[str, float]:
    """Return the seconds of "all on" and how many times longer the others take, without the first round."""
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
    """Return the report as Markdown: a row for each idea, a column for each case."""
    cases = list(report)
    rows = []
    for part in ("rollout", "update"):
        switches = dict.fromkeys(switch for case in cases for switch in report[case][part])
        rows += [[f"{part}: {switch}", *(report[case][part].get(switch, "") for case in cases)] for switch in switches]
    return tabulate(rows, ["", *cases], tablefmt="pipe", disable_numparse=True)


if __name__ == "__main__":
    main()

"""Compare the fast and the plain paths in float32 with the plain path in float64 on a real model: exactness.json.

python experiments/benchmarks/exactness.py --model DIR
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from contenders import model_overrides
from tabulate import tabulate
from workload import Work, rewards

from rlsparse.algorithm import Algorithm
from rlsparse.batch import ScoredBatch
from rlsparse.config.compose import compose
from rlsparse.config.schema import TrainConfig
from rlsparse.model.loading import load_policy
from rlsparse.model.packing import PACKED
from rlsparse.model.policy import PLAIN, Policy, ScoringPath
from rlsparse.rollout import Request
from rlsparse.runtime.distributed import ALONE
from rlsparse.runtime.oom import MemoryLimits
from rlsparse.runtime.rng import stream
from rlsparse.training.data import encode_task
from rlsparse.training.microbatch import FitMicrobatches
from rlsparse.training.update import Updater

ALGORITHMS = ("grpo", "rgra", "sgrpo", "tspmo", "reinforce", "dr_grpo", "rloo")
PROMPTS, GROUP = 3, 4


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", required=True, help="folder or hub id")
    options = arguments.parse_args()
    report = {}
    for algorithm, layers in [*((one, "all") for one in ALGORITHMS), ("grpo", "last_third"), ("sgrpo", "last_third")]:
        case = f"{algorithm}, adapters on {layers}"
        report[case] = _compare(options.model, algorithm, layers)
        print(case, report[case], flush=True)
    Path(__file__).with_name("exactness.json").write_text(json.dumps(report, indent=1) + "\n")


def _compare(model: str, algorithm: str, layers: str) -> dict[str, float]:
    work = Work(model, algorithm, prompts=PROMPTS, group_size=GROUP)
    overrides = ["task=word_problems", "lora_rank=8", "rollout.max_new_tokens=24", "dtype=float32"]
    overrides += [f"algorithm={algorithm}", f"adapter.layers={layers}", *model_overrides(work)]
    config, plain_config = compose(overrides), compose([*overrides, "rollout=plain"])
    built = Algorithm.build(config)
    policy = load_policy(config.model, torch.device("cpu"), config.dtype)
    data = encode_task(policy, built.task, built.rollout.max_new_tokens, config.eval.max_rows)
    adapter = built.adapter.attach(policy, config.lora_rank, 0)
    with torch.no_grad():  # an adapter that is not zero any more
        for p in adapter.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=stream(p.numel(), "adapter")))
    request = Request(data.train[:PROMPTS], GROUP)
    engines = (built.rollout, Algorithm.build(plain_config).rollout)
    fast, plain = (engine.generate(policy, request, stream(0, "rollout")) for engine in engines)
    drawn = torch.tensor(next(rewards(work))).reshape(PROMPTS, GROUP)
    advantages = built.token_advantages(drawn, fast)
    selection = built.token_sampler(advantages, fast, stream(0, "t"))
    batch = ScoredBatch(fast, advantages, built.token_scales(selection, advantages, range(PROMPTS)))

    def gradient(path: ScoringPath, of: ScoredBatch) -> torch.Tensor:
        return _gradient(policy, path, adapter.parameters(), built, config.train, of)

    packed, rows = gradient(PACKED, batch), gradient(PLAIN, batch)
    policy.model.double()
    in_double = replace(batch, advantages=advantages.double(), scales=batch.scales.double())
    exact = gradient(PLAIN, in_double)
    return {
        "same completions": bool(torch.equal(fast.completion_ids, plain.completion_ids)),
        "rollout log-probs, fast - plain": float((fast.log_probs - plain.log_probs).abs().max()),
        "gradient, fast - float64, relative": float((packed - exact).norm() / exact.norm()),
        "gradient, plain - float64, relative": float((rows - exact).norm() / exact.norm()),
    }


def _gradient(
    policy: Policy,
    path: ScoringPath,
    parameters: list[torch.nn.Parameter],
    algorithm: Algorithm,
    train: TrainConfig,
    batch: ScoredBatch,
) -> torch.Tensor:
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    fit = FitMicrobatches(train, MemoryLimits.of(algorithm.rollout.max_rows, train))
    Updater(policy, path, optimizer, algorithm, train, fit, ALONE, policy.reference)([batch])
    return torch.cat([p.grad.flatten().double() for p in parameters if p.grad is not None])


def table(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    columns = list(next(iter(report.values())))
    rows = [[case, *(_text(one[column]) for column in columns)] for case, one in report.items()]
    return tabulate(rows, ["", *columns], tablefmt="pipe", disable_numparse=True)


def _text(value: bool | float) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else f"{value:.0e}"


if __name__ == "__main__":
    main()

"""The fast paths and the plain ones in float32 against the plain path in float64, on a real model: exactness.json.

python experiments/benchmarks/exactness.py --model DIR
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from contenders import model_overrides
from tabulate import tabulate
from workload import Work, rewards

from rlsparse.batch import ScoredBatch
from rlsparse.components.adapter import ADAPTERS
from rlsparse.components.advantage import token_advantages
from rlsparse.components.objective.aggregation import token_scales
from rlsparse.components.task import load_task
from rlsparse.components.token_sampler import TOKEN_SAMPLERS
from rlsparse.config.compose import compose_config
from rlsparse.config.schema import Config
from rlsparse.model.packing import packed_log_probs
from rlsparse.model.policy import LogProbs, Policy, load_policy, token_log_probs
from rlsparse.rollout import ENGINES
from rlsparse.runtime.rng import stream
from rlsparse.training.data import encode_task
from rlsparse.training.microbatch import FitMicrobatches
from rlsparse.training.update import update

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
    config = compose_config([f"algorithm={algorithm}", f"adapter.layers={layers}", *model_overrides(work), *overrides])
    policy = load_policy(config.model, torch.device("cpu"), config.dtype)
    prompts = encode_task(policy, load_task(config.task), config.task, config.rollout, config.eval).train[:PROMPTS]
    adapter = ADAPTERS[config.adapter.name](policy, config.adapter, config.lora_rank, 0)
    with torch.no_grad():  # an adapter that has left its zero start
        for p in adapter.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=stream(p.numel(), "adapter")))
    fast, plain = (
        ENGINES[engine](policy, prompts, config.rollout, GROUP, stream(0, "rollout")) for engine in ("fast", "plain")
    )
    drawn = torch.tensor(next(rewards(work))).reshape(PROMPTS, GROUP)
    advantages = token_advantages(drawn, fast, config.advantage, config.negative_feedback)
    selection = TOKEN_SAMPLERS[config.token_sampler.name](advantages, fast, config.token_sampler, stream(0, "t"))
    scales = token_scales(
        selection, advantages, config.objective, range(PROMPTS), config.rollout.max_new_tokens, config.kl
    )
    batch = ScoredBatch(fast, advantages, scales)
    packed = _gradient(policy, batch, config, adapter.parameters(), packed_log_probs)
    rows = _gradient(policy, batch, config, adapter.parameters(), token_log_probs)
    policy.model.double()
    exact = _gradient(policy, batch, config, adapter.parameters(), token_log_probs)
    return {
        "same completions": bool(torch.equal(fast.completion_ids, plain.completion_ids)),
        "rollout log-probs, fast - plain": float((fast.log_probs - plain.log_probs).abs().max()),
        "gradient, fast - float64, relative": float((packed - exact).norm() / exact.norm()),
        "gradient, plain - float64, relative": float((rows - exact).norm() / exact.norm()),
    }


def _gradient(
    policy: Policy, batch: ScoredBatch, config: Config, parameters: list[torch.nn.Parameter], path: LogProbs
) -> torch.Tensor:
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    update(policy, path, optimizer, batch, config, FitMicrobatches(config.train))
    return torch.cat([p.grad.flatten().double() for p in parameters if p.grad is not None])


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    columns = list(next(iter(report.values())))
    rows = [[case, *(_text(one[column]) for column in columns)] for case, one in report.items()]
    return tabulate(rows, ["", *columns], tablefmt="pipe", disable_numparse=True)


def _text(value: bool | float) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else f"{value:.0e}"


if __name__ == "__main__":
    main()

"""Measure what is lost by rounding when an adapter is merged in the dtype of the model: rounding.json.

python experiments/benchmarks/rounding.py --model DIR --adapter runs/EXPERIMENT/RUN/adapter
"""

import argparse
import json
from pathlib import Path

import torch
from contenders import model_overrides
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from tabulate import tabulate
from torch import Tensor
from workload import Work

from rlsparse.algorithm import Algorithm
from rlsparse.config.compose import compose
from rlsparse.model.loading import load_policy
from rlsparse.model.policy import token_log_probs
from rlsparse.rollout import Request
from rlsparse.runtime.rng import stream
from rlsparse.training.data import encode_task

SIZES = (1.0, 0.5, 0.25, 0.1, 0.03)  # of ΔW as shares of the trained one, as if training had ended earlier


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", required=True, help="folder or hub id of the base model of the adapter")
    arguments.add_argument("--adapter", required=True, type=Path, help="adapter folder of a run")
    options = arguments.parse_args()
    report = measure(options.model, options.adapter)
    Path(__file__).with_name("rounding.json").write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


def measure(model: str, folder: Path) -> dict[str, dict[str, float]]:
    """Return by size of ΔW the share that survives, and mean absolute differences of log-probs, nats per token."""
    trained = json.loads((folder / "adapter_config.json").read_text())
    rank = trained["r"]
    modules = ",".join(sorted(trained["target_modules"]))
    overrides = [f"adapter.target_modules=[{modules}]", f"adapter.scale={trained['lora_alpha'] / rank}"]
    config = compose([*model_overrides(Work(model, "grpo")), "task=word_problems", "dtype=bfloat16", *overrides])
    policy = load_policy(config.model, torch.device("cpu"), config.dtype)
    algorithm = Algorithm.build(config)
    data = encode_task(policy, algorithm.task, algorithm.rollout.max_new_tokens, config.eval.max_rows)
    algorithm.adapter.attach(policy, rank, 0)
    set_peft_model_state_dict(policy.model, load_file(folder / "adapter_model.safetensors"))
    layers = [module for module in policy.model.modules() if hasattr(module, "lora_A")]
    whole = [layer.lora_B["default"].weight.detach().clone() for layer in layers]
    rollout = algorithm.rollout.generate(policy, Request(data.train[:8], group_size=4), stream(0, "rounding"))
    rows = torch.arange(len(rollout.lengths))

    def scored() -> Tensor:
        return token_log_probs(policy, rollout, rows, rollout.mask, 1.0)  # (B, T)

    def apart(a: Tensor, b: Tensor) -> float:
        return float((a - b).abs().sum() / rollout.mask.sum())

    report = {}
    with torch.no_grad():
        for size in SIZES:
            for layer, matrix in zip(layers, whole, strict=True):
                layer.lora_B["default"].weight.copy_(matrix * size)
            beside = scored()
            with policy.merged():
                merged = scored()
            with policy.reference():
                without = scored()
            report[str(size)] = {
                "share of ΔW that survives": survivors(layers),
                "merged against beside": apart(merged, beside),
                "beside against no adapter": apart(beside, without),
            }
    return report


def survivors(layers: list[torch.nn.Module]) -> float:
    """Return ⟨round(W + ΔW) − W, ΔW⟩ / ‖ΔW‖² over all adapted weights."""
    along = total = 0.0
    for layer in layers:
        delta = layer.get_delta_weight("default")
        weight = layer.base_layer.weight
        kept = (weight.float() + delta).to(weight.dtype).float() - weight.float()
        along += float((kept * delta).sum())
        total += float(delta.square().sum())
    return along / total


def table(report: dict[str, dict[str, float]]) -> str:
    """Return the report as Markdown."""
    rows = [[size, *(f"{value:.3f}" for value in one.values())] for size, one in report.items()]
    header = ["size of ΔW", *next(iter(report.values()))]
    return tabulate(rows, header, tablefmt="pipe", disable_numparse=True)


if __name__ == "__main__":
    main()

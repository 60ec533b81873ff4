"""Compare our training loop with TRL's GRPOTrainer on the same work, in turns: vs_trl.json and a table.

python experiments/benchmarks/vs_trl.py --model DIR
"""

import argparse
import json
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import contenders
import torch
from floor import matrix_peak, step_operations
from race import Contender, Measured, race, ratios
from rollouts import rollout_speed
from tabulate import tabulate
from workload import Work, questions

from rlsparse.batch import Problem
from rlsparse.config.compose import compose
from rlsparse.execution.self_check.environment import cpu_model
from rlsparse.model.loading import load_policy
from rlsparse.model.policy import encode_prompt

REFERENCE = "grpo"  # the case whose floor and rollout the report gives
# our cases: preset, adapted layers, further overrides; S-GRPO takes 51 of 128 tokens, 40 %
CASES: dict[str, tuple[str, str, list[str]]] = {
    REFERENCE: ("grpo", "all", []),
    "tspmo": ("tspmo", "all", []),
    "sgrpo_last_third": (
        "sgrpo",
        "last_third",
        ["token_sampler.always_first=13", "token_sampler.probability=0.5", "token_sampler.budget=51"],
    ),
}
BFLOAT16 = {"model_init_kwargs": {"dtype": "bfloat16"}}
TRL: dict[str, Callable[[Work], dict[str, Any]]] = {
    # float32 weights under bfloat16 autocast, all rows in one microbatch, gradient checkpointing
    "trl": lambda work: {},
    # bfloat16 weights, no autocast, microbatches of 8
    "trl_tuned": lambda work: {**BFLOAT16, "bf16": False, **_microbatches_of(8, work)},
    "trl_tuned_no_checkpointing": lambda work: {
        **BFLOAT16,
        "bf16": False,
        "gradient_checkpointing": False,
        **_microbatches_of(8, work),
    },
}


def _microbatches_of(rows: int, work: Work) -> dict[str, int]:
    accumulation = work.prompts * work.group_size // rows
    return {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="folder or hub id")
    arguments.add_argument("--steps", type=int, default=4, help="steps of each side; the first one is not counted")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--prompts", type=int, default=4)
    arguments.add_argument("--group-size", type=int, default=8)
    arguments.add_argument("--new-tokens", type=int, default=128)
    arguments.add_argument("--settings", default="trl,trl_tuned,trl_tuned_no_checkpointing", help="settings of TRL")
    arguments.add_argument("--full-only", action="store_true", help="of our cases, measure full GRPO alone")
    arguments.add_argument("--overrides", default="", help="overrides of ours, separated by commas")
    arguments.add_argument("--out", type=Path, default=Path(__file__).with_name("vs_trl.json"))
    options = arguments.parse_args()
    works = {name: _work(options, name) for name in ([REFERENCE] if options.full_only else CASES)}
    extra = [one for one in options.overrides.split(",") if one]
    report: dict[str, Any] = {}
    # one race for each setting, since all at once need more memory than a small machine has
    for setting in options.settings.split(","):
        for layers in ("all", "last_third"):
            cases = [name for name in works if CASES[name][1] == layers]
            if not cases:
                continue
            runners = {n: Contender(contenders.ours, works[n], CASES[n][2] + extra) for n in cases}
            runners[setting] = Contender(contenders.trl, works[cases[0]], TRL[setting](works[cases[0]]))
            measured = race(runners, warmup=1)
            for case in cases:
                _note(report, case, setting, measured[case], measured[setting])
    peak = matrix_peak(options.device, options.threads)
    ours = median(one["ours_seconds"]["wall"] for one in report["detail"][REFERENCE].values())
    report["floor"] = _floor(works[REFERENCE], peak, ours)
    report["rollout"] = rollout_speed(works[REFERENCE])
    report["work"] = {k: v for k, v in vars(works[REFERENCE]).items() if k not in ("model", "algorithm", "layers")}
    report["processor"] = cpu_model()
    packages = ("torch", "transformers", "peft", "trl")
    report["versions"] = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


def _work(options: argparse.Namespace, case: str) -> Work:
    algorithm, layers, _ = CASES[case]
    return Work(
        model=options.model,
        algorithm=algorithm,
        layers=layers,
        prompts=options.prompts,
        group_size=options.group_size,
        new_tokens=options.new_tokens,
        steps=options.steps,
        threads=options.threads,
        device=options.device,
    )


def _note(report: dict[str, Any], case: str, setting: str, ours: Measured, theirs: Measured) -> None:
    wall = ratios(theirs, ours, "wall")
    for key, value in {
        "time": round(median(wall), 2),
        "spread": [round(wall[0], 2), round(wall[-1], 2)],
        "cpu_time": round(median(ratios(theirs, ours, "cpu")), 2),
        "memory": round(theirs.peak / ours.peak, 2),
        "detail": {
            "ours_seconds": {key: round(ours.median(key), 2) for key in ("wall", "time/rollout", "time/train")},
            "trl_seconds": round(theirs.median("wall"), 2),
            "ours_peak_bytes": ours.peak,
            "trl_peak_bytes": theirs.peak,
        },
    }.items():
        report.setdefault(key, {}).setdefault(case, {})[setting] = value


def _floor(work: Work, peak: float, seconds: float) -> dict[str, float]:
    policy = load_policy(compose(contenders.model_overrides(work)).model, torch.device("cpu"), "auto")
    tokens = sum(len(encode_prompt(policy, Problem(q, "", ""), q).ids) for q in questions(work))
    operations = step_operations(policy.model, work, tokens)
    return {
        "operations": operations,
        "matrix_peak_per_second": peak,
        "floor_seconds": round(operations / peak, 2),
        "ours_over_floor": round(seconds / (operations / peak), 2),
    }


def table(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    rows = [
        [
            case,
            setting,
            f"{ratio:.2f} ({report['spread'][case][setting][0]:.2f} to {report['spread'][case][setting][1]:.2f})",
            f"{report['cpu_time'][case][setting]:.2f}",
            f"1/{report['memory'][case][setting]:.2f}",
            f"{report['detail'][case][setting]['ours_peak_bytes'] / 2**30:.2f}",
            f"{report['detail'][case][setting]['trl_peak_bytes'] / 2**30:.2f}",
        ]
        for case, settings in report["time"].items()
        for setting, ratio in settings.items()
    ]
    header = ["ours", "against", "times faster (spread)", "CPU time", "memory", "ours, GiB", "theirs, GiB"]
    floor, rollout = report["floor"], report["rollout"]
    lines = [
        tabulate(rows, header, tablefmt="pipe", disable_numparse=True),
        "",
        f"Floor of a full GRPO step: {floor['operations'] / 1e12:.2f} T operations at a measured "
        f"{floor['matrix_peak_per_second'] / 1e12:.2f} T/s are {floor['floor_seconds']} s; ours is "
        f"{floor['ours_over_floor']} times that.",
        f"Rollout: {rollout['ours']:.0f} tokens/s. generate with the adapter beside the weights, as TRL calls it: "
        f"{rollout['generate']:.0f}; ours has {_spread(rollout['over_generate'])} times as many. "
        f"generate with it merged: {rollout['generate_merged']:.0f}; {_spread(rollout['over_generate_merged'])} times.",
    ]
    return "\n".join(lines)


def headline(report: dict[str, Any]) -> str:
    """Return the table of docs/performance.md."""
    names = {"grpo": "full GRPO", "tspmo": "T-SPMO", "sgrpo_last_third": "S-GRPO, 40 % of the tokens, last third"}
    rows = [[name, *(f"{report['time'][case][setting]:.1f}" for setting in TRL)] for case, name in names.items()]
    rows.append(["peak memory of full GRPO", *(f"1/{report['memory']['grpo'][setting]:.1f}" for setting in TRL)])
    header = ["times faster than", "TRL as it comes", "tuned", "without checkpointing"]
    return tabulate(rows, header, tablefmt="pipe", disable_numparse=True)


def _spread(values: list[float]) -> str:
    return f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"


if __name__ == "__main__":
    main()

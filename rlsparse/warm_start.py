"""Supervised fine-tuning on a task's written-out solutions: ``python -m rlsparse.warm_start``.

A stage of its own: it makes a weak model trainable by RL (or a model from nothing, ``model=scratch``) and writes a
normal model folder that ``model.path=`` takes.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from rlsparse.checks import check_warm_start, check_writable
from rlsparse.compose import config_dir, register_schemas, run_config
from rlsparse.config import ConfigError, ScratchConfig, WarmStartConfig
from rlsparse.run import quieten

if TYPE_CHECKING:
    import torch

    from rlsparse.policy import Policy
    from rlsparse.task import Task

REPORT = "warm_start.json"


def warm_start(config: WarmStartConfig) -> dict[str, Any]:
    """Train every weight on prompt → solution; write model, tokenizer and ``warm_start.json`` to ``out``.

    Weights and gradients are float32; with a smaller ``dtype`` the computation runs under autocast. The loss is the
    mean cross-entropy over the tokens of a batch's solutions, EOS included.

    Returns:
        What ``warm_start.json`` holds: config, mean loss of each epoch, held-out accuracy before and after.

    Raises:
        ConfigError: bad input, before any model loads.
    """
    from rlsparse.evaluate import evaluate
    from rlsparse.policy import check_model_folder, resolve_device, set_threads
    from rlsparse.prompts import encode_task
    from rlsparse.rollout import engine
    from rlsparse.supervised import Example, fit
    from rlsparse.task import load_task
    from rlsparse.task.verifier import Verifier

    quieten()
    check_warm_start(config)
    if (Path(config.out) / "config.json").exists():
        raise ConfigError(f"out={config.out}: holds a model already; give a new folder")
    check_writable("out", config.out)
    check_model_folder(config.model)
    device = resolve_device(config.device)
    task = load_task(config.task)
    policy, stored = _policy(config, task, device)
    set_threads(config.threads, policy.model.num_parameters())
    data = encode_task(policy, task, config.task, config.rollout, config.eval)
    examples = [Example(prompt.ids, prompt.problem) for prompt in data.train]
    generate = engine(policy, config.rollout, lambda line: print(line, file=sys.stderr))
    report: dict[str, Any] = {"config": asdict(config)}
    with Verifier(config.task) as verifier:

        def held_out() -> dict[str, float]:
            return evaluate(policy, generate, data.test, verifier, config.eval, config.rollout, config.seed)

        report["before"] = held_out()
        print(_line("before", report["before"]), file=sys.stderr)
        report["loss"] = fit(policy, examples, config.warm_start, config.dtype, config.seed)
        policy.model.to(stored)  # what is written, so what is evaluated
        report["after"] = held_out()
        print(_line("after", report["after"]), file=sys.stderr)
    _save(policy, Path(config.out), report)
    print(f"written to {config.out}; use it with model.path={config.out}", file=sys.stderr)
    return report


def _policy(config: WarmStartConfig, task: "Task", device: "torch.device") -> "tuple[Policy, torch.dtype]":
    """The policy in float32, and the dtype its checkpoint is stored in."""
    import torch

    from rlsparse.policy import load_policy, wrap_policy
    from rlsparse.scratch import new_model, new_tokenizer

    if isinstance(config.model, ScratchConfig) and config.model.path is None:
        tokenizer = new_tokenizer([*task.train, *task.test], config.model.vocabulary)
        model = new_model(config.model, tokenizer, config.seed).to(device)
        return wrap_policy(model, tokenizer, chat_template=False), torch.float32
    policy = load_policy(config.model, device, "auto")
    stored = next(policy.model.parameters()).dtype
    policy.model.float()
    return policy, stored


def _save(policy: "Policy", out: Path, report: dict[str, Any]) -> None:
    policy.model.save_pretrained(out)
    policy.tokenizer.save_pretrained(out)
    (out / REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")


def _line(when: str, metrics: dict[str, float]) -> str:
    return (
        f"{when}: accuracy {100 * metrics['eval/accuracy_greedy']:.1f} % greedy, "
        f"{100 * metrics['eval/accuracy_sampled']:.1f} % sampled"
    )


register_schemas()


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="warm_start")
def main(config: DictConfig) -> None:
    """The command line."""
    try:
        warm_start(run_config(config))
    except ConfigError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

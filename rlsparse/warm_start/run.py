"""Supervised fine-tuning on a task's written-out solutions: ``python -m rlsparse.warm_start``.

A stage of its own: it makes a weak model trainable by RL (or a model from nothing, ``model=scratch``) and writes a
normal model folder that ``model.path=`` takes. With an adapter, that alone is trained, and merged at the end.
"""

import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from rlsparse.config.checks import check_warm_start, check_writable
from rlsparse.config.compose import check_group_options, config_dir, register_schemas, run_config
from rlsparse.config.run_id import Identity, identify
from rlsparse.config.schema import ConfigError, ScratchConfig
from rlsparse.config.warm_start_schema import WarmStartConfig
from rlsparse.runtime.preload import quieten
from rlsparse.storage.summary import FILE as SUMMARY
from rlsparse.storage.summary import Summary, about_adapter, moved_ranks, provenance, read_summary, write_summary

if TYPE_CHECKING:
    import torch

    from rlsparse.components.adapter import Adapter
    from rlsparse.components.task import Task
    from rlsparse.model.policy import Policy
    from rlsparse.tracking.profiling import Clock

ALGORITHM, METRICS, CONFIG = "supervised", "metrics.jsonl", "config.yaml"


def warm_start(config: WarmStartConfig, overrides: Sequence[str] = ()) -> Summary:
    """Train on prompt → solution; write model, tokenizer and what a run leaves to ``out``; a finished one is only read.

    Without an adapter weights and gradients are float32, with one only the adapter's; with a smaller ``dtype`` the
    computation runs under autocast. The loss is the mean cross-entropy over a batch's solution tokens, EOS included.

    Args:
        overrides: what the user asked for, from which tables name the method.

    Returns:
        What ``summary.json`` holds: mean loss of each epoch, held-out accuracy and loss before and after, time, memory.

    Raises:
        ConfigError: bad input, before any model loads.
    """
    from rlsparse.components.adapter import ADAPTERS
    from rlsparse.model.policy import cpu_threads, resolve_device
    from rlsparse.runtime.rng import stream_seed
    from rlsparse.tracking.profiling import Clock, free_memory, reuse_freed_memory

    quieten()
    out, device = Path(config.out), resolve_device(config.device)
    task, identity = preflight(config, device.type)
    earlier = read_summary(out)
    if earlier is not None and earlier.get("config_hash") == identity.config_hash:
        _say(f"{out}: finished before, skipped")
        return earlier
    written = OmegaConf.to_yaml(OmegaConf.create(asdict(config)))
    if (out / "config.json").exists() and not _cut_off(out, written):
        raise ConfigError(f"out={config.out}: holds a model already; give a new folder")
    check_writable("out", config.out)
    (out / CONFIG).write_text(written, encoding="utf-8")
    summary = provenance(identity, out.resolve().parent.name, ALGORITHM, config.seed, list(overrides))
    clock = Clock(device)
    reuse_freed_memory()
    policy, stored = _policy(config, task, device)
    free_memory(device)  # a warm start in a sweep's process pays for itself only
    make = ADAPTERS.get(config.adapter.name)
    adapter = make(policy, config.adapter, config.lora_rank, stream_seed(config.seed, "adapter")) if make else None
    summary |= {"status": "finished", "error": None, "device": str(device)}
    with cpu_threads(config.threads, policy.model.num_parameters()):
        summary |= _train(config, policy, adapter, stored, task, clock)
    policy.model.save_pretrained(out)
    policy.tokenizer.save_pretrained(out)
    summary["time"] = {"total": clock.elapsed(), **clock.total}
    write_summary(out, summary)
    _say(f"written to {out}{moved_ranks(summary)}; use it with model.path={out}")
    return summary


def _train(
    config: WarmStartConfig,
    policy: "Policy",
    adapter: "Adapter | None",
    stored: "torch.dtype",
    task: "Task",
    clock: "Clock",
) -> Summary:
    """Evaluate, train, merge, evaluate what will be written; the summary's part of it."""
    from rlsparse.components.reward.verifier import Verifier
    from rlsparse.rollout import engine
    from rlsparse.storage.jsonl import JsonLines
    from rlsparse.tracking.metrics import rank_row
    from rlsparse.tracking.profiling import peak_memory
    from rlsparse.training.data import encode_task
    from rlsparse.training.evaluate import evaluate
    from rlsparse.warm_start.supervised import Example, count_updates, fit, held_out_loss

    settings, held_out_rows = config.warm_start, max(config.eval.max_rows, config.warm_start.loss_rows)
    data = encode_task(policy, task, config.task, config.rollout, replace(config.eval, max_rows=held_out_rows))
    train, test = ([Example(one.ids, one.problem) for one in split] for split in (data.train, data.test))
    generate = engine(policy, config.rollout, _say)
    (Path(config.out) / METRICS).unlink(missing_ok=True)  # of an attempt that was cut off
    with Verifier(config.task) as verifier, closing(JsonLines(Path(config.out) / METRICS)) as lines:
        history: list[dict[str, Any]] = []

        def held_out(step: int) -> dict[str, float]:
            prompts = data.test[: config.eval.max_rows]
            clock.lap()
            with clock("eval"):
                metrics = evaluate(policy, generate, prompts, verifier, config.eval, config.rollout, config.seed)
                rows = test[: settings.loss_rows]
                metrics["eval/loss"] = held_out_loss(policy, rows, settings.batch_size, config.dtype)
            lines.write({"step": step, "kind": "eval", **metrics, "time/eval": clock.last["eval"]})
            _say(_line(step, metrics))
            return {"step": step, **{name.removeprefix("eval/"): value for name, value in metrics.items()}}

        def log(step: int, metrics: dict[str, float]) -> None:
            lines.write({"step": step, "kind": "train", **metrics})
            history.append(metrics)
            if adapter is not None and "adapter/pruned" in metrics:
                lines.write(rank_row(step, adapter.ranks()))

        base = held_out(0)
        if adapter is not None and adapter.moves:
            lines.write(rank_row(0, adapter.ranks()))
        rows = train[: settings.max_rows]
        with clock("train"):
            losses = fit(policy, rows, settings, config.dtype, config.seed, adapter, log)
        about = _about(config, policy, adapter, history)
        peak = peak_memory(policy.device)  # of training: the merge has the whole model in float32
        _settle(policy, adapter, stored, Path(config.out))
        updates = count_updates(len(rows), settings)
        final = held_out(updates)
    results = {"base": base, "final": final, "loss": losses, "steps": updates}
    return {**results, "adapter": about, "peak_memory_bytes": peak}


def _about(
    config: WarmStartConfig, policy: "Policy", adapter: "Adapter | None", history: list[dict[str, Any]]
) -> Summary:
    """The summary's word on what was trained."""
    name = config.adapter.name
    if adapter is None:
        return {"name": name, "parameters": policy.model.num_parameters()}
    trained = sum(tensor.numel() for tensor in adapter.state().values())
    return about_adapter(name, adapter.ranks(), adapter.budget, trained, adapter.moves, history)


def _cut_off(out: Path, config: str) -> bool:
    """Whether what lies there is an attempt at the same that was stopped while it saved."""
    file = out / CONFIG
    return not (out / SUMMARY).exists() and file.is_file() and file.read_text(encoding="utf-8") == config


def _settle(policy: "Policy", adapter: "Adapter | None", stored: "torch.dtype", out: Path) -> None:
    """Make the policy what is written, so that it is what is evaluated: the adapter merged in float32, then cast."""
    if adapter is not None:
        adapter.export(out / "adapter")
        policy.model = adapter.merge()
        policy.first_adapted, policy.merged = 0, nullcontext
    for parameter in policy.model.parameters():  # not the buffers: a checkpoint's dtype is not theirs
        parameter.data = parameter.data.to(stored)


def preflight(config: WarmStartConfig, device: str) -> "tuple[Task, Identity]":
    """What can be known to be wrong before weights are loaded; the rows and who the run is.

    Raises:
        ConfigError: key, value and remedy.
    """
    from rlsparse.components.adapter import check_adapter
    from rlsparse.components.task import load_task
    from rlsparse.model.policy import check_model_folder, local_folder, model_skeleton
    from rlsparse.warm_start.supervised import count_updates

    check_warm_start(config)
    check_model_folder(config.model)
    task = load_task(config.task)
    from_nothing = isinstance(config.model, ScratchConfig) and config.model.path is None
    if config.adapter.name != "none":
        if from_nothing:
            raise ConfigError(
                f"adapter={config.adapter.name}: model=scratch has random weights, of which an adapter would train "
                "next to none; take adapter=none"
            )
        rows = len(task.train[: config.warm_start.max_rows])
        updates = count_updates(rows, config.warm_start)
        check_adapter(model_skeleton(config.model), config.adapter, config.lora_rank, updates)
    return task, identify(config, None if from_nothing else local_folder(config.model), device)


def _policy(config: WarmStartConfig, task: "Task", device: "torch.device") -> "tuple[Policy, torch.dtype]":
    """The policy, in float32 where its own weights are trained, and the dtype its checkpoint is stored in."""
    import torch

    from rlsparse.model.policy import load_policy, wrap_policy
    from rlsparse.warm_start.scratch import new_model, new_tokenizer

    if isinstance(config.model, ScratchConfig) and config.model.path is None:
        tokenizer = new_tokenizer([*task.train, *task.test], config.model.vocabulary)
        model = new_model(config.model, tokenizer, config.seed).to(device)
        return wrap_policy(model, tokenizer, chat_template=False), torch.float32
    policy = load_policy(config.model, device, "auto")
    stored = next(policy.model.parameters()).dtype
    if config.adapter.name == "none":
        policy.model.float()
    return policy, stored


def _line(step: int, metrics: dict[str, float]) -> str:
    return (
        f"step {step}: accuracy {100 * metrics['eval/accuracy_greedy']:.1f} % greedy, "
        f"{100 * metrics['eval/accuracy_sampled']:.1f} % sampled, loss {metrics['eval/loss']:.3f} nats a token"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr)


register_schemas()


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="warm_start")
def _main(config: DictConfig) -> None:
    context = HydraConfig.get()
    try:
        warm_start(run_config(config), list(context.overrides.task))
    except ConfigError as error:
        if context.mode == RunMode.MULTIRUN:
            raise  # the other points go on
        sys.exit(f"error: {error}")


def main() -> None:
    """The command line."""
    try:
        check_group_options(sys.argv[1:])
    except ConfigError as error:
        sys.exit(f"error: {error}")
    _main()

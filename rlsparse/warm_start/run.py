"""Supervised fine-tuning on the written-out solutions of a task: ``python -m rlsparse.warm_start``.

It makes a weak model trainable by RL (or a model from nothing, ``model=scratch``) and writes a normal model folder
that ``model.path=`` takes. With an adapter, that alone is trained, and merged at the end. ``adapter=full`` trains the
weights of some modules or layers, or all of them, as ``adapter=none`` does.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from rlsparse.config.checks import check_writable, problems
from rlsparse.config.compose import as_yaml, check_group_options, config_dir, register_schemas, run_config
from rlsparse.config.hydra_errors import one_line_errors
from rlsparse.config.run_id import Identity, Inputs, files_digest, identify
from rlsparse.config.schema import ConfigError, ScratchConfig, WarmStartConfig
from rlsparse.config.words import read_words
from rlsparse.runtime.logs import log_to_terminal
from rlsparse.runtime.preload import quieten
from rlsparse.storage.run_folder import RunFolder
from rlsparse.storage.streams import prepare_streams
from rlsparse.storage.summary import Summary, about_adapter, moved_ranks, provenance, read_summary, write_summary

if TYPE_CHECKING:
    import torch

    from rlsparse.components.adapter import Adapter, TrainedAdapter
    from rlsparse.components.task import Rows, Task
    from rlsparse.model.policy import Policy
    from rlsparse.rollout import RolloutEngine
    from rlsparse.storage.jsonl import JsonLines
    from rlsparse.tracking.profiling import Clock
    from rlsparse.training.evaluate import Examiner, Outcome
    from rlsparse.warm_start.supervised import Example

ALGORITHM = "supervised"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """The components of a warm start."""

    task: "Task"
    adapter: "Adapter"
    rollout: "RolloutEngine"

    @classmethod
    def build(cls, config: WarmStartConfig) -> "Parts":
        """Build them.

        Raises:
            ConfigError: all that is wrong with them, a line each.
        """
        from rlsparse.algorithm import build_parts
        from rlsparse.components.adapter import Adapter
        from rlsparse.components.task import Task
        from rlsparse.rollout import RolloutEngine

        return cls(**build_parts(config, {"task": Task, "adapter": Adapter, "rollout": RolloutEngine}))


@dataclass(frozen=True)
class Checked:
    """Holds the result of a check without errors."""

    parts: Parts
    rows: "Rows"
    identity: Identity


def warm_start(config: WarmStartConfig, overrides: Sequence[str] = ()) -> Summary:
    """Train on prompt → solution; write model, tokenizer and the files of a run to ``out``.

    A finished warm start is only read. Where weights of the model are trained, it is float32, else only the adapter is;
    with a smaller ``dtype`` the computation runs under autocast. The loss is the mean cross-entropy over the solution
    tokens of a batch, EOS included.

    Args:
        overrides: what the user asked for, from which tables name the method.

    Returns:
        The content of ``summary.json``: mean loss of each epoch, held-out accuracy and loss before and after, time,
        memory.

    Raises:
        ConfigError: bad input, before any model loads.
    """
    from rlsparse.runtime.devices import cpu_threads, resolve_device, sharing_cpus
    from rlsparse.runtime.distributed import ALONE
    from rlsparse.tracking.profiling import Clock, free_memory, reuse_freed_memory

    quieten()
    log_to_terminal()
    folder, device = RunFolder(Path(config.out)), resolve_device(config.device)
    checked = preflight(config, device.type)
    earlier = read_summary(folder.path)
    if earlier is not None and earlier.get("config_hash") == checked.identity.config_hash:
        log.info("%s: finished before, skipped", folder.path)
        return earlier
    written = as_yaml(config)
    if (folder.path / "config.json").exists() and not _was_cut_off(folder, written):
        raise ConfigError(f"out={config.out}: holds a model already; give a new folder")
    check_writable("out", config.out)
    folder.config.write_text(written, encoding="utf-8")
    summary = provenance(checked.identity, folder.path.resolve().parent.name, ALGORITHM, config.seed, list(overrides))
    clock = Clock(device)
    reuse_freed_memory()
    start = _load(config, checked, device)
    free_memory(device)  # the memory of a warm start is measured alone, also in the process of a sweep
    summary |= {"status": "finished", "error": None, "device": str(device)}
    with cpu_threads(config.threads, start.policy.model.num_parameters()), sharing_cpus(device, ALONE):
        summary |= _Training(config, checked, start, folder, clock)()
    start.policy.model.save_pretrained(folder.path)
    start.policy.tokenizer.save_pretrained(folder.path)
    summary["time"] = {"total": clock.elapsed(), **clock.total}
    write_summary(folder.path, summary)
    log.info("written to %s%s; use it with model.path=%s", folder.path, moved_ranks(summary), folder.path)
    return summary


@dataclass(frozen=True)
class _Start:
    """What is trained.

    Attributes:
        stored: the dtype that the checkpoint of the model is stored in.
        adapter: in the model of the policy; None where all weights are trained.
    """

    policy: "Policy"
    stored: "torch.dtype"
    adapter: "TrainedAdapter | None"


@dataclass
class _Training:
    """Evaluates, trains, merges, and evaluates what will be written.

    Attributes:
        history: metrics of the updates.
    """

    config: WarmStartConfig
    checked: Checked
    start: _Start
    folder: RunFolder
    clock: "Clock"
    history: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self) -> Summary:
        """Return the results for the summary."""
        from rlsparse.storage.jsonl import JsonLines
        from rlsparse.training.benchmarks import held_out_set, judges
        from rlsparse.training.data import encode_task
        from rlsparse.warm_start.noise import check_noise
        from rlsparse.warm_start.supervised import Example

        config, task = self.config, self.checked.parts.task
        held_out_rows = max(config.eval.max_rows, config.warm_start.loss_rows)
        longest = self.checked.parts.rollout.max_new_tokens
        data = encode_task(self.start.policy, task, longest, held_out_rows, config.eval.max_new_tokens)
        train, test = ([Example(one.ids, one.problem) for one in split] for split in (data.train, data.test))
        # again: where rows do not fit the context, later ones take their place
        check_noise([one.problem for one in train[: config.warm_start.max_rows]], config.warm_start.noise)
        self.folder.metrics.unlink(missing_ok=True)  # of an attempt that was cut off
        with (
            judges() as judging,
            closing(JsonLines(self.folder.metrics)) as lines,
        ):
            rows = config.eval.max_rows
            few = replace(data, test=data.test[:rows], test_ids=data.test_ids[:rows])
            questions = held_out_set(few, judging.scorer(task), config.eval.max_new_tokens or longest)
            evaluate = partial(self._examiner(), questions)
            return self._train(
                train[: config.warm_start.max_rows], test[: config.warm_start.loss_rows], evaluate, lines
            )

    def _examiner(self) -> "Examiner":
        from rlsparse.rollout import RolloutSampler
        from rlsparse.runtime.distributed import ALONE
        from rlsparse.runtime.oom import MemoryLimits
        from rlsparse.training.evaluate import Examiner

        engine = self.checked.parts.rollout.fitting(self.start.policy)
        limits = MemoryLimits(engine.max_rows, microbatch=1, tokens=1)  # the latter two are not used here
        sampler = RolloutSampler(self.start.policy, engine, limits, ALONE)
        return Examiner(sampler, self.config.eval, self.config.seed, self.clock)

    def _train(
        self,
        rows: "Sequence[Example]",
        test: "Sequence[Example]",
        evaluate: "Callable[[], list[Outcome]]",
        lines: "JsonLines",
    ) -> Summary:
        from rlsparse.model.endings import ending_texts, unending
        from rlsparse.tracking.metrics import rank_row
        from rlsparse.tracking.profiling import peak_memory
        from rlsparse.training.evaluate import evaluation_metrics
        from rlsparse.training.metrics import prefixed
        from rlsparse.warm_start.supervised import count_updates, fit, held_out_loss

        config, policy, adapter = self.config, self.start.policy, self.start.adapter
        settings, moves = config.warm_start, self.checked.parts.adapter.moves_ranks

        def held_out(step: int) -> dict[str, float]:
            self.clock.lap()
            metrics = prefixed("eval", evaluation_metrics(evaluate(), config.eval))
            with self.clock("eval"):
                metrics["eval/loss"] = held_out_loss(policy, test, settings.batch_size, config.dtype)
            lines.write({"step": step, "kind": "eval", **metrics, "time/eval": self.clock.last["eval"]})
            log.info("%s", _line(step, metrics))
            return {"step": step, **{name.removeprefix("eval/"): value for name, value in metrics.items()}}

        def record(step: int, metrics: dict[str, float]) -> None:
            lines.write({"step": step, "kind": "train", **metrics})
            self.history.append(metrics)
            if adapter is not None and "adapter/pruned" in metrics:
                lines.write(rank_row(step, adapter.ranks()))

        if warning := unending(policy):
            log.warning("warning: %s", warning)
        base = held_out(0)
        if adapter is not None and moves:
            lines.write(rank_row(0, adapter.ranks()))
        with self.clock("train"):
            losses = fit(policy, rows, config, adapter, record)
        about = self._about()
        peak = peak_memory(policy.device)  # of training: the merge has the whole model in float32
        self._settle()
        updates = count_updates(len(rows), settings)
        results = {"base": base, "final": held_out(updates), "loss": losses, "steps": updates}
        return {
            **results,
            "adapter": about,
            "completion_ends_at": ending_texts(policy),
            "peak_memory_bytes": peak,
        }

    def _settle(self) -> None:
        """Make the policy what is written, so that this is evaluated: the adapter merged in float32, then cast."""
        policy, adapter = self.start.policy, self.start.adapter
        if adapter is not None:
            if not self.checked.parts.adapter.exports_model:  # the whole model is written anyway
                adapter.export(self.folder.adapter)
            policy.model = adapter.merge()
            policy.first_adapted, policy.merged = 0, nullcontext
        for parameter in policy.model.parameters():  # not the buffers: they do not have the dtype of the checkpoint
            parameter.data = parameter.data.to(self.start.stored)

    def _about(self) -> Summary:
        """Return what the summary says of the parameters that were trained."""
        component, adapter = self.checked.parts.adapter, self.start.adapter
        if adapter is None:
            return {"name": component.label, "parameters": self.start.policy.model.num_parameters()}
        return about_adapter(component.label, adapter, self.history if component.moves_ranks else None)


def _was_cut_off(folder: RunFolder, config: str) -> bool:
    """Return whether the folder holds an attempt at the same that was stopped while it saved."""
    if folder.summary.exists() or not folder.config.is_file():
        return False
    return folder.config.read_text(encoding="utf-8") == config


def preflight(config: WarmStartConfig, device: str) -> Checked:
    """Check everything that can be found wrong before weights are loaded.

    Args:
        device: kind of device that the warm start is on.

    Raises:
        ConfigError: all that is wrong, a line each: key, value and remedy.
    """
    from rlsparse.algorithm import identities
    from rlsparse.components.task import load_task
    from rlsparse.model.loading import outline
    from rlsparse.model.quantization import is_quantized
    from rlsparse.model.source import model_source
    from rlsparse.training.data import check_prompt
    from rlsparse.warm_start.noise import check_noise
    from rlsparse.warm_start.supervised import count_updates

    found = problems(config)
    try:
        parts = Parts.build(config)
    except ConfigError as error:
        found.append(str(error))
    if found:
        raise ConfigError("\n".join(found))
    if not parts.rollout.uses_policy:
        raise ConfigError(
            f"rollout={parts.rollout.label}: samples from a copy of the base model, and a warm start changes the "
            "model; take rollout=fast"
        )
    rows = load_task(parts.task)
    check_noise(rows.train[: config.warm_start.max_rows], config.warm_start.noise)
    from_nothing = isinstance(config.model, ScratchConfig) and config.model.path is None
    if from_nothing and not parts.adapter.trains_all_weights:
        raise ConfigError(
            f"adapter={parts.adapter.label}: model=scratch has random weights, of which all must be trained; take "
            "adapter=none"
        )
    if config.model.quantization != "off":
        raise ConfigError(
            f"model.quantization={config.model.quantization}: a warm start writes a whole model, which is trained in "
            "float32 or gets an adapter merged into it; take model.quantization=off"
        )
    if not from_nothing:
        policy = outline(config.model)
        if is_quantized(policy.model):
            raise ConfigError(
                f"{policy.key}: its weights are quantized, and a warm start writes a whole model; give one that is not"
            )
        check_prompt(policy, parts.task, rows)
        updates = count_updates(len(rows.train[: config.warm_start.max_rows]), config.warm_start)
        parts.adapter.check(policy.model, config.lora_rank, updates)  # adapter=none has nothing to check
    components = {"task": parts.task, "adapter": parts.adapter, "rollout": parts.rollout}
    inputs = Inputs(
        identities(components, files_digest),
        None if from_nothing else model_source(config.model).digest(),
        device,
        unused=() if parts.adapter.uses_lora_rank else ("lora_rank",),
    )
    return Checked(parts, rows, identify(config, inputs))


def _load(config: WarmStartConfig, checked: Checked, device: "torch.device") -> _Start:
    """Load the policy, in float32 where its own weights are trained, and attach the adapter."""
    import torch

    from rlsparse.model.loading import load_policy, wrap_policy
    from rlsparse.runtime.rng import stream_seed
    from rlsparse.warm_start.scratch import new_model, new_tokenizer

    rows, adapter = checked.rows, checked.parts.adapter
    if isinstance(config.model, ScratchConfig) and config.model.path is None:
        tokenizer = new_tokenizer([*rows.train, *rows.test], config.model.vocabulary)
        model = new_model(config.model, tokenizer, config.seed).to(device)
        return _Start(wrap_policy(model, tokenizer, chat_template=False), torch.float32, None)
    policy = load_policy(config.model, device, "auto")
    stored = next(policy.model.parameters()).dtype
    if adapter.trains_all_weights or adapter.exports_model:
        policy.model.float()
    if adapter.trains_all_weights:
        return _Start(policy, stored, None)
    return _Start(policy, stored, adapter.attach(policy, config.lora_rank, stream_seed(config.seed, "adapter")))


def _line(step: int, metrics: dict[str, float]) -> str:
    return (
        f"step {step}: accuracy {100 * metrics['eval/accuracy_greedy']:.1f} % greedy, "
        f"{100 * metrics['eval/accuracy_sampled']:.1f} % sampled, loss {metrics['eval/loss']:.3f} nats per token"
    )


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
    """Do one warm start, or with -m several."""
    prepare_streams()
    try:
        sys.argv[1:] = read_words(sys.argv[1:])
        check_group_options(sys.argv[1:])
    except ConfigError as error:
        sys.exit(f"error: {error}")
    with one_line_errors():
        _main()

"""What can be found wrong before any weights are loaded: keys, components, folders, data, adapter targets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlsparse.algorithm import Algorithm
from rlsparse.components.task import Rows, Task, data_warnings, load_task
from rlsparse.config.checks import check_writable, problems
from rlsparse.config.run_id import Identity, Inputs, files_digest, identify
from rlsparse.config.schema import Config, ConfigError, ModelConfig, TrackerConfig, WandbConfig
from rlsparse.execution.point_warnings import point_warnings
from rlsparse.model.loading import outline
from rlsparse.model.policy import Policy
from rlsparse.model.quantization import OFF, is_quantized
from rlsparse.model.source import model_source
from rlsparse.rollout.layer_skip import LayerSkip
from rlsparse.runtime.devices import device_kind, resolve_device
from rlsparse.storage.summary import DONE, read_summary
from rlsparse.tracking.wandb_environment import mode_problem
from rlsparse.tracking.wandb_names import project_problem
from rlsparse.training.benchmarks import build_benchmarks, check_benchmark, describe_benchmarks, load_benchmark
from rlsparse.training.data import check_prompt


@dataclass(frozen=True)
class Checked:
    """Holds the result of a check without errors.

    Attributes:
        identities: of each run.
        warnings: lines about points that would measure nothing, and about data.
    """

    identities: list[Identity]
    warnings: list[str] = field(default_factory=list)


def preflight(configs: Sequence[Config], points: Sequence[str] = (), here: bool = True) -> Checked:
    """Check every config of a sweep. Values that points share are checked once.

    Args:
        points: for a sweep, the words that tell each config from the others.
        here: whether the runs will be on this machine, so that it must have their device.

    Raises:
        ConfigError: all that is wrong, a line each: key, value and remedy.
    """
    check = _Check(here)
    found: dict[str, str] = {}  # message -> first point that has it
    for i, config in enumerate(configs):
        for line in check.problems(config):
            found.setdefault(line, f" (point: {points[i]})" if points else "")
    if found:
        raise ConfigError("\n".join(message + point for message, point in found.items()))
    warnings = dict.fromkeys(check.warnings)
    return Checked(check.identities, [*warnings, *point_warnings(check.done)])


class _Check:
    """Checks configs one after the other.

    Attributes:
        done: the configs that are right, with their algorithms.
        identities: of these.
        warnings: about their data.
    """

    def __init__(self, here: bool) -> None:
        self.done: list[tuple[Config, Algorithm]] = []
        self.identities: list[Identity] = []
        self.warnings: list[str] = []
        self._here, self._seen = here, set[str]()
        self._digest = cache(files_digest)
        self._rows: dict[str, Rows] = {}
        self._benchmarks: dict[tuple[str, str], Rows] = {}
        self._outlines: dict[str, Policy] = {}

    def problems(self, config: Config) -> list[str]:
        """Return what is wrong with a config, a line each."""
        found, algorithm = problems(config), None
        try:
            algorithm = Algorithm.build(config)
        except ConfigError as error:
            found += str(error).split("\n")
        try:
            benchmarks = build_benchmarks(config.eval)
        except ConfigError as error:
            found += str(error).split("\n")
        if found or algorithm is None:
            return found
        try:
            self._look(config, algorithm)
            self._check_benchmarks(config, algorithm, benchmarks)
            identity = identity_of(config, algorithm, self._device(config), self._digest)
            if not _is_only_read(config, identity):
                self._check_rollout(config, algorithm)
            self.identities.append(identity)
            self.done.append((config, algorithm))
        except ConfigError as error:
            return str(error).split("\n")
        return []

    def _look(self, config: Config, algorithm: Algorithm) -> None:
        if self._once(("runs_dir", config.runs_dir)):
            check_writable("runs_dir", config.runs_dir)
        self._device(config)
        if self._once(("tracker", config.tracker)):
            _check_tracker(config.tracker)
        parts = (algorithm.adapter, algorithm.rollout, algorithm.layer_skip)
        if self._once((config.model, config.lora_rank, config.train.steps, config.eval.max_new_tokens, parts)):
            _check_model(config, algorithm, self._outline(config.model))
        if self._once(algorithm.task):
            self._rows[repr(algorithm.task)] = load_task(algorithm.task)
            self.warnings += data_warnings(algorithm.task, self._rows[repr(algorithm.task)])
        rows = self._rows.get(repr(algorithm.task))  # None: they cannot be loaded, as an earlier point has reported
        if rows is not None and self._once((config.model, algorithm.task)):
            check_prompt(self._outline(config.model), algorithm.task, rows)

    def _check_rollout(self, config: Config, algorithm: Algorithm) -> None:
        """Check what the engine needs outside the run, such as a server, which a run that is done needs no more.

        Raises:
            ConfigError: it is not there, or cannot serve this model.
        """
        quantized = config.model.quantization != OFF or is_quantized(self._outline(config.model).model)
        if self._once(("rollout", algorithm.rollout, quantized)):
            algorithm.rollout.check(quantized)

    def _device(self, config: Config) -> str:
        """Return the kind of device of a run.

        Raises:
            ConfigError: it is not here.
        """
        return resolve_device(config.device).type if self._here else device_kind(config.device)

    def _check_benchmarks(self, config: Config, algorithm: Algorithm, tasks: Mapping[str, Task]) -> None:
        problems = []
        trained = self._rows.get(repr(algorithm.task))
        for name, task in tasks.items():
            if not self._once((name, task, algorithm.task, config.model, config.eval.max_new_tokens)):
                continue
            try:
                rows = self._benchmark(name, task)
                if trained is not None:  # questions of the benchmark that the run trains on
                    self.warnings += data_warnings(task, replace(rows, train=trained.train))
                check_benchmark(self._outline(config.model), name, task, rows, config.eval.max_new_tokens)
            except ConfigError as error:
                problems.append(str(error))
        if problems:
            raise ConfigError("\n".join(problems))

    def _benchmark(self, name: str, task: Task) -> Rows:
        """Return the rows of a benchmark, which points of a sweep share."""
        if (name, repr(task)) not in self._benchmarks:
            self._benchmarks[name, repr(task)] = load_benchmark(name, task)
        return self._benchmarks[name, repr(task)]

    def _outline(self, model: ModelConfig) -> Policy:
        """Return the model without weights, which points of a sweep share."""
        if repr(model) not in self._outlines:
            refuse_scratch(model)
            self._outlines[repr(model)] = outline(model)
        return self._outlines[repr(model)]

    def _once(self, what: object) -> bool:
        new = repr(what) not in self._seen
        self._seen.add(repr(what))
        return new


def identity_of(config: Config, algorithm: Algorithm, device: str, digest: Any = files_digest) -> Identity:
    """Return the identity of a run.

    Args:
        device: kind of device that it is on.
        digest: returns the hash of the contents of some files.
    """
    components = algorithm.identity(digest)
    if tasks := build_benchmarks(config.eval):
        components["benchmarks"] = describe_benchmarks(tasks, digest)
    unused = () if algorithm.adapter.uses_lora_rank else ("lora_rank",)
    return identify(config, Inputs(components, model_source(config.model).digest(digest), device, unused))


def _is_only_read(config: Config, identity: Identity) -> bool:
    """Return whether the run has ended and is not tried again."""
    summary = read_summary(Path(config.runs_dir) / config.experiment.name / identity.id)
    return summary is not None and (summary["status"] in DONE or not config.sweep.retry_failed)


def refuse_scratch(model: ModelConfig) -> None:
    """Refuse a model with random weights, which exists for warm starts only."""
    if model.name == "scratch" and model.path is None:
        raise ConfigError(
            "model=scratch: has random weights, from which RL learns nothing; warm-start it first "
            "(python -m rlsparse.warm_start model=scratch task=arithmetic out=DIR), then model.path=DIR"
        )


def _check_model(config: Config, algorithm: Algorithm, policy: Policy) -> None:
    _check_weights(config, algorithm, policy)
    algorithm.adapter.check(policy.model, config.lora_rank, config.train.steps)
    _check_layer_skip(policy.model, algorithm.layer_skip)
    for key, tokens in (("rollout", algorithm.rollout.max_new_tokens), ("eval", config.eval.max_new_tokens or 0)):
        if tokens < policy.context:
            continue
        raise ConfigError(
            f"{key}.max_new_tokens={tokens}: the model's context is {policy.context} tokens, prompt included; lower it"
        )


def _check_weights(config: Config, algorithm: Algorithm, policy: Policy) -> None:
    """Refuse weights whose numbers the adapter cannot be trained with."""
    adapter = algorithm.adapter
    if is_quantized(policy.model) and adapter.quantization_obstacle is not None:
        raise ConfigError(
            f"{policy.key}: adapter={adapter.label} cannot be trained on its quantized weights: "
            f"{adapter.quantization_obstacle}; give a model that is not quantized, or adapter=lora"
        )
    dtype = str(policy.model.dtype).removeprefix("torch.") if config.dtype == "auto" else config.dtype
    if adapter.exports_model and dtype == "float16":
        raise ConfigError(
            f"dtype={config.dtype}: adapter={adapter.label} would compute gradients in float16, where small ones are "
            "rounded to 0; take dtype=bfloat16 or dtype=float32"
        )


def _check_layer_skip(skeleton: Any, layer_skip: LayerSkip) -> None:
    if not layer_skip.active:
        return
    if not hasattr(skeleton.get_decoder(), "layers"):
        raise ConfigError("layer_skip: this model's decoder has no list of layers to skip from; take layer_skip=off")
    text = skeleton.config.get_text_config()
    kinds = sorted(set(getattr(text, "layer_types", None) or []))
    if len(kinds) > 1 or bool(getattr(text, "num_kv_shared_layers", None)):
        raise ConfigError(
            f"layer_skip: this model's layers are not alike ({', '.join(kinds) or 'some share keys and values'}), and "
            "transformers identifies them by their index, which skipping changes; take layer_skip=off"
        )
    layer_skip.check(len(skeleton.get_decoder().layers))


def _check_tracker(config: TrackerConfig) -> None:
    if config.name != "wandb":
        return
    if find_spec("wandb") is None:
        raise ConfigError("tracker=wandb: wandb is not installed; pip install wandb, or tracker=none")
    if isinstance(config, WandbConfig) and (problem := project_problem(config.project) or mode_problem(config.mode)):
        raise ConfigError(problem)

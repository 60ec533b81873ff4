"""The schema of a run and of a warm start: names, types and ranges. Every default value stands in ``conf/``.

Config groups of components (``advantage``, ``reward``, …) are plain mappings here, with the class in ``_target_``:
their schema is that class, and ``rlsparse.components.component.build`` checks them.
"""

import re
from dataclasses import dataclass, fields
from typing import Annotated, Any

from hydra.errors import CompactHydraException

from rlsparse.config.ranges import MOST_ROWS, OneOf, Range, shown

AUTO = "auto"  # value of the key threads
Node = dict[str, Any]  # of a component: _target_ and a value for each field of that class


class ConfigError(CompactHydraException):
    """Bad input: names the key, its value and what would be right. Hydra prints it without a traceback."""


class Threads(Range):
    """The bounds of a number of CPU threads, which may also be ``auto``."""

    def __str__(self) -> str:
        return f"{AUTO} or a whole number {super().__str__()}"


def threads_of(value: int | str | None) -> int | str | None:
    """Return the value of the key ``threads``, whose type allows other texts than ``auto``.

    The text of a number becomes the number, since an interpolation of an environment variable is a text.

    Raises:
        ConfigError: another text.
    """
    if not isinstance(value, str) or value == AUTO:
        return value
    if re.fullmatch(r"\d{1,9}", value, re.ASCII):
        return int(value)
    raise ConfigError(f"threads={shown(value)}: must be {Threads(1, 1024)}")


@dataclass
class ModelConfig:
    name: str
    path: str | None
    revision: str | None
    chat_template: bool
    template_arguments: dict[str, Any]  # of apply_chat_template; prompts.check_arguments looks at them
    lr: Annotated[float, Range(0)]
    lr_full: Annotated[float, Range(0)]
    quantization: Annotated[str, OneOf("off", "nf4", "int8")]


@dataclass
class ScratchConfig(ModelConfig):
    hidden_size: Annotated[int, Range(1, 10**5)]
    intermediate_size: Annotated[int, Range(1, 10**6)]
    layers: Annotated[int, Range(1, 1000)]
    heads: Annotated[int, Range(1)]
    kv_heads: Annotated[int, Range(1)]
    vocabulary: Annotated[int, Range(256, 10**6)]  # the bytes at least
    context: Annotated[int, Range(1)]


@dataclass
class TrainConfig:
    steps: Annotated[int, Range(1)]
    prompts_per_step: Annotated[int, Range(1, MOST_ROWS)]
    group_size: Annotated[int, Range(1, MOST_ROWS)]
    minibatches: Annotated[int, Range(1)]
    updates_per_rollout: Annotated[int, Range(1)]
    mask_truncated: bool
    staleness: Annotated[int, Range(0, 1000)]
    microbatch: Annotated[int, Range(1)]
    max_tokens_per_microbatch: Annotated[int, Range(1)]
    packing: Annotated[str, OneOf("auto", "off")]
    lr: Annotated[float, Range(0)]
    schedule: Annotated[str, OneOf("constant", "linear", "cosine")]
    warmup_steps: Annotated[int, Range(0)]
    weight_decay: Annotated[float, Range(0)]
    max_grad_norm: Annotated[float, Range(0)]
    checkpoint_every: Annotated[int, Range(1)]


@dataclass
class EvalConfig:
    every: Annotated[int, Range(1)]
    max_rows: Annotated[int, Range(1)]
    samples: Annotated[int, Range(1, MOST_ROWS)]
    pass_at: list[int]  # its items are checked with the list: see checks.problems
    maj_at: list[int]  # likewise
    temperature: Annotated[float, Range(0, above=True)]
    top_p: Annotated[float, Range(0, 1, above=True)]
    top_k: Annotated[int, Range(0)]
    max_new_tokens: Annotated[int | None, Range(1)]
    batch_rows: Annotated[int, Range(1)]
    benchmarks: list[str]
    benchmarks_every: Annotated[int | None, Range(1)]
    benchmark_rows: Annotated[int | None, Range(1)]
    tasks: dict[str, Any]  # task by name of a benchmark; benchmark_nodes completes it


@dataclass
class TrackerConfig:
    name: Annotated[str, OneOf("none", "wandb")]
    samples: Annotated[int, Range(0)]


@dataclass
class WandbConfig(TrackerConfig):
    project: str | None
    entity: str | None
    mode: Annotated[str, OneOf("auto", "online", "offline")]
    tags: list[str]


@dataclass
class ExperimentConfig:
    name: str


@dataclass
class SweepConfig:
    retry_failed: bool
    lock: Annotated[str, OneOf("flock", "lease")]
    until: Annotated[str, OneOf("all", "decided")]
    first_seeds: Annotated[int, Range(3)]
    round_seeds: Annotated[int, Range(1)]
    max_seeds: Annotated[int | None, Range(4)]
    max_hours: Annotated[float | None, Range(0, above=True)]
    claims: str | None


@dataclass
class Config:
    seed: int
    runs_dir: str
    device: str
    dtype: Annotated[str, OneOf("auto", "float32", "bfloat16", "float16")]
    threads: Annotated[int | str | None, Threads(1, 1024)]
    algorithm: str
    lora_rank: Annotated[int, Range(1)]
    import_path: list[str]
    experiment: ExperimentConfig
    sweep: SweepConfig
    model: ModelConfig
    task: Any
    reward: Any
    batch_filter: Any
    advantage: Any
    negative_feedback: Any
    token_sampler: Any
    clipping: Any
    kl: Any
    entropy: Any
    objective: Any
    adapter: Any
    rollout: Any
    replay: Any
    layer_skip: Any
    off_policy: Any
    train: TrainConfig
    eval: EvalConfig
    tracker: TrackerConfig

    def __post_init__(self) -> None:
        self.threads = threads_of(self.threads)


@dataclass
class NoiseConfig:
    direct: Annotated[float, Range(0, 1)]
    direct_wrong: Annotated[float, Range(0, 1)]
    slip: Annotated[float, Range(0, 1)]


@dataclass
class SupervisedConfig:
    epochs: Annotated[int, Range(1)]
    batch_size: Annotated[int, Range(1)]
    lr: Annotated[float, Range(0)]
    warmup: Annotated[float, Range(0, 1)]
    weight_decay: Annotated[float, Range(0)]
    max_grad_norm: Annotated[float, Range(0)]
    max_rows: Annotated[int | None, Range(1)]
    loss_rows: Annotated[int, Range(1)]
    noise: NoiseConfig


@dataclass
class WarmStartConfig:
    seed: int
    out: str
    device: str
    dtype: Annotated[str, OneOf("auto", "float32", "bfloat16", "float16")]
    threads: Annotated[int | str | None, Threads(1, 1024)]
    lora_rank: Annotated[int, Range(1)]
    import_path: list[str]
    adapter: Any
    model: ModelConfig
    task: Any
    rollout: Any
    eval: EvalConfig
    warm_start: SupervisedConfig

    def __post_init__(self) -> None:
        self.threads = threads_of(self.threads)


@dataclass
class LockConfig:
    lock: Annotated[str, OneOf("flock", "lease")]


@dataclass
class EvaluateConfig:
    seed: int
    runs_dir: str
    out: str | None
    adapter_path: str | None
    device: str
    dtype: Annotated[str, OneOf("auto", "float32", "bfloat16", "float16")]
    threads: Annotated[int | str | None, Threads(1, 1024)]
    import_path: list[str]
    sweep: LockConfig
    model: ModelConfig
    rollout: Any
    eval: EvalConfig

    def __post_init__(self) -> None:
        self.threads = threads_of(self.threads)


# group -> name of its schema in the defaults list of an option -> the dataclass; groups of components have none
SCHEMAS: dict[str, dict[str, type]] = {
    "model": {"plain": ModelConfig, "scratch": ScratchConfig},
    "train": {"plain": TrainConfig},
    "eval": {"plain": EvalConfig},
    "tracker": {"plain": TrackerConfig, "wandb": WandbConfig},
    "warm_start": {"plain": SupervisedConfig},
}
# config groups whose options are components
COMPONENT_GROUPS = frozenset(
    field.name for node in (Config, WarmStartConfig) for field in fields(node) if field.type is Any
)

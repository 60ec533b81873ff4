"""The schema of a warm start: names and types only, as in ``config.py``."""

from dataclasses import dataclass

from rlsparse.config.schema import AdapterConfig, EvalConfig, ModelConfig, RolloutConfig, TaskConfig


@dataclass
class NoiseConfig:
    direct: float
    direct_wrong: float
    slip: float


@dataclass
class SupervisedConfig:
    epochs: int
    batch_size: int
    lr: float
    warmup: float
    weight_decay: float
    max_grad_norm: float
    max_rows: int | None
    loss_rows: int
    noise: NoiseConfig


@dataclass
class WarmStartConfig:
    seed: int
    out: str
    device: str
    dtype: str
    threads: int | None
    lora_rank: int
    adapter: AdapterConfig
    model: ModelConfig
    task: TaskConfig
    rollout: RolloutConfig
    eval: EvalConfig
    warm_start: SupervisedConfig

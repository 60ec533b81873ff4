"""The schema of a run: names and types only. Every default value stands in ``conf/``, with a comment that explains it.

One dataclass for each option of a config group that has keys of its own, so that a key which an option does not know
is refused by Hydra at compose time. ``values.py`` and ``checks.py`` refuse what types cannot.
"""

from dataclasses import dataclass
from typing import Any

from hydra.errors import CompactHydraException


class ConfigError(CompactHydraException):
    """Bad input: names the key, its value and what would be right. Hydra prints it without a traceback."""


@dataclass
class AdvantageConfig:
    name: str


@dataclass
class GroupZscoreConfig(AdvantageConfig):
    epsilon: float


@dataclass
class NegativeFeedbackConfig:
    enabled: bool


@dataclass
class ReplayConfig:
    successes: int
    failures: int


@dataclass
class TokenSamplerConfig:
    name: str
    replay: ReplayConfig


@dataclass
class StochasticConfig(TokenSamplerConfig):
    always_first: int
    probability: float
    budget: int
    reweight: bool


@dataclass
class BudgetConfig(TokenSamplerConfig):
    budget: int


@dataclass
class RandomConfig(BudgetConfig):
    reweight: bool


@dataclass
class ClippingConfig:
    surrogate: str


@dataclass
class ClippedRatioConfig(ClippingConfig):
    epsilon_low: float
    epsilon_high: float


@dataclass
class KLConfig:
    beta: float


@dataclass
class ObjectiveConfig:
    aggregation: str
    l2: float


@dataclass
class AdapterConfig:
    name: str


@dataclass
class LoraConfig(AdapterConfig):
    target_modules: Any  # "all-linear" or a list of module names
    layers: Any  # "all", "last_third" or a list of layer numbers
    scale: float


@dataclass
class L1raConfig(LoraConfig):
    budget: int | None
    l1: float
    gate_lr: float
    update_every: float
    threshold: float
    reassign: bool
    exclude_pruned: bool
    min_rank: int


@dataclass
class LayerSkipConfig:
    ratio: float
    choice: str
    layers: Any  # a list of layer numbers for choice=fixed, else None


@dataclass
class OffPolicyConfig:
    name: str


@dataclass
class ImportanceConfig(OffPolicyConfig):
    level: str


@dataclass
class TruncatedConfig(ImportanceConfig):
    cap: float


@dataclass
class RetraceConfig(OffPolicyConfig):
    trace: float


@dataclass
class ModelConfig:
    name: str
    path: str | None
    revision: str | None
    chat_template: bool
    lr: float


@dataclass
class ScratchConfig(ModelConfig):
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int


@dataclass
class RewardConfig:
    correct: float
    wrong: float
    format: float


@dataclass
class TaskConfig:
    name: str
    prompt: str
    answer_format: str
    max_new_tokens: int
    verifier_time_limit: float
    reward: RewardConfig


@dataclass
class GeneratedTaskConfig(TaskConfig):
    seed: int
    train_rows: int
    test_rows: int


@dataclass
class HubTaskConfig(TaskConfig):
    hub: str
    hub_config: str | None
    revision: str | None
    path: str | None


@dataclass
class RolloutConfig:
    name: str
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    max_rows: int


@dataclass
class FastRolloutConfig(RolloutConfig):
    merge_adapter: bool
    prepack_weights: bool


@dataclass
class TrainConfig:
    steps: int
    prompts_per_step: int
    group_size: int
    updates_per_rollout: int
    microbatch: int
    max_tokens_per_microbatch: int
    packing: str
    lr: float
    schedule: str
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    checkpoint_every: int


@dataclass
class EvalConfig:
    every: int
    max_rows: int
    samples: int
    pass_at: list[int]
    batch_rows: int


@dataclass
class TrackerConfig:
    name: str
    samples: int


@dataclass
class WandbConfig(TrackerConfig):
    project: str
    entity: str | None
    mode: str
    tags: list[str]


@dataclass
class ExperimentConfig:
    name: str


@dataclass
class SweepConfig:
    retry_failed: bool
    lock: str


@dataclass
class Config:
    seed: int
    runs_dir: str
    device: str
    dtype: str
    threads: int | None
    algorithm: str
    lora_rank: int
    experiment: ExperimentConfig
    sweep: SweepConfig
    model: ModelConfig
    task: TaskConfig
    advantage: AdvantageConfig
    negative_feedback: NegativeFeedbackConfig
    token_sampler: TokenSamplerConfig
    clipping: ClippingConfig
    kl: KLConfig
    objective: ObjectiveConfig
    adapter: AdapterConfig
    rollout: RolloutConfig
    layer_skip: LayerSkipConfig
    off_policy: OffPolicyConfig
    train: TrainConfig
    eval: EvalConfig
    tracker: TrackerConfig

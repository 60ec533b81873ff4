"""What each key's value may be, whatever the others are: the schema of an option, the choices, the ranges. No torch."""

import math
from collections.abc import Iterator
from typing import Any

from rlsparse.config import (
    AdapterConfig,
    AdvantageConfig,
    BudgetConfig,
    ClippedRatioConfig,
    ClippingConfig,
    Config,
    FastRolloutConfig,
    GeneratedTaskConfig,
    GroupZscoreConfig,
    HubTaskConfig,
    ImportanceConfig,
    L1raConfig,
    LoraConfig,
    OffPolicyConfig,
    RandomConfig,
    RetraceConfig,
    RolloutConfig,
    StochasticConfig,
    TokenSamplerConfig,
    TrackerConfig,
    TruncatedConfig,
    WandbConfig,
)
from rlsparse.warm_start_config import WarmStartConfig

# group -> value of its name -> the schema that its yaml declares; a name alone cannot change the keys beside it
SCHEMA_OF: dict[str, dict[str, type]] = {
    "advantage": {
        "group_zscore": GroupZscoreConfig,
        "group_mean": AdvantageConfig,
        "leave_one_out": AdvantageConfig,
        "raw_reward": AdvantageConfig,
        "prefix_tree": AdvantageConfig,
    },
    "token_sampler": {
        "full": TokenSamplerConfig,
        "stochastic": StochasticConfig,
        "prefix_tree": TokenSamplerConfig,
        "random": RandomConfig,
        "first": BudgetConfig,
        "high_entropy": BudgetConfig,
    },
    "clipping": {
        "clipped_ratio": ClippedRatioConfig,
        "ratio": ClippingConfig,
        "log_prob": ClippingConfig,
        "prob": ClippingConfig,
    },
    "adapter": {"none": AdapterConfig, "lora": LoraConfig, "l1ra": L1raConfig},
    "task": {
        "multiplication": GeneratedTaskConfig,
        "word_problems": GeneratedTaskConfig,
        "arithmetic": GeneratedTaskConfig,
        "svamp": HubTaskConfig,
        "gsm8k": HubTaskConfig,
    },
    "rollout": {"fast": FastRolloutConfig, "plain": RolloutConfig},
    "off_policy": {
        "none": OffPolicyConfig,
        "importance": ImportanceConfig,
        "truncated": TruncatedConfig,
        "retrace": RetraceConfig,
    },
    "tracker": {"none": TrackerConfig, "wandb": WandbConfig},
}
CHOICES = {
    "train.schedule": ("constant", "linear", "cosine"),
    "objective.aggregation": ("sequence_mean", "token_mean", "prompt_mean", "constant"),
    "task.answer_format": ("hash", "boxed", "answer_is", "last_number"),
    "layer_skip.choice": ("random", "fixed", "last"),
    "off_policy.level": ("token", "sequence"),
    "train.packing": ("auto", "off"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "sweep.lock": ("flock", "lease"),
    "tracker.mode": ("auto", "online", "offline"),
}
AT_LEAST_ONE = (
    "lora_rank",
    "threads",
    "train.steps",
    "train.prompts_per_step",
    "train.group_size",
    "train.updates_per_rollout",
    "train.microbatch",
    "train.checkpoint_every",
    "train.max_tokens_per_microbatch",
    "rollout.max_new_tokens",
    "rollout.max_rows",
    "eval.every",
    "eval.max_rows",
    "eval.samples",
    "eval.batch_rows",
    "task.train_rows",
    "task.test_rows",
    "token_sampler.budget",
    "off_policy.cap",
    "adapter.budget",
    "adapter.min_rank",
    "warm_start.epochs",
    "warm_start.batch_size",
    "warm_start.max_rows",
    "warm_start.loss_rows",
)
AT_LEAST_ZERO = (
    "kl.beta",
    "objective.l2",
    "adapter.l1",
    "advantage.epsilon",
    "clipping.epsilon_high",
    "token_sampler.always_first",
    "token_sampler.replay.successes",
    "token_sampler.replay.failures",
    "train.lr",
    "train.warmup_steps",
    "train.weight_decay",
    "train.max_grad_norm",
    "rollout.top_k",
    "tracker.samples",
    "warm_start.lr",
    "warm_start.weight_decay",
    "warm_start.max_grad_norm",
)
ABOVE_ZERO = ("rollout.temperature", "adapter.scale", "adapter.gate_lr", "task.verifier_time_limit")
# key -> lowest, highest, and which of the two is itself allowed: a square bracket is
BETWEEN: dict[str, tuple[float, float, str]] = {
    "rollout.top_p": (0, 1, "(]"),
    "token_sampler.probability": (0, 1, "(]"),
    "clipping.epsilon_low": (0, 1, "[]"),
    "layer_skip.ratio": (0, 1, "[)"),
    "off_policy.trace": (0, 1, "(]"),
    "adapter.update_every": (0, 1, "(]"),
    "adapter.threshold": (0, 1, "[)"),
    "warm_start.warmup": (0, 1, "[]"),
    "warm_start.noise.direct": (0, 1, "[]"),
    "warm_start.noise.direct_wrong": (0, 1, "[]"),
    "warm_start.noise.slip": (0, 1, "[]"),
}
FINITE = ("task.reward.correct", "task.reward.wrong", "task.reward.format")


def _get(config: Config | WarmStartConfig, key: str) -> Any:
    """The value of a dotted key; None where this config has no such key."""
    node: Any = config
    for part in key.split("."):
        node = getattr(node, part, None)
    return node


def value_problems(config: Config | WarmStartConfig) -> Iterator[str]:
    """What is wrong with a value whatever the others are."""
    for group, schemas in SCHEMA_OF.items():
        key = f"{group}.surrogate" if group == "clipping" else f"{group}.name"
        name, node = _get(config, key), _get(config, group)
        if node is None:
            continue
        if name not in schemas:
            yield f"{key}={name}: choose one of {', '.join(schemas)}"
        elif type(node) is not schemas[name]:
            yield f"{key}={name}: the other keys of {group} are another option's; choose {group}= as a whole"
    for key, allowed in CHOICES.items():
        if _get(config, key) not in (*allowed, None):
            yield f"{key}={_get(config, key)}: choose one of {', '.join(allowed)}"
    for key in (*AT_LEAST_ONE, *AT_LEAST_ZERO, *ABOVE_ZERO, *BETWEEN, *FINITE):
        value = _get(config, key)
        if value is not None and not math.isfinite(value):
            yield f"{key}={value}: must be a finite number"
        elif value is not None and (remedy := _out_of_range(key, value)):
            yield f"{key}={value}: must be {remedy}"


def _out_of_range(key: str, value: float) -> str | None:
    """What the value must be, where it is not."""
    if key in AT_LEAST_ONE and value < 1:
        return "at least 1"
    if key in AT_LEAST_ZERO and value < 0:
        return "0 or more"
    if key in ABOVE_ZERO and value <= 0:
        return "above 0"
    if key in BETWEEN:
        low, high, brackets = BETWEEN[key]
        above = low <= value if brackets[0] == "[" else low < value
        below = value <= high if brackets[1] == "]" else value < high
        if not (above and below):
            return f"in {brackets[0]}{low}, {high}{brackets[1]}"
    return None

"""What each key's value may be, whatever the others are: the schema of an option, the choices, the ranges. No torch."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from rlsparse.config.schema import (
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
from rlsparse.config.warm_start_schema import WarmStartConfig

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
    "model.hidden_size",
    "model.intermediate_size",
    "model.layers",
    "model.heads",
    "model.kv_heads",
    "model.context",
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
    "model.lr",
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
ABOVE_ZERO = ("rollout.temperature", "adapter.scale", "adapter.gate_lr")
# key -> lowest, highest, and which of the two is itself allowed: a square bracket is
BETWEEN: dict[str, tuple[float, float, str]] = {
    "rollout.top_p": (0, 1, "(]"),
    "task.verifier_time_limit": (0, 3600, "(]"),
    "token_sampler.probability": (0, 1, "(]"),
    "clipping.epsilon_low": (0, 1, "[]"),
    "model.vocabulary": (256, math.inf, "[)"),  # the bytes
    "layer_skip.ratio": (0, 1, "[)"),
    "off_policy.trace": (0, 1, "(]"),
    "adapter.update_every": (0, 1, "(]"),
    "adapter.threshold": (0, 1, "[)"),
    "warm_start.warmup": (0, 1, "[]"),
    "warm_start.noise.direct": (0, 1, "[]"),
    "warm_start.noise.direct_wrong": (0, 1, "[]"),
    "warm_start.noise.slip": (0, 1, "[]"),
}
# what a step, an evaluation or a task holds in memory, or starts: a slip of the keyboard must not take the machine down
AT_MOST = {
    "train.prompts_per_step": 10**6,
    "train.group_size": 10**6,
    "eval.samples": 10**6,
    "task.train_rows": 10**6,
    "task.test_rows": 10**6,
    "threads": 1024,
    "model.hidden_size": 10**5,
    "model.intermediate_size": 10**6,
    "model.layers": 1000,
    "model.vocabulary": 10**6,
}
LARGEST = 1e30  # a float32 holds little more, and a step multiplies it
LARGEST_WHOLE = 10**18  # a tensor's integer holds little more


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
    for key, value in _leaves(config, ""):
        if remedy := _unusable(value) or _out_of_range(key, value):
            yield f"{key}={value!r}: must be {remedy}" if isinstance(value, str) else f"{key}={value}: must be {remedy}"


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every value with its dotted key; an item of a list goes by the list's."""
    if is_dataclass(node):
        for field in fields(node):
            yield from _leaves(getattr(node, field.name), f"{key}.{field.name}" if key else field.name)
    elif isinstance(node, (list, tuple)):
        for item in node:
            yield from _leaves(item, key)
    elif node is not None:
        yield key, node


def _unusable(value: Any) -> str | None:
    """What a value of its type must be, whatever the key, where it is not."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return "a finite number"
        if abs(value) > LARGEST:
            return f"between -{LARGEST:g} and {LARGEST:g}"
    elif isinstance(value, int) and abs(value) > LARGEST_WHOLE:
        return "a whole number of at most 18 digits"
    elif isinstance(value, str) and ("\0" in value or _has_surrogate(value)):
        return "text that UTF-8 can write, without a zero byte"
    return None


def _has_surrogate(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


def _out_of_range(key: str, value: Any) -> str | None:
    """What the value must be, where it is not."""
    if key in AT_MOST and value > AT_MOST[key]:
        return f"at most {AT_MOST[key]}"
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

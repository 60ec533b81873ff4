"""Combinations of keys that no type can refuse, found before any model loads. No torch."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from rlsparse.config.ranges import AT_MOST, value_problems
from rlsparse.config.schema import (
    AdapterConfig,
    Config,
    ConfigError,
    LayerSkipConfig,
    LoraConfig,
    ScratchConfig,
    StochasticConfig,
)
from rlsparse.config.warm_start_schema import WarmStartConfig

LONGEST_NAME = 200  # bytes; file systems take 255
GROUP_BASELINES = ("group_zscore", "group_mean", "leave_one_out", "prefix_tree")


def check(config: Config) -> None:
    """Refuse a run's config that cannot mean what it says.

    Raises:
        ConfigError: with all that is wrong, a line each: key, value and remedy.
    """
    _refuse([*value_problems(config), *_task_problems(config), *_run_problems(config)])


def check_warm_start(config: WarmStartConfig) -> None:
    """The same for a warm start.

    Raises:
        ConfigError: with all that is wrong, a line each: key, value and remedy.
    """
    problems = [*value_problems(config), *_task_problems(config), *_adapter_problems(config.adapter)]
    if not config.out.strip():
        problems.append("out=: names no folder; give a new one, out=DIR")
    if not problems and isinstance(config.model, ScratchConfig) and config.model.path is None:
        problems += _shape_problems(config.model)
    _refuse(problems)


def skips_layers(config: LayerSkipConfig) -> bool:
    """Whether rollouts leave decoder layers out."""
    return config.ratio > 0 or config.choice == "fixed"


def check_writable(key: str, path: str) -> None:
    """Make a folder and refuse one that cannot be written.

    Raises:
        ConfigError: it is a file, lies under one, or this user may not write there.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"{key}={path}: cannot be written ({error.strerror}); give a folder that you may write"
        ) from error


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigError("\n".join(problems))


def _task_problems(config: Config | WarmStartConfig) -> Iterator[str]:
    if "{question}" not in config.task.prompt:
        yield f"task.prompt={config.task.prompt!r}: must contain {{question}}"
    ks: object = config.eval.pass_at  # an interpolation brings values of other types past the schema
    if not isinstance(ks, list) or any(type(k) is not int or k < 1 for k in ks):
        yield f"eval.pass_at={ks}: must be a list such as [1,2], and each k must be at least 1"


def _shape_problems(model: ScratchConfig) -> Iterator[str]:
    if model.hidden_size % (2 * model.heads):
        yield (
            f"model.hidden_size={model.hidden_size}: each of model.heads={model.heads} takes an even part of it; give "
            f"a multiple of {2 * model.heads}"
        )
    if model.heads % model.kv_heads:
        yield f"model.kv_heads={model.kv_heads}: must divide model.heads={model.heads}"


def _run_problems(config: Config) -> Iterator[str]:
    if not config.runs_dir.strip():
        yield "runs_dir=: names no folder; give one, such as runs_dir=runs"
    name = config.experiment.name
    if not re.fullmatch(r"\w[\w.-]*", name):
        yield f"experiment.name={name}: it names a folder; use letters, digits, '_', '-' and '.'"
    elif len(os.fsencode(name)) > LONGEST_NAME:
        yield f"experiment.name={name}: it names a folder; use at most {LONGEST_NAME} letters"
    if config.adapter.name == "none":
        yield "adapter=none: trains all weights, which only a warm start does; take adapter=lora or adapter=l1ra"
    rows = config.train.prompts_per_step * config.train.group_size
    if rows > AT_MOST["train.group_size"]:
        yield (
            f"train.prompts_per_step={config.train.prompts_per_step}: with train.group_size={config.train.group_size} "
            f"a step has {rows} completions; give at most {AT_MOST['train.group_size']}"
        )
    yield from _adapter_problems(config.adapter)
    yield from _credit_problems(config)
    yield from _off_policy_problems(config)
    sampler = config.token_sampler
    for kind, count in (("successes", sampler.replay.successes), ("failures", sampler.replay.failures)):
        if count > 0 and sampler.name != "prefix_tree":
            yield (
                f"token_sampler.replay.{kind}={count}: only T-SPMO replays, whose trees need deep branch points; "
                f"leave it 0 with token_sampler={sampler.name}, or take algorithm=tspmo"
            )
        elif count > config.train.group_size:
            yield (
                f"token_sampler.replay.{kind}={count}: a group has train.group_size={config.train.group_size} "
                "completions to cut; give at most that many"
            )
    if isinstance(sampler, StochasticConfig) and sampler.budget < sampler.always_first:
        yield (
            f"token_sampler.budget={sampler.budget}: the first token_sampler.always_first={sampler.always_first} "
            "tokens count too, so it must be at least that"
        )


def _adapter_problems(config: AdapterConfig) -> Iterator[str]:
    if not isinstance(config, LoraConfig):
        return
    layers, modules = config.layers, config.target_modules
    if layers not in ("all", "last_third") and not _is_list_of(int, layers):
        yield f"adapter.layers={layers}: give all, last_third, or a list of layer numbers such as [8,9]"
    if modules != "all-linear" and not _is_list_of(str, modules):
        yield f"adapter.target_modules={modules}: give all-linear, or a list of names such as [q_proj,v_proj]"


def _is_list_of(kind: type, value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is kind for item in value)


def _off_policy_problems(config: Config) -> Iterator[str]:
    skip, off_policy = config.layer_skip, config.off_policy
    if skip.choice == "fixed" and not _is_list_of(int, skip.layers):
        given = "null" if skip.layers is None else skip.layers
        yield f"layer_skip.layers={given}: layer_skip.choice=fixed needs a list of layer numbers such as [2,5]"
    if skip.choice != "fixed" and skip.layers is not None:
        yield f"layer_skip.layers={skip.layers}: only layer_skip.choice=fixed takes a list; add that, or leave it null"
    if skip.choice == "last" and skip.ratio == 0:
        yield "layer_skip.choice=last: skips nothing with layer_skip.ratio=0; give a share such as layer_skip.ratio=0.1"
    rollout = config.rollout
    if off_policy.name != "none" and skips_layers(skip) and (rollout.top_p < 1 or rollout.top_k > 0):
        yield (
            f"off_policy={off_policy.name}: its ratios need the probability that a token was sampled with, and "
            f"rollout.top_p={rollout.top_p} rollout.top_k={rollout.top_k} change that; take rollout.top_p=1 "
            "rollout.top_k=0, or off_policy=none"
        )
    if off_policy.name != "none" and config.token_sampler.name == "prefix_tree":
        yield (
            f"off_policy={off_policy.name}: T-SPMO's term of a transition is not a sample whose weight could be "
            "corrected, since each distinct one counts once, whoever drew it; take off_policy=none"
        )


def _credit_problems(config: Config) -> Iterator[str]:
    if config.train.group_size == 1 and config.advantage.name in GROUP_BASELINES:
        yield (
            f"train.group_size=1: advantage={config.advantage.name} compares completions of one prompt; "
            "take a group of at least 2, or advantage=raw_reward"
        )
    if config.advantage.name == "prefix_tree":
        if config.clipping.surrogate == "clipped_ratio":
            yield (
                "clipping=on: advantage=prefix_tree (T-SPMO) weighs each distinct transition's probability, which "
                "is not clipped; take clipping=prob"
            )
        if config.token_sampler.name != "prefix_tree":
            yield (
                f"token_sampler={config.token_sampler.name}: advantage=prefix_tree (T-SPMO) names each distinct "
                "transition once; take token_sampler=prefix_tree"
            )
    elif config.token_sampler.name == "prefix_tree":
        yield (
            f"advantage={config.advantage.name}: token_sampler=prefix_tree picks the branch points that "
            "advantage=prefix_tree values; take both or neither"
        )

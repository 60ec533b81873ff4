"""From yaml files to a typed config: the schemas that Hydra knows, the folder it reads, and the strict conversion."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from rlsparse.config.schema import (
    AdapterConfig,
    AdvantageConfig,
    BudgetConfig,
    ClippedRatioConfig,
    ClippingConfig,
    Config,
    ConfigError,
    EvalConfig,
    FastRolloutConfig,
    GeneratedTaskConfig,
    GroupZscoreConfig,
    HubTaskConfig,
    ImportanceConfig,
    KLConfig,
    L1raConfig,
    LayerSkipConfig,
    LoraConfig,
    ModelConfig,
    NegativeFeedbackConfig,
    ObjectiveConfig,
    OffPolicyConfig,
    RandomConfig,
    RetraceConfig,
    RolloutConfig,
    ScratchConfig,
    StochasticConfig,
    TokenSamplerConfig,
    TrackerConfig,
    TrainConfig,
    TruncatedConfig,
    WandbConfig,
)
from rlsparse.config.warm_start_schema import SupervisedConfig, WarmStartConfig

# group -> schema name -> dataclass; an option's yaml names <group>_<schema name> in its defaults list.
SCHEMAS: dict[str, dict[str, type]] = {
    "advantage": {"plain": AdvantageConfig, "group_zscore": GroupZscoreConfig},
    "negative_feedback": {"plain": NegativeFeedbackConfig},
    "token_sampler": {
        "plain": TokenSamplerConfig,
        "stochastic": StochasticConfig,
        "budget": BudgetConfig,
        "random": RandomConfig,
    },
    "clipping": {"plain": ClippingConfig, "clipped_ratio": ClippedRatioConfig},
    "kl": {"plain": KLConfig},
    "objective": {"plain": ObjectiveConfig},
    "adapter": {"plain": AdapterConfig, "lora": LoraConfig, "l1ra": L1raConfig},
    "model": {"plain": ModelConfig, "scratch": ScratchConfig},
    "task": {"generated": GeneratedTaskConfig, "hub": HubTaskConfig},
    "rollout": {"plain": RolloutConfig, "fast": FastRolloutConfig},
    "layer_skip": {"plain": LayerSkipConfig},
    "off_policy": {
        "plain": OffPolicyConfig,
        "importance": ImportanceConfig,
        "truncated": TruncatedConfig,
        "retrace": RetraceConfig,
    },
    "train": {"plain": TrainConfig},
    "eval": {"plain": EvalConfig},
    "tracker": {"plain": TrackerConfig, "wandb": WandbConfig},
    "warm_start": {"plain": SupervisedConfig},
}


def register_schemas() -> None:
    """Make the schemas known to Hydra.

    They lie in a group of their own: in a group's folder they would be offered as its options, and a folder each
    doubles the time of ``--help``, for which Hydra copies the whole store at every group.
    """
    store = ConfigStore.instance()
    store.store(name="run_schema", node=Config)
    store.store(name="warm_start_schema", node=WarmStartConfig)
    for group, schemas in SCHEMAS.items():
        for name, node in schemas.items():
            store.store(group="schema", name=f"{group}_{name}", node=node)


def config_dir() -> str:
    """The folder of yaml files: ``conf/`` of the checkout, or the copy that a wheel carries."""
    package = Path(__file__).parent.parent
    inside = package / "conf"
    return str(inside if inside.is_dir() else package.parent / "conf")


def check_keys(words: Iterable[str]) -> None:
    """Refuse a key that no option of its group has; Hydra's remedy for that (``+train.step=2``) would be refused, too.

    Args:
        words: overrides; groups, which may be of a user's own (``+setup=small``), packages and Hydra's own are passed
            over.

    Raises:
        ConfigError: the key, and what there is in its place.
    """
    top = {field.name for node in (Config, WarmStartConfig) for field in fields(node)} | {"hydra"}
    for key in (word.partition("=")[0].lstrip("+~") for word in words):
        group, _, rest = key.partition(".")
        if not re.fullmatch(r"\w+(\.\w+)+", key):
            continue
        if group not in top:
            raise ConfigError(f"{key}: no such key; here there are {', '.join(sorted(top))}")
        known = {field.name for node in SCHEMAS.get(group, {}).values() for field in fields(node)}
        if known and rest.split(".")[0] not in known:
            raise ConfigError(f"{key}: no such key; here there are {', '.join(sorted(known))}")


def check_group_options(arguments: Sequence[str]) -> None:
    """Refuse what Hydra answers with a traceback: a value where a group wants an option (``layer_skip=0.25``), no key.

    And a key that there is not: see ``check_keys``.

    Args:
        arguments: of the command line.

    Raises:
        ConfigError: the group, the value, the options and the way to its keys.
    """
    check_keys(word for word in arguments if "=" in word and not word.startswith("-"))
    for group, equals, value in (argument.partition("=") for argument in arguments):
        if equals and group in ("", "hydra"):
            raise ConfigError(f"{group}={value}: names no key; write KEY=VALUE, such as train.steps=20")
        if re.search(r"\d{400}", value):  # more than a float holds; from 4300 digits on Python itself refuses
            raise ConfigError(f"{group}={value[:20]}...: a number of so many digits; give a smaller one")
        if "(" in value and (error := _unusable_sweep(f"{group}={value}")):
            raise ConfigError(f"{group}={value}: {error}; give at least one value, such as {group}=1,2")
        folder = Path(config_dir()) / group
        if group.isidentifier() and folder.is_dir() and any(map(_is_value, value.strip("[]").split(","))):
            options = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
            raise ConfigError(
                f"{group}={value}: {group} is a config group; choose one of {options}, and give values to its keys as "
                f"{group}.KEY={value}"
            )


def _unusable_sweep(argument: str) -> str | None:
    """Why an axis of a sweep (``seed=range(0)``) has no points; None for all else, of which Hydra speaks itself."""
    try:
        override = OverridesParser.create().parse_override(argument)
        if not override.is_discrete_sweep():
            return None
        if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
            is_group = (Path(config_dir()) / override.key_or_group).is_dir()
            return None if is_group else "glob chooses among the options of a config group"
        return None if any(True for _ in override.sweep_string_iterator()) else "a sweep without points"
    except HydraException:
        return None
    except ValueError as error:
        return str(error)


def _is_value(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return word.lower() in ("true", "false", "null")
    return True


def compose_config(overrides: Sequence[str]) -> Config:
    """The config of one run, as the command line would compose it from these overrides.

    Raises:
        ConfigError: see ``run_config``; Hydra's own errors for what it refuses.
    """
    check_group_options(overrides)
    register_schemas()
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config: Config = run_config(compose("config", list(overrides)))
    return config


def run_config(config: DictConfig) -> Any:
    """A composed config as its dataclass (``Config`` or ``WarmStartConfig``), Hydra's own node left out.

    Raises:
        ConfigError: a key without a value, an interpolation that leads nowhere, or a key (``+key=…``) that is in no
            schema.
    """
    ours = config.copy()
    with open_dict(ours):
        ours.pop("hydra", None)
    try:
        missing = sorted(OmegaConf.missing_keys(ours))
        if missing:
            raise ConfigError("\n".join(f"{key}: has no value; give {key}=..." for key in _leaves(missing, ours)))
        plain = OmegaConf.to_object(ours)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    _refuse_unknown_keys(plain, OmegaConf.to_container(ours), "")
    return plain


def _leaves(missing: Iterable[str], config: DictConfig) -> list[str]:
    """Keys without a value; of a whole group without one, those that it needs."""
    nodes = get_type_hints(OmegaConf.get_type(config))
    return [
        f"{key}.{one.name}" if one is not None else key
        for key in missing
        for one in (fields(nodes[key]) if is_dataclass(nodes.get(key)) else [None])
    ]


def _refuse_unknown_keys(node: Any, container: Any, prefix: str) -> None:
    if not is_dataclass(node):
        return
    if not isinstance(container, dict):
        raise ConfigError(f"{prefix[:-1]}={container}: stands for several keys; give each its value, {prefix}KEY=...")
    known = {field.name for field in fields(node)}
    for key in container:
        if key not in known:
            raise ConfigError(f"{prefix}{key}: no such key; here there are {', '.join(sorted(known))}")
    for key in known:
        _refuse_unknown_keys(getattr(node, key), container[key], f"{prefix}{key}.")

"""From yaml files to a typed config: schemas, config folders, and the strict conversion of what Hydra composes."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import (
    GrammarParseError,
    InterpolationKeyError,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)

from rlsparse.config.benchmarks import benchmark_nodes
from rlsparse.config.paths import expand_all, expand_home
from rlsparse.config.ranges import shown
from rlsparse.config.schema import COMPONENT_GROUPS, SCHEMAS, Config, ConfigError, EvaluateConfig, WarmStartConfig
from rlsparse.config.sources import register_source
from rlsparse.config.words import (
    ESCAPE,
    TERM_GROUP,
    TERMS,
    read_words,
    refuse_covered_axes,
    refuse_repeated_axes,
    refuse_repeated_keys,
    refuse_repeated_terms,
    refuse_unreadable,
)


def times(factor: float, value: float) -> float:
    """Return a product, as a whole number where it is one: in a yaml file, ``${times:2,${lora_rank}}``."""
    product = factor * value
    return int(product) if product == int(product) else product


# for the folders that Hydra itself makes, also in the worker of a launcher, which imports this module
OmegaConf.register_new_resolver("expand_home", expand_home, replace=True)
OmegaConf.register_new_resolver("times", times, replace=True)
UNKNOWN = (InterpolationKeyError, UnsupportedInterpolationType, GrammarParseError)  # perhaps no interpolation is meant
# keys that had another name in an earlier version -> the key or group that took its place
RENAMED = {"task.reward": "reward", "token_sampler.replay": "replay", "objective.aggregation": "objective"}


def register_schemas() -> None:
    """Register the schemas with Hydra.

    They are in a group of their own: in the folder of a config group they would be offered as options of it, and one
    folder each would double the time of ``--help``, for which Hydra copies the whole store at every group.
    """
    register_source()
    store = ConfigStore.instance()
    store.store(name="run_schema", node=Config)
    store.store(name="warm_start_schema", node=WarmStartConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    for group, schemas in SCHEMAS.items():
        for name, node in schemas.items():
            store.store(group="schema", name=f"{group}_{name}", node=node)


def config_dir() -> str:
    """Return the folder of yaml files: ``conf/`` of the checkout, or its copy in a wheel."""
    package = Path(__file__).parent.parent
    inside = package / "conf"
    return str(inside if inside.is_dir() else package.parent / "conf")


def added_config_dirs(arguments: Sequence[str]) -> list[str]:
    """Return the folders that ``--config-dir`` names on a command line."""
    found = []
    for one, following in zip(arguments, [*arguments, ""][1:], strict=True):
        flag, equals, value = one.partition("=")
        if flag in ("--config-dir", "-cd"):
            found.append(value if equals else following)
    return found


def check_keys(words: Iterable[str], folders: Sequence[str] = ()) -> None:
    """Refuse a key that no option of its group has. The remedy that Hydra suggests (``+train.step=2``) would fail, too.

    Args:
        words: overrides. Choices of config groups, which may be those of a user (``+setup=small``), packages and keys
            of Hydra are not looked at.
        folders: config folders of the user.

    Raises:
        ConfigError: the key, and the keys that exist.
    """
    top = {field.name for node in (Config, WarmStartConfig, EvaluateConfig) for field in fields(node)} | {"hydra"}
    words = list(words)
    for word in words:
        key = word.partition("=")[0].lstrip("+~")
        group, _, rest = key.partition(".")
        if not re.fullmatch(r"\w+(\.\w+)+", key):
            continue
        _refuse_renamed(key, word)
        if key == f"{TERM_GROUP}.weight" and not folders:
            raise ConfigError(f"{word}: a weight belongs to a term; take {TERM_GROUP}=terms and {TERMS}.NAME.weight")
        if group not in top:
            raise ConfigError(f"{key}: no such key; here there are {', '.join(sorted(top))}")
        own = folders or any(one.startswith(f"{group}._target_=") for one in words)
        if word.startswith("+") and own and group in COMPONENT_GROUPS:
            continue  # a field of a user's class may have no line in a yaml file; building the component checks it
        known = _keys_of_group(group, folders)
        if known and rest.split(".")[0] not in {*known, "_target_"}:
            raise ConfigError(f"{key}: no such key; here there are {', '.join(sorted(known))}")


def _refuse_renamed(key: str, word: str) -> None:
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            now = new + word.partition("=")[0].lstrip("+~").removeprefix(old) + "".join(word.partition("=")[1:])
            raise ConfigError(f"{word}: this key has moved; write {now}")


def _keys_of_group(group: str, folders: Sequence[str]) -> set[str]:
    """Return the keys of all options of a group: those of its schemas, or those in its yaml files."""
    if group in SCHEMAS:
        return {field.name for node in SCHEMAS[group].values() for field in fields(node)}
    if group not in COMPONENT_GROUPS:
        return set()
    files = [file for folder in (config_dir(), *folders) for file in Path(folder, group).rglob("*.yaml")]
    try:
        nodes = [yaml.safe_load(file.read_text(encoding="utf-8-sig")) for file in files]
    except (OSError, ValueError, yaml.YAMLError):  # Hydra will say so
        return set()
    return {key for node in nodes if isinstance(node, dict) for key in node} - {"defaults", "_target_"}


def check_group_options(arguments: Sequence[str]) -> None:
    """Refuse words of a command line that Hydra answers with a traceback, or with a remedy that does not work.

    These are a value in the place of an option (``layer_skip=0.25``), a value without a key, a sweep without points, an
    axis that is given twice, words and files that cannot be read, and keys that do not exist: see ``check_keys``.

    Args:
        arguments: of the command line, as ``read_words`` returns them.

    Raises:
        ConfigError: the word, and what would be right.
    """
    folders = added_config_dirs(arguments)
    for folder in folders:
        if not Path(folder).is_dir():
            raise ConfigError(f"--config-dir={folder}: there is no such folder; give one with yaml files")
    words = [word for word in arguments if "=" in word and not word.startswith("-")]
    check_keys(words, folders)
    for group, equals, value in (argument.partition("=") for argument in arguments):
        if equals and group in ("", "hydra"):
            raise ConfigError(f"{group}={value}: names no key; write KEY=VALUE, such as train.steps=20")
        if group == "eval.benchmarks" and re.match(r"[\w,]+$", value):
            raise ConfigError(f"{group}={value}: must be a list; write {group}=[{value}]")
        if re.search(r"\d{400}", value):  # more than a float holds; from 4300 digits on Python itself refuses
            raise ConfigError(f"{group}={value[:20]}...: a number of so many digits; give a smaller one")
        if "(" in value and (error := _unusable_sweep(f"{group}={value}")):
            raise ConfigError(f"{group}={value}: {error}; give at least one value, such as {group}=1,2")
        if not group.isidentifier():
            continue
        options = {file.stem for folder in (config_dir(), *folders) for file in Path(folder, group).glob("*.yaml")}
        if options and any(map(_is_value, value.strip("[]").split(","))):
            raise ConfigError(
                f"{group}={value}: {group} is a config group; choose one of {', '.join(sorted(options))}, and give "
                f"values to its keys as {group}.KEY={value}"
            )
    refuse_unreadable(words)
    refuse_repeated_keys(words)
    refuse_repeated_terms(words)
    refuse_repeated_axes(words, "on the command line")
    refuse_covered_axes(words)
    _refuse_hidden_files(words, folders)
    _refuse_unreadable_files(words, folders)


def _refuse_hidden_files(words: Iterable[str], folders: Sequence[str]) -> None:
    """Refuse a chosen option that both a folder of a user and the package have: Hydra would take the package's."""
    for word in words:
        group, _, names = word.lstrip("+").partition("=")
        group = group.partition("@")[0]
        for name in names.split(","):
            option = f"{group}/{name}.yaml"  # joined as text: the value of a key may be an absolute path
            hidden = [f"{folder}/{option}" for folder in folders if os.path.isfile(f"{folder}/{option}")]
            if hidden and os.path.isfile(f"{config_dir()}/{option}"):
                raise ConfigError(
                    f"{group}={name}: rlsparse has an option of this name, which Hydra would take instead of "
                    f"{hidden[0]}; rename that file"
                )


def _refuse_unreadable_files(words: Iterable[str], folders: Sequence[str]) -> None:
    """Refuse yaml files of a user that are chosen and cannot be read: Hydra would print a traceback."""
    for word in words:
        group, _, names = word.lstrip("+").partition("=")
        group = group.partition("@")[0]  # what follows is a package: reward@reward.terms.length
        for file in (Path(folder, group, f"{name}.yaml") for folder in folders for name in names.split(",")):
            try:
                if file.is_file():
                    OmegaConf.create(file.read_text(encoding="utf-8-sig"))
            except GrammarParseError as error:
                reason = str(error).splitlines()[0]
                raise ConfigError(f"{group}={names}: {file}, key {error.full_key}: {reason}; {ESCAPE}") from error
            except (OSError, ValueError, yaml.YAMLError) as error:
                mark = getattr(error, "problem_mark", None)
                line = "" if mark is None else f", line {mark.line + 1}"
                reason = getattr(error, "problem", None) or str(error).splitlines()[0]
                raise ConfigError(f"{group}={names}: {file}{line} cannot be read ({reason}); fix it") from error


def _unusable_sweep(argument: str) -> str | None:
    """Return why an axis of a sweep (``seed=range(0)``) has no points; None for all else."""
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


def compose(overrides: Sequence[str] = (), config_dirs: Sequence[str] = ()) -> Config:
    """Return the config of one run, as the command line would compose it from these overrides.

    Args:
        config_dirs: folders with yaml files and modules of your own, as ``--config-dir`` adds one.

    Raises:
        ConfigError: see ``run_config``; Hydra's own errors for what it refuses.
    """
    folders = [Path(folder).expanduser().resolve() for folder in config_dirs]
    overrides = read_words(overrides)
    check_group_options([*(f"--config-dir={folder}" for folder in folders), *overrides])
    register_schemas()
    quoted = ["'file://{}'".format(str(folder).replace("'", "\\'")) for folder in folders]
    search = [f"hydra.searchpath=[{','.join(quoted)}]"]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        words = [*(search if folders else []), *overrides]
        config: Config = run_config(hydra_compose("config", words, return_hydra_config=True))
    return config


def run_config(config: DictConfig) -> Any:
    """Return a composed config as its dataclass (that of its schema), Hydra's own node left out.

    ``~`` at the start of a value is the home folder. Folders with yaml files of a user's own (``--config-dir``) join
    ``import_path``, so that their modules are found wherever the config goes.

    Raises:
        ConfigError: a key without a value, an interpolation that leads nowhere, or a key (``+key=…``) that is in no
            schema.
    """
    _refuse_home_folder(config)
    ours = config.copy()
    with open_dict(ours):
        ours.pop("hydra", None)
    try:
        missing = sorted(OmegaConf.missing_keys(ours))
        if missing:
            raise ConfigError("\n".join(f"{key}: has no value; give {key}=..." for key in _leaves(missing, ours)))
        plain: Any = OmegaConf.to_object(ours)
    except OmegaConfBaseException as error:
        hint = f"; {ESCAPE}" if isinstance(error, UNKNOWN) else ""
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}{hint}") from error
    container: Any = OmegaConf.to_container(ours)
    for old in RENAMED:
        group, _, key = old.partition(".")
        if isinstance(container.get(group), dict) and key in container[group]:
            for one, value in _values_under(old, container[group][key]):
                _refuse_renamed(one, f"{one}={shown(value)}")
    _refuse_unknown_keys(plain, container, "")
    if not isinstance(plain.import_path, list):  # an interpolation brings values of other types past the schema
        raise ConfigError(f"import_path={plain.import_path}: must be a list such as [mine]")
    plain.eval.tasks = benchmark_nodes(plain.eval, [config_dir(), *added_folders(config)])
    expand_all(plain)
    own = [str(Path(folder).absolute()) for folder in plain.import_path]
    plain.import_path = list(dict.fromkeys([*own, *added_folders(config)]))
    return plain


def as_yaml(config: Config | WarmStartConfig | EvaluateConfig) -> str:
    """Return a config as yaml that OmegaConf reads as the same config: ``${`` in a text is no interpolation."""
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(asdict(config))))


def _escaped(node: Any) -> Any:
    if isinstance(node, str):
        return re.sub(r"(\\*)\$\{", lambda found: f"{2 * found[1]}\\${{", node)
    if isinstance(node, dict):
        return {key: _escaped(one) for key, one in node.items()}
    return [_escaped(one) for one in node] if isinstance(node, list) else node


def _refuse_home_folder(config: DictConfig) -> None:
    """Refuse ``~`` from a yaml file in a folder that Hydra makes: Hydra would make a folder of that name."""
    for key in ("hydra.run.dir", "hydra.sweep.dir"):
        value = OmegaConf.select(config, key, throw_on_resolution_failure=False, throw_on_missing=False)
        if isinstance(value, str) and expand_home(value) != value:
            raise ConfigError(f"{key}={value}: Hydra does not know ~ as the home folder; write ${{oc.env:HOME}} for it")


def _values_under(key: str, node: Any) -> list[tuple[str, Any]]:
    """Return the values in a node with their whole keys, in order."""
    if isinstance(node, dict) and node:
        return [one for name, value in node.items() for one in _values_under(f"{key}.{name}", value)]
    return [(key, node)]


def added_folders(config: DictConfig) -> list[str]:
    """Return the config folders that a command line has added, as absolute paths."""
    if "hydra" not in config and HydraConfig.initialized():  # a job is given its config without Hydra's node
        sources: Any = HydraConfig.get().runtime.config_sources
    else:
        sources = OmegaConf.select(config, "hydra.runtime.config_sources", default=None) or []
    return [one.path for one in sources if one.schema == "file" and one.path and one.path != config_dir()]


def _leaves(missing: Iterable[str], config: DictConfig) -> list[str]:
    """Return the keys without a value; for a whole group without one, those that it needs."""
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

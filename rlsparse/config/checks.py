"""Values of the schema that no type can refuse, found before any model loads. No torch."""

import os
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from rlsparse.config.ranges import MOST_ROWS, keys_of, value_problems
from rlsparse.config.schema import Config, ConfigError, ScratchConfig, WarmStartConfig

PROBE = 2**16  # bytes; a disk with less space than that is full
LONGEST_NAME = 200  # bytes; file systems take 255


def problems(config: Config | WarmStartConfig) -> list[str]:
    """Return what is wrong with the config of a run or a warm start, a line each; components are not looked at."""
    found = [*_values(config, ""), *_pass_at_problems(config)]
    if isinstance(config, Config):
        return [*found, *_run_problems(config)]
    if not config.out.strip():
        found.append("out=: names no folder; give a new one, out=DIR")
    if not found and isinstance(config.model, ScratchConfig) and config.model.path is None:
        found += _shape_problems(config.model)
    return found


def refuse(lines: list[str]) -> None:
    """Raise an error with all problems, if there are any.

    Raises:
        ConfigError: there are lines.
    """
    if lines:
        raise ConfigError("\n".join(lines))


def check_writable(key: str, path: str) -> None:
    """Make a folder and refuse one that cannot be written.

    Raises:
        ConfigError: it is a file, lies under one, or this user may not write there.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        try:
            probe.write_bytes(bytes(PROBE))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{key}={path}: cannot be written ({error.strerror}); give a folder that you may write"
        ) from error


def _values(node: Any, prefix: str) -> Iterator[str]:
    """Yield what is wrong with each value of a dataclass and of those in it."""
    cls: Any = type(node)
    keys = keys_of(cls)
    for field in fields(node):
        value = getattr(node, field.name)
        if is_dataclass(value):
            yield from _values(value, f"{prefix}{field.name}.")
        elif not isinstance(value, dict):
            yield from value_problems(prefix + field.name, keys[field.name], value)


def _pass_at_problems(config: Config | WarmStartConfig) -> Iterator[str]:
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
    rows = config.train.prompts_per_step * config.train.group_size
    if rows > MOST_ROWS:
        yield (
            f"train.prompts_per_step={config.train.prompts_per_step}: with train.group_size={config.train.group_size} "
            f"a step has {rows} completions; give at most {MOST_ROWS}"
        )

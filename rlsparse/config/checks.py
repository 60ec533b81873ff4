"""Values of the schema that no type can refuse, found before any model loads. No torch."""

import os
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from rlsparse.config.ranges import MOST_ROWS, keys_of, value_problems
from rlsparse.config.schema import Config, ConfigError, EvalConfig, EvaluateConfig, ScratchConfig, WarmStartConfig

PROBE = 2**16  # bytes; a disk with less space than that is full
LONGEST_NAME = 200  # bytes; file systems take 255


def problems(config: Config | WarmStartConfig | EvaluateConfig) -> list[str]:
    """Return what is wrong with the config of a run, a warm start or an evaluation, a line each.

    Components are not looked at.
    """
    found = [*_values(config, ""), *_eval_problems(config.eval)]
    if isinstance(config, Config):
        return [*found, *_run_problems(config)]
    if isinstance(config, EvaluateConfig):
        if not config.eval.benchmarks:
            found.append("eval.benchmarks=: names no task; give some, such as [svamp,math500], or eval=math_suite")
        return found
    if config.eval.benchmarks:
        found.append(
            f"eval.benchmarks={','.join(config.eval.benchmarks)}: a warm start evaluates its own task only; leave it "
            "out, and evaluate the model that it writes: python -m rlsparse.evaluate model.path=DIR"
        )
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


def _eval_problems(evaluation: EvalConfig) -> Iterator[str]:
    for key in ("pass_at", "maj_at"):
        ks: object = getattr(evaluation, key)  # an interpolation brings values of other types past the schema
        if not isinstance(ks, list) or any(type(k) is not int or k < 1 for k in ks):
            yield f"eval.{key}={ks}: must be a list such as [1,2], and each k must be at least 1"
        elif len(set(ks)) < len(ks):
            yield f"eval.{key}={ks}: has a number twice; keep one"
        elif key == "maj_at" and (above := [k for k in ks if k > evaluation.samples]):
            yield (
                f"eval.maj_at={ks}: a vote of {max(above)} needs as many sampled completions, and eval.samples="
                f"{evaluation.samples}; raise eval.samples or give smaller numbers"
            )


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
    if config.train.minibatches > config.train.prompts_per_step:
        yield (
            f"train.minibatches={config.train.minibatches}: a step has train.prompts_per_step="
            f"{config.train.prompts_per_step} prompts, whose groups stay whole; give at most that many"
        )
    rows = config.train.prompts_per_step * config.train.group_size
    if rows > MOST_ROWS:
        yield (
            f"train.prompts_per_step={config.train.prompts_per_step}: with train.group_size={config.train.group_size} "
            f"a step has {rows} completions; give at most {MOST_ROWS}"
        )

"""The tasks of an evaluation: options of the config group ``task``, composed by name from ``eval.benchmarks``."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlsparse.config.schema import ConfigError, EvalConfig, Node

GROUP = "task"


def benchmark_nodes(evaluation: EvalConfig, folders: Sequence[str]) -> dict[str, Node]:
    """Return the node of the task of each benchmark, by name, in the order of ``eval.benchmarks``.

    Each is an option of the group ``task`` with the changes of ``eval.tasks``; a node there that names its class in
    ``_target_`` needs no option of that name.

    Args:
        folders: config folders, that of the package first.

    Raises:
        ConfigError: a benchmark is named twice or has no task, or ``eval.tasks`` changes one that is not evaluated.
    """
    names, changes = evaluation.benchmarks, evaluation.tasks
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"eval.benchmarks={names}: must be a list of tasks, such as [svamp,math500]")
    if not isinstance(changes, dict):
        raise ConfigError(f"eval.tasks={changes}: must be a mapping, such as {{svamp: {{path: DIR}}}}")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"eval.benchmarks={','.join(names)}: has {name} twice; keep one")
    for name, change in changes.items():
        if name not in names:
            raise ConfigError(f"eval.tasks.{name}: is not in eval.benchmarks; add it there, or leave this out")
        if not isinstance(change, dict):
            raise ConfigError(f"eval.tasks.{name}={change}: must be keys of the task, such as {{path: DIR}}")
    return {name: _node(name, changes.get(name, {}), folders) for name in names}


def _node(name: str, change: Node, folders: Sequence[str]) -> Node:
    files = [file for folder in folders for file in sorted(Path(folder, GROUP).glob("*.yaml"))]
    options = sorted({file.stem for file in files})
    if name in options:
        stamp = tuple((str(file), file.stat().st_mtime_ns) for file in files)
        return {**_merged(_composed(name, tuple(folders), stamp), change)}
    if "_target_" in change:
        return dict(change)
    raise ConfigError(f"eval.benchmarks={name}: there is no such task; choose from {', '.join(options)}")


def _merged(node: Node, change: Mapping[str, Any]) -> Node:
    """Return a node with changes; a mapping in it is changed key by key, and an empty one takes its place."""

    def changed(key: str, value: Any) -> Any:
        both = isinstance(value, dict) and isinstance(node.get(key), dict)
        return _merged(node[key], value) if both and value else value

    return {**node, **{key: changed(key, value) for key, value in change.items()}}


@lru_cache(maxsize=256)
def _composed(name: str, folders: tuple[str, ...], _stamp: tuple[tuple[str, int], ...]) -> Node:
    """Return the node of an option. The points of a sweep share it: composing takes longer than the rest of a check.

    Args:
        _stamp: files and times of modification; with others the option is composed again.
    """
    quoted = ["'file://{}'".format(folder.replace("'", "\\'")) for folder in folders[1:]]
    search = [f"hydra.searchpath=[{','.join(quoted)}]"] if quoted else []
    try:
        with _another_hydra(), initialize_config_dir(folders[0], version_base="1.3"):
            composed = hydra_compose("benchmark", [f"{GROUP}={name}", *search])
            node: Any = OmegaConf.to_container(composed[GROUP], resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"eval.benchmarks={name}: {str(error).splitlines()[0]}; fix {GROUP}/{name}.yaml") from error
    return dict(node)


@contextmanager
def _another_hydra() -> Iterator[None]:
    """Allow composing within a job of Hydra, which is global."""
    current = GlobalHydra.instance()
    kept, current.hydra = current.hydra, None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = kept

"""The points of a sweep, and the file ``plan.json`` that records them for tables, ``status`` and labels."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from filelock import FileLock
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from rlsparse.config.compose import added_folders, check_keys, run_config
from rlsparse.config.words import read_words, refuse_repeated_axes
from rlsparse.storage.atomic import read_object, write_whole
from rlsparse.sweep.tuning import Tuning, build_tuning, key_of

PLAN = "plan.json"
RUN_ID = re.compile(r"[\w-][\w.-]{0,199}")  # a folder name that cannot lead out of the folder of its experiment


@dataclass(frozen=True)
class Point:
    """A job of a sweep.

    Attributes:
        arguments: its overrides, including those of Hydra itself.
        config: its composed config: a Config or a WarmStartConfig.
    """

    arguments: list[str]
    config: Any

    @property
    def overrides(self) -> list[str]:
        """The overrides without those of Hydra itself, which do not change the run."""
        return [one for one in self.arguments if not one.lstrip("+~").startswith(("hydra.", "hydra/"))]


def sweep_points(config: DictConfig, jobs: Sequence[list[str]] | None = None) -> list[Point]:
    """Return the points of the jobs of a sweep, in order.

    Args:
        config: the composed config of the sweep with its ``hydra`` node.
        jobs: the arguments of each job; None for all jobs of the sweep.
    """
    wanted = sweep_jobs(config) if jobs is None else jobs
    return [Point(job, _compose_job(config, job)) for job in wanted]


def _compose_job(config: DictConfig, job: list[str]) -> Any:
    """Return the config of a job, in which ``${hydra:runtime.choices.GROUP}`` is the option that this job chooses."""
    composed = GlobalHydra.instance().config_loader().load_sweep_config(config, job)
    current = HydraConfig.instance()
    before = current.cfg
    try:
        current.set_config(composed)
        return run_config(composed)
    finally:
        current.cfg = before


def sweep_jobs(config: DictConfig) -> list[list[str]]:
    """Return the arguments of every job of a sweep.

    The jobs are those of the sweeper's ``grids``, each combined with ``params`` and the axes of the command line. A job
    of several grids is returned once. With ``grids``, jobs are ordered by seed, so that changes in the load of the
    machine affect the times of all methods alike. An axis of the command line replaces that of ``params`` and narrows
    the grids: see ``_narrow_grids``.

    Args:
        config: the composed config of the sweep with its ``hydra`` node.

    Raises:
        ConfigError: an axis has a key that does not exist, or is given twice.
    """
    sweeper = config.hydra.sweeper
    grids = _to_container(sweeper.get("grids")) or [{}]
    params = _to_container(sweeper.get("params")) or {}
    keys = [key for axes in (*grids, params, _to_container(sweeper.get("tune")) or {}) for key in axes]
    check_keys(keys, added_folders(config))
    typed = _command_line(config)
    for grid in grids:
        axes = read_words([f"{key}={value}" for part in (grid, params) for key, value in part.items()])
        # a word without a prefix takes the place of an axis; one with ++ would be a second one
        refuse_repeated_axes([*axes, *(word for word in typed if word.startswith("+"))], "in hydra.sweeper")
    narrowed = _narrow_grids(grids, typed)
    every = [job for grid, typed in narrowed for job in _jobs({**grid, **params}, typed)]
    once = [list(job) for job in dict.fromkeys(map(tuple, every))]
    seeds = list(dict.fromkeys(map(_seed, once)))
    return sorted(once, key=lambda job: seeds.index(_seed(job))) if sweeper.get("grids") else once


def sweep_axes(config: DictConfig) -> list[str]:
    """Return the keys that the sweeper's ``grids`` and ``params`` vary, even if the command line narrows them."""
    sweeper = config.hydra.sweeper
    grids, params = _to_container(sweeper.get("grids")) or [{}], _to_container(sweeper.get("params")) or {}
    jobs = [{key_of(word): word for word in job} for grid in grids for job in _jobs({**grid, **params}, [])]
    return sorted(key for key in set().union(*jobs) if len({job.get(key) for job in jobs}) > 1)


def sweep_tuning(config: DictConfig, jobs: Sequence[list[str]]) -> Tuning | None:
    """Return the tuning of the sweep before it compares methods; None if it tunes nothing.

    Raises:
        ConfigError: see ``build_tuning``.
    """
    axes = _to_container(config.hydra.sweeper.get("tune")) or {}
    values = {key: _values(f"{key}={words}") for key, words in axes.items()}
    seeds = {str(config.seed) if word is None else word.partition("=")[2] for word in map(_seed, jobs)}
    swept = {key_of(word) for job in jobs for word in job}
    return build_tuning(values, _command_line(config), seeds, swept)


def _narrow_grids(grids: Sequence[dict[str, str]], typed: list[str]) -> list[tuple[dict[str, str], list[str]]]:
    """Return the grids that the command line leaves, each with the overrides that still have to be applied to it.

    If some grid has an axis with a value from the command line, all grids keep only the values from the command line on
    this axis, and grids with this axis but without such a value are left out: ``algorithm=tspmo`` selects the methods
    of that algorithm. A value that no grid has replaces the whole axis, as in Hydra.

    Args:
        typed: the overrides of the command line.
    """
    left = [(dict(grid), list(typed)) for grid in grids]
    for word in typed:
        key, wanted = word.partition("=")[0], _values(word)
        kept = [
            [value for value in _values(f"{key}={grid[key]}") if value in wanted] if key in grid else None
            for grid, _ in left
        ]
        if not any(kept):
            continue
        for (grid, rest), values in zip(left, kept, strict=True):
            if values:
                grid[key] = f"choice({','.join(values)})"  # Hydra would not take a single value for an axis
                rest.remove(word)
        left = [one for one, values in zip(left, kept, strict=True) if values != []]
    return left


def _values(word: str) -> list[str]:
    """Return the values of an override, which are several for an axis."""
    return [job[0].partition("=")[2] for job in _jobs({}, [word])]


def _jobs(axes: Mapping[str, Any], typed: list[str]) -> list[list[str]]:
    """Return the arguments of each job of a grid: axes by key, and overrides of the command line."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # Hydra has no public name for it

    arguments = read_words([*(f"{key}={value}" for key, value in axes.items()), *typed])
    loader = GlobalHydra.instance().config_loader()
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
    return [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]


def _seed(job: Sequence[str]) -> str | None:
    return next((word for word in job if word.startswith("seed=")), None)


def _command_line(config: DictConfig) -> list[str]:
    """Return the overrides of the command line; interpolations are resolved for each point later."""
    typed = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    assert isinstance(typed, list)
    return typed


def _to_container(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node


@dataclass(frozen=True)
class PlanUpdate:
    """The points that a sweep adds to the plan of an experiment.

    Attributes:
        points: overrides by run id.
        jobs: the overrides of every job of the sweep, in order.
        trial_keys: the keys that these points tune; empty for points that are compared.
        tuned_keys: the keys whose values trials have chosen for these points.
        axes: keys that the name of a method contains even if a sweep is narrowed to one of their values.
    """

    points: Mapping[str, list[str]]
    jobs: Sequence[list[str]]
    trial_keys: Sequence[str] = ()
    tuned_keys: Sequence[str] = ()
    axes: Sequence[str] = ()

    def write(self, folder: Path) -> None:
        """Update the plan in the folder of an experiment, atomically.

        A point that was planned before under another id is replaced and no longer counts: a default or the model has
        changed since, or trials have chosen another value of a tuned key.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{PLAN}.lock"):  # another sweep may update the plan at the same time
            before, trials = read_plan(folder), read_trials(folder)
            planned = {self._identity(overrides) for overrides in self.points.values()}
            kept = {run_id: words for run_id, words in before.items() if self._identity(words) not in planned}
            points = {**kept, **self.points}
            replaced = {**_replaced(folder), **before}
            trials = {**trials, **{run_id: list(self.trial_keys) for run_id in self.points}}
            plan = {
                "latest": list(self.jobs),
                "points": points,
                "trials": {run_id: keys for run_id, keys in trials.items() if keys and run_id in points},
                "replaced": {run_id: words for run_id, words in replaced.items() if run_id not in points},
                "axes": sorted({*_axes(folder), *self.axes}),
            }
            write_whole(folder / PLAN, json.dumps(plan, indent=1))

    def _identity(self, overrides: Sequence[str]) -> tuple[str, ...]:
        """Return the sorted overrides without the tuned keys: points with the same ones replace each other."""
        return tuple(sorted(word for word in overrides if key_of(word) not in self.tuned_keys))


def _replaced(folder: Path) -> dict[str, list[str]]:
    found = (read_object(folder / PLAN) or {}).get("replaced")
    if not isinstance(found, dict):
        return {}
    return {run_id: words for run_id, words in found.items() if _is_string_list(words)}


def _axes(folder: Path) -> list[str]:
    found = (read_object(folder / PLAN) or {}).get("axes")
    return found if _is_string_list(found) else []


def read_trials(folder: Path) -> dict[str, list[str]]:
    """Return the tuned keys by run id, for the points of an experiment that are trials and not compared."""
    trials = (read_object(folder / PLAN) or {}).get("trials")
    return (
        {run_id: keys for run_id, keys in trials.items() if _is_string_list(keys)} if isinstance(trials, dict) else {}
    )


def read_plan(folder: Path) -> dict[str, list[str]]:
    """Return the overrides by run id of every planned point of an experiment; entries of another form are left out."""
    points = (read_object(folder / PLAN) or {}).get("points")
    if not isinstance(points, dict):
        return {}
    return {run_id: words for run_id, words in points.items() if RUN_ID.fullmatch(run_id) and _is_string_list(words)}


def latest_sweep(folder: Path) -> list[list[str]]:
    """Return the overrides of each job of the last planned sweep of an experiment; empty if there is none."""
    jobs = (read_object(folder / PLAN) or {}).get("latest")
    return jobs if isinstance(jobs, list) and all(map(_is_string_list, jobs)) else []


def _is_string_list(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)

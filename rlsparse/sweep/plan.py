"""What a sweep is made of: its points, and the file that remembers them for tables, ``status`` and labels."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from filelock import FileLock
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from rlsparse.config.compose import added_folders, check_keys, run_config
from rlsparse.storage.atomic import read_object, write_whole
from rlsparse.sweep.tuning import Tuning, key_of, tuning

PLAN = "plan.json"
RUN_ID = re.compile(r"[\w-][\w.-]{0,199}")  # a folder's name, and not a way out of the folder it lies in


@dataclass(frozen=True)
class Point:
    """A job of a sweep.

    Attributes:
        arguments: its overrides, those of Hydra itself included.
        config: what they compose to: a Config or a WarmStartConfig.
    """

    arguments: list[str]
    config: Any

    @property
    def overrides(self) -> list[str]:
        """What it asks of the run, whoever launches it."""
        return [one for one in self.arguments if not one.lstrip("+~").startswith(("hydra.", "hydra/"))]


def sweep_points(config: DictConfig, jobs: Sequence[list[str]] | None = None) -> list[Point]:
    """Jobs of a multirun as points, in order.

    Args:
        config: the multirun's master config, ``hydra`` node included.
        jobs: None for all.
    """
    loader = GlobalHydra.instance().config_loader()
    wanted = sweep_jobs(config) if jobs is None else jobs
    return [Point(job, run_config(loader.load_sweep_config(config, job))) for job in wanted]


def sweep_jobs(config: DictConfig) -> list[list[str]]:
    """The arguments of every job: the sweeper's ``grids``, each with its ``params`` and the command line's axes.

    A job that several grids have is done once. The methods of ``grids`` take turns, seed by seed, so that what else the
    machines do meanwhile tells on the times of all alike. A typed axis beats that of ``params``, and narrows the grids:
    see ``_narrowed``.

    Args:
        config: the multirun's master config, ``hydra`` node included.

    Raises:
        ConfigError: an axis of a key that there is not.
    """
    sweeper = config.hydra.sweeper
    grids = _plain(sweeper.get("grids")) or [{}]
    params = _plain(sweeper.get("params")) or {}
    keys = [key for axes in (*grids, params, _plain(sweeper.get("tune")) or {}) for key in axes]
    check_keys(keys, added_folders(config))
    narrowed = _narrowed(grids, _typed(config))
    every = [job for grid, typed in narrowed for job in _jobs({**grid, **params}, typed)]
    once = [list(job) for job in dict.fromkeys(map(tuple, every))]
    seeds = list(dict.fromkeys(map(_seed, once)))
    return sorted(once, key=lambda job: seeds.index(_seed(job))) if sweeper.get("grids") else once


def sweep_axes(config: DictConfig) -> list[str]:
    """The keys that the sweeper's ``grids`` and ``params`` vary, whatever the command line leaves of them."""
    sweeper = config.hydra.sweeper
    grids, params = _plain(sweeper.get("grids")) or [{}], _plain(sweeper.get("params")) or {}
    jobs = [{key_of(word): word for word in job} for grid in grids for job in _jobs({**grid, **params}, [])]
    return sorted(key for key in set().union(*jobs) if len({job.get(key) for job in jobs}) > 1)


def sweep_tuning(config: DictConfig, jobs: Sequence[list[str]]) -> Tuning | None:
    """What the sweep tunes before it compares methods; None where it tunes nothing.

    Raises:
        ConfigError: see ``tuning``.
    """
    axes = _plain(config.hydra.sweeper.get("tune")) or {}
    values = {key: _values(f"{key}={words}") for key, words in axes.items()}
    seeds = {str(config.seed) if word is None else word.partition("=")[2] for word in map(_seed, jobs)}
    swept = {key_of(word) for job in jobs for word in job}
    return tuning(values, _typed(config), seeds, swept)


def _narrowed(grids: Sequence[dict[str, str]], typed: list[str]) -> list[tuple[dict[str, str], list[str]]]:
    """The grids that the command line leaves, each with what of it is still to be said.

    Of an axis that some grid has with a value that is typed, the grids keep the typed values alone, and one without any
    is left out: ``algorithm=tspmo`` picks the methods of that algorithm. A value that none has is put in the place of
    all, as Hydra does it.
    """
    left = [(dict(grid), list(typed)) for grid in grids]
    for word in typed:
        key, asked = word.partition("=")[0], _values(word)
        kept = [
            [value for value in _values(f"{key}={grid[key]}") if value in asked] if key in grid else None
            for grid, _ in left
        ]
        if not any(kept):
            continue
        for (grid, rest), values in zip(left, kept, strict=True):
            if values:
                grid[key] = f"choice({','.join(values)})"  # one value alone would be no axis to Hydra
                rest.remove(word)
        left = [one for one, values in zip(left, kept, strict=True) if values != []]
    return left


def _values(word: str) -> list[str]:
    return [job[0].partition("=")[2] for job in _jobs({}, [word])]


def _jobs(axes: Mapping[str, Any], typed: list[str]) -> list[list[str]]:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # Hydra has no public name for this

    arguments = [f"{key}={value}" for key, value in axes.items()] + typed
    loader = GlobalHydra.instance().config_loader()
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
    return [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]


def _seed(job: Sequence[str]) -> str | None:
    return next((word for word in job if word.startswith("seed=")), None)


def _typed(config: DictConfig) -> list[str]:
    typed = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)  # an interpolation is each point's own
    assert isinstance(typed, list)
    return typed


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node


def write_plan(
    folder: Path,
    points: Mapping[str, list[str]],
    jobs: Sequence[list[str]],
    tuned: Sequence[str] = (),
    settled: Sequence[str] = (),
    axes: Sequence[str] = (),
) -> None:
    """Add a sweep's points to an experiment's plan, whole or not at all.

    A point planned before under another id is replaced, and no longer counts: a default or a model has changed since,
    or a key was settled on another value.

    Args:
        points: overrides by run id.
        jobs: the overrides of every job of the sweep, in order.
        tuned: keys for whose sake alone these points are tried; none for points that are compared.
        settled: keys whose values trials have chosen for these points.
        axes: keys that a method's name says even where a sweep is narrowed to one of their values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{PLAN}.lock"):  # two sweeps may plan at once
        before, trials = read_plan(folder), read_trials(folder)
        again = {_without(overrides, settled) for overrides in points.values()}
        known = {run_id: words for run_id, words in before.items() if _without(words, settled) not in again}
        every = {**known, **points}
        replaced = {**_replaced(folder), **before}
        tried = {**trials, **{run_id: list(tuned) for run_id in points}}
        plan = {
            "latest": list(jobs),
            "points": every,
            "trials": {run_id: keys for run_id, keys in tried.items() if keys and run_id in every},
            "replaced": {run_id: words for run_id, words in replaced.items() if run_id not in every},
            "axes": sorted({*_axes(folder), *axes}),
        }
        write_whole(folder / PLAN, json.dumps(plan, indent=1))


def _without(overrides: Sequence[str], keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(word for word in overrides if key_of(word) not in keys))


def _replaced(folder: Path) -> dict[str, list[str]]:
    found = (read_object(folder / PLAN) or {}).get("replaced")
    return {run_id: words for run_id, words in found.items() if _words(words)} if isinstance(found, dict) else {}


def _axes(folder: Path) -> list[str]:
    found = (read_object(folder / PLAN) or {}).get("axes")
    return found if _words(found) else []


def read_trials(folder: Path) -> dict[str, list[str]]:
    """Keys by run id of the points that are there to tune these keys, and not to be compared."""
    trials = (read_object(folder / PLAN) or {}).get("trials")
    return {run_id: keys for run_id, keys in trials.items() if _words(keys)} if isinstance(trials, dict) else {}


def read_plan(folder: Path) -> dict[str, list[str]]:
    """Overrides by run id of every point ever planned in an experiment; what is not of that form is left out."""
    points = (read_object(folder / PLAN) or {}).get("points")
    if not isinstance(points, dict):
        return {}
    return {run_id: overrides for run_id, overrides in points.items() if RUN_ID.fullmatch(run_id) and _words(overrides)}


def latest_sweep(folder: Path) -> list[list[str]]:
    """The overrides of each job of the sweep that was planned last in an experiment; empty where none was."""
    jobs = (read_object(folder / PLAN) or {}).get("latest")
    return jobs if isinstance(jobs, list) and all(map(_words, jobs)) else []


def _words(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)

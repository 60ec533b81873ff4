"""What a sweep is made of: its points, and the file that remembers them for tables, ``status`` and labels."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from rlsparse.compose import run_config
from rlsparse.whole_file import read_object, write_whole

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


def sweep_points(config: DictConfig) -> list[Point]:
    """Every job of a multirun, in order.

    Args:
        config: the multirun's master config, ``hydra`` node included.
    """
    loader = GlobalHydra.instance().config_loader()
    return [Point(job, run_config(loader.load_sweep_config(config, job))) for job in sweep_jobs(config)]


def sweep_jobs(config: DictConfig) -> list[list[str]]:
    """The arguments of every job: the grid of the sweeper's ``params`` and the command line's axes.

    Args:
        config: the multirun's master config, ``hydra`` node included.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # Hydra has no public name for this

    params = config.hydra.sweeper.get("params") or {}
    typed = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)  # an interpolation is each point's own
    assert isinstance(typed, list)
    arguments = [f"{key}={value}" for key, value in params.items()] + typed
    loader = GlobalHydra.instance().config_loader()
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
    return [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]


def write_plan(folder: Path, points: Mapping[str, list[str]], jobs: Sequence[list[str]]) -> None:
    """Add a sweep's points to an experiment's plan, whole or not at all.

    A point planned before under another id (a default or a model has changed since) is replaced.

    Args:
        points: overrides by run id.
        jobs: the overrides of every job of the sweep, in order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{PLAN}.lock"):  # two sweeps may plan at once
        again = list(points.values())
        known = {run_id: overrides for run_id, overrides in read_plan(folder).items() if overrides not in again}
        text = json.dumps({"latest": list(jobs), "points": {**known, **points}}, indent=1)
        write_whole(folder / PLAN, text)


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


def _words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)

"""A sweep from its first line to its last: points planned, those done left out, the rest launched, failures named."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from rlsparse.config.run_id import Identity
from rlsparse.config.schema import Config, ConfigError
from rlsparse.execution.run_once import discard_checkpoints
from rlsparse.runtime.preload import import_all
from rlsparse.storage.locks import claimed
from rlsparse.storage.summary import changed_versions, code, read_summary, record_death
from rlsparse.sweep.callbacks import one_message, warn
from rlsparse.sweep.dry_run import Places, describe, nothing_made
from rlsparse.sweep.dry_run import Point as Asked
from rlsparse.sweep.launchers import Check, Engine, engine_of
from rlsparse.sweep.plan import Point, sweep_axes, sweep_jobs, sweep_points, sweep_tuning, write_plan
from rlsparse.sweep.status import RunState, report, run_state
from rlsparse.sweep.trials import all_ended, settled
from rlsparse.sweep.tuning import Job, Tuning

if TYPE_CHECKING:
    from rlsparse.execution.preflight import Checked

SHOWN = 300  # characters of an error's beginning and end


@dataclass(frozen=True)
class Planned:
    """A point and the folder of its run."""

    point: Point
    folder: Path

    @property
    def name(self) -> str:
        return " ".join(self.point.overrides)

    def state(self) -> RunState:
        return run_state(self.folder, self.name)


def sweep(config: DictConfig, launcher: Launcher, at_a_time: int | None) -> None:
    """Do every point that is not done, and end with a line for each that is not finished.

    Ends the program with code 1 where a run has failed or did not end, or on bad input before any run.

    Args:
        config: the multirun's master config, ``hydra`` node included.
        at_a_time: points handed to the launcher at once; None for all.
    """
    # joblib's resource tracker would lament a killed worker's semaphores below our last lines
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    engine, settings = engine_of(config.hydra.launcher), config.hydra.launcher
    if config.hydra.sweeper.get("dry_run"):
        _tell(config, engine, at_a_time)
        return
    with one_message():
        jobs = sweep_jobs(config)
        tune = sweep_tuning(config, jobs)
        check_by = engine.begin(settings, import_all, len(jobs))
        ground = Ground(config, engine, launcher, at_a_time, check_by)
        if tune is not None:  # bad input ends it before the first trial
            every = [[*job, *words] for job in jobs for words in tune.combinations()[:1]]
            identified(ground.points(every), engine.device is None, check_by)
    trials, keys = [], tuple(tune.values) if tune is not None else ()
    if tune is not None:
        again = partial(ground.work_off, tune.all_trials(jobs), tuned=keys)
        trials = again()
        all_ended(lambda: [one.state() for one in trials], again)
        jobs = settled(tune, jobs, [one.folder for one in trials])
    compared = ground.work_off(jobs, settled=keys) if jobs else []
    states = [one.state() for one in [*trials, *compared]]
    if any(one.state != "finished" for one in states):
        print(report(states), file=sys.stderr)
    if not jobs or any(one.state in ("failed", "cut off", "missing") for one in states):
        sys.exit(1)


@dataclass(frozen=True)
class Ground:
    """Where a sweep's jobs are checked, planned and done."""

    config: DictConfig
    engine: Engine
    launcher: Launcher
    at_a_time: int | None
    check_by: Callable[[Check], Any]

    def points(self, jobs: Sequence[list[str]]) -> list[Point]:
        return _placed(sweep_points(self.config, jobs), self.engine, self.config.hydra.launcher)

    def work_off(
        self, jobs: Sequence[list[str]], tuned: Sequence[str] = (), settled: Sequence[str] = ()
    ) -> list[Planned]:
        """Plan them and do what is not done.

        Args:
            tuned, settled: see ``plan``.
        """
        with one_message():
            here, axes = self.engine.device is None, sweep_axes(self.config)
            planned = plan(self.points(jobs), here, self.check_by, tuned, settled, axes)
        todo = [one for one in planned if not _is_done(one)]
        warn(_other_versions([one for one in planned if one not in todo]))
        settings = self.config.hydra.launcher
        _work_off(todo, self.launcher, self.at_a_time, lambda: self.engine.settle(settings))
        return planned


def _tell(config: DictConfig, engine: Engine, at_a_time: int | None) -> None:
    """What the sweep would do, after the same checks."""
    settings = config.hydra.launcher
    with one_message():
        jobs = sweep_jobs(config)
        tune = sweep_tuning(config, jobs)
        points = _placed(sweep_points(config, _foreseen(jobs, tune)), engine, settings)
        with nothing_made([point.config for point in points]):
            identities = identified(points, engine.device is None, lambda check: check())
    count = engine.at_a_time(settings)
    places = Places(
        config.hydra.runtime.choices["hydra/launcher"],
        min(count, at_a_time) if count is not None and at_a_time is not None else count,
    )
    asked = zip(_names(points), points, identities, strict=True)
    print(describe([Asked(name or identity.id, point.config, identity) for name, point, identity in asked], places))
    if tune is not None:
        print(f"{', '.join(tune.values)}: what is compared is listed at the first value; the trials will choose")


def _foreseen(jobs: list[Job], tune: Tuning | None) -> list[Job]:
    """The sweep's trials, and its comparison as if the first value were the best for every method."""
    if tune is None:
        return jobs
    return [*tune.all_trials(jobs), *([*job, *tune.combinations()[0]] for job in jobs)]


def _placed(points: list[Point], engine: Engine, settings: Mapping[str, Any]) -> list[Point]:
    """The points with their kind of device, where it is the launcher's jobs' and not this machine's."""
    if engine.device is None:
        return points
    kind = engine.device(settings)
    return [
        Point([*point.arguments, f"device={kind}"], replace(point.config, device=kind))
        if point.config.device == "auto"
        else point
        for point in points
    ]


def plan(
    points: Sequence[Point],
    here: bool,
    check_by: Callable[[Check], Any],
    tuned: Sequence[str] = (),
    settled: Sequence[str] = (),
    axes: Sequence[str] = (),
) -> list[Planned]:
    """Check every point and write down the plan of each experiment they belong to.

    Args:
        here: whether the runs will be on this machine.
        check_by: does the check.
        tuned: keys for whose sake they are tried.
        settled: keys whose values trials have chosen for them.
        axes: keys that the sweep's file varies.

    Raises:
        ConfigError: bad input; nothing is written then.
    """
    identities = identified(points, here, check_by)
    planned = [
        Planned(point, Path(point.config.runs_dir) / point.config.experiment.name / identity.id)
        for point, identity in zip(points, identities, strict=True)
    ]
    for experiment in dict.fromkeys(one.folder.parent for one in planned):
        own = [one for one in planned if one.folder.parent == experiment]
        asked = [point.overrides for point in points]
        write_plan(experiment, {one.folder.name: one.point.overrides for one in own}, asked, tuned, settled, axes)
    return planned


def identified(points: Sequence[Point], here: bool, check_by: Callable[[Check], Any]) -> list[Identity]:
    """Check every point; the identity of each.

    Args:
        here: whether the runs will be on this machine.
        check_by: does the check.

    Raises:
        ConfigError: bad input.
    """
    if not points:
        raise ConfigError("hydra.sweeper.params: a sweep without points; give each axis at least one value")
    configs: list[Config] = [point.config for point in points]
    checked: Checked = check_by(partial(_preflight, configs, _names(points), here))
    warn(checked.warnings)
    return checked.identities


def _names(points: Sequence[Point]) -> list[str]:
    """What tells each point from the others."""
    everywhere = set.intersection(*(set(point.overrides) for point in points))
    return [" ".join(o for o in point.overrides if o not in everywhere) for point in points]


def _preflight(configs: Sequence[Config], names: Sequence[str], here: bool) -> "Checked":
    import_all()
    from rlsparse.execution.preflight import preflight

    return preflight(configs, names, here)


def _is_done(one: Planned) -> bool:
    """Whether there is nothing to do, with a line that says so."""
    state, kept = one.state(), not one.point.config.sweep.retry_failed
    done = state.state in ("finished", "diverged") or (state.state == "failed" and kept)
    if state.state == "finished":
        discard_checkpoints(one.folder)  # it may have been killed between its last two acts
    if done:
        print(f"{one.name}: {state.state} before, skipped ({one.folder})", file=sys.stderr)
    return done


def _other_versions(done: Sequence[Planned]) -> list[str]:
    """That results at hand are not of the code that would make the rest."""
    now = code() if done else {}
    counts = Counter(line for one in done for line in changed_versions(read_summary(one.folder) or {}, now))
    return [
        f"{count} runs were done before with another version ({line}); delete their folders to do them again"
        for line, count in counts.items()
    ]


def _work_off(todo: list[Planned], launcher: Launcher, at_a_time: int | None, settle: Callable[[], None]) -> None:
    """Launch until nothing is left that somebody has not done or failed at.

    A launcher ends with all its jobs when the process of one dies. Those under way then go on one at a time, so that
    the one that is to blame is known for it and the rest have their turn.

    Args:
        settle: returns when the launcher has nothing under way any more.
    """
    again: set[Path] = set()
    while todo:
        try:
            _launch(todo, launcher, at_a_time)
        except Exception as error:
            settle()
            begun = [one for one in todo if one.state().state == "cut off"]
            if not begun:
                raise  # the launcher itself does not work
            warn([f"the launcher gave up ({_line(error)}); what was under way goes on one run at a time: {len(begun)}"])
            for one in begun:
                _launch_alone(one, launcher)
            todo = [one for one in todo if one.state().state == "missing"]
            continue
        # another copy of the sweep may have died over one that was left to it
        todo = [one for one in todo if one.state().state == "cut off" and one.folder not in again]
        again |= {one.folder for one in todo}


def _launch(todo: Sequence[Planned], launcher: Launcher, at_a_time: int | None) -> None:
    size = at_a_time or len(todo)
    for start in range(0, len(todo), size):
        jobs = [one.point.arguments for one in todo[start : start + size]]
        for job in launcher.launch(jobs, initial_job_idx=start):
            _ = job.return_value  # raises what went wrong around the job; a run's own failure is in its summary


def _launch_alone(one: Planned, launcher: Launcher) -> None:
    try:
        _launch([one], launcher, None)
    except Exception as error:
        with claimed(one.folder, one.point.config.sweep.lock) as ours:
            if ours and read_summary(one.folder) is None:
                record_death(one.folder, _line(error))


def _line(error: Exception) -> str:
    """An error on one line; a launcher's may hold all that a job has printed."""
    line = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return line if len(line) <= 2 * SHOWN else f"{line[:SHOWN]} ... {line[-SHOWN:]}"

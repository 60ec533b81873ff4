"""Run a sweep: plan its points, skip those that are finished, launch the others, and name every failure."""

import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from rlsparse.config.run_id import Identity
from rlsparse.config.schema import Config, ConfigError
from rlsparse.execution.run_once import discard_checkpoints
from rlsparse.runtime.preload import import_all
from rlsparse.storage.locks import claimed
from rlsparse.storage.summary import changed_versions, code, read_summary, record_death
from rlsparse.sweep.callbacks import exit_on_error, log_warnings
from rlsparse.sweep.dry_run import Parallelism, PlannedRun, describe, remove_new_folders
from rlsparse.sweep.launchers import LauncherSpec, RunCheck, launcher_spec
from rlsparse.sweep.plan import PlanUpdate, Point, sweep_axes, sweep_jobs, sweep_points, sweep_tuning
from rlsparse.sweep.rounds import DECIDED, SeedRounds, jobs_of_round, method_of
from rlsparse.sweep.status import RunState, format_states, run_state
from rlsparse.sweep.trials import POLL_INTERVAL, chosen_jobs, wait_for_trials
from rlsparse.sweep.tuning import Job, Tuning

if TYPE_CHECKING:
    from rlsparse.execution.preflight import Checked

MAX_ERROR = 300  # characters of the beginning and of the end of an error message that are shown


def sweep(config: DictConfig, launcher: Launcher, batch_size: int | None) -> None:
    """Do every point that is not finished, and print a line at the end for each point that is still not.

    Ends the program with code 1 if a run has failed or did not end, or for bad input before any run.

    Args:
        config: the composed config of the sweep with its ``hydra`` node.
        batch_size: number of points that the launcher gets at a time; None for all.
    """
    # otherwise the resource tracker of joblib prints warnings about a killed worker below the last lines of the sweep
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    spec, settings = launcher_spec(config.hydra.launcher), config.hydra.launcher
    if config.hydra.sweeper.get("dry_run"):
        _print_dry_run(config, spec, batch_size)
        return
    with exit_on_error():
        jobs = sweep_jobs(config)
        tuning = sweep_tuning(config, jobs)
        most = len(jobs) if tuning is None else len(tuning.all_trials(jobs))  # runs that may be done at the same time
        runner = SweepRunner(config, spec, launcher, batch_size, spec.prepare(settings, import_all, most))
        if tuning is not None:  # errors in the comparison are reported before the first trial
            runner.check(runner.points([[*job, *words] for job in jobs for words in tuning.combinations()[:1]]))
        rounds = None
        if OmegaConf.select(config, "sweep.until") == DECIDED:
            avoided = tuning.seeds if tuning is not None else ()
            rounds = SeedRounds.of(runner.points(jobs[:1])[0].config, jobs, avoided)
    trials, keys = [], tuple(tuning.values) if tuning is not None else ()
    if tuning is not None:
        run_trials = partial(runner.run, tuning.all_trials(jobs), trial_keys=keys)
        trials = run_trials()
        wait_for_trials(lambda: [one.state() for one in trials], run_trials)
        jobs = chosen_jobs(tuning, jobs, [one.folder for one in trials])
    compared: list[PlannedJob] = []
    if jobs and rounds is not None:
        compared = runner.run_rounds(jobs, keys, rounds)
    elif jobs:
        compared = runner.run(jobs, tuned_keys=keys)
    states = [one.state() for one in [*trials, *compared]]
    if any(one.state != "finished" for one in states):
        print(format_states(states), file=sys.stderr)
    if not jobs or any(one.state in ("failed", "cut off", "missing") for one in states):
        sys.exit(1)


@dataclass(frozen=True)
class PlannedJob:
    """A point of the sweep and the folder of its run."""

    point: Point
    folder: Path

    @property
    def name(self) -> str:
        """The overrides of the point."""
        return " ".join(self.point.overrides)

    def state(self) -> RunState:
        """Return the current state of the run."""
        return run_state(self.folder, self.name)

    def is_done(self) -> bool:
        """Return whether there is nothing to do for the run, after printing a line that says so."""
        state, keeps_failed = self.state(), not self.point.config.sweep.retry_failed
        done = state.state in ("finished", "diverged") or (state.state == "failed" and keeps_failed)
        if state.state == "finished":
            discard_checkpoints(self.folder)  # its process may have been killed before it could do this
        if done:
            print(f"{self.name}: {state.state} before, skipped ({self.folder})", file=sys.stderr)
        return done


@dataclass(frozen=True)
class Tuned:
    """The keys of a sweep that are tuned: those that some jobs try, and those that trials have chosen for them."""

    trial_keys: Sequence[str]
    tuned_keys: Sequence[str]


@dataclass(frozen=True)
class SweepRunner:
    """Checks, plans and launches the jobs of a sweep.

    Attributes:
        config: the composed config of the sweep with its ``hydra`` node.
        spec: the properties of the launcher.
        launcher: the launcher itself.
        batch_size: number of jobs that the launcher gets at a time; None for all.
        run_check: calls a check in the right process; see ``LauncherSpec.prepare``.
    """

    config: DictConfig
    spec: LauncherSpec
    launcher: Launcher
    batch_size: int | None
    run_check: RunCheck

    def points(self, jobs: Sequence[list[str]]) -> list[Point]:
        """Return the points of some jobs."""
        return _with_device(sweep_points(self.config, jobs), self.spec, self.config.hydra.launcher)

    def check(self, points: Sequence[Point]) -> list[Identity]:
        """Check every point and return its identity.

        Raises:
            ConfigError: bad input.
        """
        return _check_points(points, self.spec, self.run_check)

    def run(
        self,
        jobs: Sequence[list[str]],
        trial_keys: Sequence[str] = (),
        tuned_keys: Sequence[str] = (),
        earlier: Sequence[Job] = (),
    ) -> list[PlannedJob]:
        """Plan some jobs and do those that are not done.

        Args:
            trial_keys: the keys that these jobs tune; empty for jobs that are compared.
            tuned_keys: the keys whose values trials have chosen for these jobs.
            earlier: jobs of the same sweep that were done before.
        """
        with exit_on_error():
            planned = self._plan(self.points(jobs), Tuned(trial_keys, tuned_keys), earlier)
        todo = [one for one in planned if not one.is_done()]
        log_warnings(_version_warnings([one for one in planned if one not in todo]))
        self._launch_all(todo)
        return planned

    def run_rounds(self, jobs: Sequence[list[str]], tuned_keys: Sequence[str], rounds: SeedRounds) -> list[PlannedJob]:
        """Do some jobs with the seeds of one round after the other, until the claims are decided; see ``sweep.rounds``.

        Args:
            jobs: with all seeds.
            tuned_keys: as in ``run``.
            rounds: the seeds of each round.
        """
        done: list[tuple[Job, PlannedJob]] = []
        methods: set[tuple[str, ...]] | None = None
        for number, seeds in enumerate(rounds.schedule.rounds):
            begun = jobs_of_round(jobs, seeds, methods)
            planned = self._run_round(begun, tuned_keys, [job for job, _ in done])
            done += zip(begun, planned, strict=True)
            if any(one.state().state not in ("finished", "diverged") for one in planned):
                break  # a look without them would be another test than the planned one
            with exit_on_error():
                look = rounds.look(number)
                still_open = rounds.open_runs(look)
            print(look.line(number, rounds.schedule.looks), file=sys.stderr)
            methods = {method_of(job) for job, one in done if one.folder.name in still_open}
            if not methods or rounds.is_over_time():
                break
        return [one for _, one in done]

    def _run_round(self, jobs: list[Job], tuned_keys: Sequence[str], earlier: Sequence[Job]) -> list[PlannedJob]:
        """Do the jobs of a round, and wait for those that another process of the same sweep does."""
        planned = self.run(jobs, tuned_keys=tuned_keys, earlier=earlier)
        waited = False
        while any(one.state().state == "running" for one in planned):
            waited = True
            time.sleep(POLL_INTERVAL)
        return self.run(jobs, tuned_keys=tuned_keys, earlier=earlier) if waited else planned

    def _plan(self, points: Sequence[Point], tuned: Tuned, earlier: Sequence[Job]) -> list[PlannedJob]:
        """Check every point and update the plan of each experiment.

        Raises:
            ConfigError: bad input; nothing is written then.
        """
        identities, axes = self.check(points), sweep_axes(self.config)
        planned = [
            PlannedJob(point, Path(point.config.runs_dir) / point.config.experiment.name / identity.id)
            for point, identity in zip(points, identities, strict=True)
        ]
        jobs = [*_without_hydra(earlier), *(point.overrides for point in points)]
        for experiment in dict.fromkeys(one.folder.parent for one in planned):
            own = {one.folder.name: one.point.overrides for one in planned if one.folder.parent == experiment}
            PlanUpdate(own, jobs, tuned.trial_keys, tuned.tuned_keys, axes).write(experiment)
        return planned

    def _launch_all(self, todo: list[PlannedJob]) -> None:
        """Launch jobs until each is done or failed, by this process or another one.

        If the process of one job dies, the launcher ends with all its jobs. The runs in progress then continue one at a
        time, so that the one that caused it is recorded as failed, and then the others follow.
        """
        retried: set[Path] = set()
        while todo:
            try:
                self._launch(todo)
            except Exception as error:
                self.spec.wait(self.config.hydra.launcher)
                in_progress = [one for one in todo if one.state().state == "cut off"]
                if not in_progress:
                    raise  # the launcher itself does not work
                count = len(in_progress)
                log_warnings(
                    [f"the launcher failed ({_one_line(error)}); the runs in progress continue one at a time: {count}"]
                )
                for one in in_progress:
                    self._launch_alone(one)
                todo = [one for one in todo if one.state().state == "missing"]
                continue
            # another process of the sweep may have died during a run that was left to it
            todo = [one for one in todo if one.state().state == "cut off" and one.folder not in retried]
            retried |= {one.folder for one in todo}

    def _launch(self, todo: Sequence[PlannedJob]) -> None:
        """Launch jobs and return when all have ended.

        Raises:
            Exception: an error of the launcher or of a job outside its run. An error of a run is in its summary.
        """
        size = self.batch_size or len(todo)
        for start in range(0, len(todo), size):
            jobs = [one.point.arguments for one in todo[start : start + size]]
            for job in self.launcher.launch(jobs, initial_job_idx=start):
                _ = job.return_value  # raises the error of the job

    def _launch_alone(self, one: PlannedJob) -> None:
        """Launch a single job; if its process dies, write a summary that says so."""
        try:
            self._launch([one])
        except Exception as error:
            with claimed(one.folder, one.point.config.sweep.lock) as locked:
                if locked and read_summary(one.folder) is None:
                    record_death(one.folder, _one_line(error))


def _print_dry_run(config: DictConfig, spec: LauncherSpec, batch_size: int | None) -> None:
    """Print what the sweep would do, after the same checks."""
    settings = config.hydra.launcher
    with exit_on_error():
        jobs = sweep_jobs(config)
        tuning = sweep_tuning(config, jobs)
        rounds = None
        if OmegaConf.select(config, "sweep.until") == DECIDED:
            avoided = tuning.seeds if tuning is not None else ()
            rounds = SeedRounds.of(sweep_points(config, jobs[:1])[0].config, jobs, avoided)
            jobs = jobs_of_round(jobs, rounds.schedule.seeds, None)
        points = _with_device(sweep_points(config, _expected_jobs(jobs, tuning)), spec, settings)
        with remove_new_folders([point.config for point in points]):
            identities = _check_points(points, spec, lambda check: check())
    count = spec.max_parallel(settings)
    parallelism = Parallelism(
        config.hydra.runtime.choices["hydra/launcher"],
        min(count, batch_size) if count is not None and batch_size is not None else count,
    )
    named = zip(_names(points), points, identities, strict=True)
    trials = 0 if tuning is None else len(tuning.all_trials(jobs))  # which come first
    runs = [
        PlannedRun(name or identity.id, point.config, identity, is_trial=at < trials)
        for at, (name, point, identity) in enumerate(named)
    ]
    print(describe(runs, parallelism))
    if rounds is not None:
        first, looks = len(rounds.schedule.rounds[0]), rounds.schedule.looks
        print(f"sweep.until=decided: these are all runs of {looks} rounds; the first has {first} seeds of each method")
    if tuning is not None:
        keys = ", ".join(tuning.values)
        print(f"{keys}: the runs of the comparison are listed with the first value; the trials will choose the value")


def _expected_jobs(jobs: list[Job], tuning: Tuning | None) -> list[Job]:
    """Return the trials of the sweep, and the comparison as if the first value were the best one of every method."""
    if tuning is None:
        return jobs
    return [*tuning.all_trials(jobs), *([*job, *tuning.combinations()[0]] for job in jobs)]


def _with_device(points: list[Point], spec: LauncherSpec, settings: Mapping[str, Any]) -> list[Point]:
    """Return the points with ``device=auto`` replaced by the device of the launcher's jobs on other machines."""
    if spec.device is None:
        return points
    kind = spec.device(settings)
    return [
        Point([*point.arguments, f"device={kind}"], replace(point.config, device=kind))
        if point.config.device == "auto"
        else point
        for point in points
    ]


def _check_points(points: Sequence[Point], spec: LauncherSpec, run_check: RunCheck) -> list[Identity]:
    """Check every point, log the warnings, and return the identities.

    Raises:
        ConfigError: bad input.
    """
    if not points:
        raise ConfigError("hydra.sweeper.params: the sweep has no points; give each axis at least one value")
    configs: list[Config] = [point.config for point in points]
    checked: Checked = run_check(partial(_preflight, configs, _names(points), spec.device is None))
    log_warnings(checked.warnings)
    return checked.identities


def _without_hydra(jobs: Sequence[Job]) -> list[Job]:
    """Return jobs without the overrides of Hydra itself."""
    return [Point(job, None).overrides for job in jobs]


def _names(points: Sequence[Point]) -> list[str]:
    """Return for each point the overrides that not all points have."""
    everywhere = set.intersection(*(set(point.overrides) for point in points))
    return [" ".join(o for o in point.overrides if o not in everywhere) for point in points]


def _preflight(configs: Sequence[Config], names: Sequence[str], here: bool) -> "Checked":
    """Check the configs; a function of this module, so that it can be sent to another process."""
    import_all()
    from rlsparse.execution.preflight import preflight

    return preflight(configs, names, here)


def _version_warnings(done: Sequence[PlannedJob]) -> list[str]:
    """Return a warning for each difference between the code of finished runs and the present code."""
    now = code() if done else {}
    counts = Counter(line for one in done for line in changed_versions(read_summary(one.folder) or {}, now))
    return [
        f"{count} runs were done before with another version ({line}); delete their folders to run them again"
        for line, count in counts.items()
    ]


def _one_line(error: Exception) -> str:
    """Return an error on one line, shortened: the error of a launcher may contain the whole output of a job."""
    line = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return line if len(line) <= 2 * MAX_ERROR else f"{line[:MAX_ERROR]} ... {line[-MAX_ERROR:]}"

"""``--dry-run``: print each point of a sweep with its state, and the estimated cost of the rest. Nothing is written."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlsparse.config.run_id import Identity
from rlsparse.config.schema import Config
from rlsparse.runtime.preload import quieten
from rlsparse.storage.atomic import read_yaml
from rlsparse.storage.run_folder import RunFolder
from rlsparse.storage.summary import read_summary
from rlsparse.sweep.cost_estimate import (
    LEVELS,
    FinishedRun,
    TimeEstimate,
    Workload,
    estimate_time,
    finished_run,
    makespan,
    workload,
)
from rlsparse.sweep.rounds import DECIDED, claims_folder, schedule
from rlsparse.sweep.status import RunState, format_state, run_state

FLAG, OVERRIDE = "--dry-run", "hydra.sweeper.dry_run=true"
FEWEST_SUMMARIES = 4  # two seeds of two methods
WITH_VALUE = ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--package", "-p")  # of Hydra


@dataclass(frozen=True)
class Parallelism:
    """How many runs of a sweep are done at a time.

    Attributes:
        launcher: the option of ``hydra/launcher``.
        count: the number of runs at a time; None if it is not known.
    """

    launcher: str
    count: int | None


@dataclass(frozen=True)
class PlannedRun:
    """A run that the command would do.

    Attributes:
        name: the words that distinguish it from the other runs.
        config: its config.
        identity: its id and hashes.
        is_trial: whether it only tunes a key and is not compared.
    """

    name: str
    config: Config
    identity: Identity
    is_trial: bool = False

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return Path(self.config.runs_dir) / self.config.experiment.name / self.identity.id

    def is_due(self, state: RunState) -> bool:
        """Return whether the command would work on the run; a running one is left to its process."""
        return state.state in ("missing", "cut off") or (state.state == "failed" and self.config.sweep.retry_failed)

    def remaining_work(self) -> Workload:
        """Return the workload after the last checkpoint."""
        after = _saved_step(RunFolder(self.folder).checkpoints)
        return workload(asdict(self.config), self.identity.method_hash, self.identity.device, after)


def replace_flag(arguments: Sequence[str]) -> list[str]:
    """Return a command line with ``--dry-run`` replaced by an override, as Hydra does not accept other flags."""
    rest = [one for one in arguments if one != FLAG]
    if len(rest) == len(arguments):
        return rest
    # argparse accepts overrides only next to each other
    values = {i + 1 for i, one in enumerate(rest) if one in WITH_VALUE}  # words that belong to the flag before them
    overrides = (i for i, one in enumerate(rest) if "=" in one and not one.startswith("-") and i not in values)
    first = next(overrides, len(rest))
    return [*rest[:first], OVERRIDE, *rest[first:]]


@contextmanager
def remove_new_folders(configs: Sequence[Config]) -> Iterator[None]:
    """Remove ``runs_dir`` and its parents at the end of the context if they were created within it."""
    folders = {Path(config.runs_dir) for config in configs}
    paths = {path for folder in folders for path in (folder, *folder.parents)}
    missing = sorted((path for path in paths if not path.exists()), reverse=True)
    try:
        yield
    finally:
        for path in missing:
            with suppress(OSError):  # it was not created, or another process has written to it
                path.rmdir()


def describe(runs: Sequence[PlannedRun], parallelism: Parallelism | None = None) -> str:
    """Return the text of a dry run: a line for each run with its state, the number of runs, their cost and their power.

    Args:
        parallelism: None for a single run.
    """
    states = [run_state(run.folder, run.name) for run in runs]
    due = {run.folder: run for run, state in zip(runs, states, strict=True) if run.is_due(state)}
    counts = Counter(state.state for state in states)
    total = f"{_number(len(runs), 'point')}: " + ", ".join(f"{n} {state}" for state, n in counts.items())
    lines = [*map(format_state, states), f"{total}; {len(due)} to do"]
    todo = list(due.values())
    return "\n".join([*lines, *_times(todo, parallelism), *_power(runs), *_memory(todo)])


def _times(due: Sequence[PlannedRun], parallelism: Parallelism | None) -> list[str]:
    """Return lines with the estimated time of the runs, and the finished runs that it is estimated from."""
    if not due:
        return []
    folders = sorted({Path(run.config.runs_dir) for run in due})
    done = [run for folder in folders for run in finished_runs(folder, {run.identity.method_hash for run in due})]
    estimates = [estimate_time(run.remaining_work(), done) for run in due]
    known = [one for one in estimates if one is not None]
    unknown = len(due) - len(known)
    lines = []
    if known:
        lines += [_time(known, parallelism, unknown > 0), *_bases(known)]
    if unknown:
        which = f" for {unknown} of {len(due)} points" if known else ""
        where = ", ".join(map(str, folders))
        lines.append(f"time unknown{which}: no finished run of this model under {where}; run one first")
    return lines


def _time(known: Sequence[TimeEstimate], parallelism: Parallelism | None, is_part: bool) -> str:
    fastest, slowest = sum(one.fastest for one in known), sum(one.slowest for one in known)
    spread = f" ({_duration(fastest)} to {_duration(slowest)})" if any(len(one.basis) > 1 for one in known) else ""
    points = f" for {_number(len(known), 'point')}" if is_part else ""
    text = f"about {_duration(sum(one.seconds for one in known))} of compute{points}{spread}"
    if parallelism is None:
        return text
    launcher = f"hydra/launcher={parallelism.launcher}"
    if parallelism.count is None:
        return f"{text}; the number of runs at a time is not known for {launcher}"
    together = makespan([one.seconds for one in known], parallelism.count)
    return f"{text}, about {_duration(together)} with {launcher}, {parallelism.count} at a time"


def _bases(known: Sequence[TimeEstimate]) -> list[str]:
    """Return a line for each level of similarity, and one with the largest peak memory of these runs."""
    lines = []
    for level, similarity in enumerate(LEVELS):
        those = [one for one in known if one.level == level]
        basis = {id(run): run for one in those for run in one.basis}
        if those:
            scaled = ", scaled by the number of completions and their maximum length" if level else ""
            runs = _number(len(basis), "finished run")
            lines.append(f"  {_number(len(those), 'point')} estimated from {runs} {similarity}{scaled}")
    memory = [run.memory for one in known for run in one.basis if run.memory is not None]
    return [*lines, f"  peak memory of those runs: up to {max(memory) / 2**30:.2f} GiB"] if memory else lines


def _power(runs: Sequence[PlannedRun]) -> list[str]:
    """Return for each experiment a line with the smallest difference between methods that its seeds will detect.

    There is no line without finished runs of at least two seeds of the baseline and another method.
    """
    compared: dict[Path, list[PlannedRun]] = {}
    for run in runs:
        if not run.is_trial:
            compared.setdefault(run.folder.parent, []).append(run)
    lines = []
    for folder, planned in compared.items():
        if len(list(folder.glob(str(RunFolder(Path("*")).summary)))) >= FEWEST_SUMMARIES:
            with suppress(Exception):  # the files of other runs may be damaged in any way
                lines += _smallest_difference(folder, planned)
    return lines


def _smallest_difference(folder: Path, planned: Sequence[PlannedRun]) -> list[str]:
    """Return the line of an experiment, for the seeds that it will have when the planned runs are finished."""
    from rlsparse.results.planning import study_of_runs, typical  # imports pandas and scipy
    from rlsparse.results.power import POWER
    from rlsparse.results.statistics import FEWEST, LEVEL

    study = study_of_runs(folder, claims_folder(planned[0].config))
    found = typical(study.samples, study.baseline)
    if found is None:
        return []
    seeds, looks = len(found.seeds | {run.config.seed for run in planned}), study.looks
    sweep = planned[0].config.sweep
    if sweep.until == DECIDED:
        seeds = sweep.max_seeds or seeds
        looks = schedule([str(one) for one in range(seeds)], sweep.first_seeds, sweep.round_seeds).looks
    if seeds < FEWEST:
        return [f"{seeds} seeds detect no difference between methods: the test needs at least {FEWEST}"]
    counted = f"{seeds} seeds x {found.questions} questions" if found.questions else f"{seeds} seeds"
    comparisons = max(found.comparisons, len({run.identity.method_hash for run in planned}) - 1)
    several = (f", {comparisons} comparisons" if comparisons > 1 else "") + (f", {looks} looks" if looks > 1 else "")
    smallest = found.variances.detectable(seeds, max(1, found.questions), LEVEL / comparisons / looks)
    return [
        f"{counted} detect a difference to {found.baseline} of about {smallest:.3g} {found.unit} "
        f"({100 * POWER:g} % power{several}), from {found.runs} finished runs"
    ]


def _memory(due: Sequence[PlannedRun]) -> list[str]:
    """Return lines with the memory of the run that needs most, its parts, and the disk space that the runs need."""
    if not due:
        return []
    from rlsparse.execution.memory_estimate import MemoryEstimator, size  # imports torch

    quieten()
    estimator = MemoryEstimator()
    found = [(run, estimator(run.config, run.identity.device)) for run in due]
    known = [(run, one) for run, one in found if one is not None]
    lines = []
    if known:
        run, largest = max(known, key=lambda pair: pair[1].total)
        which = f" for {run.name}, the most of {_number(len(known), 'point')}" if len(known) > 1 else ""
        exports, checkpoints = sum(one.export for _, one in known), max(one.checkpoints for _, one in known)
        lines += [
            f"memory: about {size(largest.total)} and activations{which}",
            f"  {largest.listed()}",
            f"disk: about {size(exports)} for what {_number(len(known), 'run')} will export, and up to "
            f"{size(checkpoints)} for the checkpoints of a run until it ends",
        ]
    if unknown := len(due) - len(known):
        which = f" for {unknown} of {len(due)} points" if known else ""
        lines.append(f"memory unknown{which}: the adapter cannot be put on a model without weights")
    return lines


def finished_runs(runs_dir: Path, methods: set[str]) -> list[FinishedRun]:
    """Return the finished runs of all experiments that an estimate can use; damaged runs are left out.

    Args:
        methods: the hashes of the planned methods; if each has a finished run, other methods are not read.
    """
    every_summary = RunFolder(Path("*", "*")).summary
    folders = [file.parent for file in sorted(runs_dir.glob(str(every_summary)))]
    summaries = {folder: summary for folder in folders if (summary := read_summary(folder)) is not None}
    done = {folder: one for folder, one in summaries.items() if one["status"] == "finished"}
    same = {folder: one for folder, one in done.items() if one.get("method_hash") in methods}
    runs = _read_runs(same)
    if {run.keys[0] for run in runs} == methods:
        return runs
    return runs + _read_runs({folder: one for folder, one in done.items() if folder not in same})


def _read_runs(summaries: dict[Path, dict[str, Any]]) -> list[FinishedRun]:
    runs = []
    for folder, summary in summaries.items():
        with suppress(Exception):  # the files of other runs may be damaged in any way
            runs.append(finished_run(read_yaml(RunFolder(folder).config) or {}, summary))
    return runs


def _saved_step(checkpoints: Path) -> int:
    """Return the step of the newest checkpoint, which the run would resume from; 0 if there is none."""
    numbers = [folder.name.removeprefix("step-") for folder in checkpoints.glob("step-*")]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def _duration(seconds: float) -> str:
    size, unit = next(((s, u) for s, u in ((3600, "h"), (60, "min")) if seconds >= 2 * s), (1, "s"))
    return f"{seconds / size:.1f} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"

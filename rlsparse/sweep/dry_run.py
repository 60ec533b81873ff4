"""``--dry-run``: each point of a sweep, how it stands, and what the rest will take. Nothing is written."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlsparse.config.run_id import Identity
from rlsparse.config.schema import Config
from rlsparse.storage.atomic import read_yaml
from rlsparse.storage.run_folder import RunFolder
from rlsparse.storage.summary import read_summary
from rlsparse.sweep.cost_estimate import LEVELS, Estimate, Finished, Sized, estimate, finished, side_by_side, sized
from rlsparse.sweep.status import RunState, line, run_state

FLAG, KEY = "--dry-run", "hydra.sweeper.dry_run=true"


@dataclass(frozen=True)
class Places:
    """Where a sweep's runs would be.

    Attributes:
        launcher: the option of ``hydra/launcher``.
        count: runs at a time; None where that is not known.
    """

    launcher: str
    count: int | None


@dataclass(frozen=True)
class Point:
    """A run that is asked for."""

    name: str
    config: Config
    identity: Identity

    @property
    def folder(self) -> Path:
        return Path(self.config.runs_dir) / self.config.experiment.name / self.identity.id

    def is_due(self, state: RunState) -> bool:
        """Whether the command would work on it; a running one is left to whoever does."""
        return state.state in ("missing", "cut off") or (state.state == "failed" and self.config.sweep.retry_failed)

    def size(self) -> Sized:
        """What is left of it."""
        after = _saved_step(RunFolder(self.folder).checkpoints)
        return sized(asdict(self.config), self.identity.method_hash, self.identity.device, after)


def as_override(arguments: Sequence[str]) -> list[str]:
    """The command line with the flag as an override of Hydra's, which knows no flags but its own."""
    rest = [one for one in arguments if one != FLAG]
    if len(rest) == len(arguments):
        return rest
    # argparse takes overrides in one piece only
    first = next((i for i, one in enumerate(rest) if "=" in one and not one.startswith("-")), len(rest))
    return [*rest[:first], KEY, *rest[first:]]


@contextmanager
def nothing_made(configs: Sequence[Config]) -> Iterator[None]:
    """Inside, checks may make the runs' folders; those that were not there are gone after."""
    folders = {Path(config.runs_dir) for config in configs}
    paths = {path for folder in folders for path in (folder, *folder.parents)}
    made = sorted((path for path in paths if not path.exists()), reverse=True)
    try:
        yield
    finally:
        for path in made:
            with suppress(OSError):  # not made after all, or in use by now
                path.rmdir()


def describe(points: Sequence[Point], places: Places | None = None) -> str:
    """Lines for a person.

    Args:
        places: None for a single run.
    """
    states = [run_state(point.folder, point.name) for point in points]
    due = {point.folder: point for point, state in zip(points, states, strict=True) if point.is_due(state)}
    counts = Counter(state.state for state in states)
    total = f"{_number(len(points), 'point')}: " + ", ".join(f"{n} {state}" for state, n in counts.items())
    lines = [*map(line, states), f"{total}; {len(due)} to do"]
    return "\n".join(lines + _costs(list(due.values()), places))


def _costs(due: Sequence[Point], places: Places | None) -> list[str]:
    """What the points that are due will take, and how that is known."""
    if not due:
        return []
    folders = sorted({Path(point.config.runs_dir) for point in due})
    done = [run for folder in folders for run in finished_runs(folder, {point.identity.method_hash for point in due})]
    estimates = [estimate(point.size(), done) for point in due]
    known = [one for one in estimates if one is not None]
    lines = []
    if known:
        lines += [_time(known, places, len(known) < len(due)), *_bases(known)]
    if len(known) < len(due):
        which = f"{len(due) - len(known)} of {len(due)} points: " if known else ""
        where = ", ".join(map(str, folders))
        lines.append(f"{which}unknown: no finished run of this model under {where}; run one first")
    return lines


def _time(known: Sequence[Estimate], places: Places | None, in_part: bool) -> str:
    least, most = sum(one.least for one in known), sum(one.most for one in known)
    spread = f" ({_duration(least)} to {_duration(most)})" if any(len(one.basis) > 1 for one in known) else ""
    of = f" for {_number(len(known), 'point')}" if in_part else ""
    text = f"about {_duration(sum(one.seconds for one in known))} of compute{of}{spread}"
    if places is None:
        return text
    if places.count is None:
        return f"{text}; how many at a time hydra/launcher={places.launcher} does is not known"
    together = side_by_side([one.seconds for one in known], places.count)
    return f"{text}, about {_duration(together)} with hydra/launcher={places.launcher}, {places.count} at a time"


def _bases(known: Sequence[Estimate]) -> list[str]:
    """A line for each kind of basis, and the most memory that a run of one took."""
    lines = []
    for level, alike in enumerate(LEVELS):
        those = [one for one in known if one.level == level]
        basis = {id(run): run for one in those for run in one.basis}
        if those:
            scaled = ", scaled by completions and their greatest length" if level else ""
            runs = _number(len(basis), "finished run")
            lines.append(f"  {_number(len(those), 'point')} by {runs} {alike}{scaled}")
    memory = [run.memory for one in known for run in one.basis if run.memory is not None]
    return [*lines, f"  memory of a run: up to {max(memory) / 2**30:.2f} GiB, as theirs"] if memory else lines


def finished_runs(runs_dir: Path, methods: set[str]) -> list[Finished]:
    """Those of all experiments that an estimate can go by; what is damaged is left out.

    Args:
        methods: hashes of those that are asked for; where each has a run, no other is read.
    """
    folders = [file.parent for file in sorted(runs_dir.glob("*/*/summary.json"))]
    summaries = {folder: summary for folder in folders if (summary := read_summary(folder)) is not None}
    done = {folder: one for folder, one in summaries.items() if one["status"] == "finished"}
    same = {folder: one for folder, one in done.items() if one.get("method_hash") in methods}
    runs = _read(same)
    if {run.like[0] for run in runs} == methods:
        return runs
    return runs + _read({folder: one for folder, one in done.items() if folder not in same})


def _read(summaries: dict[Path, dict[str, Any]]) -> list[Finished]:
    runs = []
    for folder, summary in summaries.items():
        with suppress(Exception):  # whatever is wrong with another run's files
            runs.append(finished(read_yaml(RunFolder(folder).config) or {}, summary))
    return runs


def _saved_step(checkpoints: Path) -> int:
    """The newest that the run would go on from; 0 where there is none."""
    numbers = [folder.name.removeprefix("step-") for folder in checkpoints.glob("step-*")]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def _duration(seconds: float) -> str:
    size, unit = next(((s, u) for s, u in ((3600, "h"), (60, "min")) if seconds >= 2 * s), (1, "s"))
    return f"{seconds / size:.1f} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"

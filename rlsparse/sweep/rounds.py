"""Add seeds to a sweep in rounds until its claims are decided.

After each round, every claim of the study is tested as its table will do it. Methods of claims that are still open get
more seeds. The test stays valid under this looking: with K planned looks, p is multiplied by K at each of them
(Bonferroni over looks), so the chance of any false finding over the whole procedure is at most 5 %, whatever the rule
by which the sweep stops.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlsparse.config.schema import Config, ConfigError
from rlsparse.results.rounds import ROUNDS, STUDIES, Look, Rounds, RoundsError, read_rounds
from rlsparse.results.sorting import natural_key
from rlsparse.storage.atomic import write_whole
from rlsparse.storage.run_folder import RunFolder
from rlsparse.storage.summary import read_summary
from rlsparse.sweep.tuning import SEED, Job, key_of

if TYPE_CHECKING:
    from rlsparse.results.study import Study

DECIDED = "decided"  # value of sweep.until


@dataclass(frozen=True)
class Schedule:
    """The seeds of each round.

    Attributes:
        rounds: seeds of each round, as words of the command line; the first round has those of all methods.
    """

    rounds: tuple[tuple[str, ...], ...]

    @property
    def looks(self) -> int:
        """The number of planned looks: one after each round."""
        return len(self.rounds)

    @property
    def seeds(self) -> list[str]:
        """The seeds of all rounds."""
        return [seed for one in self.rounds for seed in one]

    def until(self, look: int) -> set[str]:
        """Return the seeds of the rounds up to a look, which is counted from 0."""
        return {seed for one in self.rounds[: look + 1] for seed in one}


def more_seeds(seeds: Sequence[str], count: int, avoided: Collection[str] = ()) -> list[str]:
    """Return a number of seeds: those of a grid, in order, and then the next whole numbers.

    Args:
        avoided: whole numbers that are left out.
    """
    names = list(dict.fromkeys(seeds))
    number = max((int(one) for one in names if one.isdecimal()), default=-1)
    while len(names) < count:
        number += 1
        if str(number) not in avoided:
            names.append(str(number))
    return names[:count]


def schedule(seeds: Sequence[str], first: int, step: int) -> Schedule:
    """Return the rounds of a sweep.

    Args:
        seeds: of all rounds, in order.
        first, step: number of seeds of the first round, and of each later one.

    Raises:
        ConfigError: there are too few seeds for two rounds.
    """
    if len(seeds) <= first:
        raise ConfigError(
            f"sweep.first_seeds={first}: with {len(seeds)} seeds there is a single round; raise "
            f"sweep.max_seeds to at least {first + 1}"
        )
    starts = [0, *range(first, len(seeds), step)]
    return Schedule(tuple(tuple(seeds[a:b]) for a, b in zip(starts, [*starts[1:], len(seeds)], strict=True)))


def jobs_of_round(jobs: Sequence[Job], seeds: Sequence[str], methods: Collection[tuple[str, ...]] | None) -> list[Job]:
    """Return the jobs of some methods with some seeds, each once.

    Args:
        jobs: of the grid, with any seeds.
        methods: jobs without their seed (see ``method_of``); None for all.
    """
    wanted = [one for one in dict.fromkeys(map(method_of, jobs)) if methods is None or one in methods]
    # by seed, so that changes in the load of the machine affect the times of all methods alike
    return [[*method, f"{SEED}={seed}"] for seed in seeds for method in wanted]


def seed_of(job: Sequence[str]) -> list[str]:
    """Return the seed of a job; empty where it has none."""
    return [word.partition("=")[2] for word in job if key_of(word) == SEED]


def method_of(job: Sequence[str]) -> tuple[str, ...]:
    """Return the words of a job without its seed."""
    return tuple(word for word in job if key_of(word) != SEED)


@dataclass(frozen=True)
class SeedRounds:
    """The rounds of a sweep and the folder that records them.

    Attributes:
        schedule: the seeds of each round.
        folder: of the experiment.
        claims: the folder with its claims file.
        max_hours: no round is started after so many hours of runs together; None for no limit.
        looks: those that were made.
    """

    schedule: Schedule
    folder: Path
    claims: Path
    max_hours: float | None
    looks: list[Look]

    @classmethod
    def of(cls, config: Config, jobs: Sequence[Job], avoided: Collection[str] = ()) -> "SeedRounds":
        """Return the rounds of a sweep, with the looks that an earlier call has made.

        Args:
            config: of one of its points.
            jobs: with all seeds of the grid.
            avoided: seeds that no round has, such as those of the trials.

        Raises:
            ConfigError: there are too few seeds, or the earlier looks belong to other rounds.
        """
        settings, name = config.sweep, config.experiment.name
        seeds = [seed for job in jobs for seed in seed_of(job)] or [str(config.seed)]
        wanted = settings.max_seeds or len(set(seeds))
        plan = schedule(more_seeds(seeds, wanted, avoided), settings.first_seeds, settings.round_seeds)
        folder = Path(config.runs_dir) / name
        claims = claims_folder(config)
        check_claims(claims, settings.claims)
        return cls(plan, folder, claims, settings.max_hours, earlier_looks(folder, plan))

    def look(self, number: int) -> Look:
        """Return the look after a round; a new one is recorded in the folder."""
        from rlsparse.results.planning import study_of_runs  # imports pandas and scipy

        if number == len(self.looks):
            study = study_of_runs(self.folder, self.claims)
            self.looks.append(look_at(study, self.schedule.until(number), self.schedule.looks))
            content = {"planned_looks": self.schedule.looks, "looks": [asdict(one) for one in self.looks]}
            write_whole(self.folder / ROUNDS, json.dumps(content, indent=1))
        return self.looks[number]

    def open_runs(self, look: Look) -> set[str]:
        """Return the ids of the runs whose methods get more seeds after a look.

        Raises:
            ConfigError: the methods have other names than at the look.
        """
        from rlsparse.results.collect import collect  # imports pandas

        runs = collect(self.folder).runs
        names = dict(zip(runs["id"], runs["method"], strict=True))
        unknown = sorted(set(look.open) - set(names.values()))
        if unknown:
            raise ConfigError(
                f"sweep.until=decided: {self.folder / ROUNDS} names {', '.join(unknown)}, which no run has: another "
                "sweep of this experiment has changed the names of methods; give this one its own experiment.name"
            )
        return {run_id for run_id, name in names.items() if name in look.open}

    def is_over_time(self) -> bool:
        """Return whether the runs have taken ``max_hours`` together."""
        return self.max_hours is not None and hours_of(self.folder) >= self.max_hours


def claims_folder(config: Config) -> Path:
    """Return the folder with the claims of an experiment: ``sweep.claims``, or that of the study of its name."""
    given = config.sweep.claims
    return Path(given) if given is not None else STUDIES / config.experiment.name


def check_claims(folder: Path, given: str | None) -> None:
    """Check the claims file before the first run.

    Args:
        given: ``sweep.claims``; None where the folder is the default one, which need not have the file.

    Raises:
        ConfigError: there is none, or it has an error.
    """
    from rlsparse.results.claims_file import FILE, ClaimError, read_claims  # imports pandas

    if (folder / FILE).is_file():
        try:
            read_claims(folder / FILE)
        except ClaimError as error:
            raise ConfigError(f"sweep.until=decided: {error}") from error
    elif given is not None:
        raise ConfigError(f"sweep.claims={given}: has no {FILE}; give the folder that contains it")


def earlier_looks(folder: Path, plan: Schedule) -> list[Look]:
    """Return the looks of an interrupted sweep.

    Raises:
        ConfigError: they belong to other rounds.
    """
    try:
        found = read_rounds(folder)
    except RoundsError as error:
        raise ConfigError(f"sweep.until=decided: {error}") from error
    if found is None:
        return []
    if found.planned_looks != plan.looks or any(
        set(look.seeds) != plan.until(number) for number, look in enumerate(found.looks)
    ):
        raise ConfigError(
            f"sweep.until=decided: {folder / ROUNDS} has looks at other seeds; give the sweep its earlier seeds and "
            "its earlier sweep.first_seeds, sweep.round_seeds and sweep.max_seeds, or another experiment.name"
        )
    return list(found.looks)


def look_at(study: "Study", seeds: Collection[str], planned: int) -> Look:
    """Return what the finished runs of some seeds say.

    Args:
        study: with runs of these seeds, and perhaps of others; where it has no claims, each method is compared with the
            baseline.
        planned: the number of planned looks.
    """
    from rlsparse.results.claims import methods_of  # imports pandas and scipy
    from rlsparse.results.comparisons import INCONCLUSIVE

    runs = study.runs[study.runs["seed"].astype(str).isin(list(seeds))]
    study = replace(study, runs=runs, rounds=Rounds(planned))
    methods, still_open = list(dict.fromkeys(runs["method"])), set()
    verdicts: dict[str, str] = {}
    if study.claims is not None and study.claims.claims:
        for one in study.outcomes:
            verdicts[one.claim.claim] = one.verdict
            if one.needs_data:
                still_open |= set(methods_of(one.claim, methods))
    else:
        for method, found in study.comparisons.items():
            verdicts[method] = found.verdict
            if found.verdict == INCONCLUSIVE:
                still_open |= {method, str(study.baseline)}
    return Look(sorted(seeds, key=natural_key), verdicts, sorted(still_open, key=natural_key))


def hours_of(folder: Path) -> float:
    """Return the hours that the runs of an experiment took together, trials included."""
    summaries = [read_summary(file.parent) for file in folder.glob(str(RunFolder(Path("*")).summary))]
    times = [one["time"]["total"] for one in summaries if one is not None and isinstance(one.get("time"), dict)]
    return sum(seconds for seconds in times if isinstance(seconds, int | float)) / 3600

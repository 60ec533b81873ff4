"""A sweep that first finds out, for each method, at which values of some keys it does best: on seeds of their own.

At one learning rate for all, a comparison of methods measures which of them that rate suits.
"""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from rlsparse.config.schema import ConfigError

SEED = "seed"
Job = list[str]


@dataclass(frozen=True)
class Tuning:
    """What is tried for each method before methods are compared.

    Attributes:
        values: of each key, as overrides of a job would give them.
        seeds: that trials run on.
    """

    values: Mapping[str, tuple[str, ...]]
    seeds: tuple[str, ...]

    def combinations(self) -> list[Job]:
        """Every choice of a value for each key."""
        axes = [[f"{key}={value}" for value in values] for key, values in self.values.items()]
        return [list(words) for words in itertools.product(*axes)]

    def trials(self, job: Job) -> dict[tuple[str, ...], list[Job]]:
        """Combination → the trials of it, for the method that a job of the comparison is of."""
        method = self._method(job)
        return {
            tuple(words): [[*method, *words, f"{SEED}={seed}"] for seed in self.seeds] for words in self.combinations()
        }

    def all_trials(self, jobs: Sequence[Job]) -> list[Job]:
        """Of every method of a comparison, each once."""
        every = [trial for job in jobs for trials in self.trials(job).values() for trial in trials]
        return [list(words) for words in dict.fromkeys(map(tuple, every))]

    def settle(self, jobs: Sequence[Job], score: Callable[[Job], float | None]) -> list[Job | None]:
        """The comparison's jobs, each with the combination that did best for its method.

        Best is the mean score over the seeds; the earlier combination wins a tie. None for a job of a method none of
        whose combinations has a score for every seed.

        Args:
            score: of a trial, larger is better; None where it has none.
        """
        return [self._settle(job, score) for job in jobs]

    def _settle(self, job: Job, score: Callable[[Job], float | None]) -> Job | None:
        best: tuple[float, tuple[str, ...]] | None = None
        for words, trials in self.trials(job).items():
            scores = [score(trial) for trial in trials]
            known = [one for one in scores if one is not None]
            mean = sum(known) / len(known) if len(known) == len(scores) else None
            if mean is not None and (best is None or mean > best[0]):
                best = (mean, words)
        return None if best is None else [*self._without_keys(job), *best[1]]

    def _method(self, job: Job) -> Job:
        return [word for word in self._without_keys(job) if key_of(word) != SEED]

    def _without_keys(self, job: Job) -> Job:
        return [word for word in job if key_of(word) not in self.values]


def tuning(
    axes: Mapping[str, Sequence[str]], typed: Sequence[str], compared: Collection[str], swept: Collection[str] = ()
) -> Tuning | None:
    """The tuning that ``hydra.sweeper.tune`` asks for; None where it asks for none, or every key has been typed.

    Args:
        axes: its values by key, the trials' seeds among them.
        typed: the command line's overrides: a key that is given there is not tuned.
        compared: seeds of the comparison.
        swept: keys of the comparison's jobs.

    Raises:
        ConfigError: trials without seeds of their own, a key that is swept as well, or one with nothing to choose from.
    """
    given = {key_of(word) for word in typed}
    values = {key: tuple(dict.fromkeys(options)) for key, options in axes.items() if key != SEED and key not in given}
    if not values:
        return None
    where = "hydra.sweeper.tune"
    for key, options in values.items():
        words = f"{where}.{key}={','.join(options)}"
        if key in swept:
            raise ConfigError(f"{words}: {key} is an axis of the comparison, too; take it out of one of them")
        if len(options) < 2:
            raise ConfigError(f"{words}: leaves nothing to choose; give two values or more, or put it under params")
    if not axes.get(SEED):
        raise ConfigError(f"{where}: has no seed; give the trials seeds of their own, such as {where}.seed='100,101'")
    both = sorted(set(compared) & set(axes[SEED]))
    if both:
        raise ConfigError(
            f"{where}.seed={','.join(axes[SEED])}: seed {', '.join(both)} is compared too, and would flatter what it "
            "chose; give the trials other seeds"
        )
    return Tuning(values, tuple(axes[SEED]))


def key_of(word: str) -> str:
    """Of an override of a job."""
    return word.partition("=")[0].lstrip("+~")

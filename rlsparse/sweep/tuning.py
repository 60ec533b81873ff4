"""Tuning in a sweep: find the best values of some keys for each method, on separate seeds, before methods are compared.

With one learning rate for all methods, a comparison would measure which method this rate suits.
"""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from rlsparse.config.schema import ConfigError

SEED = "seed"
Job = list[str]


@dataclass(frozen=True)
class Tuning:
    """The trials of each method before the comparison.

    Attributes:
        values: the values of each key, written as in the overrides of a job.
        seeds: the seeds of the trials.
    """

    values: Mapping[str, tuple[str, ...]]
    seeds: tuple[str, ...]

    def combinations(self) -> list[Job]:
        """Return every combination of values of the keys, as overrides."""
        axes = [[f"{key}={value}" for value in values] for key, values in self.values.items()]
        return [list(words) for words in itertools.product(*axes)]

    def trials(self, job: Job) -> dict[tuple[str, ...], list[Job]]:
        """Return the trials of each combination, for the method of a job of the comparison."""
        method = self._method(job)
        return {
            tuple(words): [[*method, *words, f"{SEED}={seed}"] for seed in self.seeds] for words in self.combinations()
        }

    def all_trials(self, jobs: Sequence[Job]) -> list[Job]:
        """Return the trials of all methods of a comparison, each once."""
        every = [trial for job in jobs for trials in self.trials(job).values() for trial in trials]
        return [list(words) for words in dict.fromkeys(map(tuple, every))]

    def choose(self, jobs: Sequence[Job], score: Callable[[Job], float | None]) -> list[Job | None]:
        """Return the jobs of the comparison, each with the combination that has the best mean score for its method.

        The mean is over the seeds; the earlier combination wins a tie.

        Args:
            score: returns the score of a trial, where larger is better; None for a trial without a score.

        Returns:
            A job for each job; None if no combination has a score for every seed.
        """
        return [self._choose(job, score) for job in jobs]

    def _choose(self, job: Job, score: Callable[[Job], float | None]) -> Job | None:
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


def build_tuning(
    axes: Mapping[str, Sequence[str]], typed: Sequence[str], compared: Collection[str], swept: Collection[str] = ()
) -> Tuning | None:
    """Return the tuning that ``hydra.sweeper.tune`` describes; None if it has no key that is left to tune.

    Args:
        axes: the values by key, with the seeds of the trials under the key ``seed``.
        typed: the overrides of the command line; a key that is given there is not tuned.
        compared: the seeds of the comparison.
        swept: the keys of the jobs of the comparison.

    Raises:
        ConfigError: the trials have no separate seeds, or a key has a single value or is also swept.
    """
    given = {key_of(word) for word in typed}
    values = {key: tuple(dict.fromkeys(options)) for key, options in axes.items() if key != SEED and key not in given}
    if not values:
        return None
    where = "hydra.sweeper.tune"
    for key, options in values.items():
        words = f"{where}.{key}={','.join(options)}"
        if key in swept:
            raise ConfigError(f"{words}: {key} is also an axis of the comparison; remove it from one of the two")
        if len(options) < 2:
            raise ConfigError(f"{words}: leaves nothing to choose; give at least two values, or put it under params")
    if not axes.get(SEED):
        raise ConfigError(f"{where}: has no seed; give separate seeds for the trials, such as {where}.seed='100,101'")
    both = sorted(set(compared) & set(axes[SEED]))
    if both:
        raise ConfigError(
            f"{where}.seed={','.join(axes[SEED])}: seed {', '.join(both)} is also compared, which would bias the "
            "comparison; give other seeds for the trials"
        )
    return Tuning(values, tuple(axes[SEED]))


def key_of(word: str) -> str:
    """Return the key of an override of a job."""
    return word.partition("=")[0].lstrip("+~")

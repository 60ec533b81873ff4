"""A measure of a method by seed and, where it is a mean over questions, by seed and question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from rlsparse.results.answers import MEASURES, Answers
from rlsparse.results.measures import by_seed, finished

RATES = ("collapsed",)  # columns that are 0 or 1 for each run


@dataclass(frozen=True)
class Sample:
    """A measure of one method, or what was computed from measures.

    Attributes:
        by_seed: index seed; no value is missing.
        answers: index seed, a column for each question; NaN where the run of a seed was not asked a question. None
            where the measure is no mean over questions, or where the answers are not known. Of the mean over several
            benchmarks, a column is a pair of benchmark and question.
        is_rate: whether each value of a single method is 0 or 1 by its nature, such as whether a run has collapsed.
        is_difference: whether these are differences of two samples.
    """

    by_seed: "pd.Series[float]"
    answers: pd.DataFrame | None = None
    is_rate: bool = False
    is_difference: bool = False

    @classmethod
    def of(cls, values: "pd.Series[float] | Sample") -> "Sample":
        """Return values by seed as a sample without questions; a sample as it is."""
        return values if isinstance(values, Sample) else cls(values.dropna().astype(float))

    @property
    def values(self) -> npt.NDArray[np.floating[Any]]:
        """The values by seed, shape (S,)."""
        return self.by_seed.to_numpy(dtype=float)

    @cached_property
    def scores(self) -> pd.DataFrame | None:
        """The scores on the questions that all seeds were asked; None for fewer than two questions.

        The mean of a row is the value of its seed.
        """
        known = None if self.answers is None else self.answers.dropna(axis=1)
        return None if known is None or known.shape[1] < 2 else known

    @property
    def questions(self) -> int:
        """The number of questions; 0 where they are not known."""
        return 0 if self.scores is None else self.scores.shape[1]

    def __sub__(self, other: "Sample") -> "Sample":
        """Return the differences over the seeds and questions that both have.

        A seed whose two runs were asked no common question is left out.
        """
        values, rates = (self.by_seed - other.by_seed).dropna(), self.is_rate and other.is_rate
        found = Sample(values)
        if self.answers is not None and other.answers is not None:
            found = _with_answers(values, self.answers - other.answers)
        return replace(found, is_rate=rates, is_difference=True)

    def scaled(self, factor: float) -> "Sample":
        """Return the sample in another unit."""
        answers = None if self.answers is None else factor * self.answers
        return replace(self, by_seed=factor * self.by_seed, answers=answers)

    def ratio(self, other: "Sample") -> "Sample":
        """Return the ratio to another sample by seed, minus 1. It is no mean over questions."""
        ratios = (self.by_seed / other.by_seed - 1).dropna()
        return Sample(ratios[np.isfinite(ratios)])  # without those to 0

    @classmethod
    def mean(cls, samples: "Sequence[Sample]") -> "Sample":
        """Return the mean of samples, over the seeds and questions that all of them have."""
        values = pd.DataFrame(dict(enumerate(one.by_seed for one in samples))).dropna().mean(axis=1)
        frames = [one.answers for one in samples if one.answers is not None]
        found = cls(values)
        if frames and len(frames) == len(samples):
            total = frames[0]
            for frame in frames[1:]:
                total = total + frame
            found = _with_answers(values, total / len(frames))
        is_rate = bool(samples) and all(one.is_rate for one in samples)
        return replace(found, is_rate=is_rate, is_difference=any(one.is_difference for one in samples))


def _with_answers(values: "pd.Series[float]", answers: pd.DataFrame) -> Sample:
    """Return a sample with the answers of the seeds of its values; seeds without any answer are left out.

    Args:
        values: means over all questions. Where seeds have different questions, they are replaced by the means over
            those that all have, or, if these are fewer than two, over those that each has.
        answers: NaN where a question was not asked.
    """
    answers = answers.reindex(values.index).dropna(how="all")
    values = values.reindex(answers.index)
    if answers.isna().to_numpy().any():
        known = answers.dropna(axis=1)
        values = _means(known if known.shape[1] > 1 else answers)
    return Sample(values, answers)


def with_answers(values: "pd.Series[float]", scores: pd.DataFrame, seeds: Mapping[str, int]) -> Sample:
    """Return a measure with the scores on each question; without them if a run has none.

    Args:
        values: by seed.
        scores: a row for each question and a column for each run, by its id.
        seeds: of each run; runs of one seed are averaged.
    """
    if not seeds or not set(seeds) <= set(scores.columns):
        return Sample(values)
    return _with_answers(values, scores[list(seeds)].T.groupby(list(seeds.values())).mean())  # (S, Q)


def mean_over_benchmarks(samples: "Mapping[str, Sample]") -> Sample:
    """Return the mean of a measure over benchmarks, each of which counts the same, of the seeds that have all of them.

    Args:
        samples: by name of the benchmark.
    """
    values = pd.DataFrame({name: one.by_seed for name, one in samples.items()}).mean(axis=1, skipna=False).dropna()
    frames = {name: one.scores for name, one in samples.items()}
    if any(frame is None for frame in frames.values()):
        return Sample(values)
    return Sample(values, pd.concat(frames, axis=1).reindex(values.index))


def _means(answers: pd.DataFrame) -> "pd.Series[float]":
    """Return the mean of each row; of several benchmarks, the mean of their means."""
    if answers.columns.nlevels == 1:
        return answers.mean(axis=1)
    return answers.T.groupby(level=0).mean().mean()


@dataclass(frozen=True)
class Samples:
    """The measures of the finished runs of a study.

    Attributes:
        runs: the tidy table of the runs.
        answers: to each question; those of runs without answers are missing.
    """

    runs: pd.DataFrame
    answers: Answers = field(default_factory=Answers.none)
    _scores: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False, compare=False)
    _known: dict[tuple[str, str], Sample] = field(default_factory=dict, init=False, repr=False, compare=False)

    def of(self, method: str, column: str) -> Sample:
        """Return a measure of a method; the mean if a seed was run twice.

        Args:
            column: a column of the tidy table.
        """
        if (method, column) not in self._known:
            self._known[method, column] = self._of(method, column)
        return self._known[method, column]

    def _of(self, method: str, column: str) -> Sample:
        values = by_seed(self.runs, method, column).dropna()
        if column not in MEASURES or self.answers.empty:
            return Sample(values, is_rate=column in RATES)
        done = finished(self.runs)
        done = done[(done["method"] == method) & done["seed"].isin(values.index)]
        return with_answers(values, self._of_runs(column), dict(zip(done["id"], done["seed"], strict=True)))

    def _of_runs(self, column: str) -> pd.DataFrame:
        """Return the scores on each question, a column for each run."""
        if column not in self._scores:
            self._scores[column] = self.answers.scores(list(self.runs["id"]), column)
        return self._scores[column]

"""A measure of a method by seed and, where it is a mean over questions, by seed and question."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from rlsparse.results.answers import MEASURES, Answers
from rlsparse.results.measures import by_seed, finished


@dataclass(frozen=True)
class Sample:
    """A measure of one method, or what was computed from measures.

    Attributes:
        by_seed: index seed; no value is missing.
        scores: index seed, a column for each question; the mean of a row is the value of its seed. None where the
            measure is no mean over questions, or where the answers are not known.
    """

    by_seed: "pd.Series[float]"
    scores: pd.DataFrame | None = None

    @classmethod
    def of(cls, values: "pd.Series[float] | Sample") -> "Sample":
        """Return values by seed as a sample without questions; a sample as it is."""
        return values if isinstance(values, Sample) else cls(values.dropna().astype(float))

    @property
    def values(self) -> npt.NDArray[np.floating[Any]]:
        """The values by seed, shape (S,)."""
        return self.by_seed.to_numpy(dtype=float)

    @property
    def questions(self) -> int:
        """The number of questions; 0 where they are not known."""
        return 0 if self.scores is None else self.scores.shape[1]

    def __sub__(self, other: "Sample") -> "Sample":
        """Return the differences over the seeds and questions that both have."""
        values = (self.by_seed - other.by_seed).dropna()
        if self.scores is None or other.scores is None:
            return Sample(values)
        return _with_scores(values, self.scores - other.scores, len(self.scores.columns), len(other.scores.columns))

    def scaled(self, factor: float) -> "Sample":
        """Return the sample in another unit."""
        return Sample(factor * self.by_seed, None if self.scores is None else factor * self.scores)

    def ratio(self, other: "Sample") -> "Sample":
        """Return the ratio to another sample by seed, minus 1. It is no mean over questions."""
        ratios = (self.by_seed / other.by_seed - 1).dropna()
        return Sample(ratios[np.isfinite(ratios)])  # without those to 0

    @classmethod
    def mean(cls, samples: "Sequence[Sample]") -> "Sample":
        """Return the mean of samples, over the seeds and questions that all of them have."""
        values = pd.DataFrame(dict(enumerate(one.by_seed for one in samples))).dropna().mean(axis=1)
        frames = [one.scores for one in samples if one.scores is not None]
        if not samples or len(frames) < len(samples):
            return cls(values)
        total = frames[0]
        for frame in frames[1:]:
            total = total + frame
        return _with_scores(values, total / len(frames), *(len(frame.columns) for frame in frames))


def _with_scores(values: "pd.Series[float]", scores: pd.DataFrame, *asked: int) -> Sample:
    """Return a sample whose scores are of the seeds of its values, and of the questions that all of these have.

    Args:
        values: means over all questions. Where some questions are left out, they are replaced by means over the rest.
        asked: the numbers of questions that the scores are made from.
    """
    known = scores.reindex(values.index).dropna(axis=1)
    if known.shape[1] < 2:
        return Sample(values)
    if any(known.shape[1] < count for count in (scores.shape[1], *asked)):
        values = known.mean(axis=1)
    return Sample(values, known)


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

    def of(self, method: str, column: str) -> Sample:
        """Return a measure of a method; the mean if a seed was run twice.

        Args:
            column: a column of the tidy table.
        """
        values = by_seed(self.runs, method, column).dropna()
        if column not in MEASURES or self.answers.empty:
            return Sample(values)
        done = finished(self.runs)
        done = done[(done["method"] == method) & done["seed"].isin(values.index)]
        scores = self._of_runs(column)
        if not set(done["id"]) <= set(scores.columns):
            return Sample(values)
        frame = scores[list(done["id"])].T.groupby(done["seed"].to_numpy()).mean()  # (S, Q)
        return _with_scores(values, frame)

    def _of_runs(self, column: str) -> pd.DataFrame:
        """Return the scores on each question, a column for each run."""
        if column not in self._scores:
            self._scores[column] = self.answers.scores(list(self.runs["id"]), column)
        return self._scores[column]

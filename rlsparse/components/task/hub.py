"""The base class of a user's own task that reads a data set with columns of its own."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from rlsparse.batch import Problem
from rlsparse.components.component import one_line
from rlsparse.components.task.rows import Row, with_text
from rlsparse.components.task.stored import StoredTask
from rlsparse.config.ranges import keys_of

OF_DATA_SET = (
    "columns",
    "rename",
    "join",
    "answer",
    "empty_answers",
)  # keys of DataSet, whose columns are chosen in yaml


@dataclass(frozen=True)
class HubTask(StoredTask):
    """A data set whose rows a function of a subclass turns into problems.

    Attributes:
        columns: the columns that a row needs. The first one has the question, which may be a conversation: then its
            last turn is the question, and the problem gets the earlier ones as context.
    """

    columns: ClassVar[tuple[str, ...]]

    @classmethod
    def of(cls, where: str, values: Mapping[str, Any]) -> Self:
        """Return the task with these values; see ``Component.of``.

        The keys of ``DataSet`` are left out where the class does not have them, so that the yaml file may begin with
        that of a data set (``defaults: [gsm8k, _self_]``).
        """
        own = keys_of(cls)
        return super().of(where, {key: one for key, one in values.items() if key in own or key not in OF_DATA_SET})

    @abstractmethod
    def problem(self, row: Row) -> Problem:
        """Return the problem that a row of the data set states.

        Args:
            row: has text in each of ``columns``, a number as it is written in the file.

        Raises:
            ConfigError: the row states no problem; the message says which column must change.
        """

    @property
    def read_columns(self) -> tuple[str, ...]:
        return self.columns

    def problem_of(self, row: Row) -> Problem:
        with_texts, context = with_text(row, self.columns)
        with one_line(f"problem of task={self.label}"):
            problem = self.problem(with_texts)
        if not isinstance(problem, Problem):
            return problem
        return replace(problem, context=context or problem.context, columns=problem.columns or row)

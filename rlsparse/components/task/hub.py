"""The base class of a user's own task that reads a data set with columns of its own."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

from omegaconf import OmegaConf

from rlsparse.batch import Problem
from rlsparse.components.component import one_line
from rlsparse.components.task.rows import Row, with_text
from rlsparse.components.task.stored import StoredTask
from rlsparse.config.compose import config_dir
from rlsparse.config.ranges import keys_of

OF_DATA_SET = ("columns", "rename", "join", "answer", "empty_answers")  # keys that DataSet has and StoredTask has not


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

        The yaml file may begin with that of a data set of the package (``defaults: [gsm8k, _self_]``). The keys of
        ``DataSet`` that come from there are left out where the class does not have them. One with another value was
        given by the user, and would have no effect: it is an unknown key.
        """
        own = keys_of(cls)
        inherited = max(_package_options(), key=lambda node: sum(values.get(key) == one for key, one in node.items()))
        return super().of(
            where,
            {key: one for key, one in values.items() if key in own or key not in OF_DATA_SET or one != inherited[key]},
        )

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


@cache
def _package_options() -> list[Mapping[str, Any]]:
    """Return the nodes of the data sets in the package: each is ``data_set`` with the changes of its file."""
    found = sorted(Path(config_dir(), "task").glob("*.yaml"))
    files: dict[str, Any] = {file.stem: OmegaConf.create(file.read_text(encoding="utf-8")) for file in found}
    base = files.pop("data_set")
    changes = [node for node in files.values() if "data_set" in (OmegaConf.select(node, "defaults") or [])]
    nodes: list[Any] = [OmegaConf.to_container(OmegaConf.merge(base, node)) for node in (OmegaConf.create(), *changes)]
    return nodes

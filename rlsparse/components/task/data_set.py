"""Questions and answers from any data set: which columns they stand in, and how the gold answer is read."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Annotated, Any, ClassVar

from rlsparse.batch import Problem
from rlsparse.components.component import Digest, OneOf
from rlsparse.components.task.answers import ANSWERS, in_format, letter_of
from rlsparse.components.task.base import with_line_breaks
from rlsparse.components.task.rows import (
    Missing,
    Row,
    Turns,
    as_text,
    as_turns,
    check_columns,
    in_column,
    is_blank,
)
from rlsparse.components.task.stored import StoredTask, unknown_keys
from rlsparse.config.ranges import shown
from rlsparse.config.schema import ConfigError


@dataclass(frozen=True)
class DataSet(StoredTask):
    """A data set with questions and answers.

    Attributes:
        columns: ``question``: a column, or several that are joined, of which empty ones are left out. The first one may
            be a conversation; a list of texts in a later one is written as choices, (A), (B) and so on. ``answer``: a
            column, or several of which the first that is not empty counts. ``solution``: a column, or None.
        rename: columns that are renamed where a row has them, old name to new one.
        join: the text between several question columns; see ``with_line_breaks``.
        answer: how the gold answer is read from its column; ``choice`` or a name in ``ANSWERS``.
        empty_answers: whether a row whose answer is null, NaN or an empty text is refused or left out.
    """

    neutral: ClassVar[Mapping[str, Any]] = {**StoredTask.neutral, "rename": {}, "join": " ", "empty_answers": "refuse"}

    columns: dict[str, Any]
    rename: dict[str, Any]
    join: str
    answer: Annotated[str, OneOf("as_is", "after_hash", "boxed", "before_parenthesis", "list_entry", "choice")]
    empty_answers: Annotated[str, OneOf("refuse", "leave_out")]

    @property
    def read_columns(self) -> tuple[str, ...]:
        return (*self._needed, *(old for old, new in self.rename.items() if new in self._needed))

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        roles = ("question", "answer", "solution")
        yield from unknown_keys("columns", self.columns, roles)
        for role in roles[:2]:
            value = self.columns.get(role)
            names = value if isinstance(value, list) else [value]
            if not names or not all(_is_name(one) for one in names):
                yield f"columns.{role}={shown(value)}: must be the name of a column, or a list of names"
        solution = self.columns.get("solution")
        if solution is not None and not _is_name(solution):
            yield f"columns.solution={shown(solution)}: must be the name of a column, or null"
        for old, new in self.rename.items():
            if not _is_name(new):
                yield f"rename.{old}={shown(new)}: must be the new name of the column"

    def identity(self, digest: Digest) -> dict[str, Any]:
        return {**super().identity(digest), **self._joined()}

    def problem_of(self, row: Row) -> Problem:
        named = self._renamed(row)
        question, context = self._question(named)
        answer = self.gold(named)
        solution = in_format(self.solution(named, answer), answer, self.answer_format)
        return Problem(question, answer=answer, solution=solution, context=context, columns=row)

    def is_used(self, row: Row) -> bool:
        if self.empty_answers == "refuse":
            return True
        named = self._renamed(row)
        return any(not is_empty(named.get(name)) for name in self._answers)

    def gold(self, row: Row) -> str:
        """Return the gold answer of a row."""
        there = [name for name in self._answers if name in row]
        column = next((name for name in there if not is_empty(row[name])), there[0])
        with in_column(column):
            value = _only_entry(row[column]) if self.answer == "list_entry" else row[column]
            choices = self._choices_of(row)
            if self.answer == "choice":
                if not choices:
                    raise ConfigError("is a choice, and the row has none; name the column with the list of choices")
                return letter_of(as_text(value), len(choices))
            if self.answer == "as_is" and choices and isinstance(value, int) and 0 <= value < len(choices):
                raise ConfigError(
                    f"is {as_text(value)}, and the choices have letters; give task.answer=choice if this number counts "
                    "them from 0, or store it as text"
                )
            return ANSWERS[self.answer](as_text(value))

    def _choices_of(self, row: Row) -> list[Any]:
        """Return the choices of a row; none where no column behind that of the question has a list."""
        lists = [row[name] for name in self._questions[1:] if isinstance(row[name], list)]
        return lists[0] if lists else []

    def solution(self, row: Row, answer: str) -> str:
        """Return the solution of a row as it stands in its column; empty if there is none."""
        column = self.columns.get("solution")
        if column is None or is_empty(row[column]):
            return ""
        with in_column(column):
            return as_text(row[column])

    @property
    def _questions(self) -> list[str]:
        return _as_list(self.columns["question"])

    @property
    def _answers(self) -> list[str]:
        return _as_list(self.columns["answer"])

    @property
    def _needed(self) -> list[str]:
        return self._columns_with(self._answers)

    def _columns_with(self, answers: list[str]) -> list[str]:
        """Return the columns that a row needs which has these ones for its answer."""
        solution = self.columns.get("solution")
        return list(dict.fromkeys([*self._questions, *answers, *([] if solution is None else [solution])]))

    def _joined(self) -> dict[str, str]:
        return {} if self.join == self.neutral["join"] else {"join": with_line_breaks(self.join)}

    def _renamed(self, row: Row) -> Row:
        """Return a row with the names of ``columns``. A row that has the new name already keeps its columns.

        Raises:
            ConfigError: it lacks a column, or has one twice.
        """
        names = {old: new for old, new in self.rename.items() if new not in row}
        named = {names.get(name, name): value for name, value in row.items()}
        check_columns(
            row, self._columns_with([name for name in self._answers if name in named] or self._answers), names
        )
        return named

    def _question(self, row: Row) -> tuple[str, Turns]:
        context: Turns = ()
        parts: list[str] = []
        for number, name in enumerate(self._questions):
            value = row[name]
            if len(self._questions) > 1 and is_empty(value):
                continue
            with in_column(name):
                if isinstance(value, list) and number == 0:
                    turns = as_turns(value)
                    context, value = turns[:-1], turns[-1][1]
                parts.append(_choices(value) if isinstance(value, list) else as_text(value))
        if not parts:
            raise ConfigError(f"columns {', '.join(self._questions)} are all empty; give text in one of them")
        return with_line_breaks(self.join).join(parts), context


@dataclass(frozen=True)
class Gsm8k(DataSet):
    """GSM8K, Cobbe et al. 2021 (2110.14168). A class of its own only so that its earlier run ids stay."""

    neutral: ClassVar[Mapping[str, Any]] = {
        **DataSet.neutral,
        "columns": {"question": "question", "answer": "answer", "solution": "answer"},
        "answer": "after_hash",
    }


@dataclass(frozen=True)
class Svamp(DataSet):
    """SVAMP, Patel et al. 2021 (2103.07191).

    The solution is the equation of the row without its decimal points, ``= answer``, and the answer after ``####``.
    """

    neutral: ClassVar[Mapping[str, Any]] = {
        **DataSet.neutral,
        "columns": {"question": "question_concat", "answer": "Answer", "solution": "Equation"},
        "answer": "as_is",
    }

    def gold(self, row: Row) -> str:
        return super().gold(row).removesuffix(".0")

    def solution(self, row: Row, answer: str) -> str:
        equation = re.sub(r"\.0\b", "", super().solution(row, answer))
        return f"{equation} = {answer}" if equation else ""


def _only_entry(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    if len(value) != 1:
        raise ConfigError(f"is a list with {len(value)} entries; give a list with the one answer")
    return value[0]


def _choices(values: list[Any]) -> str:
    if len(values) > len(ascii_uppercase):
        raise ConfigError(f"has {len(values)} choices; give at most {len(ascii_uppercase)}")
    return " ".join(f"({letter}) {as_text(value)}" for letter, value in zip(ascii_uppercase, values, strict=False))


def is_empty(value: Any) -> bool:
    """Return whether a column has no value: null, NaN, a text without a visible character, or an empty list."""
    if isinstance(value, str):
        return is_blank(value) or isinstance(value, Missing)
    return value is None or value == [] or (isinstance(value, float) and math.isnan(value))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _as_list(value: Any) -> list[str]:
    return list(value) if isinstance(value, list) else [value]

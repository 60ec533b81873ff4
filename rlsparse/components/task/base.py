"""The base class of tasks, the check of their rows, and what a task puts before each question."""

import hashlib
import re
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

from rlsparse.batch import Problem
from rlsparse.components.component import Component, Digest, OneOf, Range, one_line, origin
from rlsparse.components.task.answers import in_format
from rlsparse.components.task.rows import ROLES, as_text, read_text
from rlsparse.config.schema import ConfigError

SPLITS = ("train", "test")
SHOWN = 5  # rows that a warning names


@dataclass(frozen=True)
class Rows:
    """The rows of a task in their fixed order: for training, and held out for evaluation.

    Attributes:
        notes: what the user should know of them, a line each.
    """

    train: list[Problem]
    test: list[Problem]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task(Component, ABC):
    """Questions with gold answers, and the prompt.

    Attributes:
        neutral: values of keys that change nothing. The run id leaves such a key out, so that a key that is added to
            the package changes the id of no earlier run.
        name: of the task in tables.
        prompt: what the model reads; ``{question}`` is replaced by the question of the row. See ``with_line_breaks``.
        answer_format: where the verifier looks for the final answer: after ``####``, in the last ``\\boxed{}``, after
            "the answer is", or the last number.
        max_new_tokens: tokens that a solution needs; ``rollout.max_new_tokens`` takes it from here.
        verifier_time_limit: processor time that math-verify may take for one answer, seconds.
        prompt_file: a UTF-8 text file with the prompt, in the place of ``prompt``.
        system: the system message, or None.
        shots: number of training rows that precede each question as worked examples.
    """

    neutral: ClassVar[Mapping[str, Any]] = {"system": None, "shots": 0}

    name: str
    prompt: str
    answer_format: Annotated[str, OneOf("hash", "boxed", "answer_is", "last_number")]
    max_new_tokens: Annotated[int, Range(1)]
    verifier_time_limit: Annotated[float, Range(0, 3600, above=True)]
    prompt_file: str | None
    system: str | None
    shots: Annotated[int, Range(0, 1000)]

    @property
    def label(self) -> str:
        return self.name

    @property
    def splits(self) -> tuple[str, ...]:
        """Return the splits that the task has; one that is for evaluation only has no ``train``."""
        return SPLITS

    @abstractmethod
    def load(self) -> Rows:
        """Read or make the rows.

        Raises:
            ConfigError: files or columns are missing, or a split has no rows.
        """

    def load_splits(self, splits: Sequence[str]) -> Rows:
        """Return the rows of some splits. A task that can read each split by itself leaves the others empty.

        Args:
            splits: of ``train`` and ``test``, those that are needed.
        """
        return self.load()

    def verdict(self, answer: str, problem: Problem) -> bool | None:
        """Return whether an extracted answer is right; None to have the verifier compare it with the gold answer."""
        return None

    def prompt_text(self, question: str) -> str:
        """Return what the model reads: the prompt with its line breaks and with the question in its place."""
        return self.template.replace("{question}", question)

    @cached_property
    def template(self) -> str:
        r"""Return the prompt with its line breaks.

        In a file, line breaks are written as such, ``\n`` is two characters, and line breaks at the end do not count.

        Raises:
            ConfigError: the file cannot be read.
        """
        if self.prompt_file is None:
            return with_line_breaks(self.prompt)
        return read_text(Path(self.prompt_file)).replace("\r\n", "\n").rstrip("\n")

    def problems(self) -> Iterator[str]:
        key = "prompt" if self.prompt_file is None else "prompt_file"
        try:
            if "{question}" not in self.template:
                what = "" if self.prompt_file is None else "the text in this file "
                yield f"{key}={getattr(self, key)!r}: {what}must contain {{question}}"
        except ConfigError as error:
            yield f"prompt_file={self.prompt_file}: {error}, with {{question}} in its text"
        if self.system is not None and not self.system.strip():
            yield "system=: is empty; give a text, or null for no system message"

    def identity(self, digest: Digest) -> dict[str, Any]:
        """Return the fields with the prompt that the model reads, however it was written.

        ``max_new_tokens`` is left out: it only feeds ``rollout.max_new_tokens``.
        """
        unread = ("max_new_tokens", "prompt_file")
        values = {key: value for key, value in asdict(self).items() if key not in unread}
        values = {key: value for key, value in values.items() if key not in self.neutral or value != self.neutral[key]}
        if "system" in values:
            values["system"] = with_line_breaks(values["system"])
        return {**values, "prompt": self.template}


def with_line_breaks(prompt: str) -> str:
    r"""Return a prompt in which the two characters ``\n`` are a line break, wherever it was written.

    Two backslashes and n are a backslash and n, as in the LaTeX command ``\neq``. Every other backslash stays.
    """
    return re.sub(r"\\(\\n|n)", lambda found: "\n" if found[1] == "n" else found[1], prompt)


def load_task(task: Task, splits: Sequence[str] = SPLITS) -> Rows:
    """Return the rows of a task, each with the system text and the examples of the task before its question.

    Args:
        splits: of ``train`` and ``test``, those that must have rows; the others may be empty.

    Raises:
        ConfigError: the rows cannot be loaded, a split that is needed is empty, or a row has no text where it must have
            one.
    """
    needed = [split for split in SPLITS if split in splits or (split == "train" and task.shots)]
    with one_line(f"task={task.label}"):
        rows = task.load_splits(needed)
    where = f"task={task.label} ({origin(task)})"
    if not isinstance(rows, Rows):
        raise ConfigError(f"{where}: load() returned {reprlib.repr(rows)}; return Rows(train, test)")
    for split, found in (("train", rows.train), ("test", rows.test)):
        if not found and split in splits:
            raise ConfigError(f"task={task.label}: {split} has no rows; give at least one")
        for number, problem in enumerate(found, start=1):
            if wrong := text_problem(problem):
                raise ConfigError(f"{where}: {split} row {number}: {wrong}")
    return _with_preamble(task, rows) if task.system is not None or task.shots else rows


def _with_preamble(task: Task, rows: Rows) -> Rows:
    """Return the rows with the system text of the task and its examples before each question."""
    system = () if task.system is None else (("system", with_line_breaks(task.system)),)
    examples = _examples(task, rows.train)

    def complete(place: str, problem: Problem) -> Problem:
        roles = [role for role, _ in problem.context]
        if system and "system" in roles:
            raise ConfigError(
                f"task.system={reprlib.repr(task.system)}: {place} of task={task.label} has a system message of its "
                "own; give task.system=null"
            )
        if task.shots and problem.context:
            raise ConfigError(
                f"task.shots={task.shots}: {place} of task={task.label} is a conversation, which takes no examples; "
                "give task.shots=0"
            )
        others = [turns for question, turns in examples if question != asked(problem)]
        added = (*system, *(turn for turns in others[: task.shots] for turn in turns))
        return replace(problem, context=(*added, *problem.context), preamble=len(added))

    train, test = (
        [complete(f"{split} row {number}", one) for number, one in enumerate(found, start=1)]
        for split, found in (("train", rows.train), ("test", rows.test))
    )
    return Rows(train, test, rows.notes)


def _examples(task: Task, train: Sequence[Problem]) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    """Return one worked example more than a question gets, so that none is its own: what it asks, and its turns.

    The order is that of a hash of the question: it depends neither on the order of the rows nor on a seed.
    """
    if not task.shots:
        return []
    different = {asked(one): one for one in reversed(train)}  # the first row of each question
    if len(different) <= task.shots:
        raise ConfigError(
            f"task.shots={task.shots}: task={task.label} has {len(different)} different training questions, and none "
            f"is an example for itself; give at most {max(0, len(different) - 1)}"
        )
    chosen = sorted(different, key=lambda question: hashlib.sha256(f"example/{question}".encode()).digest())
    return [(question, _turns(task, different[question])) for question in chosen[: task.shots + 1]]


def _turns(task: Task, problem: Problem) -> tuple[tuple[str, str], ...]:
    solution = in_format(problem.solution, problem.answer, task.answer_format)
    return ("user", task.prompt_text(problem.question)), ("assistant", solution)


def data_warnings(task: Task, rows: Rows) -> list[str]:
    """Return what the user should know of the rows: rows that are left out, held-out questions that are trained on."""
    trained = {asked(problem) for problem in rows.train}
    again = [str(number) for number, problem in enumerate(rows.test, start=1) if asked(problem) in trained]
    if not again:
        return list(rows.notes)
    which = ", ".join(again[:SHOWN]) + (f" and {len(again) - SHOWN} more" if len(again) > SHOWN else "")
    return [
        *rows.notes,
        f"task={task.label}: {len(again)} of {len(rows.test)} held-out questions are training questions, too (test "
        f"rows {which}); leave them out, or their accuracy measures memory",
    ]


def asked(problem: Problem) -> str:
    """Return what a row asks, with its earlier turns; the spaces between words do not count."""
    return " ".join(" ".join([*(content for _, content in problem.own_context), problem.question]).split())


def text_problem(problem: Any) -> str | None:
    """Return what is wrong with the texts of a problem, or None if it can be used."""
    if not isinstance(problem, Problem):
        return f"is {reprlib.repr(problem)}; it must be a Problem"
    for name in ("question", "answer", "solution"):
        value = getattr(problem, name)
        if not isinstance(value, str):
            return f"{name} is {reprlib.repr(value)}; it must be text"
        if not value and name == "solution":  # RL does not need it
            continue
        try:
            as_text(value)
        except ConfigError as error:
            return f"{name} {error}"
    for turn in problem.context:
        if len(turn) != 2 or turn[0] not in ROLES or not isinstance(turn[1], str):
            return f"context has the turn {reprlib.repr(turn)}; give (role, text) with a role of {', '.join(ROLES)}"
    return None

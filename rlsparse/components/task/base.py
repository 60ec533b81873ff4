"""The base class of tasks, and the check of their rows."""

import re
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from rlsparse.batch import Problem
from rlsparse.components.component import Component, Digest, OneOf, Range, one_line, origin
from rlsparse.components.task.rows import ROLES, as_text
from rlsparse.config.schema import ConfigError


@dataclass(frozen=True)
class Rows:
    """The rows of a task in their fixed order: for training, and held out for evaluation."""

    train: list[Problem]
    test: list[Problem]


@dataclass(frozen=True)
class Task(Component, ABC):
    """Questions with gold answers, and the prompt.

    Attributes:
        name: of the task in tables.
        prompt: what the model reads; ``{question}`` is replaced by the question of the row. See ``with_line_breaks``.
        answer_format: where the verifier looks for the final answer: after ``####``, in the last ``\\boxed{}``, after
            "the answer is", or the last number.
        max_new_tokens: tokens that a solution needs; ``rollout.max_new_tokens`` takes it from here.
        verifier_time_limit: processor time that math-verify may take for one answer, seconds.
    """

    name: str
    prompt: str
    answer_format: Annotated[str, OneOf("hash", "boxed", "answer_is", "last_number")]
    max_new_tokens: Annotated[int, Range(1)]
    verifier_time_limit: Annotated[float, Range(0, 3600, above=True)]

    @property
    def label(self) -> str:
        return self.name

    @abstractmethod
    def load(self) -> Rows:
        """Read or make the rows.

        Raises:
            ConfigError: files or columns are missing, or a split has no rows.
        """

    def prompt_text(self, question: str) -> str:
        """Return what the model reads: the prompt with its line breaks and with the question in its place."""
        return with_line_breaks(self.prompt).replace("{question}", question)

    def problems(self) -> Iterator[str]:
        if "{question}" not in self.prompt:
            yield f"prompt={self.prompt!r}: must contain {{question}}"

    def identity(self, digest: Digest) -> dict[str, Any]:
        """Return the fields with the prompt that the model reads, however it was written.

        ``max_new_tokens`` is left out: it only feeds ``rollout.max_new_tokens``.
        """
        values = {key: value for key, value in asdict(self).items() if key != "max_new_tokens"}
        return {**values, "prompt": with_line_breaks(self.prompt)}


def with_line_breaks(prompt: str) -> str:
    r"""Return a prompt in which the two characters ``\n`` are a line break, wherever it was written.

    Two backslashes and n are a backslash and n, as in the LaTeX command ``\neq``. Every other backslash stays.
    """
    return re.sub(r"\\(\\n|n)", lambda found: "\n" if found[1] == "n" else found[1], prompt)


def load_task(task: Task) -> Rows:
    """Return the rows of a task.

    Raises:
        ConfigError: they cannot be loaded, a split is empty, or a row has no text where it must have one.
    """
    with one_line(f"task={task.label}"):
        rows = task.load()
    where = f"task={task.label} ({origin(task)})"
    if not isinstance(rows, Rows):
        raise ConfigError(f"{where}: load() returned {reprlib.repr(rows)}; return Rows(train, test)")
    for split, found in (("train", rows.train), ("test", rows.test)):
        if not found:
            raise ConfigError(f"task={task.label}: {split} has no rows; give at least one")
        for number, problem in enumerate(found, start=1):
            if wrong := text_problem(problem):
                raise ConfigError(f"{where}: {split} row {number}: {wrong}")
    return rows


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

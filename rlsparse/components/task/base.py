"""The base class of tasks."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from rlsparse.batch import Problem
from rlsparse.components.component import Component, Digest, OneOf, Range


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
        prompt: what the model reads; ``{question}`` is replaced by the question of the row.
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
        """Return what the model reads: the prompt with the question in its place."""
        return self.prompt.replace("{question}", question)

    def problems(self) -> Iterator[str]:
        if "{question}" not in self.prompt:
            yield f"prompt={self.prompt!r}: must contain {{question}}"

    def identity(self, digest: Digest) -> dict[str, Any]:
        """Return the fields, without ``max_new_tokens``: it only feeds ``rollout.max_new_tokens``."""
        return {key: value for key, value in asdict(self).items() if key != "max_new_tokens"}

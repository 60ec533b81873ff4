"""Tasks: a data set, a prompt format and a verifier."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlsparse.batch import Problem
from rlsparse.components.task import generated, hub
from rlsparse.config.schema import TaskConfig


@dataclass(frozen=True)
class Task:
    """The rows of a task, train and held out, in their fixed order."""

    train: list[Problem]
    test: list[Problem]


TASKS: dict[str, Callable[[Any], tuple[list[Problem], list[Problem]]]] = {
    "multiplication": generated.multiplication,
    "word_problems": generated.word_problems,
    "arithmetic": generated.arithmetic,
    "svamp": hub.svamp,
    "gsm8k": hub.gsm8k,
}


def load_task(config: TaskConfig) -> Task:
    """Read or make the task's rows.

    Raises:
        ConfigError: files or columns are missing, or a split has no rows.
    """
    train, test = TASKS[config.name](config)
    return Task(train=train, test=test)

"""Tasks: questions with gold answers, a prompt and an answer format. Config group ``task``."""

from rlsparse.components.task.base import Rows, Task

__all__ = ["Rows", "Task"]

"""Tasks: questions with gold answers, a prompt and an answer format. Config group ``task``."""

from rlsparse.components.task.base import Rows, Task, asked, data_warnings, load_task

__all__ = ["Rows", "Task", "asked", "data_warnings", "load_task"]

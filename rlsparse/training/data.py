"""From a task's rows to prompts that fit the model."""

from collections.abc import Sequence
from dataclasses import dataclass

from rlsparse.batch import Problem, Prompt
from rlsparse.components.task import Task
from rlsparse.config.schema import ConfigError, EvalConfig, RolloutConfig, TaskConfig
from rlsparse.model.policy import Policy, encode_prompt


@dataclass(frozen=True)
class TaskPrompts:
    """A task as the model reads it; rows that do not fit its context are left out and counted."""

    train: list[Prompt]
    test: list[Prompt]
    skipped_train: int
    skipped_test: int


def encode_task(
    policy: Policy, task: Task, config: TaskConfig, rollout: RolloutConfig, evaluation: EvalConfig
) -> TaskPrompts:
    """Encode the training rows and the first ``eval.max_rows`` held-out rows.

    Raises:
        ConfigError: no row of a split leaves room for ``rollout.max_new_tokens`` in the model's context.
    """
    room = policy.context - rollout.max_new_tokens

    def fitting(split: str, problems: Sequence[Problem]) -> list[Prompt]:
        prompts = [encode_prompt(policy, one, config.prompt.replace("{question}", one.question)) for one in problems]
        kept = [prompt for prompt in prompts if len(prompt.ids) <= room]
        if not kept:
            raise ConfigError(
                f"rollout.max_new_tokens={rollout.max_new_tokens}: no {split} prompt of task={config.name} leaves so "
                f"much room in the model's context of {policy.context} tokens; lower it"
            )
        return kept

    test_rows = task.test[: evaluation.max_rows]
    train, test = fitting("train", task.train), fitting("test", test_rows)
    return TaskPrompts(train, test, len(task.train) - len(train), len(test_rows) - len(test))

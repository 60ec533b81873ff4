"""From the rows of a task to prompts that fit the model."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress, islice

import torch
from torch import Generator

from rlsparse.batch import Problem, Prompt
from rlsparse.components.task import Rows, Task, load_task
from rlsparse.config.schema import ConfigError
from rlsparse.model.policy import Policy, encode_prompt
from rlsparse.model.prompts import appended

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskPrompts:
    """A task as the model reads it; rows that do not fit its context are left out and counted.

    Attributes:
        test_ids: the name of each question of ``test``; see ``question_ids``.
    """

    train: list[Prompt]
    test: list[Prompt]
    test_ids: list[str]
    skipped_train: int
    skipped_test: int


class PromptBatches:
    """Yields batches of prompts without end, from shuffled passes over all prompts.

    Attributes:
        pending: indices of the prompts that remain in the current pass.
        generator: random stream of the shuffles.
    """

    def __init__(self, prompts: Sequence[Prompt], size: int, generator: Generator) -> None:
        self.pending: list[int] = []
        self.generator = generator
        self._prompts, self._size = prompts, size

    def __next__(self) -> list[Prompt]:
        return self.draw(self._size)

    def draw(self, count: int) -> list[Prompt]:
        """Return the next ``count`` prompts."""
        while len(self.pending) < count:
            self.pending += torch.randperm(len(self._prompts), generator=self.generator).tolist()
        chosen, self.pending = self.pending[:count], self.pending[count:]
        return [self._prompts[i] for i in chosen]


def encode_task(
    policy: Policy, task: Task, max_new_tokens: int, test_rows: int, longest: int | None = None
) -> TaskPrompts:
    """Encode the training rows and the first ``test_rows`` held-out rows.

    Args:
        longest: ``eval.max_new_tokens``, of completions of held-out rows; None for ``max_new_tokens``.

    Raises:
        ConfigError: a row makes no prompt (see ``encode_prompt``), or no row of a split leaves room for its completion
            in the context of the model.
    """
    if not policy.chat and (words := appended(policy.tokenizer)):
        log.info("the tokenizer appends %s to each text; removed from prompts", words)
    rows = load_task(task)
    held_out = rows.test[:test_rows]
    train, _ = fitting(policy, task, rows.train, max_new_tokens)
    test, test_ids = fitting(policy, task, held_out, longest or max_new_tokens)
    of_test = f"rollout.max_new_tokens={max_new_tokens}" if longest is None else f"eval.max_new_tokens={longest}"
    keys = {"train": f"rollout.max_new_tokens={max_new_tokens}", "test": of_test}
    for split, prompts in (("train", train), ("test", test)):
        if not prompts:
            raise ConfigError(
                f"{keys[split]}: no {split} prompt of task={task.label} leaves so much room "
                f"in the context of the model, {policy.context} tokens; lower it"
            )
    return TaskPrompts(train, test, test_ids, len(rows.train) - len(train), len(held_out) - len(test))


def fitting(
    policy: Policy, task: Task, problems: Sequence[Problem], max_new_tokens: int
) -> tuple[list[Prompt], list[str]]:
    """Return the prompts of some problems and their names, without those that leave no room for a completion.

    Args:
        problems: all rows of a split, or the first ones: the names depend on rows that are left out, too.

    Raises:
        ConfigError: a problem makes no prompt; see ``encode_prompt``.
    """
    prompts = [encode_prompt(policy, one, task.prompt_text(one.question)) for one in problems]
    names = question_ids(problems)
    fit = [len(prompt.ids) <= policy.context - max_new_tokens for prompt in prompts]
    return list(compress(prompts, fit)), list(compress(names, fit))


def question_ids(problems: Sequence[Problem]) -> list[str]:
    """Return a name for each question: the start of a hash of its text, and a number where a question is repeated.

    The earlier turns of a conversation count, too. What the task adds (its prompt, system text and examples) does not,
    so that runs can be compared question by question.
    """
    found: list[str] = []
    seen: Counter[str] = Counter()
    for problem in problems:
        asked = json.dumps([*problem.own_context, problem.question]) if problem.own_context else problem.question
        name = hashlib.sha256(asked.encode()).hexdigest()[:16]
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return found


def check_prompt(policy: Policy, task: Task, rows: Rows) -> None:
    """Check, before weights are loaded, that the tokenizer and its chat template make prompts.

    The first row is tried, and the first one that is a conversation.

    Args:
        policy: of the model, with weights or without.

    Raises:
        ConfigError: see ``encode_prompt``.
    """
    conversations = (one for one in [*rows.train, *rows.test] if one.own_context)
    for problem in (rows.train[0], *islice(conversations, 1)):
        encode_prompt(policy, problem, task.prompt_text(problem.question))

"""The benchmarks of an evaluation: their tasks, built and checked, and their questions as prompts."""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from rlsparse.components.component import Digest, build, describe
from rlsparse.components.reward import MathVerify, Verifier
from rlsparse.components.task import Rows, Task, load_task
from rlsparse.config.schema import ConfigError, EvalConfig
from rlsparse.model.policy import Policy, encode_prompt
from rlsparse.training.data import TaskPrompts, check_prompt, fitting
from rlsparse.training.evaluate import HELD_OUT, EvalSet
from rlsparse.training.scoring import Scorer

TASK_KEY = re.compile(r"\btask\.(\w+)(?==)")  # in a message of a task, which does not know that it is a benchmark
log = logging.getLogger(__name__)


def build_benchmarks(evaluation: EvalConfig) -> dict[str, Task]:
    """Build the tasks of ``eval.benchmarks``, by name.

    Raises:
        ConfigError: all that is wrong with them, a line each: key, value and remedy.
    """
    base: Any = Task  # the type of build asks for a class without abstract methods
    tasks, problems = {}, []
    for name, node in evaluation.tasks.items():
        if name == HELD_OUT:
            problems.append(f"eval.benchmarks={name}: is the name of the held-out rows; give the task another one")
            continue
        try:
            tasks[name] = build(f"eval.tasks.{name}", node, base)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return tasks


def describe_benchmarks(tasks: Mapping[str, Task], digest: Digest) -> dict[str, Any]:
    """Return the part of each benchmark in the run id, by name. Its own longest completion counts, too."""
    return {name: {**describe(task, digest), "longest": task.max_new_tokens} for name, task in tasks.items()}


def load_benchmark(name: str, task: Task) -> Rows:
    """Return the rows of a benchmark; only the held-out ones are needed.

    Raises:
        ConfigError: they cannot be loaded, or there are none.
    """
    try:
        return load_task(task, ("test",))
    except ConfigError as error:
        lines = TASK_KEY.sub(rf"eval.tasks.{name}.\1", str(error)).split("\n")
        raise ConfigError("\n".join(f"eval.benchmarks={name}: {line}" for line in lines)) from error


def check_benchmark(policy: Policy, name: str, task: Task, rows: Rows, longest: int | None) -> None:
    """Check, before weights are loaded, that the questions of a benchmark can be asked.

    Args:
        policy: of the model, with weights or without.
        longest: ``eval.max_new_tokens``.

    Raises:
        ConfigError: a row makes no prompt, or completions of this length do not fit the context of the model.
    """
    key, tokens = _limit(name, task, longest)
    if tokens >= policy.context:
        raise ConfigError(
            f"{key}={tokens}: the model's context is {policy.context} tokens, prompt included; give less, such as "
            f"eval.max_new_tokens={policy.context // 2}"
        )
    try:
        check_prompt(policy, task, replace(rows, train=rows.test))
        encoded = (encode_prompt(policy, one, task.prompt_text(one.question)) for one in rows.test)
        fits = any(len(prompt.ids) + tokens <= policy.context for prompt in encoded)
    except ConfigError as error:
        raise ConfigError(f"eval.benchmarks={name}: {error}") from error
    if not fits:
        raise ConfigError(none_fits(policy, name, key, tokens))


def none_fits(policy: Policy, name: str, key: str, tokens: int) -> str:
    """Return the message that no question of a benchmark fits the context of the model.

    Args:
        key: that says the longest completion. tokens: its value.
    """
    return (
        f"{key}={tokens}: no question of the benchmark {name} leaves so much room in the context of the model, "
        f"{policy.context} tokens; lower it"
    )


@dataclass(frozen=True)
class Judges:
    """Verifiers of several tasks, which share one process of math-verify."""

    process: MathVerify

    def scorer(self, task: Task) -> Scorer:
        """Return a scorer for a task."""
        return Scorer(task, Verifier(task.answer_format, task.verifier_time_limit, self.process))


@contextmanager
def judges() -> Iterator[Judges]:
    """Open the verifiers; their process ends with the context."""
    with ExitStack() as opened:
        yield Judges(opened.enter_context(MathVerify()))


def held_out_set(data: TaskPrompts, scorer: Scorer, max_new_tokens: int) -> EvalSet:
    """Return the held-out rows of the task that is trained on."""
    return EvalSet(HELD_OUT, data.test, data.test_ids, scorer, max_new_tokens, data.skipped_test)


def benchmark_set(policy: Policy, name: str, scorer: Scorer, config: EvalConfig) -> EvalSet:
    """Return the questions of a benchmark.

    Raises:
        ConfigError: they cannot be loaded, or none fits the context of the model.
    """
    task = scorer.task
    key, tokens = _limit(name, task, config.max_new_tokens)
    problems = load_benchmark(name, task).test[: config.benchmark_rows]
    prompts, ids = fitting(policy, task, problems, tokens)
    if not prompts:
        raise ConfigError(none_fits(policy, name, key, tokens))
    skipped = len(problems) - len(prompts)
    if skipped:
        log.warning(
            "warning: %d of %d questions of the benchmark %s leave no room for %d tokens in the context of %d; skipped",
            skipped,
            len(problems),
            name,
            tokens,
            policy.context,
        )
    return EvalSet(name, prompts, ids, scorer, tokens, skipped)


def _limit(name: str, task: Task, longest: int | None) -> tuple[str, int]:
    """Return the longest completion of a benchmark, and the key that says so."""
    if longest is not None:
        return "eval.max_new_tokens", longest
    return f"eval.tasks.{name}.max_new_tokens", task.max_new_tokens

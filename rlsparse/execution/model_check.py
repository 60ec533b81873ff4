"""Check a model and a task without training, and print what was found: ``python -m rlsparse.check``.

    python -m rlsparse.check model.path=DIR task=gsm8k task.path=DIR

The arguments are those of ``python -m rlsparse.run``. The model is loaded, every row becomes a prompt, and every gold
answer is judged. A task that is for evaluation only (``task=math500``) is checked as a benchmark. The exit code is
1 where a run would be refused.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from hydra.errors import HydraException

from rlsparse.algorithm import Algorithm
from rlsparse.batch import Problem, Prompt
from rlsparse.components.component import ComponentError
from rlsparse.components.reward import Verifier
from rlsparse.components.reward.verifier import VerifierError
from rlsparse.components.task import Rows, Task, asked, load_task
from rlsparse.components.task.answers import WRITTEN
from rlsparse.config.compose import added_config_dirs, compose
from rlsparse.config.schema import Config, ConfigError
from rlsparse.execution.memory_estimate import MemoryEstimator, size
from rlsparse.execution.preflight import preflight
from rlsparse.model.endings import find_endings, token_name, unending
from rlsparse.model.loading import UNLIMITED, load_policy
from rlsparse.model.packing import can_pack
from rlsparse.model.policy import Policy, encode_prompt
from rlsparse.model.prompts import appended, render
from rlsparse.model.source import ModelSource, model_source
from rlsparse.rollout.vllm.client import ServerError
from rlsparse.runtime.devices import cpu_threads, resolve_device
from rlsparse.runtime.logs import log_to_terminal
from rlsparse.runtime.preload import quieten
from rlsparse.storage.streams import command
from rlsparse.training.scoring import Scorer

SHOWN = 5  # rows, words or texts in a line

Line = tuple[str, str]  # name and value


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        lines: name and value of each property.
        warnings: what is allowed, and probably not what the user wants.
    """

    lines: list[Line]
    warnings: list[str]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.lines)
        text = [f"{name:<{width}}  {value}" for name, value in self.lines]
        warnings = [f"  - {one}" for one in self.warnings] or ["  none"]
        return "\n".join([*text, "warnings:", *warnings])


def check(config: Config) -> Report:
    """Load the model of a config, encode and judge every row of its task, and return what was found.

    Raises:
        ConfigError: a run with this config would be refused.
    """
    existed = Path(config.runs_dir).exists()
    warnings = _preflight(config)
    if not existed:
        with suppress(OSError):  # the preflight makes it
            Path(config.runs_dir).rmdir()
    algorithm = Algorithm.build(config)
    device = resolve_device(config.device)
    policy = load_policy(config.model, device, config.dtype)
    source, rows = model_source(config.model), load_task(algorithm.task, algorithm.task.splits)
    with cpu_threads(config.threads, policy.model.num_parameters()):
        prompts = [encode_prompt(policy, one, algorithm.task.prompt_text(one.question)) for one in _all(rows)]
        lines = [*_about_model(policy, source), *_about_tokens(policy)]
        lines += _about_prompts(policy, algorithm, prompts)
        lines += [("fast paths", _fast_paths(policy, config, algorithm))]
        lines += _memory(config, device, max(len(prompt.ids) for prompt in prompts))
    judged, unequal = _gold_answers(algorithm.task, rows)
    odd = [*warnings, *_odd_tokens(policy), *_odd_prompts(policy, algorithm.task, rows, prompts)]
    odd += [*_odd_rows(algorithm.task, rows), *unequal]
    return Report([*lines, ("gold", judged)], odd)


def _preflight(config: Config) -> list[str]:
    """Return the warnings of the preflight; of a task without training rows, as a benchmark of the default task.

    Raises:
        ConfigError: a run with this config, or an evaluation of this benchmark, would be refused.
    """
    try:
        task = Algorithm.build(config).task
    except ConfigError:  # the preflight reports all that is wrong
        return preflight([config]).warnings
    if "train" in task.splits:
        return preflight([config]).warnings
    name = task.label
    evaluation = replace(
        config.eval,
        benchmarks=list(dict.fromkeys([*config.eval.benchmarks, name])),
        tasks={**config.eval.tasks, name: config.task},
    )
    try:
        return preflight([replace(config, task=compose().task, eval=evaluation)]).warnings
    except ConfigError as error:
        told = str(error).replace(f"eval.benchmarks={name}: ", "").replace(f"eval.tasks.{name}.", "task.")
        raise ConfigError(told) from error


def _all(rows: Rows) -> list[Problem]:
    return [*rows.train, *rows.test]


def _about_model(policy: Policy, source: ModelSource) -> Iterator[Line]:
    model = policy.model
    yield "model", source.key
    base = source.base
    while base is not None:
        yield "", f"an adapter, merged into {base.location}"
        base = base.base
    count, dtype = model.num_parameters(), str(model.dtype).removeprefix("torch.")
    yield "", f"{type(model).__name__}, {count / 1e6:.1f} M parameters, {policy.depth} layers, {dtype}, {policy.device}"
    yield "weights", "complete, of the expected shapes, all finite; predictions depend on earlier tokens only"
    longest = "no maximum is declared" if policy.context == UNLIMITED else f"{policy.context} tokens"
    yield "context", f"{longest}, prompt and completion together"


def _about_tokens(policy: Policy) -> Iterator[Line]:
    tokenizer = policy.tokenizer
    generation, arguments = policy.model.generation_config, policy.template_arguments
    endings = find_endings(tokenizer, generation, policy.vocabulary, policy.chat, arguments)
    ends = [f"{_token(tokenizer, token)} by the {origin}" for token, origin in endings.origins.items()]
    if endings.text is not None:
        ends.append(f"the text {endings.text!r} by the chat template")
    yield "ends at", "; ".join(ends) or "nothing"
    closing = repr(tokenizer.decode(list(endings.turn_end))) if endings.turn_end else "nothing"
    yield "", f"a warm start appends {closing} to each solution"
    bos = tokenizer.bos_token_id
    yield "BOS", "none" if bos is None else _token(tokenizer, bos)
    yield "PAD", f"{_token(tokenizer, policy.pad_id)} (masked)"
    yield "template", "the chat template of the tokenizer" if policy.chat else "none"
    yield "vocabulary", f"{len(tokenizer)} tokens, {policy.vocabulary} rows of the embedding"


def _about_prompts(policy: Policy, algorithm: Algorithm, prompts: Sequence[Prompt]) -> Iterator[Line]:
    first = prompts[0].ids
    text = policy.tokenizer.decode(list(first), clean_up_tokenization_spaces=False)
    yield "prompt", f"the first row has {len(first)} tokens{_bos_count(policy, first)}"
    yield from (("", f"| {line}") for line in text.split("\n"))
    yield "", f"ids {list(first)}"
    lengths = [len(prompt.ids) for prompt in prompts]
    room = policy.context - algorithm.rollout.max_new_tokens
    left_out = sum(length > room for length in lengths)
    fit = "all fit" if not left_out else f"{left_out} leave no room for rollout.max_new_tokens and are left out"
    yield "prompts", f"{min(lengths)} to {max(lengths)} tokens, median {median(lengths):.0f}; {fit}"


def _bos_count(policy: Policy, ids: Sequence[int]) -> str:
    bos = policy.tokenizer.bos_token_id
    if bos is None or bos not in ids:
        return ", no BOS"
    return f", begins with BOS {_token(policy.tokenizer, bos)}" if ids[0] == bos else ", BOS is not its first token"


def _fast_paths(policy: Policy, config: Config, algorithm: Algorithm) -> str:
    """Return which fast paths the model takes; the reasons against one are logged."""
    with closing(algorithm.rollout.fitting(policy)) as engine:
        used = engine.label
    packing = can_pack(policy) if config.train.packing != "off" else "turned off"
    packed = "yes" if packing is None else f"no ({packing})"
    return f"rollout engine: {used}; train.packing: {packed}"


def _memory(config: Config, device: torch.device, longest: int) -> Iterator[Line]:
    """Yield estimates of the memory and the disk space of a run.

    Args:
        longest: tokens of the longest prompt.
    """
    found = MemoryEstimator()(config, device.type, longest)
    if found is None:
        yield "memory", "unknown: the adapter cannot be put on a model without weights"
        return
    free = f"; {size(torch.cuda.mem_get_info(device)[0])} are free" if device.type == "cuda" else ""
    yield "memory", f"{found}{free}"
    yield "disk", f"{size(found.export)} exported, {size(found.checkpoints)} of checkpoints until a run is finished"


def _gold_answers(task: Task, rows: Rows) -> tuple[str, list[str]]:
    """Judge each gold answer against itself, and each solution against its answer, in the answer format of the task."""
    unequal, unsolved = [], []
    with Verifier(task.answer_format, task.verifier_time_limit) as verifier:
        score = Scorer(task, verifier)
        for number, one in enumerate(_all(rows), start=1):
            if not score(WRITTEN[task.answer_format].format(one.answer), one).correct:
                unequal.append(f"{_row(number, rows)}: {one.answer!r}")
            elif not score(one.solution, one).correct:
                unsolved.append(f"{_row(number, rows)}: {one.solution[-40:]!r}")
    count = len(rows.train) + len(rows.test)
    judged = (
        f"{len(rows.train)} training and {len(rows.test)} held-out answers, {count - len(unequal)} equal to themselves"
    )
    odd = []
    if unequal:
        odd.append(
            f"{len(unequal)} gold answers are not judged equal to themselves, so no completion is: {_some(unequal)}"
        )
    if unsolved:
        odd.append(
            f"{len(unsolved)} solutions do not end in their answer in the format {task.answer_format}, which matters "
            f"for a warm start: {_some(unsolved)}"
        )
    return judged, odd


def _odd_tokens(policy: Policy) -> Iterator[str]:
    tokenizer = policy.tokenizer
    if warning := unending(policy):
        yield warning
    if policy.stop_text is not None:
        yield (
            f"the chat template closes turns with {policy.stop_text!r}, which is no token of the tokenizer; "
            "completions are ended at that text"
        )
    for name, token in (("PAD", tokenizer.pad_token_id), ("EOS", tokenizer.eos_token_id)):
        if token is not None and not 0 <= token < policy.vocabulary:
            yield f"the {name} of the tokenizer, {_token(tokenizer, token)}, is outside the embedding; it is not used"
    if not policy.chat and (words := appended(tokenizer)):
        yield f"the tokenizer appends {words} to each text; removed from prompts"
    if len(tokenizer) > policy.vocabulary:
        yield (
            f"the tokenizer has {len(tokenizer)} tokens and the embedding only {policy.vocabulary} rows; a prompt with "
            "one of the others is refused"
        )
    if len(tokenizer) < policy.vocabulary // 2:
        yield (
            f"the tokenizer has {len(tokenizer)} tokens and the embedding {policy.vocabulary} rows; they may not "
            "belong together"
        )
    if policy.chat and (text := _system_text(policy)):
        yield f"the chat template adds a system message of its own: {text!r}"


def _system_text(policy: Policy) -> str:
    """Return what the chat template writes before the first user message; empty where it is only markers."""
    options = {**policy.template_arguments, "add_generation_prompt": True}
    text = render(policy.tokenizer, [{"role": "user", "content": "USER7"}], **options)
    before = text.partition("USER7")[0]
    return before.strip() if len(before.split()) > SHOWN else ""


def _odd_prompts(policy: Policy, task: Task, rows: Rows, prompts: Sequence[Prompt]) -> Iterator[str]:
    tokenizer = policy.tokenizer
    specials = [word for word in tokenizer.all_special_tokens if word]
    marked, changed, unknown = [], [], []
    for number, (one, prompt) in enumerate(zip(_all(rows), prompts, strict=True), start=1):
        where = _row(number, rows)
        if any(word in one.question for word in specials):
            marked.append(where)
        if one.question.strip() not in tokenizer.decode(list(prompt.ids), clean_up_tokenization_spaces=False):
            changed.append(where)
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in prompt.ids:
            unknown.append(where)
    if marked:
        yield f"the questions of {len(marked)} rows contain special tokens of the tokenizer: {_some(marked)}"
    if changed:
        yield (
            f"the questions of {len(changed)} rows do not appear unchanged in their prompts (the tokenizer or its "
            f"template changes or leaves out text): {_some(changed)}"
        )
    if unknown:
        yield f"the prompts of {len(unknown)} rows contain the unknown token {tokenizer.unk_token}: {_some(unknown)}"


def _odd_rows(task: Task, rows: Rows) -> Iterator[str]:
    times = Counter(asked(one) for one in rows.train)
    answers: dict[str, set[str]] = {}
    for one in _all(rows):
        answers.setdefault(asked(one), set()).add(one.answer)
    again = sum(count - 1 for count in times.values())
    unlike = [question for question, found in answers.items() if len(found) > 1]
    if again:
        yield f"{again} of {len(rows.train)} training rows repeat an earlier question"
    if unlike and type(task).verdict is Task.verdict:  # a task with a check of its own may accept many answers
        yield f"{len(unlike)} questions have several gold answers: {_some([repr(one[:50]) for one in unlike])}"


def _row(number: int, rows: Rows) -> str:
    """Return the name of a row, counted from 1 over both splits."""
    train = len(rows.train)
    return f"train row {number}" if number <= train else f"test row {number - train}"


def _token(tokenizer: Any, token: int) -> str:
    return f"{token_name(tokenizer, token)} ({token})"


def _some(found: Sequence[str]) -> str:
    return "; ".join(found[:SHOWN]) + (f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else "")


@command()
def main() -> None:
    """Run the command line."""
    arguments = sys.argv[1:]
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    log_to_terminal()
    quieten()
    folders = added_config_dirs(arguments)
    flags = ("--config-dir", "-cd")
    words = [
        one
        for before, one in zip(["", *arguments], arguments, strict=False)
        if before not in flags and one.partition("=")[0] not in flags
    ]
    try:
        print(check(compose(words, folders)))
    except (HydraException, VerifierError, ComponentError, ServerError) as error:
        sys.exit(f"error: {error}")

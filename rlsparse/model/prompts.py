"""From a question to the token ids of a prompt, with the special tokens that belong there and no others."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlsparse.batch import Problem
from rlsparse.config.schema import ConfigError

# some chat templates print the date of today; a fixed one keeps the prompts of all days equal
TEMPLATE_DATE = "26 Jul 2024"
FIXED_TODAY = f"{{%- macro strftime_now(format) -%}}{TEMPLATE_DATE}{{%- endmacro -%}}"
MARKER = re.compile(r"[<>\[\]{}|]")  # what the name of a marker has and common text has not
OURS = ("chat_template", "date_string", "conversation")  # what _apply gives to apply_chat_template itself, or makes
PROBE = "Question7"  # a text that no template contains or changes

Messages = Sequence[Mapping[str, Any]]


def render(tokenizer: Any, messages: Messages, **options: Any) -> str:
    """Return a conversation as the chat template writes it.

    Templates of models that also read images may refuse or leave out a content that is a text and no list of parts;
    such a template gets lists.

    Raises:
        ValueError: the template leaves out the content of a message.
        Exception: whatever the template raises.
    """
    contents = [one["content"].strip() for one in messages]
    probes = [{**one, "content": f"{PROBE}{number}"} for number, one in enumerate(messages)]
    failure: Exception | None = None
    for form in (_as_text, _in_parts):
        try:
            text = _apply(tokenizer, form(messages), options)
            if all(content in text for content in contents):
                return text
            # a template that changes the text, for example its line breaks, keeps a plain word
            plain = _apply(tokenizer, form(probes), options)
            if all(one["content"] in plain for one in probes):
                return text
        except Exception as error:
            failure = failure or error
    raise failure or ValueError("it leaves out the question" if len(messages) == 1 else "it leaves out a turn")


def _as_text(messages: Messages) -> Messages:
    return messages


def _in_parts(messages: Messages) -> Messages:
    return [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in messages]


def _apply(tokenizer: Any, messages: Messages, options: Mapping[str, Any]) -> str:
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = FIXED_TODAY + template
    text: str = tokenizer.apply_chat_template(
        list(messages), chat_template=template, tokenize=False, date_string=TEMPLATE_DATE, **options
    )
    return text


def check_arguments(tokenizer: Any, chat: bool, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of the chat template that have no effect, or that change more than the template.

    Args:
        chat: whether prompts go through the chat template.
        arguments: ``model.template_arguments``.

    Raises:
        ConfigError: all such arguments, a line each.
    """
    if found := list(_argument_problems(tokenizer, chat, arguments)):
        raise ConfigError("\n".join(found))


def _argument_problems(tokenizer: Any, chat: bool, arguments: Mapping[str, Any]) -> Iterator[str]:
    if not arguments:
        return
    if not chat:
        why = "the tokenizer has no chat template" if tokenizer.chat_template is None else "model.chat_template=false"
        yield f"model.template_arguments={dict(arguments)}: {why}, so nothing reads them; give {{}}"
        return
    template = tokenizer.get_chat_template()
    taken = {*inspect.signature(tokenizer.apply_chat_template).parameters, *OURS, "messages"}
    for name, value in arguments.items():
        where = f"model.template_arguments.{name}={value}"
        if name in taken:
            yield f"{where}: is no variable of the chat template, but set by the prompts themselves; leave it out"
        elif re.search(rf"\b{re.escape(str(name))}\b", template) is None:
            known = ", ".join(sorted(_variables(template) - taken)) or "none"
            yield f"{where}: the chat template does not read {name}; it reads {known}"


def _variables(template: str) -> set[str]:
    """Return the variables that a chat template takes from outside, without its tokens and functions."""
    from jinja2 import Environment, TemplateError, meta

    tokens = {"bos_token", "eos_token", "pad_token", "unk_token"}
    given = tokens | {"raise_exception", "strftime_now", "namespace", "range"}
    try:
        parsed = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except TemplateError:  # some templates have tags that only transformers knows
        return set()
    return meta.find_undeclared_variables(parsed) - given


def prompt_ids(
    tokenizer: Any, chat: bool, problem: Problem, text: str, arguments: Mapping[str, Any] | None = None
) -> list[int]:
    """Return the token ids of a prompt.

    A BOS token occurs once at the start; special tokens that the tokenizer appends to a text are removed.

    Args:
        chat: use the chat template; earlier turns of the problem precede the prompt. Without it, the system text and
            the examples of the task are text before the prompt.
        arguments: of the chat template.
        text: the question with its instructions, as the task formats it.

    Raises:
        ConfigError: the chat template cannot be used, the conversation needs one, or there are no tokens. The message
            does not name the model.
    """
    if chat:
        messages = [{"role": role, "content": content} for role, content in problem.context]
        ids = _templated(tokenizer, [*messages, {"role": "user", "content": text}], arguments or {})
    elif len(problem.context) > problem.preamble:
        raise ConfigError(
            f"the question {problem.question[:40]!r} has earlier turns, and prompts without a chat template have no "
            "roles; use a model with a chat template (model.chat_template=true), or give questions as text"
        )
    else:
        ids = _plain(tokenizer, "".join(_paragraphs(problem)) + text)
    while len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        ids = ids[1:]
    if not ids:
        raise ConfigError(f"the tokenizer makes no tokens of the prompt {text[:40]!r}; give another tokenizer")
    return ids


def hidden_ids(tokenizer: Any) -> set[int]:
    """Return the special tokens that are markers and no part of a text.

    A special token of letters, digits or signs alone, such as ``####`` or ``7``, is text: an answer may need it.
    """
    added = tokenizer.added_tokens_decoder.items()
    markers = {number for number, token in added if token.special and MARKER.search(str(token))}
    return markers | {token for token in (tokenizer.pad_token_id, tokenizer.bos_token_id) if token is not None}


def check_known(tokenizer: Any, ids: Sequence[int], vocabulary: int) -> None:
    """Refuse token ids that the embedding of the model does not have.

    Args:
        vocabulary: rows of the embedding.

    Raises:
        ConfigError: the first such token.
    """
    unknown = next((one for one in ids if not 0 <= one < vocabulary), None)
    if unknown is not None:
        raise ConfigError(
            f"the tokenizer makes token {unknown} ({tokenizer.convert_ids_to_tokens(unknown)!r}) of a prompt, "
            f"and the embedding of the model has {vocabulary} rows; give the tokenizer that belongs to the model, or "
            "resize the embedding (resize_token_embeddings)"
        )


def appended(tokenizer: Any) -> str:
    """Return the special tokens that the tokenizer appends to a text, as text; ``prompt_ids`` removes them."""
    whole = list(tokenizer("1")["input_ids"])
    return "".join(tokenizer.convert_ids_to_tokens(whole[len(_plain(tokenizer, "1")) :]))


def _paragraphs(problem: Problem) -> Iterator[str]:
    """Yield the turns before a prompt as text: an answer in the line after its question, then an empty line."""
    for role, content in problem.context:
        yield content + ("\n" if role == "user" else "\n\n")


def _templated(tokenizer: Any, messages: Messages, arguments: Mapping[str, Any]) -> list[int]:
    try:
        text = render(tokenizer, messages, **{**arguments, "add_generation_prompt": True})
    except Exception as error:  # templates are programs of their own
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            f"its chat template raises {type(error).__name__}: {reason}; set model.chat_template=false, or fix the "
            "template"
        ) from error
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _plain(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a text with the special tokens that the tokenizer puts before it, without those behind it."""
    whole = list(tokenizer(text, verbose=False)["input_ids"])
    body = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    for start in range(len(whole) - len(body) + 1):
        if whole[start : start + len(body)] == body:
            return whole[: start + len(body)]
    while whole and whole[-1] in tokenizer.all_special_ids:  # a tokenizer that cuts the text in another way
        whole.pop()
    return whole

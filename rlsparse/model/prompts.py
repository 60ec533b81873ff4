"""From a question to the token ids of a prompt, with the special tokens that belong there and no others."""

from collections.abc import Mapping, Sequence
from typing import Any

from rlsparse.batch import Problem
from rlsparse.config.schema import ConfigError

# the chat templates of Llama 3 print a date; a fixed one keeps the prompts of all days equal
TEMPLATE_DATE = "26 Jul 2024"


def render(tokenizer: Any, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
    """Return a conversation as the chat template writes it.

    Templates of models that also read images may leave out a content that is a text and no list of parts; such a
    template gets lists.

    Raises:
        ValueError: the template leaves out the content of the last message.
        Exception: whatever the template raises.
    """
    in_parts = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in messages]
    for form in (list(messages), in_parts):
        text: str = tokenizer.apply_chat_template(form, tokenize=False, date_string=TEMPLATE_DATE, **options)
        if messages[-1]["content"].strip() in text:
            return text
    raise ValueError("it leaves out the question")


def prompt_ids(tokenizer: Any, chat: bool, problem: Problem, text: str) -> list[int]:
    """Return the token ids of a prompt. A BOS token stands once, and no special token of the tokenizer stands behind.

    Args:
        chat: use the chat template; earlier turns of the problem precede the prompt.
        text: the question with its instructions, as the task formats it.

    Raises:
        ConfigError: the chat template cannot be used, the conversation needs one, or there are no tokens.
    """
    if chat:
        messages = [{"role": role, "content": content} for role, content in problem.context]
        ids = _templated(tokenizer, [*messages, {"role": "user", "content": text}])
    elif problem.context:
        raise ConfigError(
            f"task: the question {problem.question[:40]!r} has earlier turns, and prompts without a chat template have "
            "no roles; take a model with one (model.chat_template=true), or give questions as text"
        )
    else:
        ids = _plain(tokenizer, text)
    while len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        ids = ids[1:]
    if not ids:
        raise ConfigError(
            f"model: the prompt {text[:40]!r} has no tokens{' in the chat template' if chat else ''}; "
            + ("set model.chat_template=false, or mend the template" if chat else "give another tokenizer")
        )
    return ids


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
            f"model: the tokenizer makes token {unknown} ({tokenizer.convert_ids_to_tokens(unknown)!r}) of a prompt, "
            f"and the embedding of the model has {vocabulary} rows; give the tokenizer that belongs to the model, or "
            "resize the embedding (resize_token_embeddings)"
        )


def appended(tokenizer: Any) -> list[int]:
    """Return the special tokens that the tokenizer would put behind a prompt, which ``prompt_ids`` leaves out."""
    whole = list(tokenizer("1")["input_ids"])
    kept = _plain(tokenizer, "1")
    return whole[len(kept) :]


def _templated(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    try:
        text = render(tokenizer, messages, add_generation_prompt=True)
    except Exception as error:  # templates are programs of their own
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            f"model.chat_template=true: the chat template of the tokenizer raises {type(error).__name__}: {reason}; "
            "set model.chat_template=false, or mend the template"
        ) from error
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _plain(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a text with the special tokens that the tokenizer puts before it, without those behind it."""
    whole = list(tokenizer(text, verbose=False)["input_ids"])
    body = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    for start in range(len(whole) - len(body) + 1):
        if whole[start : start + len(body)] == body:
            return whole[: start + len(body)]
    return whole

"""What ends a completion: tokens that the model or its tokenizer declares, and what its chat template writes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rlsparse.model.policy import Policy
from rlsparse.model.prompts import render

NO_END = (
    "the model has no token that ends a completion, so every completion has rollout.max_new_tokens tokens; write its "
    "eos_token_id into generation_config.json of the model folder"
)
TURN, ANSWER, NEXT = "Question7", "Answer7", "Next7"  # texts that no template contains


@dataclass(frozen=True)
class Endings:
    """What ends a completion.

    Attributes:
        ids: tokens that end a completion, ascending.
        text: a text that ends one, where the chat template closes a turn with something that is no token; else None.
        turn_end: tokens that follow a solution in supervised training.
        origins: token -> where it is declared, for messages.
    """

    ids: tuple[int, ...]
    text: str | None
    turn_end: tuple[int, ...]
    origins: Mapping[int, str]


def find_endings(tokenizer: Any, generation_config: Any, vocabulary: int, chat: bool) -> Endings:
    """Return what ends a completion of a model.

    Tokens come from ``generation_config.json``, from the EOS of the tokenizer and, for prompts in a chat template, from
    what the template writes behind a turn of the assistant. Tokens outside the embedding cannot be sampled and are left
    out.

    Args:
        vocabulary: rows of the embedding.
        chat: whether prompts go through the chat template.
    """
    origins: dict[int, str] = {}
    for token, origin in _declared(tokenizer, generation_config):
        if isinstance(token, int) and 0 <= token < vocabulary:
            origins.setdefault(token, origin)
    closing = _behind_turn(tokenizer) if chat else ""
    token = _first_marker(tokenizer, closing.strip())
    text, turn_end = None, tuple(tokenizer(closing, add_special_tokens=False)["input_ids"]) if closing else ()
    if token is not None and token < vocabulary:
        origins.setdefault(token, "chat template")
        turn_end = (token,)
    elif closing:
        text = closing.strip()
    if not turn_end or max(turn_end) >= vocabulary or tokenizer.unk_token_id in turn_end[:-1]:
        eos = tokenizer.eos_token_id
        turn_end = (eos,) if eos in origins else tuple(sorted(origins)[:1])
    return Endings(tuple(sorted(origins)), text, turn_end, origins)


def token_name(tokenizer: Any, token: int) -> str:
    """Return a token as text; by its number where the tokenizer has none of it."""
    return tokenizer.convert_ids_to_tokens(token) or f"token {token}"


def ending_texts(policy: Policy) -> list[str]:
    """Return what ends a completion as text: tokens first, then the text of the chat template."""
    names = [token_name(policy.tokenizer, token) for token in policy.eos_ids]
    return names if policy.stop_text is None else [*names, policy.stop_text]


def unending(policy: Policy) -> str | None:
    """Return the warning that nothing ends a completion of this policy; None if something does."""
    return None if ending_texts(policy) else NO_END


def _declared(tokenizer: Any, generation_config: Any) -> Iterator[tuple[Any, str]]:
    ids = getattr(generation_config, "eos_token_id", None)
    for token in ids if isinstance(ids, list) else [ids]:
        yield token, "generation config"
    yield tokenizer.eos_token_id, "tokenizer"


def _behind_turn(tokenizer: Any) -> str:
    """Return what the chat template writes behind a turn of the assistant, up to the end of its first line with text.

    White space before it is kept. A text ends before the first special token in it. Empty if there is nothing.
    """
    asked = {"role": "user", "content": TURN}
    answered = {"role": "assistant", "content": ANSWER}
    following = {"role": "user", "content": NEXT}
    for messages, until in (([asked, answered], ""), ([asked, answered, following], NEXT)):
        try:
            text = render(tokenizer, messages, add_generation_prompt=False)
        except Exception:  # a template may refuse turns of the assistant; what it makes of prompts is checked elsewhere
            continue
        _, found, rest = text.rpartition(ANSWER)
        closing = rest.partition(until)[0] if until else rest
        if found and closing.strip():
            start = len(closing) - len(closing.lstrip())
            line = closing[start:].splitlines()[0].rstrip()
            markers = [at for word in _markers(tokenizer) if word and (at := line.find(word)) > 0]
            return closing[:start] + line[: min(markers, default=len(line))].rstrip()
    return ""


def _markers(tokenizer: Any) -> list[str]:
    """Return the tokens that stand for a marker and not for common text."""
    return [*tokenizer.all_special_tokens, *(str(token) for token in tokenizer.added_tokens_decoder.values())]


def _first_marker(tokenizer: Any, closing: str) -> int | None:
    """Return the token that a text begins with, if it is a marker; None for common text."""
    ids = tokenizer(closing, add_special_tokens=False)["input_ids"] if closing else []
    markers = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    words = [token for token in ids if tokenizer.decode([token]).strip()]  # not the space some tokenizers put first
    if not words or words[0] not in markers or not closing.startswith(tokenizer.convert_ids_to_tokens(words[0])):
        return None  # the last condition: what the vocabulary lacks becomes the unknown token, which is special, too
    return int(words[0])

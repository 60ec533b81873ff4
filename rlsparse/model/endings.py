"""What ends a completion: tokens that the model or its tokenizer declares, and what its chat template writes."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlsparse.model.policy import Policy
from rlsparse.model.prompts import MARKER, render

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
        before_end: what the template writes between an answer and the end token, which is not part of the answer.
        turn_end: tokens that follow a solution in supervised training.
        origins: token -> where it is declared, for messages.
    """

    ids: tuple[int, ...]
    text: str | None
    before_end: str
    turn_end: tuple[int, ...]
    origins: Mapping[int, str]


def find_endings(
    tokenizer: Any, generation_config: Any, vocabulary: int, chat: bool, arguments: Mapping[str, Any] | None = None
) -> Endings:
    """Return what ends a completion of a model.

    Tokens come from ``generation_config.json``, from the EOS of the tokenizer and, for prompts in a chat template, from
    what the template writes behind a turn of the assistant. Tokens outside the embedding cannot be sampled and are left
    out.

    Args:
        vocabulary: rows of the embedding.
        chat: whether prompts go through the chat template.
        arguments: of the chat template.
    """
    origins: dict[int, str] = {}
    for token, origin in _declared(tokenizer, generation_config):
        if isinstance(token, int) and 0 <= token < vocabulary:
            origins.setdefault(token, origin)
    closing = _behind_turn(tokenizer, arguments or {}) if chat else ""
    before, token = _first_marker(tokenizer, closing, vocabulary)
    text, turn_end = None, tuple(tokenizer(closing, add_special_tokens=False)["input_ids"]) if closing else ()
    if token is not None:
        origins.setdefault(token, "chat template")
        turn_end = (*(tokenizer(before, add_special_tokens=False)["input_ids"] if before.strip() else ()), token)
    elif closing:
        line_break = "\n" if "\n" in closing[: len(closing) - len(closing.lstrip())] else ""
        text = line_break + closing.strip()
    if not turn_end or max(turn_end) >= vocabulary or tokenizer.unk_token_id in turn_end[:-1]:
        eos = tokenizer.eos_token_id
        turn_end = (eos,) if eos in origins else tuple(sorted(origins)[:1])
    return Endings(tuple(sorted(origins)), text, before.strip() if token is not None else "", turn_end, origins)


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
        if isinstance(token, float | str) and re.fullmatch(r"\d+(\.0)?", str(token)):
            token = int(float(token))
        yield None if isinstance(token, bool) else token, "generation config"
    yield tokenizer.eos_token_id, "tokenizer"


def _behind_turn(tokenizer: Any, arguments: Mapping[str, Any]) -> str:
    """Return what the chat template writes behind a turn of the assistant, up to the end of its first line with text.

    White space before it is kept. Empty if there is nothing, or if the template does not write such turns.
    """
    system = {"role": "system", "content": "System7"}
    talk = [{"role": "user", "content": TURN}, {"role": "assistant", "content": ANSWER}]
    for messages in (talk, [system, *talk]):  # some templates want a system message
        last = _rest(tokenizer, messages, "", **arguments)
        between = _rest(tokenizer, [*messages, {"role": "user", "content": NEXT}], NEXT, **arguments)
        # a template that ignores add_generation_prompt writes the begin of an answer behind the last turn
        begun = _rest(tokenizer, messages, "", **{**arguments, "add_generation_prompt": True})
        ignores = last == begun and not between.startswith(last)
        for closing in (between, last) if ignores else (last, between):
            if closing.strip():
                start = len(closing) - len(closing.lstrip())
                return closing[:start] + closing[start:].splitlines()[0].rstrip()
    return ""


def _rest(tokenizer: Any, messages: Sequence[Mapping[str, str]], until: str, **options: Any) -> str:
    """Return what the chat template writes behind the last answer, up to a text; empty where it raises.

    Args:
        options: of the chat template.
    """
    try:
        text = render(tokenizer, messages, **{"add_generation_prompt": False, **options})
    except Exception:  # a template may refuse turns of the assistant; what it makes of prompts is checked elsewhere
        return ""
    _, found, rest = text.rpartition(ANSWER)
    return "" if not found else rest.partition(until)[0] if until else rest


def _first_marker(tokenizer: Any, closing: str, vocabulary: int) -> tuple[str, int | None]:
    """Return the first token in a text that is a marker and not common text, and what stands before it.

    Args:
        vocabulary: rows of the embedding; tokens outside it do not count.
    """
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    added = tokenizer.added_tokens_decoder.items()  # some are runs of spaces or common words
    named |= {str(text): token for token, text in added if text.special or MARKER.search(str(text))}
    markers = {text: token for text, token in named.items() if text.strip() and 0 <= token < vocabulary}
    places = [(at, -len(text), token) for text, token in markers.items() if (at := closing.find(text)) >= 0]
    if not places:
        return "", None
    at, _, token = min(places)
    return closing[:at], token

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
        texts: texts that end one, where the chat template closes a turn with something that is no token.
        turn_end: tokens that follow a solution in supervised training.
        origins: token -> where it is declared, for a person.
    """

    ids: tuple[int, ...]
    texts: tuple[str, ...]
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
    token = _first_token(tokenizer, closing) if closing else None
    known = token is not None and token < vocabulary
    if token is not None and known:
        origins.setdefault(token, "chat template")
    turn_end = (
        (token,) if token is not None and known else tuple(tokenizer(closing, add_special_tokens=False)["input_ids"])
    )
    if not turn_end or max(turn_end) >= vocabulary:
        eos = tokenizer.eos_token_id
        turn_end = (eos,) if eos in origins else tuple(sorted(origins)[:1])
    texts = (closing,) if closing and not known else ()
    return Endings(tuple(sorted(origins)), texts, turn_end, origins)


def ending_texts(policy: Policy) -> list[str]:
    """Return what ends a completion as text: tokens first, then texts."""
    return [*policy.tokenizer.convert_ids_to_tokens(list(policy.eos_ids)), *policy.stop_texts]


def _declared(tokenizer: Any, generation_config: Any) -> Iterator[tuple[Any, str]]:
    ids = getattr(generation_config, "eos_token_id", None)
    for token in ids if isinstance(ids, list) else [ids]:
        yield token, "generation config"
    yield tokenizer.eos_token_id, "tokenizer"


def _behind_turn(tokenizer: Any) -> str:
    """Return the first text behind a turn of the assistant in the chat template, without white space; may be empty."""
    asked = {"role": "user", "content": TURN}
    answered = {"role": "assistant", "content": ANSWER}
    following = {"role": "user", "content": NEXT}
    for messages, until in (([asked, answered], ""), ([asked, answered, following], NEXT)):
        try:
            text = render(tokenizer, messages, add_generation_prompt=False)
        except Exception:  # a template may refuse turns of the assistant; what it makes of prompts is checked elsewhere
            continue
        _, found, rest = text.rpartition(ANSWER)
        closing = (rest.partition(until)[0] if until else rest).strip()
        if found and closing:
            return closing.splitlines()[0].strip()
    return ""


def _first_token(tokenizer: Any, closing: str) -> int | None:
    """Return the token that a text begins with, if it is one that stands for a marker and not for common text."""
    ids = tokenizer(closing, add_special_tokens=False)["input_ids"]
    markers = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    words = [token for token in ids if tokenizer.decode([token]).strip()]  # not the space some tokenizers put first
    return int(words[0]) if words and words[0] in markers else None

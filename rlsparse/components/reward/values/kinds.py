"""Kinds of gold answers: which kind a gold answer is, and whether an answer is equal to it.

The kind of the gold answer decides how the answer is read. It is the first reader of ``READERS`` that reads the gold
answer. An answer that cannot be read as this kind is wrong.
"""

import re
from collections.abc import Callable
from functools import lru_cache

from rlsparse.components.reward.values.formulas import (
    in_base_ten,
    read_based,
    read_equation,
    read_expression,
    read_named,
)
from rlsparse.components.reward.values.kind import Kind
from rlsparse.components.reward.values.lists import read_listing, read_matrix, read_tuple
from rlsparse.components.reward.values.notation import undressed
from rlsparse.components.reward.values.quantity import read_gold_quantity, read_quantity
from rlsparse.components.reward.values.regions import Region, is_written_as_region, read_chain, read_region
from rlsparse.components.reward.values.words import read_choice, read_clock, read_date, read_ratio, read_words

DEEPEST = 4  # lists in lists


def _read_written_region(gold: str) -> Region | None:
    return read_region(gold) if is_written_as_region(gold) else None


READERS: tuple[Callable[[str], Kind | None], ...] = (
    read_choice,
    read_clock,
    read_date,
    read_gold_quantity,
    read_based,
    read_matrix,
    _read_written_region,
    read_named,
    read_listing,
    read_tuple,
    read_ratio,
    read_chain,
    read_equation,
    read_words,
    read_expression,
)


def equal(answer: str, gold: str) -> bool | None:
    """Return whether an answer equals a gold answer; None where no kind reads the gold answer.

    Args:
        answer: at most a thousand characters, since some patterns need the square of the length.
    """
    try:
        return _equal(undressed(answer), _undressed_gold(gold), 0)
    except RecursionError:  # the caller has left little room
        return False


def canonical(answer: str) -> str:
    """Return a text that is the same for answers with the same number and unit, or with the same words.

    It serves to count votes. Formulas in different forms have different texts.

    Args:
        answer: at most a thousand characters.
    """
    text = undressed(answer)
    number = read_quantity(text)
    return _packed(text).casefold() if number is None else f"{number.size} {number.unit}".rstrip()


def _equal(answer: str, gold: str, depth: int) -> bool | None:
    if not answer or not gold or depth > DEEPEST:
        return False
    if _packed(answer) == _packed(gold):
        return True
    kind = _kind(gold)
    if kind is None:
        return None
    return kind.accepts(in_base_ten(answer), lambda one, two: _equal(one, two, depth + 1) is True)


@lru_cache(maxsize=4096)
def _undressed_gold(gold: str) -> str:
    return undressed(gold)


@lru_cache(maxsize=4096)
def _kind(gold: str) -> Kind | None:
    return next((found for found in (read(gold) for read in READERS) if found is not None), None)


def _packed(text: str) -> str:
    """Return a text without the spaces that separate no two words or numbers."""
    return re.sub(r"(?<!\w) | (?!\w)", "", re.sub(r"\s+", " ", text.strip()))

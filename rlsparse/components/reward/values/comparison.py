"""Kinds of gold answers: which kind a gold answer is, and whether an answer is equal to it.

The kind of the gold answer decides how the answer is read. It is the first reader of ``READERS`` that reads the gold
answer. An answer that cannot be read as this kind is wrong.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

from rlsparse.components.reward.values.choices import read_choice
from rlsparse.components.reward.values.formulas import (
    in_base_ten,
    read_based,
    read_equation,
    read_expression,
    read_named,
)
from rlsparse.components.reward.values.interface import Kind
from rlsparse.components.reward.values.lists import read_listing, read_matrix, read_tuple
from rlsparse.components.reward.values.notation import normalised
from rlsparse.components.reward.values.number import LONGEST_CANDIDATE
from rlsparse.components.reward.values.plain_words import read_words
from rlsparse.components.reward.values.quantity import read_gold_quantity, read_quantity
from rlsparse.components.reward.values.regions import Region, is_written_as_region, read_chain, read_region
from rlsparse.components.reward.values.times import read_clock, read_date, read_ratio
from rlsparse.components.reward.values.units import of_currency

DOLLAR = of_currency("dollar")
DEEPEST = 4  # lists in lists
EMPTY_SET = re.compile(r"∅|⦃\s*⦄|(?:there\s+(?:is|are)\s+)?no\s+solutions?|(?:the\s+)?empty\s+set", re.IGNORECASE)


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

    An answer whose value cannot be computed is wrong.

    Args:
        answer: at most ``LONGEST_CANDIDATE`` characters, since some patterns need the square of the length.
    """
    try:
        return _equal(normalised(answer), _normalised_gold(gold), 0)
    except (ArithmeticError, ValueError, RecursionError):
        return False


def canonical(answer: str) -> str:
    """Return a text that is the same for answers with the same number and unit, or with the same words.

    It serves to count votes. Formulas in different forms have different texts. Only the first ``LONGEST_CANDIDATE``
    characters are read. The sign of a dollar does not count, since it is often left out. No text causes an error.
    """
    cut = answer[:LONGEST_CANDIDATE]
    try:
        text = normalised(cut)
        number = read_quantity(text)
        if number is None:
            return _packed(text).casefold()
        return _digits(number.size) if number.unit == DOLLAR else f"{_digits(number.size)} {number.unit}".rstrip()
    except (ArithmeticError, ValueError, RecursionError):
        return cut


def _digits(size: Fraction) -> str:
    """Return the digits of a number; hexadecimal ones of a long one, since Python refuses long decimal ones."""
    if max(abs(size.numerator), size.denominator) < 10**LONGEST_CANDIDATE:
        return str(size)
    return f"{size.numerator:#x}/{size.denominator:#x}"


def _equal(answer: str, gold: str, depth: int) -> bool | None:
    if not answer or not gold or depth > DEEPEST:
        return False
    if _packed(answer) == _packed(gold):
        return True
    if EMPTY_SET.fullmatch(answer) and EMPTY_SET.fullmatch(gold):
        return True
    kind = _kind(gold)
    if kind is None:
        return None
    return kind.accepts(in_base_ten(answer), lambda one, two: _equal(one, two, depth + 1) is True)


@lru_cache(maxsize=4096)
def _normalised_gold(gold: str) -> str:
    return normalised(gold)


@lru_cache(maxsize=4096)
def _kind(gold: str) -> Kind | None:
    return next((found for found in (read(gold) for read in READERS) if found is not None), None)


def _packed(text: str) -> str:
    """Return a text without the spaces that separate no two words or numbers."""
    text = re.sub(r" (?!\w)", "", re.sub(r"\s+", " ", text.strip()))
    return re.sub(r"(?<!\w)(?!(?<=\d,) \d{3}(?!\d)) ", "", text)  # "1, 234" are two numbers, "1,234" is one

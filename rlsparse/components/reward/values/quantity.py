"""Numbers with units, as gold answers, and the many ways in which an answer states one."""

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from rlsparse.components.reward.values.expression import parse
from rlsparse.components.reward.values.expression_values import Number, as_fraction, close, constant, is_evaluated
from rlsparse.components.reward.values.interface import Same
from rlsparse.components.reward.values.neutral_words import APPROXIMATE, DENIALS, WORD, are_name, are_neutral
from rlsparse.components.reward.values.number import (
    CURRENCY,
    NUMBER_PATTERN,
    decimal,
    is_rounded,
    is_shortened,
    same_size,
    value,
)
from rlsparse.components.reward.values.spelled_numbers import spelled_number
from rlsparse.components.reward.values.units import (
    NO_UNIT,
    PERCENT,
    Unit,
    convertible,
    of_currency,
    unit_of,
    with_raised_exponents,
)

REASON = re.compile(r"[\s,;]*\(?\s*(?:because|since)\b", re.IGNORECASE)
CURRENCY_WORD = re.compile(r"((?:USD|EUR|GBP|CNY|RMB|INR|JPY|CAD|AUD)\b|Rs(?![A-Za-z]))\.?\s*", re.IGNORECASE)
COUNTRY = re.compile(r"(?:^|\s)(?:(?P<usd>US)|(?P<aud>AU?)|(?P<cad>CA?))$")  # US$, A$, C$
MINUS = re.compile(r"(?:^|\s)(?:minus|negative)\s*$|负$", re.IGNORECASE)
OPTION_LETTER = re.compile(r"(?:\([A-E]\)|[A-E][.):])\s+")
NUMBERING = re.compile(r"1\.\s+(?=\S)")
DOLLARS_AND_CENTS = re.compile(r"(\d+)\s+dollars?,?\s+(?:and\s+)?(\d{1,2})\s+cents?", re.IGNORECASE)
SEVERAL = re.compile(r"[(\[{⦃][\d\s.-]+,[\d\s.,-]+[)\]}⦄]")  # (1,234) is a point, [1,234] an interval
SHARE = re.compile(r"(\d{1,9})\s+out\s+of\s+(\d{1,9})")
SHORT_WORDS = ("a", "of", "in", "he", "is", "we", "it", "to", "at", "my", "by")
INDEX = re.compile(r"_(?:\{\s*\w+\s*\}|\w+)")
STATED_NAME = re.compile(r"\b(is|are|has|had|have|was|were)\s+[A-Za-z]$")  # "the length is x" = 80
# a ratio of units of one letter, which is hardly one of variables
RATIO_OF_UNITS = re.compile(r"^\s*(?:m|g|N|J|L)\s*/\s*(?:s|h|L|min|cm|m|kg)(?![A-Za-z])")
NAMES = re.compile(
    r"(?:[A-Za-zΑ-ω]'*(?:\s*\+\s*[A-Za-zΑ-ω])*|[A-Z]{2,3}|[∠△]\s*[A-Z ]{1,5}|\|\s*[A-Z]{2}\s*\|"
    r"|(?!(?:sin|cos|tan|cot|sec|csc|log|ln|lg|exp|abs)\b)[A-Za-z]{1,3}\s*\([^()=]{1,20}\))"
)


@dataclass(frozen=True)
class Quantity:
    """A number with a unit.

    Attributes:
        unit: ``NO_UNIT`` if none is stated.
    """

    size: Fraction
    unit: Unit = NO_UNIT

    def accepts(self, answer: str, same: Same) -> bool:
        if SEVERAL.fullmatch(answer):
            return False
        found = read_quantity(answer)
        if found is not None:
            return self.equals(found)
        if "≈" in answer:
            return self.accepts_rounding(answer, same)
        if "=" in answer:
            number = number_of_equation(answer)
            return number is not None and self.equals(number)
        node = parse(re.sub(CURRENCY, "", answer))
        result = None if node is None or not is_evaluated(node) else constant(node)
        return result is not None and states(self.size, result)

    def equals(self, other: "Quantity") -> bool:
        """Return whether an answer is equal to this gold answer."""
        if other.unit.agrees(self.unit) and same_size(self.size, other.size):
            return True
        if PERCENT in (self.unit, other.unit) and not (self.unit.factors and other.unit.factors):
            percent, number = (self, other) if self.unit == PERCENT else (other, self)
            return not number.unit and percent.size == 100 * number.size
        return False

    def accepts_rounding(self, answer: str, same: Same) -> bool:
        """Return whether an answer such as 14/3 ≈ 4.67 states this number: on the left of ≈ if there is one."""
        exact, _, rounded = answer.rpartition("≈")
        number = read_quantity(exact)
        size = _constant(exact) if number is None else number.size
        if size is None or not is_rounding(rounded, size):
            return False
        return same(exact.strip(), str(self.size)) if number is None else self.equals(number)


def states(size: Fraction, result: Number) -> bool:
    """Return whether a computed value is a number, or one that the number rounds to nine digits or more."""
    if close(result, size):
        return True
    exact = as_fraction(result)
    return exact is not None and not isinstance(result, Fraction) and is_rounded(size, exact)


def is_rounding(text: str, exact: Fraction) -> bool:
    """Return whether a text is a number with the first digits of another one, rounded or cut off."""
    found = read_quantity(text)
    digits = re.search(r"\d[\d,]*(?:\.(\d+))?", text)
    if found is None or digits is None or re.search(r"[\^eE×·/\\]|\*", text):
        return False
    whole = re.sub(r"\D", "", digits[0].split(".")[0])
    places = len(digits[1]) if digits[1] is not None else len(whole.rstrip("0")) - len(whole)
    return is_shortened(found.size, exact, places)


def _constant(text: str) -> Fraction | None:
    node = parse(text.strip())
    result = None if node is None else constant(node)
    return None if result is None else as_fraction(result)


def read_gold_quantity(gold: str) -> Quantity | None:
    """Return the number and the unit of a gold answer; None if it is more than a number and a unit.

    A single letter behind a number may be a variable: the gold answer 6m is no number of meters.
    """
    word = CURRENCY_WORD.match(gold)
    text = with_raised_exponents(gold if word is None else gold[word.end() :])
    found = NUMBER_PATTERN.match(text)
    if found is None:
        number = spelled_number(gold.lower())
        return Quantity(number[0]) if number is not None and not number[1].strip() else None
    behind = RATIO_OF_UNITS.sub("", text[found.end() :], count=1)
    if re.search(r"(?<![A-Za-zμ/])[A-Za-z](?![A-Za-z])", behind.replace("°C", "°").replace("°F", "°")):
        return None
    if behind[:1].isalpha() and not behind[:2].isalpha():
        return None
    return _quantity(gold)


def read_quantity(text: str) -> Quantity | None:
    """Return the number that an answer states, with neutral words around it; None if it states none, or several."""
    text = text.strip()
    for opening, closing in ("()", "[]", "{}"):
        if text.startswith(opening) and text.endswith(closing) and text.count(opening) == 1 and "," not in text:
            text = text[1:-1].strip()
    text = APPROXIMATE.sub("", text, count=1) if APPROXIMATE.match(text) else text
    text = OPTION_LETTER.sub("", text, count=1) if OPTION_LETTER.match(text) else text
    text = NUMBERING.sub("", text, count=1) if NUMBERING.match(text) else text
    found = _quantity(text)
    if found is not None:
        return found
    share = SHARE.fullmatch(text)
    if share is not None and int(share[2]) > 0:
        return Quantity(Fraction(int(share[1]), int(share[2])))
    reason = REASON.search(text)
    if reason is not None and not DENIALS.search(text[reason.start() :]):
        return _quantity(text[: reason.start()])
    money = DOLLARS_AND_CENTS.fullmatch(text)
    if money is not None:
        return Quantity(decimal(money[1]) + decimal(money[2]) / 100, of_currency("dollar"))
    return _with_brackets(text)


def _with_brackets(text: str) -> Quantity | None:
    """Read a number with another form of it in brackets: "three (3)", "120 minutes (2 hours)"."""
    found = re.fullmatch(r"([^()]+)\(([^()]+)\)", text)
    if found is None:
        return None
    first, second = (_quantity(part.strip()) for part in found.groups())
    if first is None or second is None:
        return None
    factor = convertible(first.unit, second.unit)
    if factor is not None:
        return first if first.size * factor == second.size else None
    return first if first.size == second.size and first.unit.agrees(second.unit) else None


def _quantity(text: str) -> Quantity | None:
    text = with_raised_exponents(text)
    found = list(NUMBER_PATTERN.finditer(text))
    if not found:
        return _spelled(text)
    if len(found) > 1:
        return None
    (number,) = found
    size = value(number)
    before, behind = text[: number.start()], text[number.end() :]
    if size is None or behind[:1] == "!":
        return None
    minus = MINUS.search(before)
    if minus is not None:
        if size < 0:
            return None
        before, size = before[: minus.start()], -size
    sign = re.search(CURRENCY, number["before"])
    currency = None if sign is None else of_currency(sign[0])
    country = COUNTRY.search(before) if sign is not None and sign[0] == "¤" else None
    word = CURRENCY_WORD.fullmatch(before.strip()) if before.strip() else None
    if country is not None and country.lastgroup is not None:
        before, currency = before[: country.start()], of_currency(country.lastgroup)
    elif word is not None:
        before, currency = "", of_currency(word[1])
    if not are_neutral(before) or (currency is None and re.search("[A-Za-z]$", before)):  # x2
        return None
    unit = unit_of(text[number.end() :])
    if unit is not None and currency is not None:
        unit = _with_currency(unit, currency)
    if unit is None:
        return None
    return Quantity(size, unit)


def _with_currency(unit: Unit, currency: Unit) -> Unit | None:
    """Return a unit with the currency before the number; None where another currency stands behind the number."""
    named = [one for one in unit.factors if Unit(frozenset((one,))).agrees(currency)]
    if not named:
        positive = any(exponent > 0 for _, exponent in unit.factors)
        return None if positive else replace(unit, factors=unit.factors | currency.factors)
    return unit


def _spelled(text: str) -> Quantity | None:
    found = spelled_number(text)
    if found is None:
        start = re.search(r"\d", text)
        return None if start is not None else _spelled_later(text)
    size, rest = found
    if rest[:1] == "-" or (rest[:1].isalpha() and rest[:1].isascii()):  # "twenty-first"
        return None
    unit = unit_of(rest)
    return None if unit is None else Quantity(size, unit)


def _spelled_later(text: str) -> Quantity | None:
    """Read a number in words behind neutral words, such as "a total of forty-two apples"."""
    for found in WORD.finditer(text):
        number = spelled_number(text[found.start() :])
        if number is not None:
            unit = unit_of(number[1])
            neutral = found.start() > 0 and are_neutral(text[: found.start()])
            return Quantity(number[0], unit) if unit is not None and neutral else None
    return None


def number_of_equation(text: str) -> Quantity | None:
    """Return the number at an end of an equation, such as x = 42 apples; None where a side contradicts it."""
    sides = [side.strip() for side in text.split("=")]
    if not all(sides) or any(mark in text for mark in "<>≤≥≠"):
        return None
    numbers = [number for number in (read_quantity(sides[-1]), read_quantity(sides[0])) if number is not None]
    if not numbers:
        return None
    return numbers[0] if all(_agrees(side, numbers[0]) for side in sides) else None


def _agrees(side: str, stated: Quantity) -> bool:
    """Return whether a side of an equation is a name, or has the value of another side."""
    number, size = read_quantity(side), stated.size
    if number is not None:
        factor = convertible(number.unit, stated.unit)
        if factor is not None:
            return number.size * factor == size
        return number.size == size and number.unit.agrees(stated.unit)
    node = parse(re.sub(CURRENCY, "", side).strip())
    if node is not None:
        result = constant(node)
        if result is not None:
            return close(result, size)
    return is_name(side)


def is_name(side: str) -> bool:
    """Return whether a text only names the quantity that it is equal to: x, f(3), AB, m + n, "Total"."""
    bare = STATED_NAME.sub(r"\1", INDEX.sub("", side).strip())
    if NAMES.fullmatch(bare):
        return True
    words = WORD.findall(bare)
    return (
        bool(words) and all(len(word) > 2 or word.isupper() or word in SHORT_WORDS for word in words) and are_name(bare)
    )

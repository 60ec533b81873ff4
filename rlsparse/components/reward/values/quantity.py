"""Numbers with units, as gold answers, and the many ways in which an answer states one."""

import re
from dataclasses import dataclass
from fractions import Fraction

from rlsparse.components.reward.values.evaluation import close, constant, is_evaluated
from rlsparse.components.reward.values.expression import parse
from rlsparse.components.reward.values.kind import Same
from rlsparse.components.reward.values.number import CURRENCY, NUMBER_PATTERN, decimal, same_size, value
from rlsparse.components.reward.values.spelled import spelled_number
from rlsparse.components.reward.values.word_lists import UNITS
from rlsparse.components.reward.values.wording import (
    APPROXIMATE,
    DENIALS,
    POWER_OF_UNIT,
    WORD,
    harmless_before,
    same_unit,
    unit_of,
)

PERCENT = UNITS["%"]
ROUNDED = Fraction(1, 100)  # of a number, as in 14/3 ≈ 4.67
REASON = re.compile(r"[\s,;]*\(?\s*(?:because|since)\b", re.IGNORECASE)
CURRENCY_WORD = re.compile(r"(?:(?:USD|EUR|GBP|CNY|RMB|INR|JPY|CAD|AUD)\b|Rs\.?(?![A-Za-z]))\s*", re.IGNORECASE)
MINUS = re.compile(r"(?:^|\s)(?:minus|negative)\s*$|负$", re.IGNORECASE)
OPTION_LETTER = re.compile(r"(?:\([A-E]\)|[A-E][.):])\s+")
NUMBERING = re.compile(r"1\.\s+(?=\S)")
DOLLARS_AND_CENTS = re.compile(r"(\d+)\s+dollars?,?\s+(?:and\s+)?(\d{1,2})\s+cents?", re.IGNORECASE)
SHORT_WORDS = ("a", "of", "in", "he", "is", "we", "it", "to", "at", "my", "by")
INDEX = re.compile(r"_(?:\{\s*\w+\s*\}|\w+)")
NAMES = re.compile(
    r"(?:[A-Za-zΑ-ω]'*(?:\s*\+\s*[A-Za-zΑ-ω])*|[A-Z]{2,3}|[∠△]\s*[A-Z ]{1,5}|\|\s*[A-Z]{2}\s*\|"
    r"|(?!(?:sin|cos|tan|cot|sec|csc|log|ln|lg|exp|abs)\b)[A-Za-z]{1,3}\s*\([^()=]{1,20}\))"
)


@dataclass(frozen=True)
class Quantity:
    """A number with a unit.

    Attributes:
        unit: in the singular, "" if none is stated.
        grouped: the digits are in groups with commas, which may also be several numbers.
    """

    size: Fraction
    unit: str = ""
    grouped: str = ""

    def accepts(self, answer: str, same: Same) -> bool:
        found = read_quantity(answer)
        if found is not None:
            return self.equals(found)
        if self.grouped and re.fullmatch(r"[\d\s,]+", answer) and re.search(r",\s", answer):
            return re.split(r"\s*,\s*", answer) == self.grouped.split(",")
        if "≈" in answer:
            return self.accepts_rounding(answer, same)
        if "=" in answer:
            number = number_of_equation(answer)
            return number is not None and self.equals(number)
        node = parse(re.sub(CURRENCY, "", answer))
        result = None if node is None or not is_evaluated(node) else constant(node)
        return result is not None and close(result, self.size)

    def equals(self, other: "Quantity") -> bool:
        if same_unit(self.unit, other.unit) and same_size(self.size, other.size):
            return True
        if PERCENT in (self.unit, other.unit) and not (self.unit and other.unit):
            percent, number = (self, other) if self.unit == PERCENT else (other, self)
            return percent.size == 100 * number.size
        return False

    def accepts_rounding(self, answer: str, same: Same) -> bool:
        """Return whether an answer such as 14/3 ≈ 4.67 states this number, exactly or rounded."""
        first, _, second = answer.rpartition("≈")
        numbers = [read_quantity(side) for side in (first, second)]
        if not first.strip() or numbers[1] is None:
            return False
        left = numbers[0].size if numbers[0] is not None else _constant(first)
        if left is None or not close_enough(left, numbers[1].size):
            return False
        return self.equals(numbers[1]) or same(first.strip(), str(self.size))


def close_enough(left: Fraction, right: Fraction) -> bool:
    return abs(left - right) <= ROUNDED * abs(left)


def _constant(text: str) -> Fraction | None:
    node = parse(text.strip())
    result = None if node is None else constant(node)
    if result is None or isinstance(result, Fraction):
        return result
    return Fraction(result.real) if result.imag == 0 and abs(result) < 1e300 else None


def read_gold_quantity(gold: str) -> Quantity | None:
    """Return the number and the unit of a gold answer; None if it is more than a number and a unit.

    A single letter behind a number may be a variable: the gold answer 6m is no number of meters.
    """
    text = CURRENCY_WORD.sub("", gold, count=1) if CURRENCY_WORD.match(gold) else gold
    found = NUMBER_PATTERN.match(POWER_OF_UNIT.sub("", text))
    if found is None:
        number = spelled_number(gold.lower())
        return Quantity(number[0]) if number is not None and not number[1].strip() else None
    behind = POWER_OF_UNIT.sub("", text)[found.end() :]
    if re.search(r"(?<![A-Za-z/])[A-Za-z](?![A-Za-z])", behind.replace("°C", "°").replace("°F", "°")):
        return None
    if behind[:1].isalpha() and not behind[:2].isalpha():
        return None
    return _quantity(text)


def read_quantity(text: str) -> Quantity | None:
    """Return the number that an answer states, with harmless words around it; None if it states none, or several."""
    text = text.strip()
    for opening, closing in ("()", "[]", "{}"):
        if text.startswith(opening) and text.endswith(closing) and text.count(opening) == 1:
            text = text[1:-1].strip()
    text = APPROXIMATE.sub("", text, count=1) if APPROXIMATE.match(text) else text
    text = OPTION_LETTER.sub("", text, count=1) if OPTION_LETTER.match(text) else text
    text = NUMBERING.sub("", text, count=1) if NUMBERING.match(text) else text
    found = _quantity(text)
    if found is not None:
        return found
    reason = REASON.search(text)
    if reason is not None and not DENIALS.search(text[reason.start() :]):
        return _quantity(text[: reason.start()])
    money = DOLLARS_AND_CENTS.fullmatch(text)
    if money is not None:
        return Quantity(decimal(money[1]) + decimal(money[2]) / 100, UNITS["dollar"])
    return _with_brackets(text)


def _with_brackets(text: str) -> Quantity | None:
    """Read a number with another form of it in brackets: "three (3)", "120 minutes (2 hours)"."""
    found = re.fullmatch(r"([^()]+)\(([^()]+)\)", text)
    if found is None:
        return None
    first, second = (_quantity(part.strip()) for part in found.groups())
    if first is None or second is None:
        return None
    known = {first.unit, second.unit} <= set(UNITS.values())
    return first if first.size == second.size or (known and first.unit != second.unit) else None


def _quantity(text: str) -> Quantity | None:
    text = POWER_OF_UNIT.sub("", text)
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
    currency = re.search(CURRENCY, number["before"])
    word = CURRENCY_WORD.fullmatch(before.strip() + " ") if before.strip() else None
    if word is None and not harmless_before(before):
        return None
    if re.search("[A-Za-z]$", before) and word is None and currency is None:
        return None  # x2
    unit = unit_of(behind)
    if unit is None:
        return None
    named = before.strip(" .").lower() if word is not None else ""
    grouped = number["decimal"] if number["decimal"] and "," in number["decimal"] and not unit else ""
    return Quantity(size, UNITS[currency[0]] if currency is not None else UNITS.get(named, unit), grouped)


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
    """Read a number in words behind harmless words, such as "a total of forty-two apples"."""
    for found in WORD.finditer(text):
        number = spelled_number(text[found.start() :])
        if number is not None:
            unit = unit_of(number[1])
            harmless = found.start() > 0 and harmless_before(text[: found.start()])
            return Quantity(number[0], unit) if unit is not None and harmless else None
    return None


def number_of_equation(text: str) -> Quantity | None:
    """Return the number at an end of an equation, such as x = 42 apples; None where a side contradicts it."""
    sides = [side.strip() for side in text.split("=")]
    if not all(sides) or any(mark in text for mark in "<>≤≥≠"):
        return None
    numbers = [number for number in (read_quantity(sides[-1]), read_quantity(sides[0])) if number is not None]
    if not numbers:
        return None
    return numbers[0] if all(_agrees(side, numbers[0].size) for side in sides) else None


def _agrees(side: str, size: Fraction) -> bool:
    """Return whether a side of an equation is a name, or has this value."""
    number = read_quantity(side)
    if number is not None:
        return number.size == size
    node = parse(re.sub(CURRENCY, "", side).strip())
    if node is not None:
        result = constant(node)
        if result is not None:
            return close(result, size)
    return is_name(side)


def is_name(side: str) -> bool:
    """Return whether a text only names the quantity that it is equal to: x, f(3), AB, m + n, "Total"."""
    bare = INDEX.sub("", side).strip()
    if NAMES.fullmatch(bare):
        return True
    words = WORD.findall(bare)
    return (
        bool(words)
        and all(len(word) > 2 or word.isupper() or word in SHORT_WORDS for word in words)
        and harmless_before(bare)
    )

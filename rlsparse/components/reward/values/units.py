"""Units behind a number: which units and things they name, and whether two of them agree."""

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from rlsparse.components.reward.values.neutral_words import CHINESE, WORD, changes_number_before_it
from rlsparse.components.reward.values.vocabulary import (
    COMPOUND_UNITS,
    CONVERSIONS,
    DIRECTIONS,
    ERAS,
    FILLER,
    NEGATIVE,
    QUALIFIERS,
    SINGLE_LETTERS,
    UNCLEAR_UNITS,
    UNITS,
)

RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
EXPONENTS = {"": 1, **{str(i).translate(RAISED): i for i in range(-4, 5) if i}}
# the exponent of a unit: cm^2, cm^{2}, s^{-1}, (cm)^2, cm2
EXPONENT = re.compile(
    r"(?<=[A-Za-zμΩ)])(?:\s*\^\s*(?:\{\s*(-?[1-4])\s*\}|(-?[1-4])(?!\d))|(?<=[ \dcdk]m)([23])(?![\d.])"
    r"|(?<=ft|in)([23])(?![\d.]))"
)
FRACTION_OF_UNITS = re.compile(r"\\frac\{\s*([^{}\d]+?)\s*\}\{\s*([^{}\d]+?)\s*\}")
HALF_OF_DAY = re.compile(r"\b([ap])\.?\s?m\b\.?", re.IGNORECASE)
GLUED = re.compile(
    r"(?:mm|cm|dm|km|mi|ft|in|yd|mg|kg|lb|lbs|oz|sec|min|hr|hrs|ml|mL|mph|kph|km/h|m/s|am|pm|kW|Hz|Pa|USD|EUR|GBP|CNY|RMB"
    r"|[A-Za-z]{4,})(?![A-Za-z])",
)
SIGNS = "%°¤€£¥₹₽₩₪¢"
RAISED_DIGIT = "⁻?[¹²³⁴]"
PIECE = re.compile(
    rf"(?P<word>{WORD.pattern})(?P<exponent>(?:{RAISED_DIGIT})?)|(?P<chinese>{CHINESE.pattern})|(?P<sign>\S)"
)
POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
POWERS_BEHIND = {"squared": 2, "cubed": 3}
CHINESE_UNITS = "|".join(sorted(filter(CHINESE.fullmatch, UNITS), key=len, reverse=True))
CHINESE_UNIT = re.compile(rf"(平方|立方)?({CHINESE_UNITS})")
CHINESE_ENDS = frozenset(("", "前", "后", "以前", "以后", "之前", "之后", "钱", "整"))
TEMPERATURES = ("C", "F")
IRREGULAR = {"people": "person", "children": "child", "men": "man", "women": "woman", "mice": "mouse", "feet": "foot"}


@dataclass(frozen=True)
class Unit:
    """What a number counts or measures.

    Attributes:
        factors: units with their exponents: m/s² is (("m", 1), ("s", -2)).
        words: all other words that mean something, in the singular.
    """

    factors: frozenset[tuple[str, int]] = frozenset()
    words: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        """Return whether anything is stated."""
        return bool(self.factors or self.words)

    def __str__(self) -> str:
        factors = (name if exponent == 1 else f"{name}^{exponent}" for name, exponent in sorted(self.factors))
        return " ".join((*factors, *sorted(self.words)))

    def agrees(self, gold: "Unit") -> bool:
        """Return whether an answer in this unit does not contradict the unit of a gold answer.

        A number without a unit agrees with any. If both state one, the units must be the same, the words of one must
        be among the words of the other, and both must have the same direction.
        """
        if not self:
            return not gold.words & ERAS
        if not gold:
            return not self.words & NEGATIVE
        if self.words & DIRECTIONS != gold.words & DIRECTIONS:
            return False
        if bool(self.factors) != bool(gold.factors):
            return not (self.words if gold.factors else gold.words) - QUALIFIERS
        return _same_factors(self.factors, gold.factors) and (
            _among(self.words, gold.words) or _among(gold.words, self.words)
        )


PERCENT = Unit(frozenset((("%", 1),)))
NO_UNIT = Unit()


def of_currency(name: str) -> Unit:
    """Return the unit of a currency that is named by its sign or its code."""
    return Unit(frozenset(((UNITS[name.lower()], 1),)))


def convertible(one: Unit, other: Unit) -> Fraction | None:
    """Return how many of another unit one unit has, such as 60 for hours and minutes; None if it cannot be said."""
    if one == other:
        return Fraction(1)
    first, second = (CONVERSIONS.get(_single(unit), ("", Fraction(1))) for unit in (one, other))
    return first[1] / second[1] if first[0] == second[0] != "" else None


def _single(unit: Unit) -> str:
    found = [name for name, exponent in unit.factors if exponent == 1]
    return found[0] if len(unit.factors) == len(found) == 1 and not unit.words else ""


def _same_factors(one: frozenset[tuple[str, int]], other: frozenset[tuple[str, int]]) -> bool:
    first, second = sorted(one - other), sorted(other - one)
    return len(first) == len(second) and all(
        a[1] == b[1] and (b[0] in UNCLEAR_UNITS.get(a[0], ()) or a[0] in UNCLEAR_UNITS.get(b[0], ()))
        for a, b in zip(first, second, strict=True)
    )


def _among(some: frozenset[str], many: frozenset[str]) -> bool:
    """Return whether words are among others; a Chinese word also where it is a part of one: 个 and 个苹果."""
    return all(word in many or (not word.isascii() and any(word in one for one in many)) for word in some)


def with_raised_exponents(text: str) -> str:
    """Return a text in which the exponents of units are superscripts, so that they are no numbers."""
    return EXPONENT.sub(lambda found: next(filter(None, found.groups())).translate(RAISED), text)


@lru_cache(maxsize=4096)
def unit_of(text: str) -> Unit | None:
    """Return the unit that the text behind a number states; None if the text is more than a unit.

    Args:
        text: with raised exponents.
    """
    if not text.strip():
        return NO_UNIT
    text = HALF_OF_DAY.sub(r"\1m", text.replace("per cent", "percent"))
    text = re.sub(r"percentage points?\b", "percentagepoint", FRACTION_OF_UNITS.sub(r" \1/\2", text))
    if text[0].isalpha() and text[0].isascii() and GLUED.match(text) is None:
        return None  # 42x, 42k
    text = re.sub(r"^-(?=[A-Za-z]{3})", "", text).strip()
    if not text or changes_number_before_it(text) or (text[0] in "·/" and not re.match(r"/\s*[A-Za-z一-鿿]", text)):
        return None
    if text.count("(") == text.count(")") == 1:
        text = text.replace("(", " ").replace(")", "" if re.search(rf"\){RAISED_DIGIT}", text) else " ")
    return _Reader(text).unit()


class _Reader:
    """Reads the words behind a number from left to right."""

    def __init__(self, text: str) -> None:
        self.pieces = list(PIECE.finditer(text))
        self.factors: Counter[str] = Counter()
        self.words: set[str] = set()
        self.sign = 1  # -1 behind "per"
        self.power = 1  # 2 behind "square"
        self.open = True  # the next unit is a factor; behind other words it is only a word
        self.last: str | None = None  # the factor before
        self.refused = False

    def unit(self) -> Unit | None:
        words = [piece["word"] for piece in self.pieces if piece["word"]]
        for word in words:
            if len(word) == 1 and word not in SINGLE_LETTERS and (word not in "aI" or len(words) == 1):
                return None
        for i, piece in enumerate(self.pieces):
            if piece["chinese"]:
                self._chinese(piece["chinese"])
            elif piece["word"]:
                self._word(piece["word"], EXPONENTS.get(piece["exponent"], 1), i)
            else:
                self._sign(piece["sign"])
        if self.refused or self.sign == -1:
            return None
        return Unit(frozenset((name, power) for name, power in self.factors.items() if power), frozenset(self.words))

    def _sign(self, sign: str) -> None:
        if sign in "/·":
            self.sign, self.open = (-1 if sign == "/" else 1), True
        elif sign in SIGNS:
            self._factor(UNITS[sign], 1)
        elif sign in ".,":
            self.open = self.open and not self.factors
        else:
            self.refused = True

    def _word(self, word: str, exponent: int, place: int) -> None:
        lower = word.lower()
        if lower == "per":
            self.sign, self.open = -1, True
        elif lower in POWERS and self._is_word(place + 1):
            self.power = POWERS[lower]
        elif lower in POWERS_BEHIND:
            self._raise_last(POWERS_BEHIND[lower])
        elif word in ("a", "an", "each", "every") and self._names_unit(place + 1):
            self.sign, self.open = -1, True
        elif lower in COMPOUND_UNITS and self.open:
            for name, power in COMPOUND_UNITS[lower]:
                self.factors[name] += self.sign * power
            self.sign, self.last = 1, None
        elif self.open and self._is_unit(word, exponent, place):
            self._factor(UNITS[singular(word)], exponent)
        else:
            self._thing(lower, exponent)

    def _thing(self, word: str, exponent: int) -> None:
        name = singular(word)
        if word in FILLER or name in FILLER:
            self.open = self.sign == -1
            return
        if self.sign == -1:
            self.factors[name] -= exponent * self.power
        else:
            self.words.add(name if exponent * self.power == 1 else f"{name}^{exponent * self.power}")
        self.open = self.open and not self.factors
        self.sign, self.power, self.last = 1, 1, None

    def _factor(self, name: str, exponent: int) -> None:
        if name in TEMPERATURES and self.last == "°":  # degrees Celsius
            del self.factors["°"]
        if name == self.last and self.sign == 1:  # "$18 dollars"
            return
        self.factors[name] += self.sign * exponent * self.power
        self.sign, self.power, self.last = 1, 1, name

    def _raise_last(self, power: int) -> None:
        if self.last is None or abs(self.factors[self.last]) != 1:
            self.refused = True
        else:
            self.factors[self.last] *= power

    def _chinese(self, text: str) -> None:
        if text[0] == "每":
            self.sign, text = -1, text[1:]
        found = CHINESE_UNIT.match(text)
        rest = "" if found is None else text[found.end() :]
        before, per, below = rest.partition("每")
        if found is None or before not in CHINESE_ENDS:
            self.words.add(text)
            self.sign = 1
            return
        self.power = {"平方": 2, "立方": 3}.get(found[1], 1)
        self._factor(UNITS[found[2]], 1)
        if before in DIRECTIONS:
            self.words.add(before)
        if per:
            self._chinese(per + below) if below else self._sign("?")

    def _is_word(self, place: int) -> bool:
        while place < len(self.pieces) and self.pieces[place]["sign"] == ".":  # "sq. ft."
            place += 1
        return place < len(self.pieces) and bool(self.pieces[place]["word"])

    def _is_unit(self, word: str, exponent: int, place: int) -> bool:
        if word == "in":  # inches, if no other word stands behind it: "42 in total"
            behind = self.pieces[place + 1] if place + 1 < len(self.pieces) else None
            alone = behind is None or behind["sign"] or behind["word"] in ("per", "long", "tall", "wide", "high", "by")
            return bool(exponent != 1 or self.power != 1 or alone)
        return singular(word) in UNITS

    def _names_unit(self, place: int) -> bool:
        if place >= len(self.pieces) or not self.pieces[place]["word"]:
            return False
        named = singular(self.pieces[place]["word"])
        return named in UNITS or named in COMPOUND_UNITS or named in POWERS


def singular(word: str) -> str:
    """Return a word in lower case and in the singular; a unit as it is written in ``UNITS``."""
    if word in UNITS:
        return word
    lower = word.lower()
    for one in (lower, lower.removesuffix("s"), lower.removesuffix("es")):
        if one in UNITS:
            return one
    if lower in IRREGULAR:
        return IRREGULAR[lower]
    if lower.endswith("ies") and len(lower) > 4:
        return lower[:-3] + "y"
    if re.search("(?:ch|sh|x|ss|z)es$", lower):
        return lower[:-2]
    return lower if lower.endswith("ss") else lower.removesuffix("s")

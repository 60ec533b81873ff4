"""Numbers written in words, in English and Chinese."""

import re
from fractions import Fraction

from rlsparse.components.reward.values.vocabulary import LARGE, ONES, PARTS, SMALL

MINUS = re.compile(r"(?:minus|negative)\s+|负", re.IGNORECASE)
SMALL_PART = re.compile(r"(?:(?:an?|one)[\s-]+)?(half|third|quarter)\b", re.IGNORECASE)
ONE_OF_SIZE = re.compile(r"^(?:an?\s+)?(?=(?:hundred|thousand|million|billion|trillion|dozen)\b)", re.IGNORECASE)
ROUND = {"dozen": 12, "hundred": 100, **LARGE}
OF_A_SIZE = re.compile(rf"\s+(?:of\s+)?an?\s+({'|'.join(ROUND)})\b", re.IGNORECASE)
NEXT_WORD = re.compile(r"(?:[\s-]+|^)([A-Za-z]+)")
AND_SMALL = re.compile(rf"\s+(?:{'|'.join(SMALL)})\b", re.IGNORECASE)
PART = re.compile(rf"[\s-]+({'|'.join(PARTS)})s?\b", re.IGNORECASE)
AND_PART = re.compile(
    rf"\s+and\s+(an?|{'|'.join(sorted(SMALL, key=len, reverse=True))})[\s-]+({'|'.join(PARTS)})s?\b", re.IGNORECASE
)
POINT = re.compile(rf"\s+point((?:\s+(?:{'|'.join(ONES[:10])})\b)+)", re.IGNORECASE)
SCALE_BEHIND = re.compile(rf"\s+({'|'.join(LARGE)})\b", re.IGNORECASE)
CHINESE_DIGITS = {one: i for i, one in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
CHINESE_SIZES = {"十": 10, "百": 100, "千": 1000}
CHINESE_NUMBER = re.compile("[零〇一二三四五六七八九十百千万两]+")
CHINESE_FRACTION = re.compile(f"({CHINESE_NUMBER.pattern})分之({CHINESE_NUMBER.pattern})")


def spelled_number(text: str) -> tuple[Fraction, str] | None:
    """Return the number in words that a text begins with, and the rest of the text; None if there is none."""
    minus = MINUS.match(text)
    found = _unsigned(text[minus.end() :] if minus is not None else text)
    return found if found is None or minus is None else (-found[0], found[1])


def _unsigned(text: str) -> tuple[Fraction, str] | None:
    if CHINESE_NUMBER.match(text):
        return _chinese(text)
    part = SMALL_PART.match(text)
    if part is not None:
        size, rest = Fraction(1, PARTS[part[1].lower()]), text[part.end() :]
        scale = OF_A_SIZE.match(rest)  # "half a million"
        return (size, rest) if scale is None else (size * ROUND[scale[1].lower()], rest[scale.end() :])
    return _english(ONE_OF_SIZE.sub("one ", text))


def _english(text: str) -> tuple[Fraction, str] | None:
    total = 0  # the thousands and larger
    current = 0  # below a thousand
    last = 0  # the size of the last word: only a smaller one may follow
    end = 0
    for found in NEXT_WORD.finditer(text):
        word = found[1].lower()
        if found.start() != end:
            break
        if word in SMALL and (not last or (last >= 20 and SMALL[word] < (10 if last < 100 else 100))):
            current += SMALL[word]
            last = SMALL[word] if SMALL[word] >= 20 else 1
        elif word == "hundred" and last and 0 < current < 100:
            current, last = 100 * current, 100
        elif word == "dozen" and 0 < current < 20 and not total:
            current, last = 12 * current, 1
        elif word in LARGE and last and current:
            total, current, last = total + current * LARGE[word], 0, LARGE[word]
        elif not (word == "and" and last >= 100 and AND_SMALL.match(text, found.end())):
            break
        end = found.end()
    if not end:
        return None
    number, rest = Fraction(total + current), text[end:]
    part = PART.match(rest)
    if part is not None and 0 < number < PARTS[part[1].lower()]:  # "two thirds"
        return number / PARTS[part[1].lower()], rest[part.end() :]
    point = POINT.match(rest)
    if point is not None:
        digits = "".join(str(SMALL[word.lower()]) for word in point[1].split())
        return number + Fraction(int(digits), 10 ** len(digits)), rest[point.end() :]
    part = AND_PART.match(rest)
    if part is None:
        return number, rest
    above = 1 if part[1].lower() in ("a", "an") else SMALL[part[1].lower()]
    below = PARTS[part[2].lower()]
    if not 0 < above < below:
        return number, rest
    number, rest = number + Fraction(above, below), rest[part.end() :]
    scale = SCALE_BEHIND.match(rest)  # "one and a half million"
    return (number, rest) if scale is None else (number * LARGE[scale[1].lower()], rest[scale.end() :])


def _chinese(text: str) -> tuple[Fraction, str] | None:
    fraction = CHINESE_FRACTION.match(text)
    if fraction is not None:
        below, above = (100 if one == "百" else _chinese_integer(one) for one in fraction.groups())
        return None if not below or above is None else (Fraction(above, below), text[fraction.end() :])
    found = CHINESE_NUMBER.match(text)
    number = None if found is None else _chinese_integer(found[0])
    return None if found is None or number is None else (Fraction(number), text[found.end() :])


def _chinese_integer(text: str) -> int | None:
    """Return the value of a Chinese number below 10^8; None where it is not well formed."""
    if "万" in text:
        above, _, below = text.partition("万")
        if "万" in below:
            return None
        thousands, rest = _chinese_integer(above), _chinese_integer(below) if below else 0
        return None if not thousands or rest is None else thousands * 10_000 + rest
    total, digit, last = 0, 0, 10_000
    for one in text:
        if one in CHINESE_DIGITS:
            if digit:
                return None
            digit = CHINESE_DIGITS[one]
            continue
        size = CHINESE_SIZES[one]
        if size >= last or (not digit and (size != 10 or total)):
            return None
        total, digit, last = total + (digit or 1) * size, 0, size
    return total + digit

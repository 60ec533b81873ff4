"""Numbers as they are written, and their exact values."""

import re
from fractions import Fraction

LONGEST_CANDIDATE = 1000  # characters; the rules for values are made for short texts, and no longer answer is real
LONGEST_PLAIN = 60  # characters; longer numbers are no real answers, and exact arithmetic on them is slow
LARGEST_EXPONENT = 400  # of ten, and of a power of two numbers
ROUNDED_DECIMALS = 9  # from which on a decimal may stand for a number with infinitely many
MOST_DECIMALS = 1000
SMALL_DENOMINATOR = 10**4  # two different fractions with smaller ones differ by more than 10^-8
DASHES = str.maketrans(dict.fromkeys("−–‐‑﹣", "-"))

# 1,234  1,23,456  1 234  1'234  1_234  1234; a group that is followed by another digit or comma is no group
WHOLE = (
    r"(?:[1-9]\d{0,2}(?:,\d{3})+(?![\d,]\d|\d)|[1-9]\d?(?:,\d{2})+,\d{3}(?!\d)|[1-9]\d{0,2}(?: \d{3})+(?! ?\d)"
    r"|[1-9]\d{0,2}(?:'\d{3})+(?!\d)|[1-9]\d{0,2}(?:_\d{3})+(?!\d)|\d+)"
)
DECIMAL = rf"(?:{WHOLE}?\.\d+|{WHOLE}(?:\.(?![\d]))?)"
LATEX = rf"\\frac\{{-?{DECIMAL}\}}\{{{DECIMAL}\}}"
EXPONENT = r"(?:\{\s*[-+]?\s*\d{1,4}\s*\}|\(\s*[-+]?\s*\d{1,4}\s*\)|[-+]?\d{1,4})"
POWER = rf"(?:\^|\*\*)\s*{EXPONENT}"
SCALES = {
    "hundred": 2,
    "thousand": 3,
    "million": 6,
    "billion": 9,
    "trillion": 12,
    "dozen": None,
    "万": 4,
    "亿": 8,
    "百万": 6,
    "千万": 7,
}
SCALE = r"(?:hundred|thousand|million|billion|trillion|dozen)s?\b|百万|千万|万|亿"
CURRENCY = r"[¤$€£¥₹₽₩₪¢]"
# one number of any kind; the value of a match is read by ``value``
NUMBER = (
    rf"(?P<before>(?:(?<![\d)}}\]\w])[-+]\s*)?(?:{CURRENCY}\s*)?(?:(?<![\d)}}\]\w\s])[-+]\s*)?)"
    rf"(?:(?P<latex>{LATEX})(?!\s*\^)"
    rf"|(?P<repeating>\d*\.\d*\\overline\{{\d+\}})"
    r"|(?P<mixed>\d+(?:,\d{3})*(?:\s*\\frac\{\d+\}\{\d+\}|(?:[ ]|[ ]?and[ ])\d+/\d+(?![\d/])"
    r"|[ ](?:and[ ])?a[ ]half\b))(?!\s*\^)"
    rf"|(?P<decimal>{DECIMAL})"
    rf"(?:[eE](?P<e>[-+]?\d{{1,4}})(?!\w)|\s*[×·*xX]\s*10\s*(?P<ten>{POWER})|\s*(?P<power>{POWER})"
    rf"|\s*/\s*(?P<below>{DECIMAL})(?!\s*[\^/]))?)"
    rf"(?:\s?(?P<scale>{SCALE}))?"
)
NUMBER_PATTERN = re.compile(NUMBER)
PLAIN = re.compile(r"\$?(-?)\$?([1-9]\d{0,2}(?:,\d{3})+|\d+)?(\.\d+)?(?:/(\d+))?\$?")
SIGN_SPACE = re.compile(r"^(\$?[-+]|\$)\s+|\s*(/)\s*")  # "- 3", "3 / 4"; a space between digits separates two numbers


def plain_number(text: str) -> Fraction | None:
    """Return the exact value of a plain number; None for any other text. It is fast.

    Plain numbers are, for example, 1,234 = 1234 = 1234.0; $5.00; and 3/4 = 0.75. The minus may be a Unicode character.
    A full stop at the end is ignored.
    """
    cleaned = text.translate(DASHES).strip()
    if cleaned.endswith((".", ",")):  # two or three points mean that digits follow
        cleaned = cleaned[:-1]
    cleaned = cleaned.replace(r"\$", "$").strip("* ")
    cleaned = SIGN_SPACE.sub(lambda m: m[1] or m[2], cleaned).removeprefix("+")
    if not cleaned or len(cleaned) > LONGEST_PLAIN:
        return None
    match = PLAIN.fullmatch(cleaned)
    if match is None or (match[2] is None and match[3] is None):
        return None
    sign, whole, decimals, denominator = match.groups()
    value = Fraction((whole or "0").replace(",", "") + (decimals or ""))
    if denominator is not None:
        if int(denominator) == 0:
            return None
        value /= int(denominator)
    return -value if sign else value


def same_size(one: Fraction, other: Fraction) -> bool:
    """Return whether two numbers are equal; a long decimal may be rounded or cut off, such as 5.3333333333 = 16/3.

    Two numbers with finitely many decimals are compared exactly.
    """
    if one == other:
        return True
    if max(one.denominator, other.denominator) < SMALL_DENOMINATOR:  # fast; such fractions differ by more
        return False
    places = [decimals(number) for number in (one, other)]
    if (places[0] is None) == (places[1] is None):
        return False
    decimal, number = (one, other) if places[1] is None else (other, one)
    return is_rounded(decimal, number)


def is_rounded(decimal: Fraction, number: Fraction) -> bool:
    """Return whether a decimal of nine digits or more behind the point is a number, rounded or cut off there."""
    places = decimals(decimal)
    return places is not None and places >= ROUNDED_DECIMALS and is_shortened(decimal, number, places)


def is_shortened(decimal: Fraction, number: Fraction, places: int) -> bool:
    """Return whether a decimal is a number, rounded or cut off at a place behind the point (before it if negative)."""
    step = Fraction(10) ** -places
    cut = abs(number) // step
    return decimal * number >= 0 and abs(decimal) / step in (cut, (abs(number) + step / 2) // step)


def decimals(number: Fraction) -> int | None:
    """Return how many digits a number has behind the decimal point; None for infinitely many, or very many."""
    rest, counts = number.denominator, []
    for prime in (2, 5):
        count = 0
        while rest % prime == 0 and count <= MOST_DECIMALS:
            rest, count = rest // prime, count + 1
        counts.append(count)
    return max(counts) if rest == 1 else None


def value(found: re.Match[str]) -> Fraction | None:
    """Return the exact value of a match of ``NUMBER_PATTERN``; None if it has none, or a too long one."""
    if len(found[0]) > 2 * LONGEST_PLAIN:
        return None
    size = _size(found)
    if size is None:
        return None
    scale = found["scale"]
    if scale is not None:
        power = SCALES[scale.removesuffix("s")]
        size *= 12 if power is None else 10**power
    return -size if found["before"].count("-") % 2 else size


def _size(found: re.Match[str]) -> Fraction | None:
    if found["latex"] is not None:
        above, below = re.findall(r"\{([^{}]*)\}", found["latex"])
        return quotient(decimal(above.removeprefix("-")), decimal(below), negative=above.startswith("-"))
    if found["repeating"] is not None:
        return repeating(found["repeating"])
    if found["mixed"] is not None:
        return mixed(found["mixed"])
    size = decimal(found["decimal"])
    if found["below"] is not None:
        return quotient(size, decimal(found["below"]))
    for exponent in (found["e"], found["ten"]):
        if exponent is not None:
            power = _integer(exponent)
            return size * Fraction(10) ** power if abs(power) <= LARGEST_EXPONENT else None
    if found["power"] is not None:
        power = _integer(found["power"])
        if abs(power) > LARGEST_EXPONENT or (size == 0 and power <= 0):
            return None
        return size**power
    return size


def decimal(text: str) -> Fraction:
    """Return the value of digits with or without groups and a decimal point."""
    return Fraction(re.sub("[ ,'_]", "", text.rstrip(".")))


def quotient(above: Fraction, below: Fraction, negative: bool = False) -> Fraction | None:
    """Return a quotient; None for a division by zero."""
    return None if below == 0 else (-above if negative else above) / below


def mixed(text: str) -> Fraction | None:
    """Return the value of a whole number and a fraction below one; None for an improper fraction."""
    whole, *parts = (int(one) for one in re.findall(r"\d+", text.replace(",", "")))
    above, below = parts or (1, 2)  # "and a half"
    return whole + Fraction(above, below) if above < below else None


def repeating(text: str) -> Fraction:
    r"""Return the value of a decimal with a repeating part, such as 0.1\overline{6} = 1/6."""
    first, period = text.rstrip("}").split(r"\overline{")
    whole, digits = first.split(".")
    start = Fraction(int((whole or "0") + digits), 10 ** len(digits))
    return start + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(digits))


def _integer(exponent: str) -> int:
    return int(re.sub(r"[^\d-]", "", exponent))

"""Reading the final answer of a completion, and settling plain numbers exactly."""

import re
from collections.abc import Callable
from fractions import Fraction

NUMBER = re.compile(r"(?<![\d)\w])-?\$?\d[\d,]*(?:\.\d+)?(?:/\d[\d,]*)?|\$?\d[\d,]*(?:\.\d+)?(?:/\d[\d,]*)?|-?\$?\.\d+")
PLAIN = re.compile(r"(-?)(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?(?:/(\d+))?")
SIGN_SPACE = re.compile(r"^([-+])\s+|\s*(/)\s*")  # "- 3", "3 / 4"; a space between digits parts two numbers
LONGEST_PLAIN = 60  # characters; a longer number is nobody's answer, and exact arithmetic on it is not free
UNIT = re.compile(r"(?<=\d)\s+([A-Za-z][A-Za-z -]*)$")
# words after a number that change its value or hedge it: no unit, so not a plain number
NO_UNIT = {
    "hundred",
    "thousand",
    "million",
    "billion",
    "trillion",
    "dozen",
    "half",
    "percent",
    "and",
    "or",
    "to",
    "times",
    "k",
    "plus",
    "minus",
    "squared",
    "cubed",
    "factorial",
    "not",
    "wrong",
    "incorrect",
}
# What makes a text more or less than one number, though math-verify drops what it cannot read and takes the last one.
NOT_ONE_NUMBER = re.compile(
    r"\\\\|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]"  # rows, lines
    r"|[<>≤≥≠→⇒∪∩∈]"
    r"|\\(?:to|cup|cap|in|notin|not|ni|lt|gt|leq?|geq?|neq?|mid|land|lor|wedge|vee|implies|iff|equiv|pmod|&"
    r"|(?:long)?(?:left|right)+arrow)(?![a-z])"
    r"|\b(?:hundred|thousand|million|billion|trillion|dozen)s?\b"
    r"|\d[\s\\]*[$#][\s$#]*\d"  # two numbers parted by markup
    r"|\\degree\s*\d"
    r"|^[^{]*\}\s*\{"  # the text behind a brace that was never opened
    r"|[¼-¾⅐-⅞]|\d[²³¹⁰-⁹₀-₉]"
    r"|\d_(?!\{?10(?!\d))",  # a number in another base than ten
    re.IGNORECASE,
)
DASHES = str.maketrans({"−": "-", "–": "-", "‐": "-", "‑": "-", "﹣": "-", "-": "-"})


def after_hash(text: str) -> str | None:
    """What follows the last ``####`` on its line."""
    _, marker, rest = text.rpartition("####")
    line = rest.strip().split("\n", 1)[0].strip()
    return line if marker and line else None


def boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{…}``, braces balanced."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    begin = start + len(r"\boxed{")
    depth = 1
    for i in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[begin:i].strip() or None
    return None


def answer_is(text: str) -> str | None:
    """What follows the last "the answer is", to the end of the sentence."""
    found = list(re.finditer(r"the\s+(?:final\s+)?answer\s+is\s*:?", text, re.IGNORECASE))
    if not found:
        return None
    sentence = re.split(r"\n|\.(?:\s|$)", text[found[-1].end() :], maxsplit=1)[0].strip()
    return sentence or None


def last_number(text: str) -> str | None:
    """The last number in the text; a minus sign after a digit is a subtraction, not a sign."""
    numbers = NUMBER.findall(text.translate(DASHES))
    return numbers[-1] if numbers else None


ANSWER_FORMATS: dict[str, Callable[[str], str | None]] = {
    "hash": after_hash,
    "boxed": boxed,
    "answer_is": answer_is,
    "last_number": last_number,
}


def nesting(text: str) -> int:
    """The most brackets open at once, of whatever kind."""
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def is_one_number(text: str) -> bool:
    """Whether a text may be compared with a number: a list, relation or multiple of a number is none."""
    return NOT_ONE_NUMBER.search(text) is None


def plain_number(text: str) -> Fraction | None:
    """The value of a plain number, exactly; None for anything else.

    1,234 = 1234 = 1234.0; a Unicode minus; $5.00; 3/4 = 0.75; "45 apples"; a full stop at the end is the sentence's.
    """
    cleaned = text.translate(DASHES).strip().rstrip(".,").replace(r"\$", "$").strip("* ")
    unit = UNIT.search(cleaned)
    if unit is not None and not NO_UNIT & set(unit[1].lower().replace("-", " ").split()):
        cleaned = cleaned[: unit.start()]
    cleaned = SIGN_SPACE.sub(lambda m: m[1] or m[2], cleaned.replace("$", "", 1).strip()).removeprefix("+")
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

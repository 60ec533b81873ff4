"""Extraction of the final answer of a completion, and exact values of plain numbers."""

import re
from collections.abc import Callable
from fractions import Fraction

NUMBER = re.compile(r"(?<![\d)\w])-?\$?\d[\d,]*(?:\.\d+)?(?:/\d[\d,]*)?|\$?\d[\d,]*(?:\.\d+)?(?:/\d[\d,]*)?|-?\$?\.\d+")
PLAIN = re.compile(r"(-?)(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?(?:/(\d+))?")
SIGN_SPACE = re.compile(r"^([-+])\s+|\s*(/)\s*")  # "- 3", "3 / 4"; a space between digits separates two numbers
LONGEST_PLAIN = 60  # characters; longer numbers are no real answers, and exact arithmetic on them is slow
UNIT = re.compile(r"(?<=\d)\s+([A-Za-z][A-Za-z -]*)$")
# words after a number that are no units: they change its value or make it uncertain, so it is no plain number
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
# a text with one of these is not one number, although math-verify ignores what it cannot read and takes the last number
NOT_ONE_NUMBER = re.compile(
    r"\\\\|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]"  # rows, lines
    r"|[<>≤≥≠→⇒∪∩∈]"
    r"|\\(?:to|cup|cap|in|notin|not|ni|lt|gt|leq?|geq?|neq?|mid|land|lor|wedge|vee|implies|iff|equiv|pmod|&"
    r"|(?:long)?(?:left|right)+arrow)(?![a-z])"
    r"|\b(?:hundred|thousand|million|billion|trillion|dozen)s?\b"
    r"|\d[\s\\]*[$#][\s$#]*\d"  # two numbers with markup between them
    r"|\\degree\s*\d"
    r"|^[^{]*\}\s*\{"  # text after a closing brace that was never opened
    r"|[¼-¾⅐-⅞]|\d[²³¹⁰-⁹₀-₉]"
    r"|\d_(?!\{?10(?!\d))",  # a number in a base other than ten
    re.IGNORECASE,
)
DASHES = str.maketrans({"−": "-", "–": "-", "‐": "-", "‑": "-", "﹣": "-", "-": "-"})


def after_hash(text: str) -> str | None:
    """Return the text after the last ``####`` on its line; None if there is none."""
    _, marker, rest = text.rpartition("####")
    line = rest.strip().split("\n", 1)[0].strip()
    return line if marker and line else None


def boxed(text: str) -> str | None:
    r"""Return the content of the last ``\boxed{…}`` up to its closing brace; None if there is none."""
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
    """Return the text after the last "the answer is" up to the end of the sentence; None if there is none."""
    found = list(re.finditer(r"the\s+(?:final\s+)?answer\s+is\s*:?", text, re.IGNORECASE))
    if not found:
        return None
    sentence = re.split(r"\n|\.(?:\s|$)", text[found[-1].end() :], maxsplit=1)[0].strip()
    return sentence or None


def last_number(text: str) -> str | None:
    """Return the last number in the text; None if there is none. A minus sign after a digit counts as subtraction."""
    numbers = NUMBER.findall(text.translate(DASHES))
    return numbers[-1] if numbers else None


ANSWER_FORMATS: dict[str, Callable[[str], str | None]] = {
    "hash": after_hash,
    "boxed": boxed,
    "answer_is": answer_is,
    "last_number": last_number,
}


def nesting(text: str) -> int:
    """Return the maximum depth of nested brackets of all kinds."""
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def is_one_number(text: str) -> bool:
    """Return whether a text may be compared with a number; False for a list, a relation or a multiple of a number."""
    return NOT_ONE_NUMBER.search(text) is None


def plain_number(text: str) -> Fraction | None:
    """Return the exact value of a plain number; None for any other text.

    Plain numbers are, for example, 1,234 = 1234 = 1234.0; $5.00; 3/4 = 0.75; and "45 apples". The minus may be a
    Unicode character. A full stop at the end is ignored.
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

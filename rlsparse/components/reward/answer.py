"""Extraction of the final answer of a completion, in each answer format."""

import re
from collections.abc import Callable

from rlsparse.components.reward.values.box import boxed
from rlsparse.components.reward.values.notation import one_notation
from rlsparse.components.reward.values.number import CURRENCY, LATEX, LONGEST_CANDIDATE, NUMBER, plain_number

__all__ = ["ANSWER_FORMATS", "LONGEST_CANDIDATE", "after_hash", "answer_is", "boxed", "last_number", "plain_number"]

HASHES = re.compile("#{4,}")
ANSWER_IS = re.compile(
    r"\b(?:the|my|our)\s{1,20}(?:(?:final|correct|right)\s{1,20}){0,2}answer(?:\s{1,20}(?:to|for)\s[^.\n:]{1,60}?)?"
    r"(?:\s{1,20}(?:is|=)(?![A-Za-z'])\s{0,20}:?|\s{0,20}:)|答案\s?[是为:：]",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(
    r"(?<![ap]\.m)(?<!\bsq)(?<!\bapprox)(?<!\bRs)(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!\.)[.](?=\s|$)"
    r"|!(?=\s|$)(?!\s{1,9}[-=+*/×·÷])"
)
OPENING = re.compile(r"[\s:*_$]{0,40}(?:\\\[|\\\(|\$\$)?[\s*]{0,40}")
ENVIRONMENT = re.compile(r"\\begin\{(\w{1,20}\*?)\}")

# what holds a number but is none: powers and indices of letters (x^2, a_1), and letters with digits (x2, cm2)
NO_NUMBER = (
    r"[A-Za-z)\]}]\s?[\^_]\s?(?:\{[^{}]{0,40}\}|\([^()]{0,40}\)|[-+]?\w+)"
    r"|(?<![A-Za-z])(?:[A-Za-z]|[cdkm]m|ft|in)\d+(?![\d.])|(?<=\d)\s?\[\d{1,2}\]|(?<=[A-Za-z])\[\d+\]"
    r"|(?<![A-Za-z\\])(?:[A-Za-z]|\([^()]{1,40}\))\s?/\s?\d+(?![\d.])|(?<![A-Za-z\\])[xyzn]\s?[-+]\s?\d+(?![\d.])"
)
GROUPED = r"(?:[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d?(?:,\d{2})+,\d{3})"  # digits of one number with commas
# one answer with several numbers in it: dates, times, ratios, versions, roots, multiples of π, lists without spaces
COMPOUND = (
    r"(?:\\pi(?![A-Za-z])|π)\s?/\s?\d+|0x[0-9a-f]+|0b[01]+|0o[0-7]+|\|-?\d+(?:\.\d+)?\||\d+-\d+/\d+"
    rf"|[(\[]\s?(?!{GROUPED}\s?[)\]])-?\d+(?:\.\d+)?(?:\s?,\s?-?\d+(?:\.\d+)?)+\s?[)\]]"
    r"|(?<![A-Za-z])\\?(?:log|ln|lg|sin|cos|tan|cot)(?:_(?:\{\w+\}|\w))?\s?\(?\d+(?:\.\d+)?\)?°?"
    r"|(?:(?<![\w)}])-)?\d+(?:\.\d+)?(?:[-+]|\s?[-+]\s?\d+(?:\.\d+)?)(?-i:i)(?![A-Za-z])"
    r"|\d{1,4}(?:-\d{1,2}){2}(?!\d)|\d{1,4}(?:/\d{1,4}){2,}|\d+(?::\d+)+(?:\s?[ap]\.?m\b\.?)?|\d+(?:\.\d+){2,}"
    r"|(?:\d+(?:\.\d+)?\s?)?\\(?:sqrt|binom|log|ln|sin|cos|tan|overline)(?:\[\d+\])?\s?(?:\{[^{}]{0,60}\}){1,2}"
    r"|(?:\d+(?:\.\d+)?\s?)?\\sqrt\s?\d+|(?<![A-Za-z])sqrt\s?\(?\d+\)?|\d+(?:\.\d+)?\s?(?:\\pi\b|π)|\\frac\{[^{}]{0,60}\}\{[^{}]{0,60}\}"
    rf"|(?<![\d,])(?!{GROUPED}(?![\d,]))\d+(?:,\d+)+(?!\d)"
    r"|\d+(?:\.\d+)?!+|\d+_\{?\d+\}?"
)
BEHIND = r"\s?(?:\\?%|[xynk](?![A-Za-z])|(?<=\d)(?-i:i)(?![A-Za-z])|¢|€|(?<=\.\d)…|(?<=\.\d\d)…|(?<=\.\d\d\d)…)?"
LAST_NUMBER = re.compile(
    rf"{NO_NUMBER}|(?P<found>(?:(?<!\w)(?:minus|negative)\s|[±∓]\s?)?(?:(?!{LATEX})(?:{COMPOUND})|{NUMBER}){BEHIND})",
    re.IGNORECASE,
)
# a whole number or a decimal behind a word at the end of a text: the most frequent case, read without the pattern above
AT_THE_END = re.compile(
    r"(?<![A-Za-z\\])(?!(?:minus|negative|log|ln|lg|sin|cos|tan|cot|sqrt|root) )[a-z]{1,20} "
    r"(\$?\d{1,15}(?:\.\d{1,15})?)\.?$"
)
NAME_BEFORE = re.compile(r"\b(answer|ans|result|total|solution)_(?=\d)", re.IGNORECASE)  # answer_42
DIGIT = re.compile(r"[\d½¼¾⅐-⅞]")
BLOCK = 4096  # characters in which the last digit of a long text is looked for, from its end


def after_hash(text: str) -> str | None:
    """Return the text after the last ``####`` that has any, up to the end of its line; None if there is none."""
    end, signs = len(text), None
    for found in reversed(list(HASHES.finditer(text))):
        line = _first_line(text[found.end() : end])
        if line is not None and re.search(r"[^\W_]|[^\x00-\x7f]", line):
            return line
        signs = signs or line  # such as the full stop of "I wrote the answer after ####."
        end = found.start()
    return signs


def answer_is(text: str) -> str | None:
    """Return the text after the last "the answer is" up to the end of the sentence; None if there is none."""
    found = list(ANSWER_IS.finditer(text))
    if not found:
        return None
    line = _first_line(text[found[-1].end() :])
    if line is None:
        return None
    box = boxed(line)
    if box is not None:
        return box
    return SENTENCE_END.split(line, maxsplit=1)[0].strip() or None


def _first_line(text: str) -> str | None:
    r"""Return the first line that is not empty; a formula that begins in it, up to its end; None if there is none."""
    text = text.lstrip()
    start = OPENING.match(text)
    assert start is not None
    begin = start.end()
    line_end = _end_of_line(text, begin)
    environment = ENVIRONMENT.match(text, begin)
    if environment is not None:
        closing = rf"\end{{{environment[1]}}}"
        place = text.find(closing, begin)
        line_end = line_end if place < 0 else _end_of_line(text, place)
    return text[:line_end].strip() or None


def _end_of_line(text: str, begin: int) -> int:
    place = text.find("\n", begin)
    return len(text) if place < 0 else place


def last_number(text: str) -> str | None:
    """Return the last number in the text with its sign, fraction, exponent or percent sign; None if there is none.

    A minus after a digit is a subtraction. Numbers that are powers or indices of letters do not count.
    """
    plain = AT_THE_END.search(text, max(0, len(text) - 60))
    if plain is not None:
        return plain[1]
    end = _end_of_last_digit(text)
    if end is None:
        return None
    window = text[max(0, end - LONGEST_CANDIDATE) : end + 40]
    window = re.sub(r"(?<!\\)\$(?=\s?-?[\d.])", r"\\$", window)
    window = NAME_BEFORE.sub(r"\1 ", window)
    found = [one["found"] for one in LAST_NUMBER.finditer(one_notation(window)) if one["found"] is not None]
    return re.sub(CURRENCY, lambda sign: "$" if sign[0] == "¤" else sign[0], found[-1]).strip() if found else None


def _end_of_last_digit(text: str) -> int | None:
    for start in range((len(text) - 1) // BLOCK * BLOCK, -1, -BLOCK):
        places = [found.end() for found in DIGIT.finditer(text, start, start + BLOCK)]
        if places:
            return places[-1]
    return None


ANSWER_FORMATS: dict[str, Callable[[str], str | None]] = {
    "hash": after_hash,
    "boxed": boxed,
    "answer_is": answer_is,
    "last_number": last_number,
}

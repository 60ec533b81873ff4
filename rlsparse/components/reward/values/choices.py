"""Letters of multiple choice: which options an answer chooses."""

import re
from dataclasses import dataclass
from itertools import pairwise

from rlsparse.components.reward.values.interface import Same
from rlsparse.components.reward.values.neutral_words import DENIALS

CHOICE = re.compile(r"[(\[]?\s*([A-Z])\s*[)\].:]*")
SEVERAL = re.compile(r"[(\[]?[A-Z][)\]]?(?:\s*(?:,|;|&|\band\b)\s*(?:and\s+)?[(\[]?[A-Z][)\]]?)+")
OPTION = re.compile(
    r"(?:the\s+)?(?:correct\s+|right\s+)?(?:option|choice|letter|statement|选项|选择|选)\s*(?:is\b|:)?\s*",
    re.IGNORECASE,
)
CHOSEN = re.compile(r"(?:[(\[]\s*(?P<bracketed>[A-Za-z])\s*[)\]]|(?P<bare>[A-Za-z]))(?P<rest>.*)", re.DOTALL)
IS_RIGHT = re.compile(r"\s+is\s+(?:the\s+)?(?:correct|right|true)(?:\s+(?:answer|option|choice|one))?\s*")
REASON = re.compile(r"\s*,?\s+(?:because|since)\b", re.IGNORECASE)
ANOTHER = re.compile(
    r"\s[A-K]\s?[).:]|[(\[][A-Za-z][)\]]|(?:\bor\b|\band\b|\bnot\b|[,/&;])\s*[A-K](?![A-Za-z'])", re.IGNORECASE
)


@dataclass(frozen=True)
class Choice:
    """The letters of one or several options."""

    letters: frozenset[str]

    def accepts(self, answer: str, same: Same) -> bool:
        found = chosen(answer)
        return found is not None and found == self.letters


def read_choice(gold: str) -> Choice | None:
    """Return the option that a gold answer names: B, (B), "B, D" or ABD; None for any other text."""
    letters = _letters(gold)
    return None if letters is None else Choice(letters)


def _letters(text: str) -> frozenset[str] | None:
    one = CHOICE.fullmatch(text)
    if one is not None:
        return frozenset(one[1])
    if SEVERAL.fullmatch(text):
        return frozenset(re.findall(r"\b[A-Z]\b", text))
    ascending = re.fullmatch("[A-G]{2,6}", text) is not None and all(a < b for a, b in pairwise(text))
    return frozenset(text) if ascending else None


def chosen(answer: str) -> frozenset[str] | None:
    """Return the options that an answer chooses, whatever text of the option stands behind the letter."""
    answer = OPTION.sub("", answer, count=1).strip() if OPTION.match(answer) else answer.strip()
    letters = _letters(answer)
    if letters is not None:
        return letters
    found = CHOSEN.fullmatch(answer)
    if found is None:
        return None
    letter, rest = found["bracketed"] or found["bare"], found["rest"]
    if not re.sub(r"[\s).\]:]", "", rest):
        return frozenset(letter.upper())
    reason = REASON.match(rest)
    if reason is not None and letter.isupper() and re.search(rf"\b{letter}\b", rest) is None:
        return frozenset(letter)
    if letter.islower() or DENIALS.search(rest) or ANOTHER.search(rest):
        return None
    if IS_RIGHT.fullmatch(rest):
        return frozenset(letter)
    marked = found["bracketed"] is not None or re.match(r"\s*(?:[)\]:]|\.(?!\S(?!\w)|\S$))(?!\d)|\s+[-(]\s?|,\s", rest)
    return frozenset(letter) if marked and (rest[0] in " ).]:,\t" or found["bracketed"]) else None

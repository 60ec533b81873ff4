"""Words around a number: which leave it as it is, and which make another number of it."""

import re
from itertools import pairwise

from rlsparse.components.reward.values.vocabulary import (
    BLOCKED_BEFORE,
    BLOCKED_BEHIND,
    COMPARES,
    NEGATIVE_STEM,
    NEUTRAL,
    STATING,
)

APPROXIMATE = re.compile(r"(?:≈|(?:about|around|approximately|roughly|approx\.?|circa)\b)\s*", re.IGNORECASE)
DENIALS = re.compile(
    r"\b(?:not|wrong|incorrect|false|never|no|isn't|untrue|mistake\w*)\b|n't\b|[错误不非否]", re.IGNORECASE
)
CHANGES_IN_CHINESE = re.compile(
    "[不没非或和与至到多余超过几半错误约乘除加减比亏损降欠差缺]|以上|以下|以内|以外|大于|小于|少于|左右|分之|之间"
    "|的?平方(?!厘|分|千|毫|米|公)|的?立方(?!厘|分|毫|米)"
)
WORD = re.compile(r"[A-Za-zμΩÅÀ-ɏ]+(?:['-][A-Za-zÀ-ɏ]+)*")
CHINESE = re.compile("[一-鿿]+")
# "Tom picked 42 apples"
PERSON_AND_VERB = re.compile(r"(?:[A-Z][a-z]+|[Hh]e|[Ss]he|[Tt]hey|[Ww]e|I|[Ii]t)\s+[a-z]+(?:s|ed)")
AUXILIARIES = ("will", "would", "must", "should", "can", "could", "did")  # a verb follows: "she must pay 42"
MOST_OWNER_WORDS = 4


def changes_number_before_it(text: str) -> bool:
    """Return whether words behind a number make another number of it, or deny it."""
    words = [word.lower() for word in WORD.findall(text)]
    if words and words[0] in COMPARES and len(words) == 1:
        return True  # "42 less"
    if words and words[-1] == "over" and words[-2:-1] not in (["left"], ["times"]):
        return True
    changes = any(word in BLOCKED_BEHIND or word.endswith("n't") for word in words)
    return changes or "?" in text or CHANGES_IN_CHINESE.search(text) is not None


def are_neutral(text: str) -> bool:
    """Return whether the words before a number leave it as it is: "a total of", "Tom has", "Bob:"."""
    text = APPROXIMATE.sub("", text)
    if not _has_only_words(text):
        return False
    words = WORD.findall(text)
    if words and words[-1] == "i":
        return False
    if not text.rstrip().endswith(":") and PERSON_AND_VERB.fullmatch(text.strip()):
        return True
    return _owner(words) == 0 or (text.rstrip().endswith(":") and _owner(words) <= MOST_OWNER_WORDS)


def are_name(text: str) -> bool:
    """Return whether words may name a number: "number of ways", "Total"."""
    return _has_only_words(text) and _owner(WORD.findall(text)) <= MOST_OWNER_WORDS


def _has_only_words(text: str) -> bool:
    """Return whether a text consists of words, none of which changes a number."""
    words = [word.lower() for word in WORD.findall(text)]
    if any(word in BLOCKED_BEFORE or word.endswith("n't") or (len(word) == 1 and word not in "ai") for word in words):
        return False
    if CHANGES_IN_CHINESE.search(text) or re.search(NEGATIVE_STEM, text, re.IGNORECASE):
        return False
    return not re.sub(r"[\s:,.'\"()¤€£¥₹]", "", CHINESE.sub("", WORD.sub("", text)))


def _owner(words: list[str]) -> int:
    """Return how many of the words belong to the owner of a number without a verb behind them that states it."""
    count = 0
    for before, word in pairwise(("", *words)):
        if word.lower() in STATING or (before.lower() in AUXILIARIES and word.lower() not in NEUTRAL):
            count = 0 if count <= MOST_OWNER_WORDS else count
        elif word.lower() not in NEUTRAL:
            count += 1
    return count

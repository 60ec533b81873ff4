"""Words around a number: units, harmless words, and words that change the number."""

import re

from rlsparse.components.reward.values.word_lists import (
    COMPARES,
    HARMFUL_BEFORE,
    HARMFUL_BEHIND,
    SINGLE_LETTERS,
    UNITS,
)

APPROXIMATE = re.compile(r"(?:≈|(?:about|around|approximately|roughly|approx\.?|circa)\b)\s*", re.IGNORECASE)
# "the square of 42"
MADE_OF = re.compile(
    r"\b(?:square|cube|factor|multiple|divisor|digit|percent|part|fraction|share|successor|predecessor|negative|opposite"
    r"|inverse|reciprocal|complement|logarithm|power|quarter)s?\s+of\b",
    re.IGNORECASE,
)
DENIALS = re.compile(
    r"\b(?:not|wrong|incorrect|false|never|no|isn't|untrue|mistake\w*)\b|n't\b|[错误不非否]", re.IGNORECASE
)
HARMFUL_CHINESE = re.compile(
    "[不没非或和与至到多余超过几半错误约乘除加减比]|以上|以下|以内|以外|大于|小于|少于|左右|分之|之间|的?平方(?!厘|分|千|毫|米|公)|的?立方(?!厘|分|毫|米)"
)
WORD = re.compile(r"[A-Za-zμΩÅÀ-ɏ]+(?:['-][A-Za-zÀ-ɏ]+)*")
CHINESE = re.compile("[一-鿿]+")

HALF_OF_DAY = re.compile(r"\b([ap])\.?\s?m\b\.?", re.IGNORECASE)
GLUED = re.compile(
    r"(?:mm|cm|dm|km|mi|ft|in|yd|mg|kg|lb|lbs|oz|sec|min|hr|hrs|ml|mL|mph|kph|km/h|m/s|am|pm|kW|Hz|Pa|USD|EUR|GBP|CNY|RMB"
    r"|[A-Za-z]{4,})(?![A-Za-z])",
)
POWER_OF_UNIT = re.compile(r"(?<=[A-Za-zμ])(?:\s*\^\s*(?:\{\s*-?[1-4]\s*\}|-?[1-4])|(?<=[ cdk]m)[23](?![\d.]))")


def unit_of(text: str) -> str | None:
    """Return the unit that the text behind a number states, "" if it states none, None if it is more than a unit.

    A unit may be several words; the first that is known is taken, else all words in the singular.
    """
    if not text.strip():
        return ""
    text = HALF_OF_DAY.sub(r"\1m", text.replace("per cent", "percent"))
    text = re.sub(r"\\frac\{\s*([A-Za-z]+)\s*\}\{\s*([A-Za-z]+)\s*\}", r" \1/\2", text)
    glued = GLUED.match(text)
    if text[0].isalpha() and text[0].isascii() and glued is None:
        return None  # 42x, 42k
    text = POWER_OF_UNIT.sub("", re.sub(r"^-(?=[A-Za-z]{3})", "", text)).strip()
    if _harmful_behind(text) or not text or (text[0] in "·/" and not re.match(r"/\s*[A-Za-z一-鿿]", text)):
        return None
    if text.count("(") == text.count(")") == 1:
        text = text.replace("(", " ").replace(")", " ")
    rest = CHINESE.sub(" ", WORD.sub(" ", text))
    if re.sub(r"[\s/·.%°¤€£¥₹¢,]", "", rest):
        return None
    words = WORD.findall(text)
    if any(len(word) == 1 and word not in SINGLE_LETTERS and (word not in "aI" or len(words) == 1) for word in words):
        return None
    for symbol in "%°¤€£¥₹¢":
        if symbol in rest:
            return UNITS[symbol]
    if words[1:] and words[0] == "in":  # "42 in total"
        words = words[1:]
    named = [UNITS[one] for one in (_singular(word) for word in words) if one in UNITS]
    if named:
        return named[0]
    chinese = "".join(CHINESE.findall(text))
    return " ".join(_singular(word) for word in words) or UNITS.get(chinese, chinese)


def _singular(word: str) -> str:
    if word in UNITS:
        return word
    lower = word.lower()
    for one in (lower, lower.removesuffix("s"), lower.removesuffix("es")):
        if one in UNITS:
            return one
    return lower.removesuffix("s")


def _harmful_behind(text: str) -> bool:
    words = [word.lower() for word in WORD.findall(text)]
    if words and words[0] in COMPARES and len(words) == 1:
        return True  # "42 less"
    harmful = any(word in HARMFUL_BEHIND or word.endswith("n't") for word in words)
    return harmful or "?" in text or HARMFUL_CHINESE.search(text) is not None


def same_unit(one: str, other: str) -> bool:
    """Return whether two units do not contradict each other; an absent unit contradicts none."""
    if not one or not other or one == other:
        return True
    if one in UNITS.values() and other in UNITS.values():
        return False
    chinese = not one.isascii() and (one in other or other in one)  # 个 and 个苹果
    return chinese or bool(set(one.split()) & set(other.split()))


def harmless_before(text: str) -> bool:
    """Return whether the words before a number leave it as it is."""
    text = APPROXIMATE.sub("", text)
    words = [word.lower() for word in WORD.findall(text)]
    if any(word in HARMFUL_BEFORE or word.endswith("n't") or (len(word) == 1 and word not in "ai") for word in words):
        return False
    if HARMFUL_CHINESE.search(text) or MADE_OF.search(text):
        return False
    return not re.sub(r"[\s:,.'\"()¤€£¥₹]", "", CHINESE.sub("", WORD.sub("", text)))

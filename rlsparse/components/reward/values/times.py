"""Times of day, ratios, which look like times, and dates."""

import re
from dataclasses import dataclass

from rlsparse.components.reward.values.interface import Same
from rlsparse.components.reward.values.vocabulary import MONTH, WEEKDAYS

CLOCK = re.compile(r"(\d{1,2})\s*:\s*(\d{2})(?:\s*:\s*(\d{2}))?\s*(?:([ap])\.?\s?m\.?)?", re.IGNORECASE)
HOUR = re.compile(r"(\d{1,2})\s*([ap])\.?\s?m\.?", re.IGNORECASE)
WORDS_OF_TIME = {"noon": "12:00 pm", "midnight": "0:00"}
RATIO = re.compile(r"[^:]+(?::[^:]+)+")


@dataclass(frozen=True)
class Clock:
    """A time of day, or a ratio that looks like one.

    Attributes:
        numbers: hours, minutes and, if stated, seconds.
        half: "a" or "p" for a.m. or p.m., "" where it is not stated.
    """

    numbers: tuple[int, ...]
    half: str

    def accepts(self, answer: str, same: Same) -> bool:
        other = read_clock(re.sub(r"^at\s+|(?<=:\d\d)\s*o'clock$", "", answer))
        if other is None:
            return False
        if self.half and not other.half and not 0 < other.numbers[0] <= 12:
            return other.numbers == self.of_24_hours()
        if not self.half and other.half and not 0 < self.numbers[0] <= 12:
            return self.numbers == other.of_24_hours()
        return self.numbers == other.numbers and (not self.half or self.half == other.half)

    def of_24_hours(self) -> tuple[int, ...]:
        return (self.numbers[0] % 12 + (12 if self.half == "p" else 0), *self.numbers[1:])


def read_clock(text: str) -> Clock | None:
    """Return a time such as 3:30, 9:03:36 a.m. or 5 pm; None for any other text."""
    text = WORDS_OF_TIME.get(text.lower().removeprefix("12 "), text)
    text = re.sub(r"^(\d{1,2})\s*o'clock$", r"\1:00", text)
    found = CLOCK.fullmatch(text)
    if found is not None:
        hour, minute, second, half = found.groups()
        numbers = (int(hour), int(minute)) + ((int(second),) if second else ())
        return Clock(numbers, (half or "").lower())
    found = HOUR.fullmatch(text)
    return None if found is None else Clock((int(found[1]), 0), found[2].lower())


@dataclass(frozen=True)
class Ratio:
    """Terms of a ratio, in their order. Ratios of the same value but with other terms differ."""

    terms: tuple[str, ...]

    def accepts(self, answer: str, same: Same) -> bool:
        found = re.fullmatch(r"(\d+)\s+to\s+(\d+)", answer)
        terms = found.groups() if found is not None else tuple(answer.split(":"))
        return len(terms) == len(self.terms) and all(map(same, map(str.strip, terms), self.terms))


def read_ratio(text: str) -> Ratio | None:
    """Return a ratio such as 3:4 or 1 : √2; None for any other text."""
    terms = tuple(term.strip() for term in text.split(":"))
    short = all(0 < len(term) <= 20 and not re.search("[=<>≤≥,;|{A-Za-z]{2}|[=<>≤≥,;]", term) for term in terms)
    return Ratio(terms) if len(terms) > 1 and short and any(term[-1].isdigit() for term in terms) else None


NAMED_MONTH = "|".join(sorted(MONTH, key=len, reverse=True))
WEEKDAY = re.compile(rf"(?:{'|'.join(WEEKDAYS)})\s*,?\s+", re.IGNORECASE)
WEEKDAY_BEHIND = re.compile(rf"\s*,?\s+(?:{'|'.join(WEEKDAYS)})$", re.IGNORECASE)
DATES = (
    re.compile(
        rf"(?P<month>{NAMED_MONTH})\.?\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?:\s*,?\s+(?P<year>\d{{4}}))?", re.I
    ),
    re.compile(
        rf"(?:the\s+)?(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?(?P<month>{NAMED_MONTH})\.?(?:\s*,?\s+(?P<year>\d{{4}}))?",
        re.I,
    ),
    re.compile(rf"(?P<month>{NAMED_MONTH})\.?\s*,?\s+(?P<year>\d{{4}})", re.I),
    re.compile(r"(?P<year>\d{4})[-/.](?P<month>\d{1,2})[-/.](?P<day>\d{1,2})"),
    re.compile(r"(?:(?P<year>\d{4})\s*年\s*)?(?P<month>\d{1,2})\s*月\s*(?P<day>\d{1,2})\s*[日号]"),
)
AMERICAN = re.compile(r"(?P<month>\d{1,2})/(?P<day>\d{1,2})/(?P<year>\d{4})")


@dataclass(frozen=True)
class Date:
    """A date; the parts that are not stated are 0."""

    year: int
    month: int
    day: int
    weekday: str = ""

    def accepts(self, answer: str, same: Same) -> bool:
        other = read_date(answer)
        if other is None or (self.weekday and other.weekday and self.weekday != other.weekday):
            return False
        return (self.year, self.month, self.day) == (other.year, other.month, other.day)


def read_date(text: str) -> Date | None:
    """Return a date such as May 5, 5th of May 2024 or 2024-05-05; None for any other text or an ambiguous date."""
    named = WEEKDAY.match(text) or WEEKDAY_BEHIND.search(text)
    weekday = "" if named is None else re.sub(r"[\s,]", "", named[0]).lower()
    if named is not None:
        text = text[named.end() :] if named.start() == 0 else text[: named.start()]
    text = re.sub(r"^on\s+", "", text)
    for pattern in (*DATES, AMERICAN):
        found = pattern.fullmatch(text)
        if found is None:
            continue
        parts = found.groupdict()
        month = MONTH[parts["month"].lower()] if parts["month"].isalpha() else int(parts["month"])
        day = int(parts.get("day") or 0)
        if month > 12 or day > 31 or (pattern is AMERICAN and day <= 12 and day != month):
            return None
        return Date(int(parts.get("year") or 0), month, day, weekday)
    return None

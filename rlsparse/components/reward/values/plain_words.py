"""Answers in plain words, and codes such as telephone numbers."""

import re
from dataclasses import dataclass

from rlsparse.components.reward.values.interface import Same
from rlsparse.components.reward.values.vocabulary import SHORT_NAMES

CODE = re.compile(r"\d+(?:-\d+)+")  # a telephone number or the score of a game, not a subtraction
PROSE = re.compile(r"[\w\s'\".,:;!?()/&%-]*")
VERDICTS = ("yes", "no", "true", "false")


@dataclass(frozen=True)
class Words:
    """Words, which must be the same in the same order; upper and lower case and articles do not count."""

    words: str

    def accepts(self, answer: str, same: Same) -> bool:
        found = words_of(answer)
        if found == self.words:
            return True
        if self.words in VERDICTS:  # "Yes, it is even."
            return re.match(r"(?:yes|no|true|false)\b\s*[,.;:!-]", answer, re.IGNORECASE) is not None and (
                re.findall(r"\b(?:yes|no|true|false)\b", found) == [self.words]
            )
        return False


def read_words(gold: str) -> Words | None:
    """Return the words or the code of a gold answer; None if it has none, or has signs of a formula."""
    if CODE.fullmatch(gold):
        return Words(words_of(gold))
    spelled = re.fullmatch(r"[A-Za-z](?:\s+[A-Za-z])+", gold) is not None
    if PROSE.fullmatch(gold) is None or not (spelled or re.search(r"[^\W\d_]{2}", gold)):
        return None
    return Words(words_of(gold))


def words_of(text: str) -> str:
    """Return the words of a text, in lower case, without articles, quotes and punctuation."""
    text = re.sub(r"[\"“”]", "", text.casefold())
    text = re.sub(r"(?<!\d)[.,;:!?](?=\s|$)|[.,;:!?](?=\s*$)", "", text)
    text = re.sub(r"\s+", " ", text).strip(" '")
    text = re.sub(r"^(?:there (?:is|are)|it is|it's|the|an?) (?=\w)", "", text)
    text = re.sub(r"^(?:the|an) (?=\w)", "", text)
    if text.startswith("no "):
        text = text.removesuffix("s")
    return " ".join(SHORT_NAMES.get(word, word) for word in text.split(" "))

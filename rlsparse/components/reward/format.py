"""The reward of the form of a completion."""

from collections.abc import Iterator
from dataclasses import dataclass

from rlsparse.components.reward.base import Completion, Reward

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Format(Reward):
    """1 for a completion in the wanted form, else 0, whether its answer is right or wrong.

    Attributes:
        answer: an answer in the format of the task must be found.
        think: it must begin with exactly one block ``<think>...</think>``, and text must follow. TRL's
            ``think_format_reward`` also accepts a second ``</think>`` and a block without text behind it.
        opened: the prompt ends with ``<think>``, so that the completion begins inside of the block.
    """

    answer: bool
    think: bool
    opened: bool

    def problems(self) -> Iterator[str]:
        """Yield the problem of a form that every completion has."""
        if not (self.answer or self.think):
            yield "answer=false: with think=false every completion has the form; set one of them to true"

    def __call__(self, completion: Completion) -> float:
        if self.answer and not completion.score.answered:
            return 0.0
        text = OPEN + completion.text if self.opened else completion.text
        return float(not self.think or _thinks(text))


def _thinks(text: str) -> bool:
    after = text.partition(CLOSE)[2]
    return text.startswith(OPEN) and text.count(OPEN) == text.count(CLOSE) == 1 and bool(after.strip())

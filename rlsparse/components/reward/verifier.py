"""The verifier: it reads the answer of a completion and decides whether it is right."""

import re
from dataclasses import dataclass, field
from types import TracebackType

from rlsparse.components.reward.answer import ANSWER_FORMATS, LONGEST_CANDIDATE
from rlsparse.components.reward.math_process import MathVerify, VerifierError
from rlsparse.components.reward.values.comparison import equal
from rlsparse.components.reward.values.notation import one_notation
from rlsparse.components.reward.values.number import plain_number, same_size

__all__ = ["MathVerify", "Score", "Verifier", "VerifierError"]

CALCULUS = re.compile(r"\\(?:i{0,2}int|oint|sum|prod|lim)(?![A-Za-z])")
PIECE = re.compile(r"\\[A-Za-z]+|\d+(?:\.\d+)?|[^\s\d(){}\[\]\\]")
DEEPEST_CANDIDATE = 6  # nested brackets; each level at least doubles the time of the parser of math-verify


@dataclass(frozen=True)
class Score:
    """The result of the verifier for one completion.

    Attributes:
        correct: the answer equals the gold answer.
        answered: the completion has an answer in the requested format, right or wrong.
        timed_out: math-verify did not finish within its limits of time and memory; the answer counts as wrong.
        answer: the answer as read from the completion, at most ``LONGEST_CANDIDATE`` characters of it; None if the
            completion has no answer. Two scores are equal whatever their answers are.
    """

    correct: bool
    answered: bool
    timed_out: bool = False
    answer: str | None = field(default=None, compare=False)


class Verifier:
    """Reads and judges final answers. It is a context manager, since it may have to end a process."""

    def __init__(self, answer_format: str, time_limit: float, process: MathVerify | None = None) -> None:
        """Create a verifier.

        Args:
            answer_format: a name in ``ANSWER_FORMATS``.
            time_limit: processor time for one answer in math-verify, seconds.
            process: the process of math-verify, shared with other verifiers; without one, the verifier has its own. It
                starts when it is first needed.
        """
        self._extract = ANSWER_FORMATS[answer_format]
        self._time_limit = time_limit
        self._shared = process is not None
        self.process = process if process is not None else MathVerify()

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if not self._shared:
            self.process.__exit__(kind, error, tb)

    def read(self, completion: str) -> str | None:
        """Return the answer of a completion; None if it has none in the format of this verifier."""
        return self._extract(completion)

    def score(self, completion: str, gold: str) -> Score:
        """Return the score of a completion for a gold answer. No completion can cause an error or an endless loop.

        Raises:
            VerifierError: math-verify cannot be started.
        """
        answer = self.read(completion)
        return Score(correct=False, answered=False) if answer is None else self.judge(answer, gold)

    def judge(self, answer: str, gold: str) -> Score:
        """Return the score of an answer that ``read`` returned.

        Raises:
            VerifierError: math-verify cannot be started.
        """
        kept = answer[:LONGEST_CANDIDATE]
        if answer == gold:
            return Score(correct=True, answered=True, answer=kept)
        if len(answer) > LONGEST_CANDIDATE or len(gold) > LONGEST_CANDIDATE:  # the rules are for short texts
            return Score(correct=False, answered=True, answer=kept)
        value, gold_value = plain_number(answer), plain_number(gold)
        if value is not None and gold_value is not None:  # the most frequent case, and the fastest
            return Score(correct=same_size(value, gold_value), answered=True, answer=kept)
        verdict = equal(answer, gold)
        if verdict is not None:
            return Score(correct=verdict, answered=True, answer=kept)
        if not may_be_reordered(answer, gold):
            return Score(correct=False, answered=True, answer=kept)
        verdict = self.process.equal(answer, gold, self._time_limit)
        return Score(correct=verdict is True, answered=True, timed_out=verdict is None, answer=kept)


def may_be_reordered(answer: str, gold: str) -> bool:
    """Return whether math-verify may compare two formulas: integrals, sums or limits of the same numbers and letters.

    Math-verify ignores what it cannot read and may take a part for the whole. It would accept an answer that lacks
    something of the gold answer, or adds something to it.
    """
    return CALCULUS.search(gold) is not None and nesting(answer) <= DEEPEST_CANDIDATE and pieces(answer) == pieces(gold)


def pieces(text: str) -> list[str]:
    """Return the numbers, letters, commands and signs of a formula in alphabetical order, without brackets."""
    return sorted(PIECE.findall(one_notation(text)))


def nesting(text: str) -> int:
    """Return the maximum depth of nested brackets of all kinds."""
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest

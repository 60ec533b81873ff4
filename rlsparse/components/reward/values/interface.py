"""What every kind of gold answer offers."""

from collections.abc import Callable
from typing import Protocol

Same = Callable[[str, str], bool]  # (answer, gold) -> equal; for the parts of an answer


class Kind(Protocol):
    """A gold answer that has been read."""

    def accepts(self, answer: str, same: Same) -> bool:
        """Return whether an answer is equal to this gold answer.

        Args:
            answer: in one notation, without labels and markup around it.
            same: compares parts of the two answers.
        """
        ...

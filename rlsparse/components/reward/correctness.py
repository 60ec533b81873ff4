"""The reward of a right answer."""

from dataclasses import dataclass

from rlsparse.components.reward.base import Completion, Reward


@dataclass(frozen=True)
class Correctness(Reward):
    """``correct`` or ``wrong`` by the verdict of the verifier, plus ``format`` where an answer was found."""

    correct: float
    wrong: float
    format: float

    @property
    def smallest_reward(self) -> float | None:
        if type(self).__call__ is not Correctness.__call__:  # a subclass with another formula
            return None
        return min(self.wrong, self.wrong + self.format, self.correct + self.format)

    def __call__(self, completion: Completion) -> float:
        score = completion.score
        return (self.correct if score.correct else self.wrong) + (self.format if score.answered else 0.0)

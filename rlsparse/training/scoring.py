"""The verdict on a completion: by the task where it has a check of its own, else by the verifier."""

from dataclasses import dataclass

from rlsparse.batch import Problem
from rlsparse.components.component import ComponentError, origin
from rlsparse.components.reward import Score, Verifier
from rlsparse.components.reward.answer import LONGEST_CANDIDATE
from rlsparse.components.task import Task


@dataclass(frozen=True)
class Scorer:
    """Judges completions of a task.

    Attributes:
        verifier: for the answer format of the task.
    """

    task: Task
    verifier: Verifier

    def __call__(self, completion: str, problem: Problem) -> Score:
        """Return the score of a completion.

        Raises:
            ComponentError: the check of the task returned something else than true, false or None.
            VerifierError: math-verify cannot be started.
        """
        answer = self.verifier.read(completion)
        if answer is None:
            return Score(correct=False, answered=False)
        verdict = self.task.verdict(answer, problem)
        if verdict is None:
            return self.verifier.judge(answer, problem.answer)
        if not isinstance(verdict, bool):
            raise ComponentError(
                f"task ({origin(self.task)}): verdict returned {verdict!r}; return True, False or None"
            )
        return Score(correct=verdict, answered=True, answer=answer[:LONGEST_CANDIDATE])

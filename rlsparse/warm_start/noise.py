"""Solutions spoilt on purpose: a model that learnt the skill and then bad habits is one that RL can improve."""

import random
import re

from rlsparse.batch import Problem
from rlsparse.config.schema import NoiseConfig


def spoil(problem: Problem, config: NoiseConfig, rng: random.Random) -> str:
    """The problem's solution, or by chance an answer without working, or working with a slip in one number."""
    if rng.random() < config.direct:
        answer = _other_number(problem.answer, rng) if rng.random() < config.direct_wrong else problem.answer
        hashed = "####" in problem.solution
        return f"#### {answer}" if hashed else answer
    if rng.random() < config.slip:
        numbers = list(re.finditer(r"\d+", problem.solution))
        slipped = rng.choice(numbers)
        wrong = _slip(slipped[0], rng)
        return problem.solution[: slipped.start()] + wrong + problem.solution[slipped.end() :]
    return problem.solution


def _slip(number: str, rng: random.Random) -> str:
    """A dropped place (200 → 20), or one wrong digit."""
    if len(number) > 1 and number.endswith("0"):
        return number[:-1]
    return _other_number(number, rng)


def _other_number(number: str, rng: random.Random) -> str:
    """The number with one digit replaced by another."""
    place = rng.choice([i for i, c in enumerate(number) if c.isdigit()])
    digit = rng.choice([d for d in "0123456789" if d != number[place]])
    return number[:place] + digit + number[place + 1 :]

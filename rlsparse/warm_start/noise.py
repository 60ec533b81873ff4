"""Noise in the solutions of a warm start: a model that also learns wrong answers leaves RL something to improve."""

import random
import re

from rlsparse.batch import Problem
from rlsparse.config.schema import NoiseConfig


def corrupt(problem: Problem, config: NoiseConfig, rng: random.Random) -> str:
    """Return the solution of a problem, at random replaced by an answer without working or with one wrong number.

    Args:
        config: the probabilities of each kind of noise.
    """
    if rng.random() < config.direct:
        answer = _other_number(problem.answer, rng) if rng.random() < config.direct_wrong else problem.answer
        hashed = "####" in problem.solution
        return f"#### {answer}" if hashed else answer
    if rng.random() < config.slip:
        numbers = list(re.finditer(r"\d+", problem.solution))
        chosen = rng.choice(numbers)
        wrong = _wrong_number(chosen[0], rng)
        return problem.solution[: chosen.start()] + wrong + problem.solution[chosen.end() :]
    return problem.solution


def _wrong_number(number: str, rng: random.Random) -> str:
    """Return the number without its last zero (200 → 20) if it has one; otherwise with one wrong digit."""
    if len(number) > 1 and number.endswith("0"):
        return number[:-1]
    return _other_number(number, rng)


def _other_number(number: str, rng: random.Random) -> str:
    """Return the number with one digit replaced by another."""
    place = rng.choice([i for i, c in enumerate(number) if c.isdigit()])
    digit = rng.choice([d for d in "0123456789" if d != number[place]])
    return number[:place] + digit + number[place + 1 :]

"""Noise in the solutions of a warm start: a model that also learns wrong answers leaves RL something to improve."""

import random
import re
import reprlib
import unicodedata
from collections.abc import Sequence

from rlsparse.batch import Problem
from rlsparse.config.schema import ConfigError, NoiseConfig

NUMBER = re.compile(r"\d+")  # decimal digits of any script


def check_noise(problems: Sequence[Problem], config: NoiseConfig) -> None:
    """Refuse training rows without a solution, and noise in texts without a number, in which none can be made wrong.

    Args:
        problems: the training rows that are used, in their order.
        config: the probabilities of each kind of noise; what is 0 is not checked.

    Raises:
        ConfigError: the first such row.
    """
    answers = config.direct > 0 and config.direct_wrong > 0
    solutions = config.direct < 1 and config.slip > 0
    for number, problem in enumerate(problems, start=1):
        if config.direct < 1 and not problem.solution.strip():
            raise ConfigError(
                f"task: training row {number} has no solution, from which a warm start learns; give each row one"
            )
        if answers and not NUMBER.search(problem.answer):
            raise ConfigError(
                f"warm_start.noise.direct_wrong={config.direct_wrong}: changes a digit of the answer, and that of "
                f"training row {number} has none: {reprlib.repr(problem.answer)}; set warm_start.noise.direct_wrong=0"
            )
        if solutions and not NUMBER.search(problem.solution):
            raise ConfigError(
                f"warm_start.noise.slip={config.slip}: changes a number of the solution, and that of training row "
                f"{number} has none: {reprlib.repr(problem.solution)}; set warm_start.noise.slip=0"
            )


def corrupt(problem: Problem, config: NoiseConfig, rng: random.Random) -> str:
    """Return the solution of a problem, at random replaced by an answer without working or with one wrong number.

    Args:
        problem: has numbers where the noise changes one; see ``check_noise``.
        config: the probabilities of each kind of noise.
    """
    if rng.random() < config.direct:
        answer = _other_number(problem.answer, rng) if rng.random() < config.direct_wrong else problem.answer
        hashed = "####" in problem.solution
        return f"#### {answer}" if hashed else answer
    if rng.random() < config.slip:
        chosen = rng.choice(list(NUMBER.finditer(problem.solution)))
        wrong = _wrong_number(chosen[0], rng)
        return problem.solution[: chosen.start()] + wrong + problem.solution[chosen.end() :]
    return problem.solution


def _wrong_number(number: str, rng: random.Random) -> str:
    """Return the number without its last zero (200 → 20) if it has one; otherwise with one wrong digit."""
    if len(number) > 1 and unicodedata.decimal(number[-1]) == 0:
        return number[:-1]
    return _other_number(number, rng)


def _other_number(number: str, rng: random.Random) -> str:
    """Return the number with one decimal digit replaced by another of the same script."""
    place = rng.choice([i for i, c in enumerate(number) if c.isdecimal()])
    zero = ord(number[place]) - unicodedata.decimal(number[place])
    digit = rng.choice([d for d in map(chr, range(zero, zero + 10)) if d != number[place]])
    return number[:place] + digit + number[place + 1 :]

"""Tasks made by code: worked arithmetic, with a held-out split that no seed can move."""

import hashlib
import random
from collections.abc import Callable, Iterator
from itertools import islice

from rlsparse.batch import Problem
from rlsparse.config.schema import ConfigError, GeneratedTaskConfig

PATIENCE = 10_000  # draws without a new problem after which all have come
HELD_OUT_SHARE = 0.2  # of the problems; which ones is decided by a hash of their numbers

NAMES = ("Tom", "Ann", "Sam", "Mia")
THINGS = ("apples", "books", "pens", "coins")


def multiplication(config: GeneratedTaskConfig) -> tuple[list[Problem], list[Problem]]:
    """Two-digit times one-digit numbers: ``57*4=`` → ``50*4+7*4=200+28=228``."""

    def draw(rng: random.Random) -> Problem:
        a, b = rng.randint(10, 99), rng.randint(2, 9)
        return Problem(question=f"{a}*{b}=", answer=str(a * b), solution=times(a, b))

    return _split(config, draw)


def word_problems(config: GeneratedTaskConfig) -> tuple[list[Problem], list[Problem]]:
    """Templates of one or two steps: ``Tom has 23 apples. Tom gets 45 more. How many apples?``"""
    return _split(config, _word_problem)


def arithmetic(config: GeneratedTaskConfig) -> tuple[list[Problem], list[Problem]]:
    """Both, in turn."""

    def draw(rng: random.Random) -> Problem:
        if rng.random() < 0.5:
            a, b = rng.randint(10, 99), rng.randint(2, 9)
            return Problem(question=f"{a}*{b}=", answer=str(a * b), solution=times(a, b))
        return _word_problem(rng)

    return _split(config, draw)


def times(a: int, b: int) -> str:
    """The worked product of a two-digit and a one-digit number, place by place."""
    tens, ones = a // 10 * 10, a % 10
    return f"{tens}*{b}+{ones}*{b}={tens * b}+{ones * b}={a * b}"


def plus(a: int, b: int) -> str:
    """The worked sum: tens and ones apart."""
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    return f"{a}+{b}={tens}+{ones}={a + b}"


def minus(a: int, b: int) -> str:
    """The worked difference: first the tens, then the ones."""
    return f"{a}-{b}={a - b // 10 * 10}-{b % 10}={a - b}"


def _word_problem(rng: random.Random) -> Problem:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    kind = rng.choice(("gets", "loses", "packs", "gets_loses"))
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    if kind == "gets":
        story, work, answer = f"{name} has {a} {thing}. {name} gets {b} more.", plus(a, b), a + b
    elif kind == "loses":
        a, b = max(a, b), min(a, b)
        story, work, answer = f"{name} has {a} {thing}. {name} loses {b}.", minus(a, b), a - b
    elif kind == "packs":
        b = rng.randint(2, 9)
        story, work, answer = f"{name} has {b} boxes with {a} {thing} each.", times(a, b), a * b
    else:
        c = rng.randint(10, a + b)
        c = min(c, 99)
        story = f"{name} has {a} {thing}. {name} gets {b} more. {name} loses {c}."
        work, answer = f"{plus(a, b)}\n{minus(a + b, c)}", a + b - c
    question = f"{story} How many {thing}?"
    return Problem(question=question, answer=str(answer), solution=f"{work}\n#### {answer}")


def _split(
    config: GeneratedTaskConfig, draw: Callable[[random.Random], Problem]
) -> tuple[list[Problem], list[Problem]]:
    train = list(islice(_draws(draw, config.seed, "train"), config.train_rows))
    # The held-out rows are all different, and the same for every seed.
    test: dict[str, Problem] = {}
    again = 0  # problems in a row that were there already
    for problem in _draws(draw, 0, "test"):
        again = again + 1 if problem.question in test else 0
        test.setdefault(problem.question, problem)
        if len(test) == config.test_rows:
            return train, list(test.values())
        if again == PATIENCE:
            break
    raise ConfigError(
        f"task.test_rows={config.test_rows}: task={config.name} has only {len(test)} different held-out problems"
    )


def _draws(draw: Callable[[random.Random], Problem], seed: int, split: str) -> Iterator[Problem]:
    rng = random.Random(f"{split}/{seed}")
    while True:
        problem = draw(rng)
        if _held_out(problem.question) == (split == "test"):
            yield problem


def _held_out(question: str) -> bool:
    numbers = " ".join("".join(c if c.isdigit() else " " for c in question).split())
    return hashlib.sha256(numbers.encode()).digest()[0] < 256 * HELD_OUT_SHARE

"""Tasks made by code: worked arithmetic, with a held-out split that no seed can change."""

import hashlib
import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, ClassVar, Self

from rlsparse.batch import Problem
from rlsparse.components.component import MOST_ROWS, Range
from rlsparse.components.task.base import Rows, Task
from rlsparse.config.ranges import keys_of
from rlsparse.config.schema import ConfigError

PATIENCE = 10_000  # draws in a row without a new problem, after which there are no more
MOST_DIGITS = 9  # of a factor: a product of two has 18 digits then
HELD_OUT_SHARE = 0.2  # of the problems; which ones is decided by a hash of their numbers

NAMES = ("Tom", "Ann", "Sam", "Mia")
THINGS = ("apples", "books", "pens", "coins")


@dataclass(frozen=True)
class GeneratedTask(Task):
    """Problems drawn at random. A problem is held out by a hash of its numbers, which no seed can change.

    Attributes:
        seed: of the training rows. train_rows, test_rows: how many rows are drawn.
    """

    seed: int
    train_rows: Annotated[int, Range(1, MOST_ROWS)]
    test_rows: Annotated[int, Range(1, MOST_ROWS)]

    @classmethod
    def of(cls, where: str, values: Mapping[str, Any]) -> Self:
        """Return the task with these values; see ``Component.of``.

        The key ``digits`` is left out where the class does not have it and its value is that of the option
        multiplication, so that the yaml file of a user's own task may begin with that option (``defaults:
        [multiplication, _self_]``).
        """
        unread = "digits" not in keys_of(cls) and values.get("digits") == Multiplication.neutral["digits"]
        return super().of(where, {key: one for key, one in values.items() if key != "digits" or not unread})

    @abstractmethod
    def draw(self, rng: random.Random) -> Problem:
        """Return a problem, drawn with the given generator."""

    def held_out_by(self, problem: Problem) -> str:
        """Return the text whose numbers decide whether a problem is held out. Problems with the same are together."""
        return problem.question

    def load(self) -> Rows:
        train = list(islice(self._draws(self.seed, "train"), self.train_rows))
        # the held-out rows are all different, and the same for every seed
        test: dict[str, Problem] = {}
        again = 0  # problems in a row that were drawn before
        for problem in self._draws(0, "test"):
            again = again + 1 if problem.question in test else 0
            test.setdefault(problem.question, problem)
            if len(test) == self.test_rows:
                return Rows(train, list(test.values()))
            if again == PATIENCE:
                break
        raise ConfigError(
            f"task.test_rows={self.test_rows}: task={self.name} has only {len(test)} different held-out problems"
        )

    def _draws(self, seed: int, split: str) -> Iterator[Problem]:
        rng = random.Random(f"{split}/{seed}")
        misses = 0  # draws in a row that belong to the other split
        while misses < PATIENCE:
            problem = self.draw(rng)
            misses += 1
            if _held_out(self.held_out_by(problem)) == (split == "test"):
                misses = 0
                yield problem
        if split == "train":
            raise ConfigError(f"task={self.name}: has no training problems, since all are held out; allow more numbers")


@dataclass(frozen=True)
class Multiplication(GeneratedTask):
    """Products of two numbers: ``57*4=`` → ``50*4+7*4=200+28=228``.

    Attributes:
        digits: of the first and of the second number. A number of one digit is at least 2.
    """

    neutral: ClassVar[Mapping[str, Any]] = {**GeneratedTask.neutral, "digits": [2, 1]}

    digits: Annotated[list[int], Range(1, MOST_DIGITS)]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if len(self.digits) != 2:
            yield f"digits={self.digits}: must be two numbers, such as [3,3]"

    def draw(self, rng: random.Random) -> Problem:
        a, b = (_number(digits, rng) for digits in self.digits)
        return Problem(question=f"{a}*{b}=", answer=str(a * b), solution=times(a, b), columns={"a": a, "b": b})

    def held_out_by(self, problem: Problem) -> str:
        a, b = problem.columns["a"], problem.columns["b"]
        # 57*43 and 43*57 are one problem; factors of different lengths have one order only
        return f"{min(a, b)}*{max(a, b)}" if self.digits[0] == self.digits[1] else problem.question


@dataclass(frozen=True)
class WordProblems(GeneratedTask):
    """Templates of one or two steps: ``Tom has 23 apples. Tom gets 45 more. How many apples?``"""

    def draw(self, rng: random.Random) -> Problem:
        return _word_problem(rng)


@dataclass(frozen=True)
class Arithmetic(GeneratedTask):
    """Multiplication and word problems, one or the other with equal chance."""

    def draw(self, rng: random.Random) -> Problem:
        return _product(rng) if rng.random() < 0.5 else _word_problem(rng)


def _number(digits: int, rng: random.Random) -> int:
    return rng.randint(2, 9) if digits == 1 else rng.randint(10 ** (digits - 1), 10**digits - 1)


def _product(rng: random.Random) -> Problem:
    a, b = _number(2, rng), _number(1, rng)
    return Problem(question=f"{a}*{b}=", answer=str(a * b), solution=times(a, b))


def times(a: int, b: int) -> str:
    """Return the worked product of two numbers, place by place.

    Each digit of b that is not 0 has a line, in which it is multiplied by each digit of a. Several lines are followed
    by one that adds their results.
    """
    rows = [place for place in _places(b) if place]
    lines = [_row(a, place) for place in rows]
    if len(rows) > 1:
        lines.append("+".join(str(a * place) for place in rows) + f"={a * b}")
    return "\n".join(lines)


def _row(a: int, b: int) -> str:
    terms = _places(a)
    chain = ["+".join(f"{term}*{b}" for term in terms), "+".join(str(term * b) for term in terms), str(a * b)]
    return "=".join(dict.fromkeys(chain))


def _places(number: int) -> list[int]:
    """Return the value of each digit of a number: 507 is 500, 0 and 7."""
    text = str(number)
    return [int(digit) * 10 ** (len(text) - 1 - place) for place, digit in enumerate(text)]


def plus(a: int, b: int) -> str:
    """Return the worked sum: tens and ones apart."""
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    return f"{a}+{b}={tens}+{ones}={a + b}"


def minus(a: int, b: int) -> str:
    """Return the worked difference: first the tens, then the ones."""
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


def _held_out(question: str) -> bool:
    numbers = " ".join("".join(c if c.isdigit() else " " for c in question).split())
    return hashlib.sha256(numbers.encode()).digest()[0] < 256 * HELD_OUT_SHARE

"""Countdown: reach a target with given numbers. An answer is an expression, which is evaluated exactly."""

import ast
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

from rlsparse.batch import Problem
from rlsparse.components.component import OneOf, Range
from rlsparse.components.task.answers import in_format
from rlsparse.components.task.generated import PATIENCE, GeneratedTask
from rlsparse.config.schema import ConfigError

LONGEST = 300  # characters of an answer that is evaluated; a right one of 10 numbers has less
EXPRESSION = re.compile(r"[0-9+\-*/() ]+")
SIGNS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
# ways to write the operations, as models do
SPELLINGS = {
    **dict.fromkeys((r"\times", r"\cdot", "×", "·", "⋅", "∗"), "*"),
    **dict.fromkeys((r"\div", "÷", "∕"), "/"),
    **dict.fromkeys(("−", "–"), "-"),
    **dict.fromkeys((r"\left", r"\right", "$", r"\(", r"\)", r"\,", "`"), ""),
    **dict.fromkeys(("[", r"\{", "{"), "("),
    **dict.fromkeys(("]", r"\}", "}"), ")"),
}
SPELLED = re.compile("|".join(map(re.escape, sorted(SPELLINGS, key=len, reverse=True))))


@dataclass(frozen=True)
class Countdown(GeneratedTask):
    """Reach a target with numbers: ``Numbers 3, 5, 7. Target 50.`` → ``(3+7)*5``. As in TinyZero (Pan et al. 2025).

    Each problem has a solution: it is drawn together with one. The numbers stand in ascending order, so that problems
    with the same numbers and target have the same question, and are held out together.

    Attributes:
        numbers: fewest and most numbers of a problem.
        largest: the numbers are drawn from 1 to this one.
        target: smallest and largest target.
        operations: that an expression may use.
        use: whether an answer must use all numbers, each once, or may leave some out (``at_most_once``).
    """

    numbers: Annotated[list[int], Range(2, 10)]
    largest: Annotated[int, Range(1, 10_000)]
    target: Annotated[list[int], Range(0, 1_000_000)]
    operations: Annotated[list[str], OneOf("+", "-", "*", "/")]
    use: Annotated[str, OneOf("all", "at_most_once")]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        for key in ("numbers", "target"):
            ends = getattr(self, key)
            if len(ends) != 2 or ends[0] > ends[-1]:
                yield f"{key}={ends}: must be the smallest and the largest one, such as [2,3]"
        if self.answer_format == "last_number":
            yield (
                "answer_format=last_number: an answer of countdown is an expression, and this format reads one number; "
                "give hash, boxed or answer_is"
            )

    def draw(self, rng: random.Random) -> Problem:
        for _ in range(PATIENCE):
            count = rng.randint(*self.numbers)
            numbers = [rng.randint(1, self.largest) for _ in range(count)]
            text, value = _expression(numbers, self.operations, rng)
            if value is not None and value.denominator == 1 and self.target[0] <= value <= self.target[1]:
                target, given = int(value), sorted(numbers)
                question = f"Numbers {', '.join(map(str, given))}. Target {target}."
                solution = in_format(f"{text}={target}", text, self.answer_format)
                return Problem(question, text, solution, columns={"numbers": given, "target": target})
        raise ConfigError(
            f"task.target={self.target}: no expression of task.numbers={self.numbers} up to "
            f"task.largest={self.largest} with task.operations={self.operations} was found that reaches it; allow more"
        )

    def verdict(self, answer: str, problem: Problem) -> bool | None:
        """Return whether an answer is an expression that reaches the target with the numbers of the problem.

        ``(3+5)*2`` and ``(3+5)*2 = 16`` are the same answer. Nothing is executed: the expression is parsed, and only
        the four operations between whole numbers are evaluated, with fractions. A sign before a number is none of them.
        """
        numbers, target = Counter(problem.columns["numbers"]), problem.columns["target"]
        if len(answer) > LONGEST:
            return False
        text = SPELLED.sub(lambda found: SPELLINGS[found[0]], answer).strip(" .")
        if len(text) > 4 and text[:2] == text[-2:] == "**":  # bold in Markdown
            text = text[2:-2]
        expressions = [_parsed(side) for side in text.split("=")]
        if any(one is None or _value(one) != target for one in expressions):
            return False
        first = expressions[0]
        assert first is not None
        used = Counter(node.value for node in ast.walk(first) if isinstance(node, ast.Constant))
        signs = {SIGNS[type(node.op)] for node in ast.walk(first) if isinstance(node, ast.BinOp)}
        return (used == numbers if self.use == "all" else used <= numbers) and signs <= set(self.operations)


def _expression(numbers: Sequence[int], operations: Sequence[str], rng: random.Random) -> tuple[str, Fraction | None]:
    """Return a random expression that uses each number once, and its value; None where it divides by 0."""
    # (text, value, strength of its last operation): 1 for + and -, 2 for * and /, 3 for a number alone
    parts: list[tuple[str, Fraction, int]] = [(str(one), Fraction(one), 3) for one in numbers]
    while len(parts) > 1:
        left, right = (parts.pop(rng.randrange(len(parts))) for _ in range(2))
        sign = rng.choice(list(operations))
        if sign == "/" and right[1] == 0:
            return "", None
        strength = 1 if sign in "+-" else 2
        value = {"+": left[1] + right[1], "-": left[1] - right[1], "*": left[1] * right[1]}.get(sign)
        if value is None:
            value = left[1] / right[1]
        first = left[0] if left[2] >= strength else f"({left[0]})"
        bare = right[2] > strength or (right[2] == strength and sign in "+*")
        parts.append((f"{first}{sign}{right[0] if bare else f'({right[0]})'}", value, strength))
    return parts[0][0], parts[0][1]


def _parsed(text: str) -> ast.expr | None:
    """Return the tree of an expression of whole numbers, brackets and the four operations; None for any other text."""
    if not EXPRESSION.fullmatch(text):
        return None
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    allowed = (ast.BinOp, ast.Constant, *SIGNS)
    return tree if all(isinstance(node, allowed) for node in ast.walk(tree)) else None


def _value(tree: ast.expr | None) -> Fraction | None:
    """Return the exact value of an expression; None where it divides by 0."""
    if isinstance(tree, ast.Constant):
        return Fraction(tree.value) if type(tree.value) is int else None
    assert isinstance(tree, ast.BinOp)
    left, right = _value(tree.left), _value(tree.right)
    if left is None or right is None:
        return None
    sign = SIGNS[type(tree.op)]
    if sign == "/":
        return left / right if right else None
    results: Mapping[str, Any] = {"+": left + right, "-": left - right, "*": left * right}
    result: Fraction = results[sign]
    return result

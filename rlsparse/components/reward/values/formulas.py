"""Expressions, equations and numbers in other bases, as gold answers."""

import re
from dataclasses import dataclass

from rlsparse.components.reward.values import expression_values
from rlsparse.components.reward.values.expression import Node, parse
from rlsparse.components.reward.values.expression_values import as_fraction, constant, proportional
from rlsparse.components.reward.values.interface import Same
from rlsparse.components.reward.values.quantity import is_name, is_rounding, read_quantity, states
from rlsparse.components.reward.values.units import NO_UNIT, Unit, unit_of, with_raised_exponents
from rlsparse.components.reward.values.vocabulary import UNITS

BASES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
BASE = re.compile(
    rf"\(?\s*([0-9A-Fa-f]+)\s*\)?\s*(?:_\s*\{{?\s*\(?\s*|\(?\s*(?:in\s+)?base[\s-]*)(\d{{1,2}}|{'|'.join(BASES[2:])})\s*\)?\s*[)}}]?",
    re.IGNORECASE,
)
LONG_UNITS = "|".join(sorted((re.escape(one) for one in UNITS if len(one) > 1), key=len, reverse=True))
NAMED_UNIT = rf"(?:{LONG_UNITS})(?:e?s)?(?![A-Za-z])[⁻¹²³⁴]*"
UNIT_BEHIND = re.compile(
    rf"(?<=[\s}})\d])(?:(?:square|cubic|sq|cu)(?![A-Za-z])\.?\s*)?{NAMED_UNIT}"
    rf"(?:\s*(?:/|·|\bper\b)\s*(?:(?:square|cubic)\s+)?(?:{NAMED_UNIT}|[msghL](?![A-Za-z])[⁻¹²³⁴]*))*$"
)
PREFIXED = re.compile(r"0([box])([0-9a-f]+)", re.IGNORECASE)  # 0b1010, 0o17, 0xFF
NAMED = re.compile(
    r"(?P<name>[A-Za-zΑ-ω](?:_(?:\{[^{}]*\}|\w))?'?(?:\s*\([^()=]{1,20}\))?|[A-Z]{2,4}|[∠△][^=<>]{1,20})\s*=\s*(?P<rest>[^=]+)",
    re.DOTALL,
)
RELATIONS = re.compile("[<>≤≥≠≈∈]")


@dataclass(frozen=True)
class Based:
    """The digits of a number in a base other than ten."""

    digits: str
    base: int

    def accepts(self, answer: str, same: Same) -> bool:
        return read_based(answer) == self


def read_based(text: str) -> Based | None:
    """Return a number such as 1010_2 or "1010 (base two)"; None for any other text."""
    prefixed = PREFIXED.fullmatch(text.strip())
    if prefixed is not None:
        text = f"{prefixed[2]}_{ {'b': 2, 'o': 8, 'x': 16}[prefixed[1].lower()] }"
    found = BASE.fullmatch(text.strip())
    if found is None:
        return None
    base = int(found[2]) if found[2].isdigit() else BASES.index(found[2].lower())
    digits = found[1].upper()
    if not 2 <= base <= 16 or any(int(digit, 16) >= base for digit in digits):
        return None
    return Based(digits.lstrip("0") or "0", base)


def in_base_ten(text: str) -> str:
    """Return the digits of a number that is marked as one in base ten; any other text as it is."""
    found = read_based(text)
    return found.digits if found is not None and found.base == 10 else text


@dataclass(frozen=True)
class Named:
    """A value for one name, such as x = 5 or f(x) = x + 1."""

    name: str
    rest: str

    def accepts(self, answer: str, same: Same) -> bool:
        if "=" not in answer:
            return same(answer, self.rest)
        other = read_named(answer) or read_named(" = ".join(reversed(answer.split("="))))
        if other is not None and other.name == self.name and same(other.rest, self.rest):
            return True
        equation, own = read_equation(answer), read_equation(f"{self.name} = {self.rest}")
        return (
            equation is not None
            and own is not None
            and bool(expression_values.symbols(own.zero))
            and own.equals(equation)
        )


def read_named(text: str) -> Named | None:
    """Return the name and the value of an equation with only a name on its left; None for any other text."""
    found = NAMED.fullmatch(text.strip())
    if found is None or RELATIONS.search(text):
        return None
    return Named(re.sub(r"[\s{}]", "", found["name"]), found["rest"].strip())


@dataclass(frozen=True)
class Equation:
    """An equation; those with the same solutions are equal if one is a constant times the other.

    Attributes:
        zero: the left side minus the right side.
    """

    zero: Node

    def accepts(self, answer: str, same: Same) -> bool:
        other = read_equation(answer)
        return other is not None and self.equals(other)

    def equals(self, other: "Equation") -> bool:
        return self.zero == other.zero or proportional(self.zero, other.zero)


def read_equation(text: str) -> Equation | None:
    """Return an equation of two expressions; None for any other text."""
    sides = [parse(side.strip()) for side in text.split("=")]
    if len(sides) != 2 or sides[0] is None or sides[1] is None:
        return None
    return Equation(Node("+", (sides[0], Node("neg", (sides[1],)))))


@dataclass(frozen=True)
class Expression:
    """An expression with the same value, whatever its form.

    Attributes:
        unit: of several letters; ``NO_UNIT`` if none is stated.
    """

    node: Node
    unit: Unit = NO_UNIT

    def accepts(self, answer: str, same: Same) -> bool:
        if "≈" in answer:
            return self._accepts_rounding(answer)
        if "=" in answer:
            return self._accepts_equation(answer)
        answer = re.sub(r"(?<=\d )m([23])$", r"m^\1", answer)  # "5 m2"
        other = read_with_unit(answer)
        if other is not None:
            return self.equals(other)
        own, found = constant(self.node), read_quantity(answer)
        return own is not None and found is not None and states(found.size, own) and found.unit.agrees(self.unit)

    def equals(self, other: "Expression") -> bool:
        """Return whether an answer is equal to this gold answer."""
        if not other.unit.agrees(self.unit):
            return False
        if other.node.kind == "number" and other.node.value is not None:
            own = constant(self.node)
            return own is not None and states(other.node.value, own)
        return expression_values.equal(other.node, self.node)

    def _accepts_equation(self, answer: str) -> bool:
        *sides, last = (side.strip() for side in answer.split("="))
        result = read_with_unit(last)
        if result is None or RELATIONS.search(answer) or not self.equals(result):
            return False
        for side in sides:
            other = read_with_unit(side)
            if not is_name(side) and (other is None or not expression_values.equal(other.node, result.node)):
                return False
        return True

    def _accepts_rounding(self, answer: str) -> bool:
        exact, _, rounded = answer.partition("≈")
        left = read_with_unit(exact)
        if left is None or not self.equals(left):
            return False
        own = constant(left.node)
        size = None if own is None else as_fraction(own)
        return size is not None and is_rounding(rounded, size)


def read_with_unit(text: str) -> Expression | None:
    """Return an expression, with a unit of several letters behind it if there is one; None for any other text."""
    text = text.strip().strip("$¤ \t")
    raised = with_raised_exponents(text)
    found = UNIT_BEHIND.search(raised)
    if found is not None:
        node, unit = parse(raised[: found.start()].strip()), unit_of(" " + found[0])
        if node is not None and unit is not None:
            return Expression(node, unit)
    node = parse(text)
    return None if node is None else Expression(node)


def read_expression(gold: str) -> Expression | None:
    """Return a gold answer that is an expression; None for any other text, words included."""
    if re.fullmatch(r"[A-Za-z'\s-]*[A-Za-z]['\s]*[A-Za-z][A-Za-z'\s-]*", gold):
        return None  # words or a product of letters
    return read_with_unit(gold)

"""Values of expressions at fixed points, and equality by these values.

Two expressions are equal if their values agree at several points (the test of identities by evaluation: Schwartz,
J. ACM 27, 1980). Rational numbers are computed exactly.
"""

import cmath
import math
import random
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache

from rlsparse.components.reward.values.expression import Node

LARGEST_BITS = 20_000  # of an exact number; larger powers are not computed
LARGEST_FACTORIAL = 500
POINTS = 6
ENOUGH_POINTS = 3  # at which both expressions must be defined
TOLERANCE = 1e-9  # relative
NEAR_ZERO = 1e-13  # what a sum that is zero may leave in floating point

Number = Fraction | complex

FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
    "cot": lambda x: 1 / cmath.tan(x),
    "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x),
    "arcsin": cmath.asin,
    "arccos": cmath.acos,
    "arctan": cmath.atan,
    "sinh": cmath.sinh,
    "cosh": cmath.cosh,
    "tanh": cmath.tanh,
    "exp": cmath.exp,
}
LOGARITHMS = {"ln": math.e, "log": 10.0, "lg": 10.0}  # "log" without a base: always the same one, whichever is meant


class Undefined(ArithmeticError):
    """The expression has no value at a point, or one that is not computed."""


def symbols(node: Node) -> frozenset[str]:
    """Return the names of the symbols of an expression, without constants."""
    names = frozenset[str]().union(*(symbols(part) for part in node.parts))
    return names | {node.name} if node.kind == "symbol" and node.name not in ("π", "e", "i") else names


def is_evaluated(node: Node) -> bool:
    """Return whether a constant is written as one number (a fraction, a root, a power), not as a sum or product."""
    if node.kind in ("neg", "group"):
        return is_evaluated(node.parts[0])
    return node.name == "mixed" or node.kind in ("number", "/", "^", "root")


@lru_cache(maxsize=4096)
def point(name: str, index: int) -> Fraction | complex:
    """Return the value of a symbol at a point: positive at the first points, then of both signs."""
    if name == "π":
        return complex(math.pi)
    if name == "e":
        return complex(math.e)
    if name == "i":
        return 1j
    if name == "degree":
        return complex(math.pi / 180)
    draw = random.Random(f"{name} {index}")
    size = Fraction(draw.randint(300, 2900), 1009)
    return size if index < ENOUGH_POINTS or draw.random() < 0.5 else -size


def value_at(node: Node, index: int, real: bool) -> Number:
    """Return the value of an expression at a point.

    Args:
        real: the expression has variables, so roots and logarithms of negative numbers are left out.

    Raises:
        Undefined: it has none there.
    """
    kind = node.kind
    if kind == "number":
        assert node.value is not None
        return node.value
    if kind == "symbol":
        return point(node.name, index)
    operands = [value_at(part, index, real) for part in node.parts]
    try:
        return OPERATIONS[kind](node, operands, real)
    except (ArithmeticError, ValueError) as error:
        raise Undefined(str(error)) from error


def _complex(number: Number) -> complex:
    return complex(float(number)) if isinstance(number, Fraction) else number


def _both(one: Number, other: Number) -> tuple[Fraction, Fraction] | tuple[complex, complex]:
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one, other
    return _complex(one), _complex(other)


def _bits(number: Fraction) -> int:
    return max(number.numerator.bit_length(), number.denominator.bit_length())


def _exact(number: Number) -> Number:
    if isinstance(number, Fraction) and _bits(number) > LARGEST_BITS:
        raise Undefined("too large")
    return number


def _add(node: Node, operands: list[Number], real: bool) -> Number:
    one, other = _both(*operands)
    return one + other


def _multiply(node: Node, operands: list[Number], real: bool) -> Number:
    one, other = _both(*operands)
    return _exact(one * other)


def _divide(node: Node, operands: list[Number], real: bool) -> Number:
    one, other = _both(*operands)
    return _exact(one / other)


def _power(node: Node, operands: list[Number], real: bool) -> Number:
    base, exponent = operands
    if isinstance(exponent, Fraction) and exponent.denominator == 1:
        if abs(exponent) > LARGEST_BITS:
            raise Undefined("too large")
        if isinstance(base, Fraction):
            if _bits(base) * abs(exponent) > LARGEST_BITS:
                raise Undefined("too large")
            return base ** int(exponent)
        return base ** int(exponent)
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 2 and base >= 0:
        root = _square_root(base)
        if root is not None:
            return _power(node, [root, exponent * 2], real)
    return _general_power(_complex(base), _complex(exponent), real)


def _general_power(base: complex, exponent: complex, real: bool) -> complex:
    if real and base.imag == 0 and base.real < 0:
        raise Undefined("power of a negative number")
    return base**exponent


def _square_root(number: Fraction) -> Fraction | None:
    if number < 0:
        return None
    above, below = math.isqrt(number.numerator), math.isqrt(number.denominator)
    return Fraction(above, below) if above**2 == number.numerator and below**2 == number.denominator else None


def _root(node: Node, operands: list[Number], real: bool) -> Number:
    number, degree = operands
    if degree == 2 and isinstance(number, Fraction):
        root = _square_root(number)
        if root is not None:
            return root
    exact = number.real if not isinstance(number, Fraction) and number.imag == 0 else number
    if isinstance(degree, Fraction) and degree.denominator == 1 and degree % 2 == 1 and not isinstance(exact, complex):
        if exact < 0:
            return -_general_power(_complex(-exact), 1 / _complex(degree), real)
        root_ = round(float(exact) ** (1 / float(degree))) if degree > 0 else 0
        if isinstance(number, Fraction) and Fraction(root_) ** int(abs(degree)) == number:
            return Fraction(root_)
    return _general_power(_complex(number), 1 / _complex(degree), real)


def _call(node: Node, operands: list[Number], real: bool) -> Number:
    argument = _complex(operands[0])
    if node.name in LOGARITHMS:
        return _logarithm(argument, LOGARITHMS[node.name], real)
    if real and node.name in ("arcsin", "arccos") and abs(argument) > 1:
        raise Undefined("outside of the domain")
    return FUNCTIONS[node.name](argument)


def _logarithm(argument: complex, base: complex, real: bool) -> complex:
    if real and argument.imag == 0 and argument.real < 0:
        raise Undefined("logarithm of a negative number")
    return cmath.log(argument) / cmath.log(base)


def _factorial(node: Node, operands: list[Number], real: bool) -> Number:
    (n,) = operands
    if isinstance(n, Fraction) and n.denominator == 1 and 0 <= n <= LARGEST_FACTORIAL:
        return Fraction(math.factorial(int(n)))
    if isinstance(n, Fraction) and real and n > -1:
        return complex(math.gamma(float(n) + 1))
    raise Undefined("factorial")


def _binomial(node: Node, operands: list[Number], real: bool) -> Number:
    n, k = operands
    if isinstance(n, Fraction) and isinstance(k, Fraction):
        if n.denominator == k.denominator == 1 and 0 <= n <= 4 * LARGEST_FACTORIAL and 0 <= k <= n:
            return Fraction(math.comb(int(n), int(k)))
        if real and n > 0 and k > 0:
            a, b = float(n), float(k)
            return complex(math.gamma(a + 1) / (math.gamma(b + 1) * math.gamma(a - b + 1)))
    raise Undefined("binomial")


def _whole(node: Node, operands: list[Number], real: bool) -> Number:
    number = operands[0]
    if not isinstance(number, Fraction):
        if number.imag != 0:
            raise Undefined("complex")
        number = Fraction(number.real)
    return Fraction(math.floor(number) if node.kind == "floor" else math.ceil(number))


OPERATIONS: Mapping[str, Callable[[Node, list[Number], bool], Number]] = {
    "+": _add,
    "*": _multiply,
    "/": _divide,
    "^": _power,
    "neg": lambda node, operands, real: -operands[0],
    "group": lambda node, operands, real: operands[0],
    "abs": lambda node, operands, real: (
        abs(operands[0]) if isinstance(operands[0], Fraction) else complex(abs(operands[0]))
    ),
    "root": _root,
    "call": _call,
    "log": lambda node, operands, real: _logarithm(_complex(operands[0]), _complex(operands[1]), real),
    "!": _factorial,
    "binom": _binomial,
    "floor": _whole,
    "ceil": _whole,
}


def close(one: Number, other: Number) -> bool:
    """Return whether two values are equal: exactly where both are exact."""
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one == other
    try:
        first, second = _complex(one), _complex(other)
    except OverflowError:
        return False
    absolute = NEAR_ZERO if 0 in (first, second) else 0.0  # small values are compared by their digits, too
    return cmath.isclose(first, second, rel_tol=TOLERANCE, abs_tol=absolute)


def constant(node: Node) -> Number | None:
    """Return the value of an expression without variables; None if it has variables or no value."""
    if symbols(node):
        return None
    try:
        return value_at(node, 0, real=False)
    except Undefined:
        return None


def pairs(one: Node, other: Node) -> list[tuple[Number, Number]]:
    """Return the values of two expressions at the points where both are defined."""
    real = bool(symbols(one) | symbols(other))
    found = []
    for index in range(POINTS if real else 1):
        try:
            found.append((value_at(one, index, real), value_at(other, index, real)))
        except Undefined:
            continue
    return found


def equal(one: Node, other: Node) -> bool:
    """Return whether two expressions have the same values."""
    if one == other:
        return True
    found = pairs(one, other)
    enough = ENOUGH_POINTS if symbols(one) | symbols(other) else 1
    return len(found) >= enough and all(close(a, b) for a, b in found)


def proportional(one: Node, other: Node) -> bool:
    """Return whether one expression is a constant times the other, so that both are zero at the same points."""
    if symbols(one) != symbols(other):
        return False
    ratios = []
    for a, b in pairs(one, other):
        if close(a, Fraction(0)) or close(b, Fraction(0)):
            return False
        ratios.append(_complex(a) / _complex(b))
    return len(ratios) >= ENOUGH_POINTS and all(close(ratio, ratios[0]) for ratio in ratios)

"""Values of expressions at fixed points, and equality by these values.

Two expressions are equal if their values agree at several points (the test of identities by evaluation: Schwartz,
J. ACM 27, 1980). Rational numbers are computed exactly, all others with mpmath to ``DIGITS`` digits.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from rlsparse.components.reward.values.expression import FUNCTIONS, LOGARITHMS, Node

LARGEST_BITS = 20_000  # of an exact number; larger powers are not computed
LARGEST_FACTORIAL = 500
LARGEST_ROOT = 100  # degree of a root of a rational number that is looked for exactly
LARGEST_MAGNITUDE = 64  # bits of the argument of an exponential or a sine; it costs as many digits of the result
# The scale and the sign of all symbols at each point. Where the sign is 0, each symbol has its own: a bit of its code.
# At the first points, roots and logarithms are defined. Large values of both signs tell |x - 5| from 5 - x.
POINTS = (
    *((1, 1), (1, 1), (1, 1), (1, -1), (1, -1)),
    *((1, 0), (1, 0), (1, 0), (1, 0), (1, 0), (1000, 0)),
    *((30, 1), (30, -1), (1000, 1), (1000, -1)),
)
FIRST_MIXED = POINTS.index((1, 0))
EVALUATED = ("number", "symbol", "/", "^", "root", "!", "!!", "binom", "log", "call", "floor", "ceil", "abs")
ENOUGH_POINTS = 3  # at which both expressions must be defined

# decimal digits: of the computation; in which equal values agree; from which on a difference is an error of rounding
DIGITS, EQUAL_DIGITS, ZERO_DIGITS = 300, 250, 265
MOST_DIGITS_APART = 240  # of two terms; the smaller one would be lost in the larger one

Number = Any  # a Fraction where the value is exact, else a complex number of mpmath


class Undefined(ArithmeticError):
    """The expression has no value at a point, or one that is not computed."""


class OutsideDomain(Undefined):
    """The expression has a logarithm or a root of a negative number at a point."""


@lru_cache(maxsize=1)
def precise() -> Any:
    """Return a context of mpmath with ``DIGITS`` digits; the import takes a tenth of a second, so few runs need it."""
    import mpmath

    context = mpmath.MPContext()
    context.dps = DIGITS
    return context


@lru_cache(maxsize=8)
def _tiny(digits: int) -> Any:
    return precise().mpf(10) ** -digits


def symbols(node: Node) -> frozenset[str]:
    """Return the names of the symbols of an expression, without constants."""
    names = frozenset[str]().union(*(symbols(part) for part in node.parts))
    return names | {node.name} if node.kind == "symbol" and node.name not in ("π", "e", "i", "degree") else names


def is_evaluated(node: Node) -> bool:
    """Return whether a constant is written as one number, a fraction, a root, a power or the value of one function.

    A sum or a product is not, except for a multiple of a root or of a named constant, such as 2π.
    """
    if node.kind in ("neg", "group"):
        return is_evaluated(node.parts[0])
    if node.kind == "*" and node.name == "implicit":
        return node.parts[0].kind == "number" and node.parts[1].kind in ("root", "symbol")
    return node.name == "mixed" or node.kind in EVALUATED


@lru_cache(maxsize=4096)
def point(name: str, index: int) -> Number:
    """Return the value of a symbol at a point of ``POINTS``."""
    if name in ("π", "e", "i", "degree"):
        context = precise()
        return context.mpc({"π": context.pi, "e": context.e, "i": 1j, "degree": context.pi / 180}[name])
    draw = random.Random(f"{name} {index}")
    scale, sign = POINTS[index]
    size = scale * Fraction(draw.randint(300, 2900), 1009)
    if sign == 0:  # the codes of two letters differ in one of the six lowest bits, so that |x y| is not x y
        code = ord(name[0]) + 7 * sum(map(ord, name[1:]))
        sign = -1 if code >> (index - FIRST_MIXED) & 1 else 1
    return sign * size


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
        if node.name == "∞":
            raise Undefined("infinite")
        return point(node.name, index)
    operands = [value_at(part, index, real) for part in node.parts]
    try:
        return _clean(OPERATIONS[kind](node, operands, real))
    except OutsideDomain:
        raise
    except (ArithmeticError, ValueError, NotImplementedError) as error:
        raise Undefined(str(error)) from error


def _clean(number: Number) -> Number:
    """Return a number without a real or imaginary part that is only an error of rounding.

    Raises:
        Undefined: it is infinite, no number or too long.
    """
    if isinstance(number, Fraction):
        if _bits(number) > LARGEST_BITS:
            raise Undefined("too large")
        return number
    context = precise()
    number = context.mpc(number)
    if not context.isfinite(number):
        raise Undefined("infinite")
    real, imaginary = abs(number.real), abs(number.imag)
    if imaginary and imaginary <= real * _tiny(ZERO_DIGITS):
        return context.mpc(number.real, 0)
    return context.mpc(0, number.imag) if real and real <= imaginary * _tiny(ZERO_DIGITS) else number


def approximate(number: Number) -> Any:
    """Return a number as a complex number of mpmath."""
    if not isinstance(number, Fraction):
        return number
    return precise().mpc(precise().mpf(number.numerator) / number.denominator)


def is_real(number: Number) -> bool:
    """Return whether a number has no imaginary part."""
    return isinstance(number, Fraction) or number.imag == 0


def as_fraction(number: Number) -> Fraction | None:
    """Return the value of a real number, to ``DIGITS`` digits; None for a complex or a very large one."""
    if isinstance(number, Fraction):
        return number
    if number.imag != 0 or (number.real != 0 and abs(precise().mag(number.real)) > LARGEST_BITS):
        return None
    sign, mantissa, exponent, _ = number.real._mpf_
    return Fraction(-mantissa if sign else mantissa) * Fraction(2) ** exponent


def _both(one: Number, other: Number) -> tuple[Number, Number]:
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one, other
    return approximate(one), approximate(other)


def _bits(number: Fraction) -> int:
    return max(number.numerator.bit_length(), number.denominator.bit_length())


def _add(node: Node, operands: list[Number], real: bool) -> Number:
    one, other = _both(*operands)
    total = one + other
    if isinstance(total, Fraction):
        return total
    larger, smaller = max(abs(one), abs(other)), min(abs(one), abs(other))
    if smaller and smaller <= larger * _tiny(MOST_DIGITS_APART):
        raise Undefined("the digits do not suffice for this sum")
    return Fraction(0) if abs(total) <= larger * _tiny(ZERO_DIGITS) else total


def _multiply(node: Node, operands: list[Number], real: bool) -> Number:
    one, other = _both(*operands)
    return one * other


def _divide(node: Node, operands: list[Number], real: bool) -> Number:
    one, other = _both(*operands)
    return one / other


def _power(node: Node, operands: list[Number], real: bool) -> Number:
    base, exponent = operands
    if isinstance(exponent, Fraction) and exponent.denominator == 1:
        if base == exponent == 0:
            raise Undefined("zero to the power of zero")
        size = _bits(base) if isinstance(base, Fraction) else 1
        if size * abs(exponent) > LARGEST_BITS:
            raise Undefined("too large")
        return base ** int(exponent)
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        root = _exact_root(base, exponent.denominator)
        if root is not None:
            return _power(node, [root, Fraction(exponent.numerator)], real)
    return _general_power(approximate(base), approximate(exponent), real)


def _general_power(base: Any, exponent: Any, real: bool) -> Any:
    if real and base.imag == 0 and base.real < 0:
        raise OutsideDomain("power of a negative number")
    if base == 0:
        if exponent.imag == 0 and exponent.real > 0:
            return Fraction(0)
        raise Undefined("power of zero")
    return _function("exp", precise().log(base) * exponent)


def _exact_root(number: Fraction, degree: int) -> Fraction | None:
    """Return the root of a number that is no less than zero; None where it is irrational or not looked for."""
    if number < 0 or not 0 < degree <= LARGEST_ROOT:
        return None
    above, below = (_integer_root(part, degree) for part in (number.numerator, number.denominator))
    return None if above is None or below is None else Fraction(above, below)


def _integer_root(number: int, degree: int) -> int | None:
    if degree == 2:
        root = math.isqrt(number)
    else:  # Newton's method, from above
        root = 1 << -(-number.bit_length() // degree)
        while root > 0 and (better := ((degree - 1) * root + number // root ** (degree - 1)) // degree) < root:
            root = better
    return root if root**degree == number else None


def _root(node: Node, operands: list[Number], real: bool) -> Number:
    number, degree = operands
    if isinstance(degree, Fraction) and degree.denominator == 1 and degree > 0:
        negative = is_real(number) and (number if isinstance(number, Fraction) else number.real) < 0
        if negative and degree % 2 == 1:
            return -_root(node, [-number, degree], real)
        exact = _exact_root(number, int(degree)) if isinstance(number, Fraction) else None
        if exact is not None:
            return exact
    return _general_power(approximate(number), 1 / approximate(degree), real)


def _call(node: Node, operands: list[Number], real: bool) -> Number:
    argument = approximate(operands[0])
    if node.name in LOGARITHMS:
        base = LOGARITHMS[node.name]
        return _logarithm(operands[0], Fraction(base) if base else point("e", 0), real)
    if real and node.name in ("arcsin", "arccos") and abs(argument) > 1:
        raise Undefined("outside of the domain")
    return _function(FUNCTIONS[node.name], argument)


def _function(name: str, argument: Any) -> Any:
    context = precise()
    if argument != 0 and context.mag(argument) > LARGEST_MAGNITUDE:
        raise Undefined("too large")
    if _loses_digits(name, argument):
        raise Undefined("the digits do not suffice for this function")
    if name in ("tan", "sec"):
        cosine = _function("cos", argument)
        return (_function("sin", argument) if name == "tan" else 1) / cosine
    if name in ("cot", "csc"):
        sine = _function("sin", argument)
        return (_function("cos", argument) if name == "cot" else 1) / sine
    result = getattr(context, name)(argument)
    if name in ("sin", "cos") and abs(result) <= abs(argument) * _tiny(ZERO_DIGITS):
        return context.mpc(0)
    return result


def _loses_digits(name: str, argument: Any) -> bool:
    """Return whether a function is so flat at an argument that another argument would have the same value."""
    if name in ("exp", "cos", "cosh", "sec"):
        return argument != 0 and abs(argument) < _tiny(MOST_DIGITS_APART // 2)
    if name == "tanh":
        return bool(abs(argument) > MOST_DIGITS_APART // 2)
    return name == "atan" and abs(argument) * _tiny(MOST_DIGITS_APART) > 1


def _logarithm(argument: Number, base: Number, real: bool) -> Number:
    return _natural_logarithm(argument, real) / _natural_logarithm(base, real)


def _natural_logarithm(number: Number, real: bool) -> Any:
    argument = approximate(number)
    if argument == 0:
        raise Undefined("logarithm of zero")
    if real and argument.imag == 0 and argument.real < 0:
        raise OutsideDomain("logarithm of a negative number")
    distance = abs(argument - 1)
    if number != 1 and distance <= _tiny(DIGITS - EQUAL_DIGITS):
        if isinstance(number, Fraction) or distance > _tiny(ZERO_DIGITS):
            raise Undefined("the digits do not suffice for this logarithm")
        return precise().mpc(0)
    return precise().log(argument)


def _factorial(node: Node, operands: list[Number], real: bool) -> Number:
    (n,) = operands
    if isinstance(n, Fraction) and n.denominator == 1 and 0 <= n <= LARGEST_FACTORIAL:
        return Fraction(math.factorial(int(n)))
    if isinstance(n, Fraction) and real and -1 < n <= LARGEST_FACTORIAL and n.denominator != 1:
        return precise().gamma(approximate(n + 1))
    raise Undefined("factorial")


def _double_factorial(node: Node, operands: list[Number], real: bool) -> Number:
    (n,) = operands
    if isinstance(n, Fraction) and n.denominator == 1 and 0 <= n <= LARGEST_FACTORIAL:
        return Fraction(math.prod(range(int(n), 0, -2)))
    raise Undefined("double factorial")


def _binomial(node: Node, operands: list[Number], real: bool) -> Number:
    n, k = operands
    if isinstance(n, Fraction) and isinstance(k, Fraction):
        if n.denominator == k.denominator == 1 and 0 <= n <= 4 * LARGEST_FACTORIAL and 0 <= k <= n:
            return Fraction(math.comb(int(n), int(k)))
        if real and min(n, k) > 0 and max(n, k) <= LARGEST_FACTORIAL:
            gamma = precise().gamma
            return gamma(approximate(n + 1)) / (gamma(approximate(k + 1)) * gamma(approximate(n - k + 1)))
    raise Undefined("binomial")


def _whole(node: Node, operands: list[Number], real: bool) -> Number:
    number = as_fraction(operands[0])
    if number is None:
        raise Undefined("floor of a complex or a very large number")
    return Fraction(math.floor(number) if node.kind == "floor" else math.ceil(number))


OPERATIONS: Mapping[str, Callable[[Node, list[Number], bool], Number]] = {
    "+": _add,
    "*": _multiply,
    "/": _divide,
    "^": _power,
    "neg": lambda node, operands, real: -operands[0],
    "group": lambda node, operands, real: operands[0],
    "abs": lambda node, operands, real: abs(operands[0]),
    "root": _root,
    "call": _call,
    "log": lambda node, operands, real: _logarithm(operands[0], operands[1], real),
    "!": _factorial,
    "!!": _double_factorial,
    "binom": _binomial,
    "floor": _whole,
    "ceil": _whole,
}


def close(one: Number, other: Number) -> bool:
    """Return whether two values are equal: exactly where both are exact, else in ``EQUAL_DIGITS`` digits."""
    one, other = _both(one, other)
    if isinstance(one, Fraction):
        return one == other
    return bool(abs(one - other) <= max(abs(one), abs(other)) * _tiny(EQUAL_DIGITS))


def less(one: Number, other: Number) -> bool:
    """Return whether one real value is below another one."""
    one, other = _both(one, other)
    return one < other if isinstance(one, Fraction) else bool(one.real < other.real and not close(one, other))


def constant(node: Node) -> Number | None:
    """Return the value of an expression without variables; None if it has variables or no value."""
    if symbols(node):
        return None
    try:
        return value_at(node, 0, real=False)
    except Undefined:
        return None


def _pairs(one: Node, other: Node) -> Iterator[tuple[Number, Number]]:
    """Yield the values of two expressions at the points where both are defined."""
    real = bool(symbols(one) | symbols(other))
    for index in range(len(POINTS) if real else 1):
        try:
            found = value_at(one, index, real), value_at(other, index, real)
        except Undefined:
            continue
        yield found


def _same_domain(one: Node, other: Node) -> bool:
    """Return whether two expressions in one variable have logarithms of negative numbers at the same points."""
    if len(symbols(one) | symbols(other)) != 1 or not (_has_logarithm(one) or _has_logarithm(other)):
        return True
    return all(_in_domain(one, index) == _in_domain(other, index) for index in range(len(POINTS)))


def _has_logarithm(node: Node) -> bool:
    return node.kind == "log" or node.name in LOGARITHMS or any(map(_has_logarithm, node.parts))


def _in_domain(node: Node, index: int) -> bool:
    try:
        value_at(node, index, real=True)
    except OutsideDomain:
        return False
    except Undefined:
        pass
    return True


def equal(one: Node, other: Node) -> bool:
    """Return whether two expressions have the same values."""
    if one == other:
        return True
    enough = ENOUGH_POINTS if symbols(one) | symbols(other) else 1
    count = 0
    for a, b in _pairs(one, other):
        if not close(a, b):
            return False
        count += 1
    return count >= enough and _same_domain(one, other)


def proportional(one: Node, other: Node) -> bool:
    """Return whether one expression is a constant times the other, so that both are zero at the same points."""
    if symbols(one) != symbols(other):
        return False
    first, count = None, 0
    for a, b in (_both(*pair) for pair in _pairs(one, other)):
        if a == 0 or b == 0:
            return False
        first = a / b if first is None else first
        if not close(a / b, first):
            return False
        count += 1
    return count >= ENOUGH_POINTS

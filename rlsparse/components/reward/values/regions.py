"""Sets of real numbers: intervals, their unions, inequalities; and chains of inequalities between expressions."""

import re
from dataclasses import dataclass
from fractions import Fraction

from rlsparse.components.reward.values import evaluation
from rlsparse.components.reward.values.evaluation import Number, close, constant
from rlsparse.components.reward.values.expression import parse
from rlsparse.components.reward.values.kind import Same

INFINITY = float("inf")
RELATION = re.compile(r"<=|>=|[<>≤≥≠]")
MEMBER = re.compile(r"[A-Za-zα-ω](?:_\{?\w+\}?)?\s*∈\s*")
BUILDER = re.compile(r"⦃\s*([A-Za-zα-ω])\s*(?:∈\s*ℝ\s*)?[|:]\s*(.+)⦄", re.DOTALL)
UNION = re.compile(r"\s*(?:∪|∨|\bor\b)\s*")
VARIABLE = re.compile(r"[A-Za-zα-ω](?:_\{?\w+\}?)?")
OPPOSITE = {">": "<", "≥": "≤", ">=": "≤", "<=": "≤"}


@dataclass(frozen=True)
class Piece:
    """An interval, or one number with both ends closed.

    Attributes:
        closed: whether the lower and the upper end belong to it.
    """

    low: Number | float
    high: Number | float
    closed: tuple[bool, bool]

    def equals(self, other: "Piece") -> bool:
        return self.closed == other.closed and _close(self.low, other.low) and _close(self.high, other.high)


def _close(one: Number | float, other: Number | float) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        return one == other
    return close(one, other)


def _order(number: Number | float) -> float:
    return number.real if isinstance(number, complex) else float(number)


@dataclass(frozen=True)
class Region:
    """A set of real numbers as pieces in ascending order."""

    pieces: tuple[Piece, ...]
    variable: str = ""

    def accepts(self, answer: str, same: Same) -> bool:
        other = read_region(answer)
        return other is not None and self.equals(other)

    def equals(self, other: "Region") -> bool:
        if self.variable and other.variable and self.variable != other.variable:
            return False
        pairs = zip(self.pieces, other.pieces, strict=False)
        return len(self.pieces) == len(other.pieces) and all(one.equals(two) for one, two in pairs)


def read_region(text: str) -> Region | None:
    """Return a set of numbers: an interval, an inequality in one variable, or a union of them; else None."""
    text = text.strip()
    builder = BUILDER.fullmatch(text)
    if builder is not None:
        inner = read_region(builder[2])
        return inner if inner is not None and inner.variable in ("", builder[1]) else None
    member = MEMBER.match(text)
    variable = "" if member is None else text[: member.end()].rstrip(" ∈")
    found: list[Piece] = []
    names = {variable} if variable else set()
    for part in UNION.split(text[member.end() :] if member is not None else text):
        pieces = _interval(part) or _points(part)
        if pieces is None:
            relation = _inequality(part)
            if relation is None:
                return None
            names.add(relation[0])
            pieces = relation[1]
        found += pieces
    if len(names) > 1:
        return None
    try:
        found.sort(key=lambda piece: (_order(piece.low), _order(piece.high)))
    except OverflowError:
        return None
    return Region(tuple(found), "".join(names))


def is_written_as_region(text: str) -> bool:
    """Return whether a text can only be a set of numbers: (1, 2) could also be a point."""
    if RELATION.search(text) or "∪" in text or "∈" in text or text == "ℝ":
        return True
    return (
        len(text) > 2
        and text[0] in "(["
        and text[-1] in ")]"
        and ("∞" in text or (text[0], text[-1]) in (("(", "]"), ("[", ")")))
    )


def _interval(text: str) -> list[Piece] | None:
    text = text.strip()
    if text == "ℝ":
        return [Piece(-INFINITY, INFINITY, (False, False))]
    if text[:1] not in ("(", "[") or text[-1:] not in (")", "]"):
        return None
    ends = text[1:-1].split(",")
    if len(ends) != 2:
        return None
    low, high = (_end(end) for end in ends)
    if low is None or high is None or _order(low) > _order(high):
        return None
    return [Piece(low, high, (text[0] == "[", text[-1] == "]"))]


def _points(text: str) -> list[Piece] | None:
    text = text.strip()
    if not (text.startswith("⦃") and text.endswith("⦄")):
        return None
    values = [_end(one) for one in text[1:-1].split(",")]
    return [Piece(one, one, (True, True)) for one in values if one is not None] if None not in values else None


def _end(text: str) -> Number | float | None:
    text = text.strip()
    if text.replace(" ", "") in ("∞", "+∞"):
        return INFINITY
    if text.replace(" ", "") == "-∞":
        return -INFINITY
    node = parse(text)
    number = None if node is None else constant(node)
    if number is None or isinstance(number, Fraction):
        return number
    return number if number.imag == 0 and abs(number) < INFINITY else None


def _inequality(text: str) -> tuple[str, list[Piece]] | None:
    """Return the variable and the numbers that satisfy a < x, x ≥ a, a < x ≤ b or x ≠ a; None for any other text."""
    chain = _chain(text)
    if chain is None:
        return None
    sides, relations = chain
    places = [i for i, side in enumerate(sides) if VARIABLE.fullmatch(side) and side not in ("e", "i")]
    if len(places) != 1 or len(sides) > 3:
        return None
    ends = [None if i == places[0] else _end(side) for i, side in enumerate(sides)]
    if any(end is None for i, end in enumerate(ends) if i != places[0]):
        return None
    name = sides[places[0]]
    if len(sides) == 2:
        end = ends[1 - places[0]]
        assert end is not None
        if relations[0] == "≠":
            return name, [Piece(-INFINITY, end, (False, False)), Piece(end, INFINITY, (False, False))]
        closed = relations[0] == "≤"
        if places[0] == 0:
            return name, [Piece(-INFINITY, end, (False, closed))]
        return name, [Piece(end, INFINITY, (closed, False))]
    low, high = ends[0], ends[2]
    if places[0] != 1 or "≠" in relations or low is None or high is None or _order(low) > _order(high):
        return None
    return name, [Piece(low, high, (relations[0] == "≤", relations[1] == "≤"))]


def _chain(text: str) -> tuple[list[str], list[str]] | None:
    """Return the sides and the relations of a chain, all of them ascending; None for any other text."""
    relations = RELATION.findall(text)
    sides = [side.strip() for side in RELATION.split(text)]
    if not relations or not all(sides) or "=" in "".join(sides):
        return None
    if all(relation in (">", "≥", ">=") for relation in relations):
        sides, relations = sides[::-1], relations[::-1]
    elif any(relation in (">", "≥", ">=") for relation in relations):
        return None
    return sides, [OPPOSITE.get(relation, relation) for relation in relations]


@dataclass(frozen=True)
class Chain:
    """A chain of inequalities between expressions, such as b > a > c."""

    sides: tuple[str, ...]
    relations: tuple[str, ...]

    def accepts(self, answer: str, same: Same) -> bool:
        other = read_chain(answer)
        if other is None or other.relations != self.relations or len(other.sides) != len(self.sides):
            return False
        pairs = [(parse(one), parse(two)) for one, two in zip(self.sides, other.sides, strict=True)]
        return all(one is not None and two is not None and evaluation.equal(one, two) for one, two in pairs)


def read_chain(text: str) -> Chain | None:
    """Return a chain of inequalities; None for any other text."""
    chain = _chain(text)
    return None if chain is None or "," in text else Chain(tuple(chain[0]), tuple(chain[1]))

"""Sets of real numbers: intervals, their unions, inequalities; and chains of inequalities between expressions."""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cmp_to_key

from rlsparse.components.reward.values import expression_values
from rlsparse.components.reward.values.expression import parse
from rlsparse.components.reward.values.expression_values import Number, close, constant, is_real
from rlsparse.components.reward.values.interface import Same

INFINITY = float("inf")
RELATION = re.compile(r"<=|>=|[<>≤≥≠]")
MEMBER = re.compile(r"[A-Za-zα-ω](?:_\{?\w+\}?)?\s*∈\s*")
BUILDER = re.compile(r"⦃\s*([A-Za-zα-ω])\s*(?:∈\s*ℝ\s*)?[|:]\s*(.+)⦄", re.DOTALL)
UNION = re.compile(r"\s*(?:∪|∨|\bor\b)\s*")
INTERSECTION = re.compile(r"\s*(?:∧|\band\b)\s*")
COMMA = re.compile(r"\s*[,;]\s*")
VARIABLE = re.compile(r"[A-Za-zα-ω](?:_\{?\w+\}?)?")
OPPOSITE = {">": "<", "≥": "≤", ">=": "≤", "<=": "≤"}

ALL_REAL = re.compile(r"(?:the\s+set\s+of\s+)?all\s+real(?:\s+number)?s", re.IGNORECASE)
BOUNDS = {
    **dict.fromkeys(("at least", "no less than", "not less than", "greater than or equal to"), "≥"),
    **dict.fromkeys(("at most", "no more than", "not more than", "less than or equal to"), "≤"),
    **dict.fromkeys(("greater than", "more than"), ">"),
    "less than": "<",
}
BOUND_IN_WORDS = re.compile(rf"({'|'.join(sorted(BOUNDS, key=len, reverse=True))})\s+(?=[-\d.\\])", re.IGNORECASE)
MULTIPLE = re.compile(rf"(?P<factor>-|-?\d{{1,9}}(?:\.\d{{1,9}})?)\s*[·*]?\s*(?P<name>{VARIABLE.pattern})")

End = Number  # of an interval: a value, or a float for minus or plus infinity


def _less(one: End, other: End) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        return bool((one == -INFINITY) > (other == -INFINITY) or (one == INFINITY) < (other == INFINITY))
    return expression_values.less(one, other)


def _same_end(one: End, other: End) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        return isinstance(one, float) and isinstance(other, float) and one == other
    return close(one, other)


@dataclass(frozen=True)
class Piece:
    """An interval, or one number with both ends closed.

    Attributes:
        closed: whether the lower and the upper end belong to it.
    """

    low: End
    high: End
    closed: tuple[bool, bool]

    def equals(self, other: "Piece") -> bool:
        ends = _same_end(self.low, other.low) and _same_end(self.high, other.high)
        return ends and self.closed == other.closed

    def is_empty(self) -> bool:
        if _same_end(self.low, self.high):
            return self.closed != (True, True)
        return _less(self.high, self.low)

    def common(self, other: "Piece") -> "Piece":
        """Return the intersection with another interval; it may be empty."""
        (low, low_closed), (high, high_closed) = (self.low, self.closed[0]), (self.high, self.closed[1])
        if _same_end(low, other.low):
            low_closed = low_closed and other.closed[0]
        elif _less(low, other.low):
            low, low_closed = other.low, other.closed[0]
        if _same_end(high, other.high):
            high_closed = high_closed and other.closed[1]
        elif _less(other.high, high):
            high, high_closed = other.high, other.closed[1]
        return Piece(low, high, (low_closed, high_closed))

    def touches(self, other: "Piece") -> bool:
        """Return whether this interval and one that begins no lower are one interval together."""
        if _same_end(self.high, other.low):
            return self.closed[1] or other.closed[0]
        return _less(other.low, self.high)

    def joined(self, other: "Piece") -> "Piece":
        """Return the union with an interval that begins no lower and touches this one."""
        low_closed = self.closed[0] or (_same_end(self.low, other.low) and other.closed[0])
        if _same_end(self.high, other.high):
            return Piece(self.low, self.high, (low_closed, self.closed[1] or other.closed[1]))
        end = other if _less(self.high, other.high) else self
        return Piece(self.low, end.high, (low_closed, end.closed[1]))


def _union(pieces: list[Piece]) -> list[Piece]:
    def order(one: Piece, other: Piece) -> int:
        return int(_less(other.low, one.low)) - int(_less(one.low, other.low))

    found: list[Piece] = []
    for piece in sorted(pieces, key=cmp_to_key(order)):
        if found and found[-1].touches(piece):
            found[-1] = found[-1].joined(piece)
        else:
            found.append(piece)
    return found


def _intersection(one: list[Piece], other: list[Piece]) -> list[Piece]:
    common = [a.common(b) for a in one for b in other]
    return [piece for piece in common if not piece.is_empty()]


@dataclass(frozen=True)
class Region:
    """A set of real numbers as disjoint pieces in ascending order."""

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
    """Return a set of numbers: an interval, an inequality in one variable, a union or an intersection; else None."""
    text = text.strip()
    words = BOUND_IN_WORDS.match(text)
    if words is not None:  # it names no variable
        bound = _inequality(f"x {BOUNDS[words[1].lower()]} {text[words.end() :]}")
        return None if bound is None else Region(tuple(_union(bound[1])))
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
            relation = _inequalities(part)
            if relation is None:
                return None
            names.add(relation[0])
            pieces = relation[1]
        found += pieces
    return Region(tuple(_union(found)), "".join(names)) if len(names) <= 1 else None


def _inequalities(text: str) -> tuple[str, list[Piece]] | None:
    """Return the variable and the numbers that satisfy one or several inequalities.

    A comma stands for "and" where this leaves a bounded interval, and for "or" where nothing satisfies both.
    """
    if INTERSECTION.search(text):
        parts, comma = INTERSECTION.split(text), False
    else:
        parts, comma = COMMA.split(text), True
    found = [_inequality(part) for part in parts]
    read = [one for one in found if one is not None]
    if len(read) < len(found) or len({name for name, _ in read}) > 1:
        return None
    name, pieces = read[0]
    for _, other in read[1:]:
        pieces = _intersection(pieces, other)
    if len(read) > 1 and not pieces and comma:
        return name, [piece for _, some in read for piece in some]
    bounded = all(not isinstance(end, float) for piece in pieces for end in (piece.low, piece.high))
    return (name, pieces) if pieces and (len(read) == 1 or bounded or not comma) else None


def is_written_as_region(text: str) -> bool:
    """Return whether a text can only be a set of numbers: (1, 2) could also be a point."""
    if RELATION.search(text) or "∪" in text or "∈" in text or text == "ℝ":
        return True
    if ALL_REAL.fullmatch(text) or BOUND_IN_WORDS.match(text):
        return True
    return (
        len(text) > 2
        and text[0] in "(["
        and text[-1] in ")]"
        and ("∞" in text or (text[0], text[-1]) in (("(", "]"), ("[", ")")))
    )


def _interval(text: str) -> list[Piece] | None:
    text = text.strip()
    if text == "ℝ" or ALL_REAL.fullmatch(text):
        return [Piece(-INFINITY, INFINITY, (False, False))]
    if text[:1] == "]":
        text = "(" + text[1:]
    if text[-1:] == "[":
        text = text[:-1] + ")"
    if text[:1] not in ("(", "[") or text[-1:] not in (")", "]"):
        return None
    ends = text[1:-1].split(",")
    if len(ends) != 2:
        return None
    low, high = (_end(end) for end in ends)
    if low is None or high is None:
        return None
    piece = Piece(low, high, (text[0] == "[", text[-1] == "]"))
    return None if piece.is_empty() else [piece]


def _points(text: str) -> list[Piece] | None:
    text = text.strip()
    if not (text.startswith("⦃") and text.endswith("⦄")):
        return None
    values = [_end(one) for one in text[1:-1].split(",")]
    return [Piece(one, one, (True, True)) for one in values if one is not None] if None not in values else None


def _end(text: str) -> End | None:
    text = text.strip()
    if text.replace(" ", "") in ("∞", "+∞"):
        return INFINITY
    if text.replace(" ", "") == "-∞":
        return -INFINITY
    node = parse(text)
    number = None if node is None else constant(node)
    return number if number is not None and is_real(number) else None


def _inequality(text: str) -> tuple[str, list[Piece]] | None:
    """Return the variable and the numbers that satisfy a < x, x ≥ a, a < x ≤ b or x ≠ a; None for any other text."""
    chain = _chain(text)
    if chain is None:
        return None
    sides, relations = _of_one_variable(*chain)
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
    if places[0] != 1 or "≠" in relations or low is None or high is None:
        return None
    piece = Piece(low, high, (relations[0] == "≤", relations[1] == "≤"))
    return None if piece.is_empty() else (name, [piece])


def _of_one_variable(sides: list[str], relations: list[str]) -> tuple[list[str], list[str]]:
    """Return an inequality such as 2x < 6 divided by its factor; any other one as it is."""
    first, second = MULTIPLE.fullmatch(sides[0]), MULTIPLE.fullmatch(sides[-1])
    multiple, place = (first, 0) if first is not None else (second, 1)
    if len(sides) != 2 or multiple is None or multiple["name"] in ("e", "i"):
        return sides, relations
    name = multiple["name"]
    factor = "-1" if multiple["factor"] == "-" else multiple["factor"]
    if not Fraction(factor):
        return sides, relations
    sides = [name if i == place else f"({side})/({factor})" for i, side in enumerate(sides)]
    return (sides if Fraction(factor) > 0 else sides[::-1]), relations


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
        return all(one is not None and two is not None and expression_values.equal(one, two) for one, two in pairs)


def read_chain(text: str) -> Chain | None:
    """Return a chain of inequalities; None for any other text."""
    chain = _chain(text)
    return None if chain is None or "," in text else Chain(tuple(chain[0]), tuple(chain[1]))

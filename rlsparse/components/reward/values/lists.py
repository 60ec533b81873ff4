"""Several answers in one: lists and sets, in any order; tuples and matrices, in their order."""

import re
from dataclasses import dataclass

from rlsparse.components.reward.values.interface import Same
from rlsparse.components.reward.values.plain_words import PROSE
from rlsparse.components.reward.values.regions import read_region

MOST_ITEMS = 60
SEPARATOR = re.compile(r"\s*[,;]\s*(?:(?:and|or)\b)?\s*|\s*\b(?:and|or)\b\s*|\s*[和或]\s*")
NAMED_ITEM = re.compile(r"[^=<>≤≥≠]{1,30}=[^=]+")
GROUPED = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+")  # one number, not a list: 1,234
MATRIX = re.compile(r"\\begin\{(matrix|[pb]matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}", re.DOTALL)


def split(text: str) -> list[str]:
    """Return the parts of a text between separators outside of all brackets."""
    parts, start, open_brackets, position = [], 0, 0, 0
    while position < len(text):
        character = text[position]
        if character in "([{⦃⟨":
            open_brackets += 1
        elif character in ")]}⦄⟩":
            open_brackets -= 1
        found = SEPARATOR.match(text, position) if open_brackets == 0 and character in " \t,;ao和或" else None
        if found is not None and found.end() > position:
            parts.append(text[start:position])
            start = position = found.end()
        else:
            position += 1
    return [part.strip() for part in (*parts, text[start:])]


def _expand(parts: list[str]) -> list[str]:
    """Return the parts, with two for each one that has ±."""
    found = []
    for part in parts:
        if "±" in part or "∓" in part:
            found += [part.replace("±", "+").replace("∓", "-"), part.replace("±", "-").replace("∓", "+")]
        else:
            found.append(part)
    return found


def items_of(text: str) -> list[str] | None:
    """Return the items of a list or set; None if the text is one answer."""
    text = text.strip()
    inner = text[1:-1] if text.startswith("⦃") and text.endswith("⦄") and text.count("⦃") == 1 else text
    if inner is text and GROUPED.fullmatch(text):
        return None
    parts = split(inner)
    name = re.match(r"([A-Za-zΑ-ω](?:_\{?\w+\}?)?\s*)=", parts[0])
    if len(parts) > 1 and name is not None and not any("=" in part for part in parts[1:]):  # x = 1, 2
        parts[0] = parts[0][name.end() :].strip()
    parts = _expand(parts)
    if not all(parts) or len(parts) > MOST_ITEMS or (len(parts) == 1 and inner is text):
        return None
    return parts


@dataclass(frozen=True)
class Listing:
    """Several answers, in any order. Plain words, and values for named unknowns without the names, keep their order.

    Attributes:
        alternatives: the items are separated by "or". For numbers, "1 and 2" and "1 or 2" are the same solutions; for
            conditions and words they differ.
    """

    items: tuple[str, ...]
    alternatives: bool = False

    def accepts(self, answer: str, same: Same) -> bool:
        found = items_of(answer)
        if found is not None and self._has_connective() and self.alternatives != has_alternatives(answer):
            return False
        if found is None:
            found = [answer]
        if len(found) != len(self.items):
            return False
        if self._has_order(found):
            return all(map(same, found, self.items))
        rest = list(self.items)
        for one in found:
            match = next((item for item in rest if same(one, item)), None)
            if match is None:
                return False
            rest.remove(match)
        return True

    def _has_connective(self) -> bool:
        """Return whether "and" and "or" make a difference: for conditions, values of several unknowns, and words."""
        names = {re.split(r"\s*=", item)[0] for item in self.items if NAMED_ITEM.fullmatch(item)}
        words = all(PROSE.fullmatch(item) and re.search(r"[^\W\d_]{2}", item) for item in self.items)
        return len(names) > 1 or words or any(re.search("[<>≤≥≠∈]", item) for item in self.items)

    def _has_order(self, answers: list[str]) -> bool:
        named = all(NAMED_ITEM.fullmatch(item) for item in self.items)
        if named and not all(NAMED_ITEM.fullmatch(one) for one in answers):
            return True
        return all(PROSE.fullmatch(item) and re.search(r"[^\W\d_]{2}", item) for item in self.items)


def read_listing(gold: str) -> Listing | None:
    """Return the items of a gold answer that is a list or a set, or has ±; None for one answer."""
    found = items_of(gold)
    return None if found is None else Listing(tuple(found), has_alternatives(gold))


def has_alternatives(text: str) -> bool:
    """Return whether the items of a list are separated by "or"."""
    return re.search(r"\bor\b|[或∨]", text) is not None


@dataclass(frozen=True)
class Tuple:
    """A point, a vector or an interval: items in their order between brackets."""

    brackets: str
    items: tuple[str, ...]
    text: str

    def accepts(self, answer: str, same: Same) -> bool:
        other = read_tuple(re.sub(r"^[A-Za-z]\s*=\s*|^[A-Z](?=\()", "", answer))
        if other is None:
            one, two = read_region(self.text), read_region(answer) if re.search(r"[<>≤≥∈∪]|^\]|\[$", answer) else None
            return one is not None and two is not None and one.equals(two)
        if other.brackets != self.brackets or len(other.items) != len(self.items):
            return False
        return all(map(same, other.items, self.items))


def read_tuple(text: str) -> Tuple | None:
    """Return the items of a text between brackets of one pair; None for any other text."""
    text = text.strip()
    if text[:1] not in ("(", "[", "⟨") or text[-1:] not in (")", "]", "⟩") or not _one_pair(text):
        return None
    items = re.split(r"\s*[,;]\s*", text[1:-1]) if not re.search(r"[(\[⟨⦃]", text[1:-1]) else _top_level(text[1:-1])
    if len(items) < 2 or len(items) > MOST_ITEMS or not all(item.strip() for item in items):
        return None
    brackets = (text[0] + text[-1]).replace("⟨", "(").replace("⟩", ")")
    return Tuple(brackets, tuple(item.strip() for item in items), text)


def _one_pair(text: str) -> bool:
    """Return whether the first bracket is closed by the last character."""
    level = 0
    for i, character in enumerate(text):
        level += (character in "([⟨⦃{") - (character in ")]⟩⦄}")
        if level == 0 and i < len(text) - 1:
            return False
    return level == 0


def _top_level(text: str) -> list[str]:
    parts, level, start = [], 0, 0
    for i, character in enumerate(text):
        level += (character in "([⟨⦃{") - (character in ")]⟩⦄}")
        if character in ",;" and level == 0:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


@dataclass(frozen=True)
class Matrix:
    """Rows of cells."""

    rows: tuple[tuple[str, ...], ...]

    def accepts(self, answer: str, same: Same) -> bool:
        other = read_matrix(answer)
        if other is None or [len(row) for row in other.rows] != [len(row) for row in self.rows]:
            return False
        pairs = [pair for a, b in zip(other.rows, self.rows, strict=True) for pair in zip(a, b, strict=True)]
        return all(same(a, b) for a, b in pairs)


def read_matrix(text: str) -> Matrix | None:
    """Return the rows of a LaTeX matrix; None for any other text."""
    text = re.sub(r"^[A-Za-z]\s*=\s*", "", text.strip())
    if text[:1] in ("(", "[") and text[-1:] in (")", "]"):
        text = text[1:-1].strip()
    found = MATRIX.fullmatch(text)
    if found is None or r"\begin" in found[2]:
        return None
    rows = [row for row in found[2].split(r"\\") if row.strip()]
    cells = tuple(tuple(cell.strip() for cell in row.split("&")) for row in rows)
    return Matrix(cells) if 0 < sum(map(len, cells)) <= 4 * MOST_ITEMS and all(map(all, cells)) else None

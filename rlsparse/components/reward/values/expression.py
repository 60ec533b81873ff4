"""Expressions: a strict parser of LaTeX and of common plain notation.

The parser refuses what it does not know; it never skips a character, as math-verify does.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from rlsparse.components.reward.values.number import DECIMAL, decimal, repeating

MOST_TOKENS = 250  # a chain of so many operations is a tree of this height, which is walked recursively
DEEPEST = 40  # levels of nesting, of all kinds


class Unreadable(ValueError):
    """The text is no expression that this parser knows."""


@dataclass(frozen=True)
class Node:
    """A node of an expression tree: an operation and its operands, or a constant or symbol without operands."""

    kind: str
    parts: tuple["Node", ...] = ()
    value: Fraction | None = None
    name: str = ""


# each function with its name in mpmath
FUNCTIONS = {
    **{name: name for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "exp")},
    "arcsin": "asin",
    "arccos": "acos",
    "arctan": "atan",
}
LOGARITHMS = {"ln": None, "log": 10, "lg": 10}  # the base, None for e; of "log" always ten, whichever is meant
ACCENTS = frozenset(
    ("vec", "overrightarrow", "overline", "bar", "hat", "tilde", "dot", "ddot", "widehat", "widetilde", "boldsymbol")
)
CLOSING = {"(": ")", "[": "]", "{": "}", "⌊": "⌋", "⌈": "⌉", "|": "|"}
TOKEN = re.compile(
    rf"\s*(?:(?P<repeating>\d*\.\d*\\overline\{{\d+\}})|(?P<number>{DECIMAL})"
    r"|\\(?P<command>[A-Za-z]+)|(?P<word>[A-Za-z]{2,})|(?P<letter>[A-Za-zΑ-ωħ∂])|(?P<power>\*\*)|(?P<sign>[^\s\\]))"
)
PLAIN_ROOT = "sqrt without a backslash"  # sqrt23 is the root of 23; \\sqrt23 is the root of 2, times 3
WORDS = frozenset((*FUNCTIONS, *LOGARITHMS, "sqrt", "pi", "log"))


@dataclass(frozen=True)
class Token:
    kind: str
    text: str
    start: int


def tokens_of(text: str) -> list[Token]:
    """Return the tokens of a text.

    Raises:
        Unreadable: a character begins none.
    """
    found, position = [], 0
    text = text.rstrip()
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None:
            raise Unreadable(text[position:])
        kind = match.lastgroup or ""
        start = match.start(kind)
        if kind == "word" and match[kind].lower() not in WORDS:
            if len(match[kind]) > 3:  # prose, not a product
                raise Unreadable(match[kind])
            found += [Token("letter", one, start + i) for i, one in enumerate(match[kind])]
        elif kind == "word":
            name = match[kind].lower()
            found.append(Token("command", PLAIN_ROOT if name == "sqrt" else name, start))
        elif kind == "power":
            found.append(Token("sign", "^", start))
        else:
            found.append(Token(kind, match[kind], start))
        position = match.end()
    if len(found) > MOST_TOKENS:
        raise Unreadable("too long")
    return found


class Parser:
    """A recursive descent over the tokens; each method reads one level of precedence."""

    def __init__(self, text: str) -> None:
        self.tokens = tokens_of(text)
        self.position = 0
        self.depth = 0
        self.bars = 0  # open absolute values, whose bar closes rather than opens

    def whole(self) -> Node:
        """Read the whole text as one expression."""
        node = self.sum()
        if self.position < len(self.tokens):
            raise Unreadable(self.tokens[self.position].text)
        return node

    def peek(self, ahead: int = 0) -> Token:
        at = self.position + ahead
        return self.tokens[at] if at < len(self.tokens) else Token("end", "", -1)

    def take(self) -> Token:
        token = self.peek()
        self.position += 1
        return token

    def take_if(self, text: str) -> bool:
        if self.peek().kind == "sign" and self.peek().text == text:
            self.position += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.take_if(text):
            raise Unreadable(f"no {text}")

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable("too deep")
        node = self.product()
        while self.peek().kind == "sign" and self.peek().text in "+-":
            sign = self.take().text
            term = self.product()
            node = Node("+", (node, term if sign == "+" else Node("neg", (term,))))
        self.depth -= 1
        return node

    def product(self) -> Node:
        node = self.signed()
        while True:
            token = self.peek()
            if token.kind == "sign" and token.text in "*·×/÷:":
                if token.text == ":":
                    raise Unreadable(":")
                self.position += 1
                factor = self.signed()
                node = Node("*" if token.text in "*·×" else "/", (node, factor))
            elif self.begins_factor():
                closed = self.tokens[self.position - 1].text in ("!", ")")
                if token.kind in ("number", "repeating") and not closed:  # "x 2", "2 3": nobody writes such a product
                    raise Unreadable(token.text)
                factor = self.power()
                if node.kind == "number" and is_fraction_below_one(factor) and node.value is not None:
                    if node.value.denominator != 1:
                        raise Unreadable("mixed")
                    node = Node("+", (node, factor), name="mixed")
                else:
                    node = Node("*", (node, factor), name="implicit")
            else:
                return node

    def begins_factor(self) -> bool:
        token = self.peek()
        if token.kind in ("number", "repeating", "letter", "command"):
            return True
        return token.kind == "sign" and (token.text in "([{⌊⌈∞√" or (token.text == "|" and not self.bars))

    def signed(self) -> Node:
        negative = False
        for _ in range(DEEPEST):
            if self.take_if("-"):
                negative = not negative
            elif not self.take_if("+"):
                break
        node = self.power()
        return Node("neg", (node,)) if negative else node

    def power(self) -> Node:
        base = self.postfix()
        if self.take_if("^"):
            return Node("^", (base, self.exponent()))
        return base

    def exponent(self) -> Node:
        if self.take_if("{"):
            node = self.sum()
            self.expect("}")
            return node
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable("too deep")
        negative = self.take_if("-")
        node = self.power() if self.peek().kind != "command" else self.postfix()
        self.depth -= 1
        return Node("neg", (node,)) if negative else node

    def postfix(self) -> Node:
        node = self.atom()
        while True:
            if self.take_if("!"):
                double = self.take_if("!")
                node = Node("!!" if double else "!", (node,))
            elif self.take_if("°"):
                node = Node("*", (node, Node("symbol", name="degree")))
            else:
                return node

    def group(self, opening: str) -> Node:
        node = self.sum()
        self.expect(CLOSING[opening])
        return node

    def atom(self) -> Node:
        token = self.take()
        if token.kind == "number":
            return Node("number", value=decimal(token.text))
        if token.kind == "repeating":
            return Node("number", value=repeating(token.text))
        if token.kind == "letter":
            return self.symbol(token.text)
        if token.kind == "command":
            return self.command(token.text)
        if token.text in ("(", "[", "{"):
            bars, self.bars = self.bars, 0
            node = self.group(token.text)
            self.bars = bars
            return Node("group", (node,)) if token.text != "{" else node
        if token.text in ("⌊", "⌈"):
            return Node("floor" if token.text == "⌊" else "ceil", (self.group(token.text),))
        if token.text == "|" and not self.bars:
            self.bars += 1
            node = self.sum()
            self.expect("|")
            self.bars -= 1
            return Node("abs", (node,))
        if token.text == "∞":
            return Node("symbol", name="∞")
        raise Unreadable(token.text)

    def text_of_group(self) -> str:
        """Read a group in braces, or one token, and return it as text."""
        if not self.take_if("{"):
            token = self.take()
            if token.kind == "end":
                raise Unreadable("end")
            return token.text
        level, found = 1, []
        while level:
            token = self.take()
            if token.kind == "end":
                raise Unreadable("end")
            level += {"{": 1, "}": -1}.get(token.text, 0)
            found.append(token.text)
        return "".join(found[:-1])

    def symbol(self, name: str) -> Node:
        """Read the index, the primes and the constant argument of a symbol; they belong to its name."""
        if name == "C" and self.peek().text == "_":
            start = self.position
            choice = self.combination()
            if choice is not None:
                return choice
            self.position = start
        if self.take_if("_"):
            name += "_" + self.text_of_group()
        while self.take_if("'"):
            name += "'"
        if self.peek().text == "^" and self.peek(1).text == "{" and self.peek(2).text == "'":
            self.position += 1
            name += self.text_of_group()
        if self.peek().text == "(" and self.peek(1).kind == "number" and self.peek(2).text == ")":  # f(3), I(0)
            name += f"({self.peek(1).text})"
            self.position += 3
        return Node("symbol", name=name)

    def combination(self) -> Node | None:
        """Read C_n^k, the number of combinations; None if there is something else."""
        self.expect("_")
        try:
            below = self.argument()
            if not self.take_if("^"):
                return None
            above = self.argument()
        except Unreadable:
            return None
        return Node("binom", (below, above))

    def argument(self) -> Node:
        """Read an argument of a command: a group in braces, or one digit, letter or command."""
        if self.take_if("{"):
            node = self.sum()
            self.expect("}")
            return node
        token = self.peek()
        if token.kind == "number" and token.text.isdigit() and len(token.text) > 1:  # \frac12
            self.tokens[self.position] = Token("number", token.text[1:], token.start + 1)
            return Node("number", value=decimal(token.text[0]))
        if token.kind not in ("number", "letter", "command"):
            raise Unreadable(token.text)
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable("too deep")
        node = self.atom()
        self.depth -= 1
        return node

    def command(self, name: str) -> Node:
        if name in ("frac", "binom"):
            differential = self.differential() if name == "frac" else None
            if differential is not None:
                return differential
            first = self.argument()
            second = self.argument()
            return Node("/" if name == "frac" else "binom", (first, second), name="frac")
        if name in ("sqrt", PLAIN_ROOT):
            return self.root(name)
        if name == "pi":
            return Node("symbol", name="π")
        if name in LOGARITHMS:
            return self.logarithm(name)
        if name in FUNCTIONS:
            return self.function(name)
        if name in ACCENTS:
            return self.symbol(f"{name}({self.text_of_group()})")
        raise Unreadable(name)

    def differential(self) -> Node | None:
        r"""Read a derivative such as \frac{d y}{d x} as one symbol: its d is no factor."""
        start = self.position
        try:
            above, below = self.text_of_group(), self.text_of_group()
        except Unreadable:
            above = below = ""
        if above[:1] in ("d", "∂") and below[:1] in ("d", "∂") and len(below) > 1:
            return Node("symbol", name=f"{above}/{below}")
        self.position = start
        return None

    def root(self, name: str) -> Node:
        degree = Node("number", value=Fraction(2))
        if self.take_if("["):
            degree = self.sum()
            self.expect("]")
        if self.take_if("("):
            node = self.group("(")
        elif self.peek().kind == "number" and name == PLAIN_ROOT:
            node = self.atom()
        else:
            node = self.argument()
        return Node("root", (node, degree))

    def logarithm(self, name: str) -> Node:
        if not self.take_if("_"):
            return self.function(name)
        base = self.argument()
        return self.applied(lambda argument: Node("log", (argument, base)))

    def function(self, name: str) -> Node:
        return self.applied(lambda argument: Node("call", (argument,), name=name))

    def applied(self, call: Callable[[Node], Node]) -> Node:
        r"""Read the argument of a function, after an exponent as in \sin^2 x."""
        exponent = self.exponent() if self.take_if("^") else None
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable("too deep")
        if self.take_if("("):
            argument = self.group("(")
        elif self.take_if("{"):
            argument = self.group("{")
        else:
            argument = self.power()
            while self.begins_factor() and self.peek().text not in ("(", "[") and not self.begins_function():
                argument = Node("*", (argument, self.power()))
        self.depth -= 1
        node = call(argument)
        if exponent is None:
            return node
        if exponent == Node("neg", (Node("number", value=Fraction(1)),)):
            raise Unreadable("inverse function")
        return Node("^", (node, exponent))

    def begins_function(self) -> bool:
        token = self.peek()
        return token.kind == "command" and (token.text in FUNCTIONS or token.text in LOGARITHMS)


def is_fraction_below_one(node: Node) -> bool:
    r"""Return whether a node is \frac of two whole numbers and below one, as in a mixed number."""
    if node.kind != "/" or node.name != "frac":
        return False
    above, below = (part.value for part in node.parts)
    whole = above is not None and below is not None and above.denominator == below.denominator == 1
    return whole and above is not None and below is not None and 0 < above < below


@lru_cache(maxsize=4096)
def parse(text: str) -> Node | None:
    """Return the tree of an expression; None if the text is none."""
    try:
        return Parser(text).whole()
    except (Unreadable, RecursionError):
        return None

"""Hostile completions, drawn at random from families; none of them states the gold answer that comes with it."""

import random
from collections.abc import Callable

GOLDS = ("42", r"\frac{3}{4}", "(4, 42)", "x+42")
CODE = (
    "__import__('os').system('exit 5')",
    "().__class__.__base__.__subclasses__()",
    "exec('raise SystemExit')",
    "(lambda f: f(f))(lambda f: f(f))",
    "print(57)",
    "exit()",
    "open('/dev/zero').read()",
    "sympy.oo",
)
# numbers that no floating-point number can hold, and operations without a value
HUGE = (
    "10^{400}",
    "10^{-400}",
    "99999999999^400",
    "10^{400}!",
    "10^{10^{400}}",
    "e^{e^{e^{9}}}",
    r"\sin(10^{400})",
    r"\sqrt[10^{400}]{2}",
    "1e400",
    "9" * 400,
    r"\tan(\frac{\pi}{2})",
    r"\ln(0)",
    "0^{-1}",
)
# an answer of each kind with a place for a number
KINDS = (
    "{}",
    "{}%",
    "{} cm",
    "${}",
    "{}/3",
    r"\frac{{3}}{{{}}}",
    "x={}",
    "y = {} x",
    "2x+y = {}",
    "1, {}",
    "(0, {})",
    "(0, {}]",
    "0<x<{}",
    "x>{} and x<5",
    "[0,{}]",
    "a<{}<b",
    r"\{{1, {}\}}",
    r"\begin{{pmatrix}}{}\\2\end{{pmatrix}}",
    "3:{}",
    "{}:30",
    "May {}",
    "5/{}/2024",
    "{}_2",
    "1010_{{{}}}",
    "5 ≈ {}",
    "{} ≈ 5",
    "{} minutes (2 hours)",
    "{} and a half",
    "{} million",
    "{}万",
    "{}°C",
    r"\pm {}",
    r"\pi+{}",
    r"{}\pi",
    "x^{{{}}}",
    r"\log_{{{}}} x",
    r"\sqrt[{}]{{2}}",
    r"\lfloor {} \rfloor",
    "{} dollars and 5 cents",
)
WORDS = ("nan", "NaN", "inf", "-inf", "Infinity", r"\infty", "None", "True", "zoo", "I", "E", "oo", "undefined", "")
SCRIPTS = ("٥٧٩", "५७९", "５７９", "𝟝𝟟𝟡", "⑤⑦⑨", "五七九", "ⅤⅦⅨ", "⁵⁷⁹")
CONTROL = "\x00\x01\x07\x08\x0b\x0c\x0d\x1b\x1c\x1e\x7f\x85\u2028\u2029\ufeff\ufffe\uffff"
INVISIBLE = "\u200b\u200c\u200d\u2060\u202e\u200f\u2066\u00ad\u0301"
SURROGATES = ("\ud800", "\udfff", "\udc80x", "5\ud83d7")
RUNS = (" ", "\t", "\n", ",", ".", "-", "−", "/", "$", "#", "{", "}", "\\", "(", "[", "%", "9", "5,", "9 ", "a", "5 a")
REPEATED = ("the answer is ", "the final ", "the  ", "#### ", r"\boxed{", r"\frac{", "1/", "x=", "5=", r"\left(", "5^")
# pieces of everything that the rules for values look for; each is repeated, and they are mixed
PIECES = (
    *RUNS,
    *REPEATED,
    *(
        "…",
        "...",
        "0.3…",
        "log ",
        "-$",
        "[1",
        "0x",
        "4i ",
        "√2",
        "half a ",
        "point one ",
        "at least ",
        " because ",
        r"\boxed{5}",
        r"\boxed{5}-",
    ),
    *(
        "1,",
        "1 ",
        "1.",
        "1/",
        "1e",
        "- ",
        "x^",
        "^{",
        "_",
        r"\text{",
        r"\sqrt",
        r"\sqrt{",
        r"\overline{",
        r"0.\overline{",
    ),
    *(
        "<b>",
        "</b>",
        "<",
        "&amp;",
        "&",
        "and ",
        "or ",
        "1 and ",
        "one ",
        "hundred ",
        "minus ",
        "万",
        "百",
        "十",
        "九",
        "分之",
    ),
    *(
        "½",
        "²",
        "$ $",
        r"\$",
        "**",
        "__",
        "`",
        '"',
        "'",
        "!",
        "5!",
        "=",
        "=1",
        "|",
        "|1",
        "⌊",
        "∪",
        "∞",
        "≤",
        "1<",
        "x<",
        "<x",
    ),
    *(
        "a,",
        "(1,",
        "[1,",
        "A,",
        "(A)",
        "B ",
        ":",
        "1:",
        "3:30 ",
        "may ",
        "May 5 ",
        r"\begin{pmatrix}",
        r"\begin{pmatrix}1&",
    ),
    *(
        r"\end{pmatrix}",
        "&1",
        r"\\",
        "sin ",
        r"\sin",
        "ln ",
        "ab",
        "abcd",
        "e",
        "i",
        "a half",
        "1 1/2 ",
        "because ",
        "(since ",
    ),
    *(
        "=>",
        "->",
        "→",
        "≈",
        "1≈",
        "1%",
        "°",
        "km/",
        "cm^2",
        "/day",
        "\u200b",
        "\ud800",
        "．",
        r"\color{red}",
        r"\right",
        r"\,",
    ),
    *(
        r",\!",
        "~",
        "~~",
        "{,}",
        "1{,}",
        r"1\,000",
        "1,000",
        "1 000",
        "10^",
        r"3\times10^",
        "±1",
        r"\dot{3}",
        r".\dot{3}",
    ),
    *(
        r"{a\over ",
        r"\over",
        "option ",
        "is correct",
        "Yes, ",
        "no ",
        "not ",
        "base ",
        "1_",
        "1_2",
        "1_000",
        "1'000",
        "\r\n",
    ),
    *("\n####\n", r"\[", r"\(", "$$", r"\boxed", r"\boxed{1} or ", r"\boxed{1},", "答案是", "the answer to "),
)
JOINTS = (
    r" \cup ",
    "$ $",
    "$ or $",
    " or ",
    " and ",
    " to ",
    r" \to ",
    r"\\",
    r" \text{ or } ",
    " < ",
    r" \geq ",
    r" \lor ",
)
Nasty = tuple[str, str]  # a text, and a gold answer that it does not state


def length(draw: random.Random, most: int) -> int:
    """Return a length; each order of magnitude up to ``most`` is about equally likely."""
    return int(10 ** draw.uniform(0.5, len(str(most)) - 1))


def digits(draw: random.Random) -> str:
    """Return an odd number; no quotient or product of such numbers is a gold answer."""
    return "".join(draw.choices("579", k=draw.randint(3, 9)))


def numbers(draw: random.Random) -> str:
    k = length(draw, 1_000_000)
    one = draw.choice("579")
    return draw.choice(
        (one * k, f"{one * k}/{one}7", f"0.{one * k}", f"-{one * k}.5", f"{one}e{one * 3}", "5," * k + one)
    )


def fractions(draw: random.Random) -> str:
    depth = draw.choice((1, 3, 20, 200, 2000))
    return draw.choice(
        (r"\frac{" * depth + "5" + "}{7}" * depth, r"\frac{5}{" * depth, r"\sqrt{" * depth + "5" + "}" * depth)
    )


def braces(draw: random.Random) -> str:
    depth = length(draw, 100_000)
    one, other = draw.choice(("{}", "}{", "()", "[]", "$$", ")("))
    return draw.choice((one * depth, one * depth + digits(draw) + other * depth, other * depth + digits(draw)))


def sprinkled(draw: random.Random, marks: str | tuple[str, ...]) -> str:
    """Return a number with marks in it and around it."""
    return "".join(draw.choice(marks) + draw.choice("579") for _ in range(draw.randint(2, 30))) + draw.choice(marks)


def half_latex(draw: random.Random) -> str:
    whole = (
        rf"\begin{{pmatrix}} {digits(draw)} & \frac{{5}}{{7}} \\ x^{{9}} & \sqrt[7]{{{digits(draw)}}} \end{{pmatrix}}"
    )
    start = draw.randrange(len(whole))
    return whole[start : draw.randint(start + 1, len(whole))]


def sets(draw: random.Random) -> str:
    shape = draw.choice(
        (r"\{%s\}", "[%s)", "(%s]", r"\left\{%s", "%s", r"(-\infty, %s)", r"\begin{bmatrix}%s\end{bmatrix}")
    )
    return shape % draw.choice((", ", ";", r" \cup ", " & ", r"\\")).join(
        digits(draw) for _ in range(draw.randint(1, 9))
    )


def equations(draw: random.Random) -> str:
    return draw.choice(("x=%s", "%s=x", "x>%s", "x=y=%s", r"x \neq %s", "5x+7=%s", "=%s", "%s=", "%s==")) % digits(draw)


def percents(draw: random.Random) -> str:
    return draw.choice((r"%s\%%", "%s%%", "%%%s", r"%s \text{ percent}", "%s%%%%", "$%s$%%", r"\$%s\$")) % digits(draw)


def soup(draw: random.Random) -> str:
    pieces = (
        *RUNS,
        *REPEATED,
        *CODE,
        *WORDS,
        *SURROGATES,
        r"\boxed{}",
        r"\text{",
        "^",
        "_",
        "!!",
        "&",
        r"\\",
        "#### 5",
    )
    return "".join(draw.choices(pieces, k=draw.randint(2, 25)))


FAMILIES: dict[str, Callable[[random.Random], str]] = {
    "numbers": numbers,
    "fractions": fractions,
    "braces": braces,
    "control": lambda draw: sprinkled(draw, CONTROL),
    "invisible": lambda draw: sprinkled(draw, INVISIBLE),
    "surrogates": lambda draw: sprinkled(draw, SURROGATES),
    "scripts": lambda draw: draw.choice("-−﹣‐ ") + draw.choice(SCRIPTS) * draw.randint(1, 40),
    "half_latex": half_latex,
    "sets": sets,
    "equations": equations,
    "percents": percents,
    "words": lambda draw: draw.choice(WORDS) + draw.choice(("", " ", "/0", "!", "=x", "_{5}")),
    "code": lambda draw: draw.choice(CODE),
    "boxes": lambda draw: r"\boxed{" * draw.randint(1, 9) + digits(draw) + "}" * draw.randint(0, 9),
    "runs": lambda draw: (
        draw.choice(("", "5", "5 ")) + draw.choice(RUNS) * length(draw, 1_000_000) + draw.choice(("", "!", "x"))
    ),
    "repeated": lambda draw: draw.choice(REPEATED) * length(draw, 100_000) + draw.choice(("", digits(draw))),
    "soup": soup,
}
# math-verify may take up to its time limit for these, so they are drawn less often
SLOW_TO_PARSE = {"fractions", "braces", "control", "words", "scripts", "percents", "code", "soup", "repeated"}


def hedge(draw: random.Random) -> Nasty:
    """Return two numbers, the first of which is the gold answer: a completion must not give both."""
    first, second = draw.sample(range(11, 99), 2)
    return f"{first}{draw.choice(JOINTS)}{second}", str(first)


def nasty(draw: random.Random) -> Nasty:
    """Return a text of a random family, with a gold answer."""
    names = [*FAMILIES, "hedge"]
    (family,) = draw.choices(names, [1 if name in SLOW_TO_PARSE else 4 for name in names])
    return hedge(draw) if family == "hedge" else (FAMILIES[family](draw), draw.choice(GOLDS))


def slow(draw: random.Random) -> Nasty:
    """Return an expression that exact arithmetic cannot finish in any time, with a gold answer."""
    one = draw.choice("579")
    shapes = (
        "{0}**{0}**{0}**{0}",
        "{0}^{{{0}^{{{0}^{{{0}}}}}}}",
        "{0}00000077!",
        r"\binom{{{0}00000007}}{{{0}000007}}",
    )
    return draw.choice(shapes).format(one), draw.choice(GOLDS)

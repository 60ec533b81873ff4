"""One notation for an answer: what Unicode, LaTeX, Markdown and HTML write differently becomes the same characters.

All functions here take at most a thousand characters: some of their patterns need the square of the length.
"""

import html
import re
import unicodedata

from rlsparse.components.reward.values.vocabulary import GREEK, LATEX_LAYOUT

SPACES = "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
BREAKS = "\n\r\v\f\t\x1c\x1d\x1e\x85\u2028\u2029"  # unlike a space, none of them groups the digits of a number
INVISIBLE = "\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u2062\u2063\u2064\ufeff\u00ad\ufe0e\ufe0f\u202a\u202b\u202c"
LITERAL_BRACES = {"{": "⦃", "}": "⦄"}  # \{ and \}, the braces of a set; { and } only group
ACCOUNT = "¤"  # \$, the sign of a currency; a bare $ may also delimit a formula

CHARACTERS = str.maketrans(
    {
        **dict.fromkeys(SPACES, " "),
        **dict.fromkeys(BREAKS, "\t"),
        **dict.fromkeys(INVISIBLE, ""),
        **dict.fromkeys("−–‐‑‒—―﹣", "-"),
        **dict.fromkeys("✕✖⨯", "×"),
        **dict.fromkeys("⋅∙•・", "·"),
        **dict.fromkeys("∕⁄", "/"),
        **dict.fromkeys("≦⩽", "≤"),
        **dict.fromkeys("≧⩾", "≥"),
        **dict.fromkeys("≃≅", "≈"),
        **dict.fromkeys("˚º", "°"),
        **dict.fromkeys("“”„«»", '"'),
        **dict.fromkeys("‘’", "'"),
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # full-width ASCII
        "。": ".",
        "、": ",",
        "∶": ":",
        "￥": "¥",
        "〈": "⟨",
        "〉": "⟩",
        "√": r"\sqrt ",
        "∛": r"\sqrt[3] ",
        "℃": "°C",
        "㎡": "m²",
        "㎝": "cm",
        "㎞": "km",
        "㎏": "kg",
        "π": "π",
        "∣": "|",
        "∆": "Δ",
        "µ": "μ",
    }
)
COMMANDS = {
    **{name: chr(0x3B1 + i) for i, name in enumerate(GREEK)},
    "varepsilon": "ε",
    "varphi": "φ",
    "vartheta": "θ",
    "Gamma": "Γ",
    "Delta": "Δ",
    "Theta": "Θ",
    "Lambda": "Λ",
    "Sigma": "Σ",
    "Phi": "Φ",
    "Psi": "Ψ",
    "Omega": "Ω",
    "dfrac": r"\frac",
    "tfrac": r"\frac",
    "cfrac": r"\frac",
    "sfrac": r"\frac",
    "nicefrac": r"\frac",
    "dbinom": r"\binom",
    "tbinom": r"\binom",
    **dict.fromkeys(("le", "leq", "leqslant", "leqq"), "≤"),
    **dict.fromkeys(("ge", "geq", "geqslant", "geqq"), "≥"),
    **dict.fromkeys(("ne", "neq"), "≠"),
    "lt": "<",
    "gt": ">",
    "times": "×",
    **dict.fromkeys(("cdot", "centerdot", "bullet", "ast"), "·"),
    "div": "÷",
    "infty": "∞",
    "pm": "±",
    "mp": "∓",
    "cup": "∪",
    "cap": "∩",
    "in": "∈",
    "notin": "∉",
    **dict.fromkeys(("approx", "simeq", "cong"), "≈"),
    **dict.fromkeys(("to", "rightarrow", "longrightarrow"), "→"),
    **dict.fromkeys(("Rightarrow", "implies", "Longrightarrow"), "⇒"),
    **dict.fromkeys(("degree", "degrees"), "°"),
    "circ": r"\circ",
    "colon": ":",
    **dict.fromkeys(("mid", "vert", "lvert", "rvert", "Vert"), "|"),
    **dict.fromkeys(("ldots", "dots", "cdots", "dotsc"), "…"),
    **dict.fromkeys(("lor", "vee"), "∨"),
    **dict.fromkeys(("land", "wedge"), "∧"),
    **dict.fromkeys(("emptyset", "varnothing"), "∅"),
    "lbrace": "⦃",
    "rbrace": "⦄",
    **dict.fromkeys(("langle",), "⟨"),
    **dict.fromkeys(("rangle",), "⟩"),
    "lfloor": "⌊",
    "rfloor": "⌋",
    "lceil": "⌈",
    "rceil": "⌉",
    "lbrack": "[",
    "rbrack": "]",
    "lparen": "(",
    "rparen": ")",
    "angle": "∠",
    "triangle": "△",
    "parallel": "∥",
    "perp": "⊥",
    "hbar": "ħ",
    "ell": "l",
    "therefore": "∴",
    "prime": "'",
    "textdollar": ACCOUNT,
    "mathdollar": ACCOUNT,
    "pounds": "£",
    "euro": "€",
    "yen": "¥",
    "cent": "¢",
    "textdegree": "°",
    **dict.fromkeys(LATEX_LAYOUT, " "),
    **dict.fromkeys(("quad", "qquad", "enspace", "hfill"), "\t"),
    **dict.fromkeys(("thinspace", "space"), " "),
}
CHARACTER_COMMANDS = {
    **dict.fromkeys(",:;> ", " "),
    "!": "",
    **LITERAL_BRACES,
    "$": ACCOUNT,
    "%": "%",
    "#": "#",
    "_": "_",
    "|": "|",
    **dict.fromkeys("()[]", "\t"),  # delimiters of a formula
}
COMMAND = re.compile(r"\\([A-Za-z]+)[ ]?|\\(.)")
GROUP = r"((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)"  # the content of a group, with two levels of groups in it
TEXT = re.compile(
    r"\\(?:text(?:rm|bf|it|sf|tt|normal|up)?|mbox|hbox|mathrm|operatorname\*?|mathsf|mathtt|textsc|unit|rm)"
    rf"\s*\{{{GROUP}\}}"
)
WRAPPER = re.compile(
    r"(?:\\(?:boxed|fbox|framebox|underline|uline|mathbf|boldsymbol|bm|bold|mathit|ensuremath|emph|hl|tag"
    r"|(?:text)?color(?:\s*\{[^{}]*\})?|mathcal|mathop)|\\colorbox\s*\{[^{}]*\})"
    rf"\s*\{{{GROUP}\}}"
)
PHANTOM = re.compile(r"\\[hv]?phantom\s*\{[^{}]*\}")
NUMBER_SETS = re.compile(r"\\mathbb\s*\{?\s*([RZNQC])\s*\}?")
FRACTION = re.compile(r"\\frac\s*(\d|\{[^{}]*\})\s*(\d|\{[^{}]*\})")
SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
SUBSCRIPT = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ₀₁₂₃₄₅₆₇₈₉", "0123456789+-n0123456789")
SPACE_RUN = re.compile(r"[ \t]{2,}")
DEGREE = re.compile(r"\s?\^\s*(?:\{\s*(?:\\circ|°)\s*\}|\\circ|°)")
VULGAR = re.compile("[¼½¾⅐-⅞]")
TAG = re.compile(
    r"</?(?:b|i|u|p|strong|em|div|span|br|answer|final_answer|final|ans|result|code|tt|pre|big|small|mark|font|center"
    r"|li|ul|td|tr|math|mn|h[1-6])(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
RAISED_TAG = re.compile(r"<(su[pb])>([^<>]{0,100})</su[pb]>", re.IGNORECASE)
END_TOKEN = re.compile(r"<\|[^<>|]{1,40}\|>|</s>\s*$|<eos>|<end_of_turn>")
ENTITY = re.compile(r"&(?:#\d{1,6}|#x[0-9a-fA-F]{1,6}|[A-Za-z]{2,8}\d{0,2});")
AMOUNT = re.compile(r"\$(?=\s?-?\s?\.?\d)")
ROOT_SIGN = re.compile(r"√\s*(\d+(?:\.\d+)?)")
ELLIPSIS = re.compile(r"\s?\.{3,}|\s?…")
# a decimal that repeats, such as 0.1666… or 0.1212…: one digit three times, or several digits twice
REPEATING = re.compile(r"(?<![\d.,])(\d{0,12}\.\d{0,12}?)(?:(\d)\2{2,40}|(\d{2,8})\3{1,20})…")
NO_SIGN = "❌✗✘🚫👎⛔"  # signs that an answer is wrong; other pictures mean nothing


def one_notation(text: str) -> str:
    """Return a text in the notation that the readers of this package know."""
    if "<" in text or "&" in text:
        text = _without_html(text)
    if "√" in text:
        text = ROOT_SIGN.sub(r"\\sqrt{\1}", text)  # √23 is the root of 23, \sqrt23 the root of 2, times 3
    text = _one_space(text.translate(CHARACTERS))  # other patterns need the square of the length of a run of spaces
    if not text.isascii():
        text = _without_unicode(text)
    if "\\" in text:
        text = _without_latex(text)
    elif "$" in text:
        text = _without_dollars(text)
    if "~" in text and "~~" not in text:  # ~~42~~ is struck out
        text = text.replace("~", " ")
    text = DEGREE.sub("°", _one_space(text).replace("{,}", ","))
    if ".." in text or "…" in text:
        text = REPEATING.sub(lambda one: rf"{one[1]}\overline{{{one[2] or one[3]}}}", ELLIPSIS.sub("…", text))
    return text


def _one_space(text: str) -> str:
    """Return a text in which each run of spaces is one character: a tab if there was one in it."""
    return SPACE_RUN.sub(lambda found: "\t" if "\t" in found[0] else " ", text)


def _without_html(text: str) -> str:
    text = ENTITY.sub(lambda found: html.unescape(found[0]), END_TOKEN.sub("", text))
    text = RAISED_TAG.sub(lambda found: f"{'^' if found[1].lower() == 'sup' else '_'}{{{found[2]}}}", text)
    single = re.compile(r"<(/?)([biup])>", re.IGNORECASE)  # "a<b>c" compares, "<b>c</b>" is HTML
    opened = {found[2].lower() for found in single.finditer(text) if found[1]}
    return TAG.sub(lambda found: _tag(found[0], opened), text)


def _tag(tag: str, closed: set[str]) -> str:
    name = tag.strip("</> ").lower()
    return tag if len(name) == 1 and name not in closed else ""


def _without_unicode(text: str) -> str:
    text = VULGAR.sub(_vulgar, text)
    text = SUPERSCRIPT.sub(lambda found: "^{" + found[0].translate(RAISED) + "}", text)
    text = SUBSCRIPT.sub(lambda found: "_{" + found[0].translate(RAISED) + "}", text)
    return "".join(_character(one) for one in text)


def _vulgar(found: re.Match[str]) -> str:
    above, _, below = unicodedata.normalize("NFKC", found[0]).partition("\u2044")
    return rf"\frac{{{above}}}{{{below}}}"


def _character(one: str) -> str:
    if one.isascii():
        return one
    category = unicodedata.category(one)
    if category == "Nd":
        return str(unicodedata.digit(one))
    picture = (category in ("So", "Sk", "Cs") and ord(one) > 0x2BFF) or one in "✅✓✔★☆●■►▶➤"
    return "" if picture and one not in NO_SIGN and category != "Cs" else one


def _without_latex(text: str) -> str:
    text = NUMBER_SETS.sub(lambda found: "ℝℤℕℚℂ"["RZNQC".index(found[1])], PHANTOM.sub(" ", text))
    text = re.sub(r",\\!\s*", ",", text)  # 11,\! 111
    text = re.sub(r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}", r"\\frac{\1}{\2}", text)
    text = re.sub(r"(?<=\.)(\d*)\\dot\{?(\d)\}?(?![\d\\])", r"\1\\overline{\2}", text)
    text = re.sub(r"\\(?:color|textcolor)\s*\{[A-Za-z]+\}(?!\s*\{)", "", text)
    for _ in range(4):  # nested at most so deep
        changed = WRAPPER.sub(lambda found: found[1], TEXT.sub(lambda found: f" {found[1]} ", text))
        if changed == text:
            break
        text = changed
    text = _without_dollars(COMMAND.sub(_command, text))
    return FRACTION.sub(lambda found: rf"\frac{{{_inside(found[1])}}}{{{_inside(found[2])}}}", text)


def _without_dollars(text: str) -> str:
    """Return a text with the sign of a currency for each $ of an amount, and a tab for each one around a formula.

    The signs are those of amounts if each stands before a number, or if there is only one, beside a number.
    """
    if "$" not in text:
        return text
    signs, before_numbers = text.count("$"), len(AMOUNT.findall(text))
    behind_number = signs == 1 and re.search(r"\d\s?\$", text) is not None
    return text.replace("$", ACCOUNT if signs == before_numbers or behind_number else "\t")


def _command(found: re.Match[str]) -> str:
    name, character = found.groups()
    if name is None:
        return CHARACTER_COMMANDS.get(character, found[0])
    return COMMANDS.get(name, found[0])


def _inside(group: str) -> str:
    return group[1:-1].strip() if group.startswith("{") else group


LABEL = re.compile(
    r"(?:the\s|my\s|our\s)?\s*(?:final\s|correct\s|right\s)?\s*(?:answer|ans|result|solution)\b\s*(?:is\b|are\b|[:=.])*\s*"
    r"|(?:therefore|thus|hence|so|then|clearly|exactly|simply|just|obviously|it\s+is|it's|this\s+is|that\s+is|equals"
    r"|equal\s+to)\b[,:]?\s+|(?:答案|答|结果)[是为]?\s*:?\s*|[=→⇒∴:]\s*|[-=]+>\s*",
    re.IGNORECASE,
)
TAIL = re.compile(
    r"\s*[,.]?\s*\b(?:is|was)\s+(?:the|my|our)\s+(?:final\s|correct\s)?\s*(?:answer|result)$", re.IGNORECASE
)
QUOTES = {'"': '"', "'": "'", "`": "`", "*": "*", "_": "_", "{": "}", "\t": "\t"}
MARKUP = re.compile(r"(?<![\w)}\]^])\*\*|\*\*(?![\w({\\])|(?<!\w)__(?=\S)|(?<=\S)__(?!\w)|`")


def normalised(text: str) -> str:
    """Return a text in one notation, without Markdown, quotes, labels and punctuation around it."""
    text = MARKUP.sub("", one_notation(text))
    for _ in range(12):
        before = text
        text = re.sub(r"(?:^|(?<=\s))#+$", "", text.strip().lstrip("#")).strip()
        text = text.rstrip(".,;: ") if not text.endswith(("a.m.", "p.m.")) else text
        if len(text) > 1 and QUOTES.get(text[0]) == text[-1] and text.count(text[-1]) == 1 + (text[0] == text[-1]):
            if text[0] == "{" and re.fullmatch(r"[\d\s,]+,[\d\s,]+", text[1:-1]):
                return text  # {1,234} is a set
            text = text[1:-1]
        text = text.removeprefix("* ").removeprefix("· ").rstrip("\\")
        text = text.removesuffix("}") if "{" not in text else text
        text = TAIL.sub("", text)
        label = LABEL.match(text)
        if label is not None and label.end() < len(text):
            text = text[label.end() :]
        text = re.sub(r"(?<=[A-Za-z]{2})!+$", "", text)  # after a word it is no factorial
        if text == before:
            return text
    return text

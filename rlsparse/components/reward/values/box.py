r"""The answer format ``\boxed{…}``: the content of the last box, with what belongs to it in its formula."""

import re

BOX = re.compile(
    r"\\{1,2}(?:boxed|fbox)\s?(?:\{|(?P<bare>\d+(?:\.\d+)?|[A-Za-z](?![A-Za-z]))(?=\W|$))|\\.|[{}]", re.DOTALL
)
BETWEEN_BOXES = re.compile(
    r"[\s$]{0,20}(?:,|;|\bor\b|\band\b|\\text\{\s?(?:and|or)\s?\})[\s$]{0,20}(?:or\b|and\b)?[\s$]{0,20}"
    r"|[\s$]{0,20}(?:\bor\b|\\text\{\s?or\s?\})[\s$]{0,20}[A-Za-z]\s?=\s?"
)
POWER = re.compile(r"\s?[\^_](?:\{[^{}]{1,40}\}|\w)")

OPERATION = r"\\(?:times|cdot|div|neq?|leq?|leqslant|geq?|geqslant|lt|gt|pi|sqrt|ln|log|lg|sin|cos|tan)(?![A-Za-z])"
FRACTION = r"\\[dtc]?frac"
INSIDE = (  # of the argument of a command, of a power or of a product
    rf"(?:\\sqrt(?:\[\w{{1,3}}\])?|{FRACTION}|\\[dt]?binom|\\(?:ln|log|sin|cos|tan)|[\^_]|{FRACTION}\{{[^{{}}]{{1,40}}\}}"
    r"|[-\d]|\d\(|(?<![A-Za-z])[A-Za-z](?=\())\s?[{(]"
)
# what stands beside a box and makes another answer of its content, in a formula and outside of one
ATTACHED_BEFORE = re.compile(
    r"(?:(?<!-)[-−]|[\w)}\]]\s?\+|(?<![-=])>|[/<≤≥≠±∓×·÷|]|(?<!\*)\*|\d\.?|(?<![A-Za-z\\])[abcikmnxyzπ]|\\[pm][mp]"
    rf"|{OPERATION}|{INSIDE})\s*$"
)
ATTACHED_BEFORE_IN_TEXT = re.compile(
    r"(?:(?:(?<![-\w])|(?<=\d))[-−]|[\d+/±]|\d\.|\\(?:pm|mp|times|cdot|div|neq?|sqrt)\s?\{?"
    rf"|{FRACTION}(?:\{{[^{{}}]{{1,40}}\}})?\{{)$"
)
MORE_DIGITS = r",\d{3}(?!\d)|:\d\d|e[-+]?\d|i(?![A-Za-z])|\s?(?:hundred|thousand|million|billion|trillion|dozen)\b"
ATTACHED_BEHIND = re.compile(
    rf"{MORE_DIGITS}"
    r"|\s*(?:[-+−*!<>≤≥≠×·÷\d]|/\s?(?:[\d(]|[a-z](?![A-Za-z]))|\.\d|[abceiknxyzπ](?![A-Za-z])"
    rf"|{OPERATION}|{FRACTION}|\\text\{{\s?or(?![A-Za-z]))"
)
ATTACHED_BEHIND_IN_TEXT = re.compile(
    rf"{MORE_DIGITS}"
    r"|[+/]?\d|\.\d|[-−]\d|\s?\\(?:times|cdot|div|pi|sqrt)(?![A-Za-z])|\s[×+*/]\s?\d"
)
# the most frequent cases, in which nothing is attached
QUIET_BEFORE = re.compile(r"(?:^|[$=:,;&\n]|(?<![\\A-Za-z])[A-Za-z]{2,4}) ?$")
QUIET_BEHIND = re.compile(r"\s?(?:[$;)}=&]|[,:](?!\d)|\.(?!\d)|\n|$)")
DENYING = ("not", "n't", "never", "neither", "nor", "wrong", "incorrect")
DENIED = re.compile(
    r"(?:\bnot|n't|\bnever|\bneither|\bnor|\bwrong:|\bincorrect:)\s{1,9}(?:(?:be|equal|equals|to|the|answer|really|simply)\s{1,9}){0,4}"
    r"[\s$(*]{0,9}(?:\\[(\[])?\s?$",
    re.IGNORECASE,
)
SIGN_OUTSIDE = re.compile(r"[-−\d]\$$")  # -$\boxed{5}$
LAYOUT = re.compile(r"\\[,;:! ]|\\(?:left|right|big|Big|bigg|Bigg)(?![A-Za-z])|\{\}")
NEGATED = re.compile(r"\b(?:minus|negative)\s{1,9}[$(*]{0,3}$", re.IGNORECASE)
# the ends of a side of a formula
ARROW = r"\\(?:approx|to|Rightarrow|implies|therefore|quad)(?![A-Za-z])"
PART_BEFORE = re.compile(rf".*(?:[$\n=≈:;,&]|\\[(\[]|{ARROW})", re.DOTALL)
PART_BEHIND = re.compile(rf"[$\n=≈;&]|,(?!\d{{3}}(?!\d))|\\[)\]]|\\\\|\.(?!\d)|$|{ARROW}")
DELIMITER = re.compile(r"(?<!\\)\$\$?|\\[()\[\]]")
BESIDE = 80  # characters beside a box that are looked at
MOST_OF_FORMULA = 1600  # characters before a box in which the start of its formula is looked for


def boxed(text: str) -> str | None:
    r"""Return the content of the last ``\boxed{…}`` that is closed and not empty; None if there is none.

    A power behind the box belongs to the answer. Boxes with only "and", "or" or a comma between them are one answer.
    """
    open_braces: list[int | None] = []  # for each open brace the start of the content of its box, if it is one of a box
    last: tuple[int, int] | None = None  # start and end of the content
    begin = end = 0  # of the box
    listed = ""  # the boxes before the last one that belong to the same answer
    for found in BOX.finditer(text):
        mark = found[0]
        if found["bare"] is not None:
            last, begin, end = found.span("bare"), found.start(), found.end()
        elif mark == "}":
            start = open_braces.pop() if open_braces else None
            if start is not None and (last is None or start > last[0]) and text[start : found.start()].strip():
                between = text[end : text.rfind("\\", end, start)] if last is not None and start - end < 80 else ""
                same = last is not None and BETWEEN_BOXES.fullmatch(between.rstrip("\\")) is not None
                listed = f"{listed}{text[last[0] : last[1]].strip()}, " if same and last is not None else ""
                last, begin, end = (start, found.start()), text.rfind("\\", 0, start), found.end()
        elif mark[-1] == "{" and mark != r"\{":
            open_braces.append(found.end() if mark != "{" else None)
    if last is None:
        return None
    content = text[last[0] : last[1]].strip()
    power = POWER.match(text, end)
    if power is not None:
        content = (f"({content})" if content[0] in "-−" else content) + power[0].strip()
        end = power.end()
    return listed + content if listed else _with_neighbours(text, content, begin, end)


def _with_neighbours(text: str, content: str, begin: int, end: int) -> str:
    r"""Return the content of a box with what belongs to it in its formula: -5 for -\boxed{5}, 5+1 for \boxed{5}+1."""
    while begin > 0 and text[begin - 1] == "\\":  # \\boxed
        begin -= 1
    before, behind = text[max(0, begin - BESIDE) : begin], text[end : end + BESIDE]
    if "\\" in before or "\\" in behind:
        before, behind = LAYOUT.sub("", before), LAYOUT.sub("", behind)
    words = before.casefold()
    if any(word in words for word in DENYING) and DENIED.search(before):
        return f"not {content}"
    if ("minus" in words or "negative" in words) and NEGATED.search(before):
        return f"-({content})" if re.search(r"[-+−]", content) else f"-{content}"
    if SIGN_OUTSIDE.search(before, max(0, len(before) - 2)) and behind.startswith("$"):
        return _side(before[:-1], content, behind[1:], in_formula=False)
    if QUIET_BEFORE.search(before, max(0, len(before) - 6)) and QUIET_BEHIND.match(behind):
        return content
    in_formula = _in_formula(text[max(0, begin - MOST_OF_FORMULA) : begin])
    left = (ATTACHED_BEFORE if in_formula else ATTACHED_BEFORE_IN_TEXT).search(before)
    right = (ATTACHED_BEHIND if in_formula else ATTACHED_BEHIND_IN_TEXT).match(behind)
    return content if left is None and right is None else _side(before, content, behind, in_formula)


def _in_formula(before: str) -> bool:
    """Return whether a formula is open at the end of a text."""
    delimiters = DELIMITER.findall(before)
    if sum(one in ("$", "$$") for one in delimiters) % 2 == 1:
        return re.search(r"\s[A-Za-z]{2}[^$]*$", before) is None  # words behind a dollar: it is one of money
    return bool(delimiters) and delimiters[-1] in (r"\(", r"\[")


def _side(before: str, content: str, behind: str, in_formula: bool) -> str:
    """Return the side of a formula, up to the next equality sign or delimiter, in which a box stands."""
    part = PART_BEFORE.match(before)
    before = before[part.end() :] if part is not None else before
    closing = PART_BEHIND.search(behind)
    behind = behind[: closing.start()] if closing is not None else behind
    if not in_formula:  # words around it are no part of the answer
        before = before.rpartition(" ")[2]
        behind = re.split(
            r"\s(?=[A-Za-z])(?!(?:hundred|thousand|million|billion|trillion|dozen)\b)", behind, maxsplit=1
        )[0]
    one_value = before[-1:].isalnum() or behind[:1].isalnum() or re.search(r"[-+−]", content) is not None
    return f"{before}({content}){behind}".strip() if one_value else f"{before}{content}{behind}".strip()

"""How a gold answer is read from its column, and how an answer is written at the end of a solution."""

import re
from collections.abc import Callable
from string import ascii_uppercase

from rlsparse.components.task.rows import is_blank
from rlsparse.config.schema import ConfigError

BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s?")
# what a box without braces may hold; in \boxed 1/2, TeX puts the 1 alone into the box, and more is probably meant
BARE = re.compile(r"(?:\d+(?:\.\d+)?|[A-Za-z])(?=[\s$)}]|[.,;:](?!\d)|$)")
POWER = re.compile(r"\s?[\^_]")  # behind a box, it belongs to the answer that the verifier reads
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # a brace that a backslash escapes closes nothing
# a completion with an answer in each format
WRITTEN = {"hash": "#### {}", "boxed": r"\boxed{{{}}}", "answer_is": "The answer is {}", "last_number": "{}"}
# what stands directly before the answer at the end of a solution
BEFORE = {
    "answer_is": r"(?i:\bthe (?:final |correct )?answer is:?) [*$]*",
    # not a digit or a sign, which the verifier would read as a part of the number
    "last_number": r"(?:^|(?<=[\s=$*]))(?<![\d−–±∓^_/-][ \t$])(?<!minus\s)(?<!negative\s)(?<!\\sqrt\s)",
}


def in_format(solution: str, answer: str, answer_format: str) -> str:
    """Return a solution that ends in its answer in the format of a task; the answer alone if there is no solution.

    A solution from which the format reads exactly this answer stays as it is; any other gets the answer in a line of
    its own.
    """
    if ends_in(solution, answer, answer_format):
        return solution
    written = WRITTEN[answer_format].format(answer)
    return written if solution.strip() in ("", answer) else f"{solution.rstrip()}\n{written}"


def ends_in(solution: str, answer: str, answer_format: str) -> bool:
    """Return whether a solution has exactly this answer where the format looks for it.

    It is stricter than the verifier, which also accepts other ways to write the same answer. For ``answer_is`` and
    ``last_number``, the answer must be the end of the solution, except for a full stop.
    """
    if answer_format == "hash":
        return "####" in solution and _or_none(after_hash, solution) == answer
    if answer_format == "boxed":
        boxes = list(BOX.finditer(solution))
        # the verifier reads neighbouring boxes as one answer, and a power behind a box as part of it
        alone = len(boxes) == 1 and not POWER.match(solution, _box(solution, boxes[0].end())[1])
        return alone and _or_none(boxed, solution) == answer
    return re.search(rf"{BEFORE[answer_format]}{re.escape(answer)}[.$*\s]*\Z", solution) is not None


def after_hash(text: str) -> str:
    """Return what stands after the last ``####`` on its line; the whole text if there is none."""
    answer = text.rpartition("####")[2].strip()
    if "####" in text:  # a verifier reads that line alone
        answer = answer.partition("\n")[0].strip()
    if is_blank(answer):
        raise ConfigError("has nothing after its last ####; write the final answer there")
    return answer


def boxed(text: str) -> str:
    r"""Return the content of the last ``\boxed{}``, which may also be written as ``\fbox{}``.

    A box without braces has one number or one letter, as in ``\boxed 5``.
    """
    boxes = list(BOX.finditer(text))
    if not boxes:
        raise ConfigError(r"has no \boxed{}; write the final answer into one, or choose another task.answer")
    answer, _ = _box(text, boxes[-1].end())
    if is_blank(answer):
        raise ConfigError(
            r"has a last \boxed{} that is empty, not closed, or without braces around more than one number or letter; "
            "write the final answer into it"
        )
    return answer.strip()


def before_parenthesis(text: str) -> str:
    """Return what stands before a unit in parentheses: 21 of ``21 (shirts)``."""
    answer = text.partition(" (")[0].strip()
    if is_blank(answer):
        raise ConfigError("has nothing before its parenthesis; write the final answer there")
    return answer


def letter_of(text: str, count: int) -> str:
    """Return the letter of a choice, which may be given as a letter or as its number, counted from 0.

    Args:
        count: of the choices.

    Raises:
        ConfigError: it is neither, or there are not so many choices.
    """
    letters = ascii_uppercase[:count]
    answer = text.strip()
    if len(answer) <= 2 and answer.isdecimal() and int(answer) < count:
        return letters[int(answer)]
    if len(answer) == 1 and answer.upper() in letters:
        return answer.upper()
    raise ConfigError(
        f"is {answer}, and there are {count} choices; give a letter from A to {letters[-1]}, or a number from 0 to "
        f"{count - 1}"
    )


def _as_it_is(text: str) -> str:
    return text


# by the value of task.answer; the value choice needs the choices, too: see letter_of
ANSWERS: dict[str, Callable[[str], str]] = {
    "as_is": _as_it_is,
    "after_hash": after_hash,
    "boxed": boxed,
    "before_parenthesis": before_parenthesis,
    "list_entry": _as_it_is,
}


def _or_none(reader: Callable[[str], str], text: str) -> str | None:
    try:
        return reader(text)
    except ConfigError:
        return None


def _box(text: str, start: int) -> tuple[str, int]:
    """Return the content of a box, and its end in the text; an empty content if there is none, or no end of it.

    Args:
        start: of what follows the command of the box.
    """
    if not text.startswith("{", start):
        bare = BARE.match(text, start)
        return (bare[0], bare.end()) if bare else ("", start)
    depth = 0
    for found in BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if depth == 0:
            return text[start + 1 : found.start()], found.end()
    return "", start

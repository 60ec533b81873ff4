"""Rows of data sets: JSON and CSV files read without a loss, and values of columns as text.

A value that is not what a question or an answer can be is refused with the place where it stands.
"""

import csv
import gzip
import io
import json
import math
import re
import reprlib
import sys
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from rlsparse.config.schema import ConfigError
from rlsparse.model.source import POINTER

Row = Mapping[str, Any]
Turns = tuple[tuple[str, str], ...]  # (role, content) each

ROLES = ("system", "user", "assistant")
LARGEST_EXPONENT = 10_000  # of a number that is written out: 1e999999999 would fill the memory
NEWLINE, SPACE = "\n", re.compile(r"\s*")
SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}  # of the columns of a text file
WIDE = (b"\xff\xfe", b"\xfe\xff", b"\0")  # what UTF-16 and UTF-32 files have in their first two bytes
WHOLE = re.compile(r"(-?[1-9]\d*|0)\.0")  # a whole number as the writer of a column of floats stores it
MINUS_ZERO = re.compile(r"-0+(\.0+)?")
# what pandas, and with it datasets, reads as a missing value in a CSV file
MISSING = frozenset(
    {"NA", "N/A", "n/a", "<NA>", "#NA", "#N/A", "#N/A N/A", "NaN", "nan", "-NaN", "-nan", "NULL", "null", "None"}
    | {"1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"}
)


class Number(float):
    """A number of a file that ``str`` returns as it is written there: 1.10 and 1.1 are one float."""

    text: str

    def __new__(cls, text: str) -> "Number":
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __repr__(self) -> str:
        return self.text


class Rounded(float):
    """A float that may stand for a longer number of a file, which a reader has rounded."""


class Missing(str):
    """A text of a CSV file that stands for a missing value."""


class Object(dict[str, Any]):
    """An object of a JSON file. ``twice`` has the keys that stand in it more than once."""

    twice: frozenset[str]

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(key for key, _ in pairs) if len(self) < len(pairs) else {}
        self.twice = frozenset(key for key, count in counts.items() if count > 1)


def read_json_lines(file: Path) -> list[tuple[int, Object]]:
    """Return the objects of a file of JSON lines, each with the number of its line; empty lines are skipped.

    Raises:
        ConfigError: the file is not UTF-8 text, or a line is not a JSON object.
    """
    # not splitlines: JSON strings may hold the other separators, but no line feed and no carriage return
    lines = _with_line_feeds(read_text(file)).split(NEWLINE)
    filled = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    return [(number, _object(f"{file.name} line {number}", line)) for number, line in filled]


def read_json(file: Path) -> list[Object]:
    """Return the objects of a file that is a JSON list of objects, or has one object after the other.

    Raises:
        ConfigError: the file is not UTF-8 text, or has another content.
    """
    text = _with_line_feeds(read_text(file))
    if text.lstrip().startswith("["):
        rows = _parsed(file.name, text)
        if not all(isinstance(row, Object) for row in rows):
            raise ConfigError(f"{file.name} is a list in which not every entry is an object; give a list of objects")
        return list(rows)
    found: list[Object] = []
    at, line = 0, 1
    while at < len(text):
        start = SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches everywhere
        line += text.count(NEWLINE, at, start)
        if start == len(text):
            break
        where = f"{file.name} line {line}"
        with _readable(where):
            row, at = DECODER.raw_decode(text, start)
        if not isinstance(row, Object):
            raise ConfigError(f"{where} is not a JSON object; write one in each line")
        found.append(row)
        line += text.count(NEWLINE, start, at)
    return found


def _parsed(where: str, text: str) -> Any:
    with _readable(where):
        return DECODER.decode(text)


@contextmanager
def _readable(where: str) -> Iterator[None]:
    try:
        yield
    except json.JSONDecodeError as error:
        reason = f"character {error.pos + 1}: {error.msg.removesuffix(' at')}"
        raise ConfigError(f"{where} is not JSON ({reason}); write one JSON object in each line") from error
    except RecursionError as error:
        raise ConfigError(f"{where} nests brackets too deeply; write a flat object") from error


def _object(where: str, line: str) -> Object:
    row = _parsed(where, line)
    if not isinstance(row, Object):
        raise ConfigError(f"{where} is not a JSON object; write one in each line")
    return row


def read_csv(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return the rows of a CSV file (tab-separated if it ends in .tsv), each with the number of its first line.

    Each value is the text between the separators, so that 007 and 1.10 keep their digits.

    Raises:
        ConfigError: the file is not UTF-8 text, or a row has more or fewer values than there are columns.
    """
    csv.field_size_limit(sys.maxsize)
    separator = "\t" if ".tsv" in [ending.lower() for ending in file.suffixes] else ","
    text = read_text(file)
    _check_separator(file.name, text, separator)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] | None = None
    found: list[tuple[int, dict[str, Any]]] = []
    while True:
        number = lines.line_num + 1
        try:
            values = next(lines, None)
        except csv.Error as error:
            raise ConfigError(f"{file.name} line {number} is not CSV ({error}); fix its quotes") from error
        if values is None:
            return found
        if not values:  # an empty line
            continue
        if header is None:
            header = values
            if twice := [name for name, count in Counter(header).items() if count > 1]:
                raise ConfigError(f"{file.name} has the column {named(twice[:1])} twice; keep one")
            continue
        if len(values) != len(header):
            raise ConfigError(f"{file.name} line {number} {_ragged(header, values)}")
        cells = [Missing(value) if value.strip() in MISSING else value for value in values]
        found.append((number, dict(zip(header, cells, strict=True))))


def _check_separator(name: str, text: str, separator: str) -> None:
    """Refuse a file whose first line separates columns by another character.

    Args:
        name: of the file.
        separator: that the file must have.
    """
    first = next((line for line in re.split(r"[\r\n]+", text) if line.strip()), "")
    unquoted = re.sub(r'"[^"]*"', "", first)
    other = next((one for one in SEPARATORS if one in unquoted), separator)
    if separator in unquoted or other == separator:
        return
    remedy = f"write {SEPARATORS[separator]}"
    if other in ",\t":
        remedy += f", or let its name end in {'.csv' if other == ',' else '.tsv'}"
    raise ConfigError(f"{name} has columns that are separated by {SEPARATORS[other]}; {remedy}")


def named(columns: Iterable[str]) -> str:
    """Return names of columns for a message; one with spaces at an end or without visible characters is quoted."""
    names = [str(one) for one in columns]
    return ", ".join(
        repr(one) if one != one.strip() or is_blank(one) or not one.isprintable() else one for one in names
    )


def _ragged(header: Sequence[str], values: Sequence[str]) -> str:
    """Return how the number of values of a row differs from that of the columns."""
    if len(values) < len(header):
        return f"lacks a value of the column {named(header[len(values) :][:1])}: it has {len(values)} of {len(header)}"
    return (
        f"has {len(values)} values, and there are {len(header)} columns ({named(header)}); write a value with a "
        "separator in double quotes"
    )


def read_text(file: Path) -> str:
    """Return the text of a file, unpacked if its name ends in .gz, without a byte order mark.

    Raises:
        ConfigError: the file cannot be read, or is not UTF-8 text.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file.name} cannot be read ({error.strerror}); give a file that you may read") from error
    if content.startswith(POINTER):
        raise ConfigError(f"{file.name} is a pointer of git-lfs, not the file; run git lfs pull in the folder")
    if file.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ConfigError(f"{file.name} cannot be unpacked ({error}); copy or download it again") from error
    if any(mark in content[:2] for mark in WIDE):
        raise ConfigError(f"{file.name} is UTF-16 or UTF-32 text; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = _with_line_feeds(content[: error.start].decode("latin-1")).count(NEWLINE) + 1
        raise ConfigError(f"{file.name} line {line} is not UTF-8 text ({error.reason}); save it as UTF-8") from error


def _with_line_feeds(text: str) -> str:
    """Return a text in which the line ends of Windows and of the old Macintosh are line feeds."""
    return text.replace("\r\n", NEWLINE).replace("\r", NEWLINE)


def _whole(text: str) -> int | Number:
    try:
        return int(text)
    except ValueError:  # more digits than Python converts
        return Number(text)


DECODER = json.JSONDecoder(object_pairs_hook=Object, parse_float=Number, parse_int=_whole)


def with_text(row: Row, columns: Sequence[str]) -> tuple[Row, Turns]:
    """Return a row with text in each of some columns, and the earlier turns if its question is a conversation.

    Args:
        columns: that the row must have; the first one has the question.

    Raises:
        ConfigError: a column is missing, stands twice or has another value.
    """
    check_columns(row, columns)
    texts: dict[str, str] = {}
    context: Turns = ()
    for column in columns:
        value = row[column]
        with in_column(column):
            if isinstance(value, list) and column == columns[0]:
                turns = as_turns(value)
                context, value = turns[:-1], turns[-1][1]
            texts[column] = as_text(value)
    return {**row, **texts}, context


def check_columns(row: Row, columns: Sequence[str], names: Mapping[str, str] | None = None) -> None:
    """Refuse a row that lacks a column or has one twice.

    Args:
        columns: that the row must have.
        names: of columns that are renamed, old name to new one.

    Raises:
        ConfigError: the columns that are missing, or the one that stands twice.
    """
    new = names or {}
    found = Counter(new.get(name, name) for name in row)
    found.update(new.get(name, name) for name in getattr(row, "twice", ()))
    if missing := [column for column in columns if column not in found]:
        raise ConfigError(
            f"lacks {named(missing)}; a row needs the columns {named(columns)}, and this one has {named(row) or 'none'}"
        )
    if repeated := [column for column in columns if found[column] > 1]:
        raise ConfigError(f"has the column {repeated[0]} twice; keep one")


@contextmanager
def in_column(name: str) -> Iterator[None]:
    """Put the name of a column before a message."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"column {name} {error}") from error


def as_text(value: Any) -> str:
    """Return a value of a row as text; a number as it is written, without an exponent.

    A number that ends in ``.0`` is a whole number in a column of floats, and is written without that ending. Zero has
    no minus sign.

    Raises:
        ConfigError: it is neither text nor a number, is empty, or cannot be written as UTF-8.
    """
    if isinstance(value, Missing):
        raise ConfigError(
            f"is {value.strip()}, which stands for a missing value in a CSV file; give text or a number, or a jsonl "
            "file if this is meant as a word"
        )
    if isinstance(value, str):
        text = value
    elif isinstance(value, bool) or value is None:
        word = json.dumps(value)
        raise ConfigError(f'is {word}; give text or a number (as a word, "{word}")')
    elif isinstance(value, float | Decimal) and not (isinstance(value, Number) or math.isfinite(value)):
        raise ConfigError(f"is {value}, which is no finite number; give text or a finite number")
    elif isinstance(value, Rounded):
        raise ConfigError(f"is {value}, which the file reader may have rounded; store this number as text")
    elif isinstance(value, int | float | Decimal):
        text = _written_out(str(value))
        text = text[1:] if MINUS_ZERO.fullmatch(text) else text
        whole = WHOLE.fullmatch(text) if isinstance(value, float) else None
        text = whole[1] if whole is not None else text
    else:
        raise ConfigError(f"is {_kind(value)} ({reprlib.repr(value)}); give text or a number")
    if is_blank(text):
        raise ConfigError("is empty; give text or a number")
    return _encodable(text)


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise ConfigError(f"has the character {half}, half of a surrogate pair; write both halves") from error
    return text


def _written_out(number: str) -> str:
    """Return a number without an exponent: 1e-05 as 0.00001. One without an exponent is returned as it is."""
    if "e" not in number.lower():
        return number
    exponent = number.lower().partition("e")[2]
    if len(exponent) > len(str(LARGEST_EXPONENT)) + 1 or abs(int(exponent)) > LARGEST_EXPONENT:
        raise ConfigError(f"is {reprlib.repr(number)}; give an exponent of at most {LARGEST_EXPONENT}")
    return format(Decimal(number), "f")


def as_turns(messages: list[Any]) -> Turns:
    """Return the turns of a conversation, the last of which is the question.

    Args:
        messages: a mapping with ``role`` and ``content`` each, as in the chat format of transformers.

    Raises:
        ConfigError: a turn has another form, or the last one is not that of a user.
    """
    turns = tuple(_turn(one) for one in messages)
    if not turns:
        raise ConfigError("is an empty list; give text, or a conversation whose last turn is that of a user")
    if turns[-1][0] != "user":
        raise ConfigError(f"ends with a turn of the role {turns[-1][0]}; end it with one of the role user")
    as_text(turns[-1][1])
    return turns


def _turn(message: Any) -> tuple[str, str]:
    if not isinstance(message, dict) or not {"role", "content"} <= set(message):
        raise ConfigError(
            f"is a list with {reprlib.repr(message)}; give text, or a conversation: "
            '[{"role": "user", "content": "the question"}]'
        )
    if twice := getattr(message, "twice", None):
        raise ConfigError(f"has a turn in which {', '.join(sorted(twice))} stands twice; keep one")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise ConfigError(f"has a turn of the role {reprlib.repr(role)}; give one of {', '.join(ROLES)}")
    if isinstance(content, list):
        return role, "".join(_part(one) for one in content)
    if content == "" and role != "user":
        return role, content  # a model may be told to have no system message
    try:
        return role, as_text(content)
    except ConfigError as error:
        raise ConfigError(f"has a turn whose content {error}") from error


def _part(part: Any) -> str:
    """Return the text of a part of a turn, ``{"type": "text", "text": ...}``."""
    kind, text = (part.get("type"), part.get("text")) if isinstance(part, dict) else (part, None)
    if kind != "text" or not isinstance(text, str) or getattr(part, "twice", None):
        raise ConfigError(
            f'has a turn with the part {reprlib.repr(part)}; give parts such as {{"type": "text", "text": "..."}}'
        )
    return _encodable(text)


def is_blank(text: str) -> bool:
    """Return whether a text has no visible character."""
    return all(character.isspace() or unicodedata.category(character) in ("Cc", "Cf") for character in text)


def _kind(value: Any) -> str:
    names: dict[type, str] = {dict: "an object", Object: "an object", list: "a list", bytes: "binary data"}
    return names.get(type(value), f"of the type {type(value).__name__}")

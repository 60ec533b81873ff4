"""The words of a command line before Hydra reads them: paths of the home folder, prompts, and axes given twice."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import InputStream, OverrideLexer  # type: ignore[attr-defined]
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError

from rlsparse.config.paths import PATHS, expand_home
from rlsparse.config.schema import ConfigError

ESCAPE = r"where the text itself has ${, write \${"
FOLDER_FLAGS = ("--config-dir", "-cd", "--config-path", "-cp")  # of Hydra
# flags of Hydra with a value that is a word of its own
SHORT_FLAGS = ("-cd", "-cp", "-cn", "-c", "-p", "-i")
LONG_FLAGS = ("--config-dir", "--config-path", "--config-name", "--cfg", "--package", "--info", "--experimental-rerun")
PROMPT = "task.prompt"
TERM_GROUP, TERMS, SUM = "reward", "reward.terms", "terms"
# a text in quotes, or a path that begins with the home folder and stands where a value may begin
QUOTED = r"""(?P<quoted>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')"""
START = r"(?:^|(?<=[\[,(:])|(?<=[\[,(:]\s))"
TILDE = START + r"""(?P<path>(?:file://)?~[\w.-]*/(?:\\.|\$\{[^{}]*\}|[^\[\](){},'"\\])*)(?=$|[\],)}])"""
VALUES = re.compile(f"{QUOTED}|{TILDE}")
ESCAPED = re.compile(r"\\([\\()\[\]{}:=, \t])")


def read_words(arguments: Sequence[str]) -> list[str]:
    """Return a command line in which Hydra can read paths and prompts as a person writes them.

    ``~`` is the home folder, and ``task.prompt=TEXT`` and a path with letters such as ö need no quotes of Hydra's own.
    """
    ordered = _flags_first(arguments)
    before = ["", *ordered]
    return [_word(word, previous in FOLDER_FLAGS) for previous, word in zip(before, ordered, strict=False)]


def keys_of_swept_groups(words: Sequence[str]) -> list[str]:
    """Return a command line in which the keys of a config group that is swept are set in each point of the sweep.

    ``-m token_sampler=random,first token_sampler.share=0.5``: Hydra would set the key before it chooses an option, in
    the default option of the group, which may not have it.

    Args:
        words: of the command line, as ``read_words`` returns them.
    """
    if not {"-m", "--multirun"} & set(words):
        return list(words)
    groups = {key for key, _, value in (word.partition("=") for word in words) if key.isidentifier() and "," in value}
    moved = [word for word in words if word.partition(".")[0] in groups and _is_single_value(word)]
    if not moved:
        return list(words)
    axes = ",".join(f"{key}:{_quote(value)}" for key, _, value in (word.partition("=") for word in moved))
    return [*(word for word in words if word not in moved), f"hydra.sweeper.params={{{axes}}}"]


def _is_single_value(word: str) -> bool:
    override = parsed(word)
    return override is not None and not override.is_sweep_override() and re.match(r"[\w.]+=", word) is not None


def _flags_first(arguments: Sequence[str]) -> list[str]:
    """Return a command line with its flags before its overrides, since argparse reads overrides in one place only."""
    flags: list[str] = []
    overrides: list[str] = []
    previous = ""
    for word in arguments:
        is_value = _takes_value(previous) and not (previous.startswith(("-i", "--i")) and "=" in word)
        (flags if word.startswith("-") or is_value else overrides).append(word)
        previous = "" if is_value else word
    return [*flags, *overrides]


def _takes_value(flag: str) -> bool:
    """Return whether the word behind a flag, which may be cut short as argparse allows, is its value."""
    return flag in SHORT_FLAGS or (len(flag) > 2 and any(one.startswith(flag) for one in LONG_FLAGS))


def _word(word: str, is_folder: bool) -> str:
    key, equals, value = word.partition("=")
    if is_folder:
        return expand_home(word)
    if not equals or word.startswith("-"):
        return key + equals + expand_home(value)
    if value == "~":  # Hydra cannot read it, whether it is a path or the character
        return f"{key}={_quote(expand_home(value) if key.rpartition('.')[2].lstrip('+') in PATHS else value)}"
    if key.lstrip("+") != PROMPT:
        value = VALUES.sub(_with_home, value)
    if parsed(f"{key}={value}") is None and _is_text(key, value):
        value = _quote(value)
    return f"{key}={value}"


def _with_home(found: re.Match[str]) -> str:
    """Return a path of the home folder in quotes, since Hydra reads few characters without them."""
    if found["path"] is not None:
        text = ESCAPED.sub(r"\1", found["path"])
    else:
        quoted = parsed(f"key={found['quoted']}")
        text = str(quoted.value()) if quoted is not None else ""
    _, scheme, path = text.rpartition("file://")
    expanded = expand_home(path)
    return found[0] if expanded == path else _quote(scheme + expanded)


def _is_text(key: str, value: str) -> bool:
    """Return whether a value that Hydra cannot read is a single text all the same: a prompt or a path."""
    if key.lstrip("+") == PROMPT:
        return value[:1] not in ("'", '"', "[") and value.count("{question}") == 1
    return "/" in value and not set(value) & set("[](){},'\"$")


def _quote(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()


def parsed(word: str) -> Override | None:
    """Return an override as Hydra reads it; None if Hydra cannot read it."""
    try:
        return OverridesParser.create().parse_override(word)
    except (HydraException, ValueError):
        return None


def refuse_unreadable(words: Iterable[str]) -> None:
    """Refuse overrides that Hydra cannot read, and interpolations in them that OmegaConf cannot read.

    Raises:
        ConfigError: the word, and how to write it.
    """
    for word in words:
        key, _, value = word.partition("=")
        try:
            override = OverridesParser.create().parse_override(word)
            for text in _texts(override.value()) if "${" in value else ():
                OmegaConf.create({"value": text})
        except GrammarParseError as error:
            raise ConfigError(f"{word}: cannot be read ({_first_line(error)}); {ESCAPE}") from error
        except HydraException as error:
            hint = f"; {ESCAPE}" if "${" in value else ""
            raise ConfigError(
                f"{word}: cannot be read ({_first_line(error)}); put a text into quotes, '{key}=\"TEXT\"'{hint}"
            ) from error
        except ValueError:  # of a sweep without points: see check_group_options
            continue


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in the value of an override."""
    if isinstance(value, QuotedString):
        yield value.text
    elif isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for one in value.values() for text in _texts(one))
    elif isinstance(value, ChoiceSweep | list):
        yield from (text for one in (value if isinstance(value, list) else value.list) for text in _texts(one))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def refuse_repeated_axes(words: Iterable[str], where: str) -> None:
    """Refuse an axis of a sweep whose key is given again: Hydra would take the last one and say nothing.

    A key without several values may be given twice; the last value counts.

    Args:
        words: overrides.
        where: where the words are, for the message.

    Raises:
        ConfigError: the words of the first such key.
    """
    by_key: dict[str, list[str]] = {}
    for word in words:
        by_key.setdefault(word.partition("=")[0].lstrip("+"), []).append(word)
    for key, same in by_key.items():
        if len(same) > 1 and any(_is_axis(word) for word in same):
            raise ConfigError(
                f"{' and '.join(same)}: the axis {key} is given {len(same)} times {where}, and only the last one would "
                f"count; give it once, with all its values: {key}=A,B"
            )


def refuse_covered_axes(words: Sequence[str]) -> None:
    """Refuse an axis inside a mapping that another word gives as a whole, or the reverse: one of the two is lost.

    Raises:
        ConfigError: the two words.
    """
    pairs = [(word.partition("=")[0].lstrip("+"), word) for word in words]
    for key, word in pairs:
        if not word.partition("=")[2].startswith("{"):
            continue
        inside = [other for name, other in pairs if name.startswith(f"{key}.")]
        lost = next((other for other in inside if _is_axis(word) or _is_axis(other)), None)
        if lost is not None:
            raise ConfigError(f"{word} and {lost}: give the keys of {key} one by one, since one of these would be lost")


def refuse_repeated_keys(words: Iterable[str]) -> None:
    """Refuse a mapping that has a key twice, ``{a:1,a:2}``: Hydra would take the last one and say nothing.

    Raises:
        ConfigError: the word and the key.
    """
    for word in words:
        key, _, value = word.partition("=")
        again = _repeated_key(value) if "{" in value else None
        if again is not None:
            raise ConfigError(f"{word}: {key} has the key {again} twice, and only the last one would count; give one")


def _repeated_key(value: str) -> str | None:
    """Return a key that a mapping in a value has twice; None for all other values."""
    lexer = OverrideLexer(InputStream(value))
    lexer.removeErrorListeners()
    lexer.mode(OverrideLexer.VALUE_MODE)
    tokens = [token for token in lexer.getAllTokens() if token.type != OverrideLexer.WS]
    opening, colon = (OverrideLexer.BRACE_OPEN, OverrideLexer.COMMA), OverrideLexer.COLON
    seen: list[set[str]] = []  # keys of each mapping that is open
    for before, token, after in zip([None, *tokens], tokens, [*tokens[1:], None], strict=False):
        if token.type == OverrideLexer.BRACE_OPEN:
            seen.append(set())
        elif token.type == OverrideLexer.BRACE_CLOSE and seen:
            seen.pop()
        elif seen and before is not None and before.type in opening and after is not None and after.type == colon:
            if token.text in seen[-1]:
                return str(token.text)
            seen[-1].add(token.text)
    return None


def refuse_repeated_terms(words: Sequence[str]) -> None:
    """Refuse a term of a reward that two words define, and an option that is taken to a place where no term is.

    A word defines a term where it takes an option of the group to it, ``+reward@reward.terms.NAME=OPTION``, or gives
    a mapping with its class. Other words may change the values of a term.

    Raises:
        ConfigError: the words.
    """
    defined: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        group, at, package = key.lstrip("+").partition("@")
        if at and group == TERM_GROUP and not key.startswith("~"):
            if re.fullmatch(rf"{re.escape(TERMS)}\.[^.]+", package) is None:
                raise ConfigError(
                    f"{word}: an option of {group} can be a term of the sum; write +{group}@{TERMS}.NAME={value}"
                )
            if value == SUM:
                raise ConfigError(
                    f"{word}: the option {SUM} is a sum itself and cannot be a term; take another option of {group}, "
                    f"such as {key}=answer"
                )
            names = [package]
        else:
            override = parsed(word) if "{" in value else None
            names = [] if override is None else _defined(key.lstrip("+"), override.value())
        for name in names:
            if name in defined:
                raise ConfigError(
                    f"{defined[name]} and {word}: the term {name} is given twice; give one of them another name"
                )
            defined[name] = word


def _defined(key: str, value: Any) -> list[str]:
    """Return the terms that a word gives with their class.

    Args:
        key: of the word.
        value: of the word, as Hydra reads it.
    """
    if not isinstance(value, dict):
        return []
    nodes = {f"{key}.{name}": node for name, node in value.items()}
    if key == TERM_GROUP:
        nodes = {f"{TERMS}.{name}": node for name, node in dict(value.get("terms") or {}).items()}
    elif key.startswith(f"{TERMS}."):
        nodes = {key: value}
    elif key != TERMS:
        return []
    return [name for name, node in nodes.items() if isinstance(node, dict) and "_target_" in map(str, node)]


def _is_axis(word: str) -> bool:
    override = parsed(word)
    return override is not None and override.is_sweep_override()

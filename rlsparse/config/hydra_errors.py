"""The errors of Hydra as one line each: ``key=value: remedy``."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from rlsparse.config.schema import ConfigError

FULL_ERROR = "HYDRA_FULL_ERROR"  # a variable of Hydra: with 1 it raises its errors instead of printing them
PRIMARY = ("config", "warm_start", "evaluate", "benchmark", "hydra/config")  # files that a command begins with
LONGEST = 500  # characters
DELETED = re.compile(r"Could not delete from config\. '([^']+)' does not exist")
NOT_A_MAPPING = re.compile(r"Cannot merge DictConfig with |Cannot assign \w+ to Dict\[")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with one line if Hydra, or the config that it reads, raises an error in the context.

    A user who sets HYDRA_FULL_ERROR=1 gets the traceback.
    """
    before = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"
    try:
        yield
    except HydraException as error:
        if before == "1":
            raise
        sys.exit(f"error: {explained(error)}")
    except OmegaConfBaseException as error:  # of an interpolation in a key of Hydra
        if before == "1" or not error.full_key:
            raise
        sys.exit(f"error: {error.full_key}: {str(error).splitlines()[0]}")
    finally:
        if before is None:
            os.environ.pop(FULL_ERROR, None)
        else:
            os.environ[FULL_ERROR] = before


def explained(error: HydraException) -> str:
    """Return an error of Hydra in one line, and a ``ConfigError`` as it is."""
    if isinstance(error, ConfigError):
        return str(error)
    first, *more = str(error).strip().splitlines() or [type(error).__name__]
    found = None
    if isinstance(error, MissingConfigException):
        found = _missing_option(error, first)
    elif isinstance(error, ConfigCompositionException):
        found = _composition(error, first, more)
    return found or _joined(error)


def _joined(error: HydraException) -> str:
    cause = str(error.__cause__ or "").strip().splitlines()
    text = " ".join([*str(error).split(), *([f"({cause[0]})"] if cause and cause[0] not in str(error) else [])])
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _missing_option(error: MissingConfigException, first: str) -> str | None:
    group, slash, name = (error.missing_cfg_file or "").rpartition("/")
    place, comma, reason = first.partition(": ")
    if not (slash and comma and error.options):
        return None
    file = place.removeprefix("In '").removesuffix("'")
    where = "" if file in PRIMARY else f" (in {file})"
    return f"{group}={name}: {reason}{where}; choose one of {', '.join(sorted(error.options))}"


def _composition(error: HydraException, first: str, more: list[str]) -> str | None:
    """Return the line of an error of composition; None for a kind that is not known here."""
    cause = error.__cause__
    if first.startswith("Error merging override "):
        word = first.removeprefix("Error merging override ")
        reason = str(cause or "").split("\n")[0]
        if NOT_A_MAPPING.match(reason):
            return f"{word}: must be a mapping; write {{KEY:VALUE}}, in quotes of the shell"
        return f"{word}: {reason}" if reason else None
    if first.startswith("Could not override ") and more:
        word = more[-1].rpartition(" use +")[2]
        if not isinstance(cause, (ConfigAttributeError, ConfigKeyError)):
            return f"{word}: there is no such option to replace; write +{word} to add it"
        return f"{word}: {_unknown_key(cause)}"
    if first.startswith("Could not append to config. An item is already at ") and more:
        word = more[0].partition(": ")[2].strip("'")
        return f"+{word}: the key exists; write {word}, without +"
    if first.startswith("Ambiguous value for argument "):
        word = first.removeprefix("Ambiguous value for argument ").strip("'")
        key, _, values = word.partition("=")
        a_list = f", or write {key}=[{values}] for a list" if "." in key else ""
        return f"{word}: has several values; add -m for a sweep over them{a_list}"
    deleted = DELETED.match(first)
    if deleted is not None:
        return f"~{deleted[1]}: there is no such key or option to leave out"
    return None


def _unknown_key(cause: OmegaConfBaseException) -> str:
    """Return that a key does not exist, and which keys there are in its place."""
    parent = cause.parent_node
    path = str(cause.full_key or "").rpartition(".")[0]
    keys = sorted(str(key) for key in parent if key != "_target_") if isinstance(parent, DictConfig) else []
    open_end = f"; a new one begins with +, as in +{path}.{cause.key}=..." if path.endswith(".settings") else ""
    return f"{path or 'the config'} as chosen has no key {cause.key}; it has {', '.join(keys) or 'none'}{open_end}"

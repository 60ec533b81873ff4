"""What every component is, and how one is built from its yaml file.

A component is a frozen dataclass in one file: its fields are the keys of its yaml, their annotations the types and
ranges, its methods the formula, and its class variables (traits) what other parts must know about it. A yaml file of
its config group names the class in ``_target_``. The class may lie anywhere that Python can import it from.
"""

import hashlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from rlsparse.config.ranges import MOST_ROWS, OneOf, Range, convert
from rlsparse.config.schema import ConfigError

__all__ = ["MOST_ROWS", "Component", "OneOf", "Range", "build", "use_import_path"]

PACKAGE = "rlsparse"
TARGET = "_target_"
Digest = Callable[[str], str]


@dataclass(frozen=True)
class Component:
    """Base class of all components. A subclass is a frozen dataclass whose fields have no default values."""

    @property
    def label(self) -> str:
        """Return its name in tables and summaries: the class in snake case, such as ``group_zscore``."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values of several keys together: ``key=value: remedy``, without the group."""
        yield from ()

    def identity(self, digest: Digest) -> dict[str, Any]:
        """Return what of this component can change the numbers of a run, for the run id.

        Args:
            digest: returns a hash of the files of a folder.
        """
        return asdict(self)


Kind = TypeVar("Kind", bound=Component)


def build(group: str, node: Mapping[str, Any], base: type[Kind]) -> Kind:
    """Build the component of a config group from its node.

    Args:
        group: name of the config group, for messages.
        node: ``_target_`` (dotted path of the class) and a value for each field of it.
        base: the base class of the group.

    Raises:
        ConfigError: the class cannot be imported or is no subclass of ``base``; a key is unknown, missing, of another
            type or out of range. All problems, a line each: key, value and remedy.
    """
    if not isinstance(node, Mapping) or not isinstance(node.get(TARGET), str):
        raise ConfigError(f"{group}={node}: names no class; choose an option of the group, {group}=NAME")
    cls = _import(group, node[TARGET], base)
    values, problems = convert(cls, group, {key: value for key, value in node.items() if key != TARGET})
    if problems:
        raise ConfigError("\n".join(problems))
    component = cls(**values)
    broken = [f"{group}.{line}" for line in component.problems()]
    if broken:
        raise ConfigError("\n".join(broken))
    return component


def describe(component: Component, digest: Digest) -> dict[str, Any]:
    """Return who a component is for the run id: its class, its values and, outside the package, its source files.

    The module of the class does not count, so that moving a file inside the package changes no run id.
    """
    about = {"class": type(component).__qualname__, **component.identity(digest)}
    files = sources(type(component))
    if files:
        about["files"] = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return about


def sources(cls: type) -> list[Path]:
    """Return the files that define a class and its base classes, those of this package left out."""
    found = []
    for one in cls.__mro__:
        module = sys.modules.get(one.__module__)
        file = getattr(module, "__file__", None)
        if file is not None and one.__module__.partition(".")[0] not in (PACKAGE, "abc", "typing"):
            found.append(Path(file))
    return list(dict.fromkeys(found))


def origin(component: Component) -> str:
    """Return where a component is defined, for messages: its file if it lies outside the package, else its class."""
    files = sources(type(component))
    return str(files[0]) if files else type(component).__name__


def use_import_path(folders: Sequence[str]) -> None:
    """Make the modules of some folders importable, after everything that is importable already."""
    for folder in folders:
        if folder not in sys.path:
            sys.path.append(folder)


def _import(group: str, target: str, base: type[Kind]) -> type[Kind]:
    where = f"{group}.{TARGET}={target}"
    module_name, _, class_name = target.rpartition(".")
    if not module_name:
        raise ConfigError(f"{where}: must be MODULE.CLASS, such as brevity.Brief")
    try:
        module = import_module(module_name)
    except Exception as error:
        raise ConfigError(f"{where}: {_cannot_import(module_name, error)}") from error
    found = getattr(module, class_name, None)
    file = getattr(module, "__file__", None) or module_name
    if not isinstance(found, type):
        classes = sorted(n for n, c in vars(module).items() if isinstance(c, type) and c.__module__ == module_name)
        raise ConfigError(f"{where}: {file} has no class {class_name}; it has {', '.join(classes) or 'none'}")
    if not issubclass(found, base):
        raise ConfigError(
            f"{where}: {class_name} in {file} is no subclass of {base.__module__}.{base.__qualname__}; derive it from "
            f"that class, or choose another option of {group}"
        )
    if inspect.isabstract(found):
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise ConfigError(f"{where}: {class_name} in {file} lacks {missing}; define it")
    if not is_dataclass(found) or "__dataclass_params__" not in vars(found):
        raise ConfigError(f"{where}: {class_name} in {file} is no dataclass; write @dataclass(frozen=True) above it")
    return found


def _cannot_import(module: str, error: Exception) -> str:
    """Say why a module cannot be imported, and where in which file."""
    if isinstance(error, ModuleNotFoundError) and error.name in (module, module.partition(".")[0]):
        return (
            f"there is no module {module}; put {module.replace('.', '/')}.py into the folder that --config-dir names, "
            "or install its package"
        )
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    frames = [one for one in traceback.extract_tb(error.__traceback__) if "importlib" not in one.filename]
    outside = [one for one in frames if one.filename != __file__]
    return f"{outside[-1].filename}, line {outside[-1].lineno}: {reason}" if outside else reason

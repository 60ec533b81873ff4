"""What every component is, and how one is built from its yaml file.

A component is a frozen dataclass in one file: its fields are the keys of its yaml, their annotations the types and
ranges, its methods the formula, and its class variables (traits) properties that other components check. A yaml file of
its config group names the class in ``_target_``. The class may lie anywhere that Python can import it from.
"""

import ast
import dataclasses
import hashlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from importlib import import_module, invalidate_caches
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Self, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rlsparse.config import ranges
from rlsparse.config.ranges import MOST_ROWS, OneOf, Range, convert, shown
from rlsparse.config.run_id import Digest
from rlsparse.config.schema import ConfigError

__all__ = ["MOST_ROWS", "Component", "Digest", "OneOf", "Range", "build", "use_import_path"]

PACKAGE = "rlsparse"
NO_CAUSE = (ranges.__file__, dataclasses.__file__, "<string>", __file__)  # frames of these files do not name the cause
TARGET = "_target_"


@dataclass(frozen=True)
class Component:
    """Base class of all components. A subclass is a frozen dataclass whose fields have no default values.

    Attributes:
        neutral: values of keys that a later version added, at which they change nothing. The run id leaves such a key
            out, so that the runs of earlier versions count as finished.
    """

    neutral: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def of(cls, where: str, values: Mapping[str, Any]) -> Self:
        """Return the component with these values of its keys.

        Args:
            where: prefix of the keys in messages, such as ``token_sampler``.
            values: by key, as YAML gives them.

        Raises:
            ConfigError: all that is wrong with them, a line each.
        """
        converted, problems = convert(cls, where, values)
        if problems:
            raise ConfigError("\n".join(problems))
        component = cls(**converted)
        broken = [f"{where}.{line}" for line in component.problems()]
        if broken:
            raise ConfigError("\n".join(broken))
        return component

    @property
    def label(self) -> str:
        """Return its name in tables and summaries: the class in snake case, such as ``group_zscore``."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values of several keys together: ``key=value: remedy``, without the group."""
        yield from ()

    @property
    def is_neutral(self) -> bool:
        """Whether it changes no number of a run, so that its config group does not count in the run id.

        Config groups of a later version need one such option, so that the runs of earlier versions count as finished.
        """
        return False

    def identity(self, digest: Digest) -> dict[str, Any]:
        """Return what of this component can change the numbers of a run, for the run id.

        Args:
            digest: returns the hash of the contents of some files.
        """
        return {
            key: value for key, value in asdict(self).items() if key not in self.neutral or value != self.neutral[key]
        }


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
    if not isinstance(node, Mapping):
        raise ConfigError(f"{group}={node}: names no class; choose an option of the group, {group}=NAME")
    target = node.get(TARGET)
    if not isinstance(target, str) or not re.fullmatch(r"\w+(\.\w+)+", target):
        option = "; or begin its yaml file with an option of the group, defaults: [OPTION, _self_]"
        hint = "" if TARGET in node else option
        raise ConfigError(f"{group}.{TARGET}={shown(target)}: must be MODULE.CLASS, such as brevity.Brief{hint}")
    cls = _import(group, target, base)
    with one_line(f"{group}.{TARGET}={target}"):
        return cls.of(group, {key: value for key, value in node.items() if key != TARGET})


def describe(component: Component, digest: Digest) -> dict[str, Any]:
    """Return the description of a component for the run id: class, values and, outside the package, source files.

    The module of the class does not count, so that moving a file inside the package changes no run id. For a class
    outside the package, files and folders count by their content: those that a value names, and files that a text in
    its source names.
    """
    about = {"class": type(component).__qualname__, **component.identity(digest)}
    files = sources(type(component))
    if files:
        folders = [Path(), *dict.fromkeys(file.parent for file in files)]
        about = {key: _content(value, folders, digest) for key, value in about.items()}
        about["files"] = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        if data := [path for file in files for path in _named_in(file)]:
            about["data"] = digest(tuple(dict.fromkeys(data)))
    return about


def _content(value: Any, folders: Sequence[Path], digest: Digest) -> Any:
    """Return a value with each path in it replaced by the hash of what lies there.

    Args:
        folders: that relative paths are looked for in.
    """
    if isinstance(value, dict):
        return {key: _content(one, folders, digest) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_content(one, folders, digest) for one in value]
    found = _path(value, folders)
    if found is None:
        return value
    return digest((found,) if found.is_file() else tuple(sorted(file for file in found.rglob("*") if file.is_file())))


def _path(value: Any, folders: Sequence[Path]) -> Path | None:
    """Return the file or folder that a value names; None if it names none.

    A path is a text with a separator or a file name extension: a bare word such as ``docs`` could be a folder of the
    present directory by chance. A folder that holds the present directory is no input, but a text such as ``/``.
    """
    if not isinstance(value, str) or "\n" in value or not (os.sep in value or Path(value).suffix):
        return None
    try:
        path, here = Path(value).expanduser(), Path.cwd()
        places = [Path(os.path.normpath(here / folder / path)) for folder in folders]
        return next((one for one in places if one.is_file() or (one.is_dir() and not here.is_relative_to(one))), None)
    except (OSError, ValueError, RuntimeError):  # a text that is no path: too long, with a NUL, an unknown user
        return None


def _named_in(file: Path) -> list[Path]:
    """Return the files that texts in a source file name, relative to its folder or to the present directory."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    found = [path for text in texts if (path := _path(text, [file.parent, Path()])) is not None]
    return [path for path in found if path.is_file()]


def sources(cls: type) -> list[Path]:
    """Return the files that define a class outside the package: its own, those of its base classes, and their imports.

    An import counts where it is found in a folder of ``use_import_path``; installed packages do not count.
    """
    found: list[Path] = []
    for one in cls.__mro__:
        module = sys.modules.get(one.__module__)
        file = getattr(module, "__file__", None)
        if file is not None and one.__module__.partition(".")[0] not in (PACKAGE, "abc", "typing"):
            _add_with_imports(Path(file), found)
    return found


def _add_with_imports(file: Path, found: list[Path]) -> None:
    if file in found:
        return
    found.append(file)
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        for name in names:
            for module in _modules(name):
                _add_with_imports(module, found)


def _modules(name: str) -> list[Path]:
    """Return the files of a module in the folders of a user, packages above it included; none for other modules."""
    parts = name.split(".")
    for folder in map(Path, _user_folders):
        stems = [folder.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
        files = [file for stem in stems for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()]
        if files:
            return files
    return []


def origin(component: Component) -> str:
    """Return where a component is defined, for messages: its file if it lies outside the package, else its class."""
    files = sources(type(component))
    return str(files[0]) if files else type(component).__name__


def raised_by(component: Component, error: BaseException) -> str:
    """Return an error with the file and line that raised it: of the component if its files are part of the way.

    The deepest line of a traceback is often in a library that the component calls, and names no cause.
    """
    own = {str(file) for file in sources(type(component))}
    frames = [one for one in traceback.extract_tb(error.__traceback__) if one.filename in own]
    if not frames:
        return _raised(error)
    return f"{frames[-1].filename}, line {frames[-1].lineno}: {type(error).__name__}: {error}"


def with_shape(group: str, component: Component, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the tensor that a component gave, which must have the shape.

    Raises:
        ComponentError: it does not. The message names the component and its file.
    """
    if not isinstance(tensor, Tensor) or tensor.shape != shape:
        got = f"shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ComponentError(f"{group} ({origin(component)}): returned {got}; it must be a tensor of shape {shape}")
    return tensor


def checked(group: str, component: Component, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the tensor that a component gave, which must have the shape and hold finite numbers.

    Raises:
        ComponentError: it does not. The message names the component and its file.
    """
    if not bool(torch.isfinite(with_shape(group, component, tensor, shape)).all()):
        raise ComponentError(f"{group} ({origin(component)}): returned a number that is not finite")
    return tensor


class ComponentError(ValueError):
    """A component returned something that it must not."""


_user_folders: list[str] = []
_digests: WeakKeyDictionary[ModuleType, str] = WeakKeyDictionary()  # module of a user -> hash of its imported file


def use_import_path(folders: Sequence[str]) -> None:
    """Append the folders of a user to the import path, in the place of those of an earlier config."""
    if list(folders) == _user_folders:
        return
    _forget(_user_modules())
    for folder in _user_folders:
        if folder in sys.path:
            sys.path.remove(folder)
    _user_folders[:] = folders
    sys.path.extend(folder for folder in folders if folder not in sys.path)


@contextmanager
def one_line(where: str) -> Iterator[None]:
    """Turn an exception of a component into a ConfigError of one line with the file and line that raised it.

    Args:
        where: key and value, for the message.
    """
    try:
        yield
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{where}: {_raised(error)}") from error


def _import(group: str, target: str, base: type[Kind]) -> type[Kind]:
    where = f"{group}.{TARGET}={target}"
    module_name, _, class_name = target.rpartition(".")
    expected = _modules(module_name)
    _forget_if_changed()
    try:
        module = import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{where}: {_cannot_import(module_name, error)}") from error
    found = getattr(module, class_name, None)
    file = getattr(module, "__file__", None) or module_name
    if expected and Path(file) not in expected:
        raise ConfigError(f"{where}: Python imports another module of this name, {file}; rename {expected[-1]}")
    _remember()
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


def _user_modules() -> dict[ModuleType, Path]:
    """Return the loaded modules that lie in a folder of a user."""
    if not _user_folders:
        return {}
    found = {}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or "site-packages" in file or module.__name__.partition(".")[0] == PACKAGE:
            continue
        if any(Path(file).is_relative_to(folder) for folder in _user_folders):
            found[module] = Path(file)
    return found


def _remember() -> None:
    for module, file in _user_modules().items():
        if module not in _digests and file.is_file():
            _digests[module] = hashlib.sha256(file.read_bytes()).hexdigest()


def _forget_if_changed() -> None:
    """Have the modules of a user imported again where a file has changed: the run id is made from the file."""
    modules = _user_modules()
    for module, file in modules.items():
        if module in _digests and (
            not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != _digests[module]
        ):
            _forget(modules)
            return


def _forget(modules: Iterable[ModuleType]) -> None:
    invalidate_caches()
    for module in modules:
        sys.modules.pop(module.__name__, None)


def _cannot_import(module: str, error: BaseException) -> str:
    """Return why a module cannot be imported, and where in which file."""
    if isinstance(error, ModuleNotFoundError) and error.name in (module, module.partition(".")[0]):
        return (
            f"there is no module {module}; put {module.replace('.', '/')}.py into the folder that --config-dir names, "
            "or install its package"
        )
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    return _raised(error)


def _raised(error: BaseException) -> str:
    """Return an error with the file and line outside this file that raised it."""
    hint = "; write @dataclass(frozen=True)" if "non-frozen dataclass" in str(error) else ""
    reason = f"{type(error).__name__}: {error}{hint}"
    frames = [one for one in traceback.extract_tb(error.__traceback__) if "importlib" not in one.filename]
    outside = [one for one in frames if one.filename not in NO_CAUSE]
    return f"{outside[-1].filename}, line {outside[-1].lineno}: {reason}" if outside else reason

"""The home folder in paths: ``~`` and ``~user``, as a shell expands them. Hydra and Python do not."""

import os
import re
from dataclasses import fields, is_dataclass
from typing import Any

from rlsparse.config.schema import ConfigError

HOME = re.compile(r"~(/.*)?|~[\w.-]+/.*", re.DOTALL)
UNKNOWN = re.compile(r"\$\{?\w+\}?(?=/|$)|~[\w.-]+(?=/)|file:/*")  # what a shell or another tool expands
KEEP = ("prompt", "system")  # keys whose values are text for a model
# keys in which a lone ~ is the home folder
PATHS = ("runs_dir", "out", "path", "hub", "prompt_file", "import_path", "adapter_path")


def expand_home(text: str) -> str:
    """Return a path with the home folder in the place of ``~``; any other text as it is."""
    return os.path.expanduser(text) if HOME.fullmatch(text) else text


def expand_all(node: Any, key: str = "") -> Any:
    """Return a config in which each text that begins with the home folder is expanded; ``task.prompt`` is kept.

    A lone ``~`` is a path only in keys of paths: a component of a user may mean the character.

    Args:
        node: a dataclass of the schema, which is changed, or a mapping, list or value in it.
        key: of the node.
    """
    if isinstance(node, str):
        if key in PATHS and (wrong := UNKNOWN.match(expand_home(node))):
            raise ConfigError(
                f"{key}={node}: {wrong[0]} is not expanded here; write the folder itself, ~ for the home folder, or "
                "${oc.env:NAME} for a variable"
            )
        return node if key in KEEP or (node == "~" and key not in PATHS) else expand_home(node)
    if isinstance(node, dict):
        return {name: expand_all(one, name) for name, one in node.items()}
    if isinstance(node, list):
        return [expand_all(one, key) for one in node]
    if is_dataclass(node) and not isinstance(node, type):
        for field in fields(node):
            setattr(node, field.name, expand_all(getattr(node, field.name), field.name))
    return node

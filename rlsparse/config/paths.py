"""The home folder in paths: ``~`` and ``~user``, as a shell expands them. Hydra and Python do not."""

import os
import re
from dataclasses import fields, is_dataclass
from typing import Any

HOME = re.compile(r"~(/.*)?|~[\w.-]+/.*", re.DOTALL)
KEEP = ("prompt",)  # keys whose values are text for a model


def expand_home(text: str) -> str:
    """Return a path with the home folder in the place of ``~``; any other text as it is."""
    return os.path.expanduser(text) if HOME.fullmatch(text) else text


def expand_all(node: Any) -> Any:
    """Return a config in which each text that begins with the home folder is expanded; ``task.prompt`` is kept.

    Args:
        node: a dataclass of the schema, which is changed, or a mapping, list or value in it.
    """
    if isinstance(node, str):
        return expand_home(node)
    if isinstance(node, dict):
        return {key: one if key in KEEP else expand_all(one) for key, one in node.items()}
    if isinstance(node, list):
        return [expand_all(one) for one in node]
    if is_dataclass(node) and not isinstance(node, type):
        for field in fields(node):
            setattr(node, field.name, expand_all(getattr(node, field.name)))
    return node

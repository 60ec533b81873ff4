"""Adapters: the few parameters that are trained.

Every adapter is a class built on a policy, with ``parameters``, ``ranks`` and ``export``.
"""

from collections.abc import Callable
from typing import Any

from rlsparse.adapter.lora import Lora

ADAPTERS: dict[str, Callable[..., Any]] = {"lora": Lora}

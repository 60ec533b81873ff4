"""Adapters: the few parameters that are trained.

Every adapter is made as ``f(policy, config, rank, seed)``, which puts it into ``policy.model``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from torch import nn

from rlsparse.adapter.lora import Lora


class Adapter(Protocol):
    """What the training loop and the summary ask of an adapter."""

    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer trains, in a fixed order."""

    def ranks(self) -> dict[str, int]:
        """Rank of the adapter on each module, by module name."""

    def export(self, folder: Path) -> None:
        """Write the adapter in peft's format."""

    def remove(self) -> None:
        """Take it out of the model again, whose weights are what they were."""


ADAPTERS: dict[str, Callable[..., Adapter]] = {"lora": Lora}

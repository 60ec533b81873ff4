"""Layer skipping: rollouts from a part of the model."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Generator, nn

from rlsparse.components.component import Component, OneOf, Range
from rlsparse.config.schema import ConfigError
from rlsparse.model.policy import Policy


@dataclass(frozen=True)
class LayerSkip(Component, ABC):
    """Chooses the decoder layers that do not take part in a rollout. Nested-ReFT, Heuillet et al. 2025 (2508.10123)."""

    @property
    @abstractmethod
    def active(self) -> bool:
        """Whether any layer is skipped."""

    @abstractmethod
    def choose(self, depth: int, generator: Generator) -> list[int]:
        """Return the numbers of the layers to skip in the next rollout batch, ascending.

        Args:
            depth: decoder layers of the model.
            generator: CPU stream of the draws of this stage.

        Raises:
            ConfigError: see ``check``.
        """

    @abstractmethod
    def check(self, depth: int) -> None:
        """Refuse what a model of this depth does not allow.

        Raises:
            ConfigError: key, value and remedy.
        """


@dataclass(frozen=True)
class SkipLayers(LayerSkip):
    """Skips a share of the decoder layers; the first and the last always stay (ours).

    Attributes:
        ratio: share of the decoder layers, rounded to whole layers.
        choice: ``random`` (drawn for each rollout batch), ``last`` (the deepest inner ones) or ``fixed`` (``layers``).
        layers: for ``fixed``: numbers of the layers from 0; beats the ratio.
    """

    ratio: Annotated[float, Range(0, 1, below=True)]
    choice: Annotated[str, OneOf("random", "last", "fixed")]
    layers: list[int] | None

    def problems(self) -> Iterator[str]:
        if self.choice == "fixed" and self.layers is None:
            yield "layers=null: layer_skip.choice=fixed needs a list of layer numbers such as [2,5]"
        if self.choice != "fixed" and self.layers is not None:
            yield f"layers={self.layers}: only layer_skip.choice=fixed takes a list; add that, or leave it null"
        if self.choice == "last" and self.ratio == 0:
            yield "choice=last: skips nothing with layer_skip.ratio=0; give a share such as layer_skip.ratio=0.1"

    @property
    def active(self) -> bool:
        return self.ratio > 0 or self.choice == "fixed"

    def choose(self, depth: int, generator: Generator) -> list[int]:
        count = self.count(depth)
        if self.choice == "fixed":
            return sorted(self.layers or [])
        if self.choice == "last":
            return list(range(depth - 1 - count, depth - 1))
        return sorted((1 + torch.randperm(depth - 2, generator=generator)[:count]).tolist()) if count else []

    def check(self, depth: int) -> None:
        self.count(depth)

    def count(self, depth: int) -> int:
        """Return how many decoder layers are skipped.

        Raises:
            ConfigError: none although a share is asked for; more than leave the first and the last; or a list with a
                layer that is not an inner one.
        """
        if depth < 3 and self.active:
            raise ConfigError(
                f"layer_skip: this model has {depth} decoder layers, none between first and last; take off"
            )
        inner = f"this model has {depth} decoder layers, of which the first and the last stay"
        if self.choice == "fixed":
            layers = self.layers or []
            if not layers or len(set(layers)) != len(layers) or not all(0 < layer < depth - 1 for layer in layers):
                raise ConfigError(
                    f"layer_skip.layers={self.layers}: {inner}; with layer_skip.choice=fixed give some of "
                    f"1 to {depth - 2}, each once"
                )
            return len(layers)
        count = round(self.ratio * depth)
        if self.ratio > 0 and count == 0:
            raise ConfigError(
                f"layer_skip.ratio={self.ratio}: skips nothing, since {inner}; give more than {0.5 / depth:.3f}, or "
                "layer_skip=off"
            )
        if count > max(0, depth - 2):
            raise ConfigError(
                f"layer_skip.ratio={self.ratio}: would skip {count} layers, but {inner}; give less than "
                f"{1 - 1.5 / depth:.3f}"
            )
        return count


@contextmanager
def without_layers(policy: Policy, layers: Sequence[int]) -> Iterator[None]:
    """Within the context, the model runs without these decoder layers."""
    decoder = policy.causal_lm.get_decoder()
    whole = decoder.layers
    if layers:
        decoder.layers = nn.ModuleList(layer for number, layer in enumerate(whole) if number not in layers)
    try:
        yield
    finally:
        decoder.layers = whole

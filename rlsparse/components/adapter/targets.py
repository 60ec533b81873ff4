"""Which modules of a model an adapter is put on."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from rlsparse.components.adapter.base import Adapter
from rlsparse.config.schema import ConfigError

LAYER = re.compile(r"\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Targeted(Adapter):
    """An adapter on linear modules of the decoder layers.

    Attributes:
        target_modules: ``all-linear`` (all except the output head) or a list of names such as ``[q_proj, v_proj]``.
        layers: ``all``, ``last_third``, or a list of numbers of decoder layers, from 0.
    """

    target_modules: str | list[str]
    layers: str | list[int]

    def problems(self) -> Iterator[str]:
        yield from self.layer_problems()
        if isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            yield f"target_modules={self.target_modules}: give all-linear, or a list of names such as [q_proj,v_proj]"

    def layer_problems(self) -> Iterator[str]:
        """Yield what is wrong with ``layers``."""
        if isinstance(self.layers, str) and self.layers not in ("all", "last_third"):
            yield f"layers={self.layers}: give all, last_third, or a list of layer numbers such as [8,9]"

    def target_names(self, model: nn.Module) -> list[str]:
        """Return the last parts of the names of the modules that get an adapter, such as ``q_proj``.

        Raises:
            ConfigError: no linear module of a decoder layer has a name in ``target_modules``.
        """
        present = sorted({name.rsplit(".", 1)[-1] for name in decoder_linears(model)})
        if self.target_modules == "all-linear":
            return present
        wanted = list(self.target_modules)
        missing = [name for name in wanted if name not in present]
        if missing:
            raise ConfigError(
                f"adapter.target_modules={self.target_modules}: this model has no {', '.join(missing)}; "
                f"it has {', '.join(present)}"
            )
        return wanted

    def target_layers(self, model: nn.Module) -> list[int]:
        """Return the numbers of the decoder layers that get adapters, in ascending order.

        Raises:
            ConfigError: the model does not have one of the layers.
        """
        layers = sorted({int(number) for name in decoder_linears(model) for number in LAYER.findall(name)})
        if self.layers == "all":
            return layers
        if self.layers == "last_third":
            return layers[-max(1, len(layers) // 3) :]
        wanted = sorted(layer for layer in self.layers if isinstance(layer, int))
        if any(layer not in layers for layer in wanted):
            raise ConfigError(f"adapter.layers={self.layers}: this model has layers 0 to {layers[-1]}")
        return wanted

    def first_adapted(self, model: nn.Module) -> int:
        return self.target_layers(model)[0]

    def adapted_modules(self, model: nn.Module) -> list[str]:
        names, layers = self.target_names(model), self.target_layers(model)
        return [
            module
            for module in decoder_linears(model)
            if module.rsplit(".", 1)[-1] in names and all(int(number) in layers for number in LAYER.findall(module))
        ]

    def check_rank(self, model: nn.Module, rank: int, key: str = "lora_rank") -> None:
        """Refuse a rank that no adapted module allows.

        Raises:
            ConfigError: with ``key``, the rank and the largest one.
        """
        weights: list[Any] = [model.get_submodule(name).weight for name in self.adapted_modules(model)]
        most = max(min(weight.shape) for weight in weights)
        if rank > most:
            raise ConfigError(f"{key}={rank}: the adapted modules of this model allow at most rank {most}; lower it")


def decoder_linears(model: nn.Module) -> list[str]:
    """Return the full names of the linear modules of the decoder layers, in the order of the model.

    Raises:
        ConfigError: there are none.
    """
    modules: Any = model.named_modules()
    names = [name for name, module in modules if isinstance(module, nn.Linear) and LAYER.search(name)]
    if not names:
        raise ConfigError(
            "model: it has no linear modules under .layers.N., which this adapter needs; take another model"
        )
    return names

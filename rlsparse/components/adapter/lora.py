"""LoRA, implemented with peft."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from rlsparse.components.adapter.base import Adapter
from rlsparse.components.component import Range
from rlsparse.config.schema import ConfigError
from rlsparse.model.adapters import merged
from rlsparse.model.policy import Policy

LAYER = re.compile(r"\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Lora(Adapter):
    """LoRA, Hu et al. 2021 (2106.09685): ΔW = scale·B·A, B (out, r) zero and A (r, in) random at the start.

    Attributes:
        scale: α/r. It does not depend on the rank, so that a sweep over the rank changes the rank alone.
        target_modules: ``all-linear`` (all except the output head) or a list of names such as ``[q_proj, v_proj]``.
        layers: ``all``, ``last_third``, or a list of numbers of decoder layers, from 0.
    """

    scale: Annotated[float, Range(0, above=True)]
    target_modules: str | list[str]
    layers: str | list[int]

    def problems(self) -> Iterator[str]:
        if isinstance(self.layers, str) and self.layers not in ("all", "last_third"):
            yield f"layers={self.layers}: give all, last_third, or a list of layer numbers such as [8,9]"
        if isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            yield f"target_modules={self.target_modules}: give all-linear, or a list of names such as [q_proj,v_proj]"

    def attach(self, policy: Policy, rank: int, seed: int) -> "LoraMatrices":
        return LoraMatrices(policy, self, rank, seed)

    def check(self, model: nn.Module, rank: int, steps: int) -> None:
        weights: list[Any] = [model.get_submodule(name).weight for name in self.adapted_modules(model)]
        most = max(min(weight.shape) for weight in weights)
        if rank > most:
            raise ConfigError(
                f"lora_rank={rank}: the adapted modules of this model allow at most rank {most}; lower it"
            )

    def peft_config(self, model: nn.Module, rank: int) -> Any:
        """Return the configuration for peft; a subclass may change it."""
        from peft import LoraConfig

        return LoraConfig(
            task_type="CAUSAL_LM",
            r=rank,
            lora_alpha=self.scale * rank,
            lora_dropout=0.0,
            target_modules=self.target_names(model),
            layers_to_transform=None if self.layers == "all" else self.target_layers(model),
        )

    def target_names(self, model: nn.Module) -> list[str]:
        """Return the last parts of the names of the modules that get an adapter, such as ``q_proj``.

        Raises:
            ConfigError: no linear module of a decoder layer has a name in ``target_modules``.
        """
        present = sorted({name.rsplit(".", 1)[-1] for name in _decoder_linears(model)})
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
        layers = sorted({int(number) for name in _decoder_linears(model) for number in LAYER.findall(name)})
        if self.layers == "all":
            return layers
        if self.layers == "last_third":
            return layers[-max(1, len(layers) // 3) :]
        wanted = sorted(layer for layer in self.layers if isinstance(layer, int))
        if any(layer not in layers for layer in wanted):
            raise ConfigError(f"adapter.layers={self.layers}: this model has layers 0 to {layers[-1]}")
        return wanted

    def adapted_modules(self, model: nn.Module) -> list[str]:
        """Return the full names of the modules that get an adapter, in the order of the model."""
        names, layers = self.target_names(model), self.target_layers(model)
        return [
            module
            for module in _decoder_linears(model)
            if module.rsplit(".", 1)[-1] in names and all(int(number) in layers for number in LAYER.findall(module))
        ]


@dataclass(frozen=True)
class Part:
    """Names a trained tensor of one adapter: the parameter ``owner.name`` with its components along ``dim``."""

    owner: nn.Module
    name: str
    dim: int


class LoraMatrices:
    """LoRA matrices in the model of a policy, in float32 for any dtype of the model.

    There is no dropout in training, since completions are sampled without dropout.

    Attributes:
        layers: the LoRA layer of peft for each adapted module, by module name.
        budget: maximum sum of the ranks of all adapters.
    """

    def __init__(self, policy: Policy, config: Lora, rank: int, seed: int) -> None:
        """Put the matrices into ``policy.model``, which becomes a peft model.

        Args:
            policy: the policy.
            config: scale, modules and layers of the adapter.
            rank: r of every matrix pair.
            seed: seed of the initial values of A.
        """
        from peft import get_peft_model

        peft_config = config.peft_config(policy.model, rank)
        with torch.random.fork_rng(devices=[policy.device] if policy.device.type == "cuda" else []):
            torch.manual_seed(seed)
            policy.model = get_peft_model(policy.model, peft_config, revision=policy.revision).eval()
        self.model = policy.model
        self.layers: dict[str, Any] = {
            name.removeprefix("base_model.model."): module
            for name, module in self.model.named_modules()
            if hasattr(module, "lora_A")
        }
        self.budget = rank * len(self.layers)
        policy.first_adapted = config.target_layers(policy.model)[0]
        policy.merged = self.merged

    def merged(self) -> AbstractContextManager[None]:
        """Return a context within which the adapter is added to the weights; see ``model.adapters.merged``."""
        return merged(self.layers.values())

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters in a fixed order."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def optimizer(self, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        """Return AdamW over the matrices. ``initial_lr`` of a group is the peak of the learning rate schedule."""
        groups = [{"params": self.parameters(), "initial_lr": lr}]
        return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)

    def after_step(self, step: int, steps: int) -> dict[str, float]:
        """Do nothing after a training step, and return no metrics."""
        return {}

    def ranks(self) -> dict[str, int]:
        """Return the rank of the adapter on each module, by module name."""
        return {name: layer.r["default"] for name, layer in self.layers.items()}

    def state(self) -> dict[str, Tensor]:
        """Return copies of all trained tensors, named ``<module>.A`` (r, in) and ``<module>.B`` (out, r)."""
        return {
            f"{name}.{key}": getattr(part.owner, part.name).detach().clone()
            for name, layer in self.layers.items()
            for key, part in self._parts(layer).items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Load a saved state with its ranks; call this before ``optimizer``, whose state is loaded later.

        Raises:
            ValueError: the state belongs to an adapter on other modules, or to another kind of adapter.
        """
        if state.keys() != self.state().keys():
            raise ValueError("the saved adapter does not match: it belongs to other modules or another kind of adapter")
        for name, layer in self.layers.items():
            for key, part in self._parts(layer).items():
                value = state[f"{name}.{key}"].to(getattr(part.owner, part.name))
                setattr(part.owner, part.name, nn.Parameter(value.clone()))
            set_rank(layer, state[f"{name}.B"].shape[1])

    def export(self, folder: Path) -> None:
        """Write the adapter in the format of peft (``adapter_model.safetensors``, ``adapter_config.json``)."""
        self.model.save_pretrained(str(folder), save_embedding_layers=False)  # they are never trained

    def merge(self) -> Any:
        """Add the adapter to the weights in float32 and return the model without the wrapper of peft."""
        return self.model.float().merge_and_unload()

    def remove(self) -> None:
        """Remove the adapter from the model; the weights of the model are unchanged."""
        self.model.unload()

    def _parts(self, layer: Any) -> dict[str, Part]:
        return {"A": Part(layer.lora_A["default"], "weight", 0), "B": Part(layer.lora_B["default"], "weight", 1)}


def set_rank(layer: Any, rank: int) -> None:
    """Set the rank in a LoRA layer of peft to that of its matrices."""
    layer.r["default"] = layer.lora_A["default"].out_features = layer.lora_B["default"].in_features = rank


def _decoder_linears(model: nn.Module) -> list[str]:
    modules: Any = model.named_modules()
    names = [name for name, module in modules if isinstance(module, nn.Linear) and LAYER.search(name)]
    if not names:
        raise ConfigError(
            "model: it has no linear modules under .layers.N., which this adapter needs; take another model"
        )
    return names

"""LoRA through peft: ΔW = scale·B·A with B (out, r) zero and A (r, in) random at the start (Hu et al. 2021)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlsparse.config.schema import ConfigError, LoraConfig
from rlsparse.model.policy import Policy

LAYER = re.compile(r"\.layers\.(\d+)\.")


def target_names(model: nn.Module, config: LoraConfig) -> list[str]:
    """The module names (``q_proj``, …) that get an adapter.

    Raises:
        ConfigError: a name that no linear module of a decoder layer has.
    """
    present = sorted({name.rsplit(".", 1)[-1] for name in _decoder_linears(model)})
    if config.target_modules == "all-linear":
        return present
    wanted = list(config.target_modules)
    missing = [name for name in wanted if name not in present]
    if missing:
        raise ConfigError(
            f"adapter.target_modules={config.target_modules}: this model has no {', '.join(missing)}; "
            f"it has {', '.join(present)}"
        )
    return wanted


def target_layers(model: nn.Module, config: LoraConfig) -> list[int]:
    """The numbers of the decoder layers that get adapters, ascending.

    Raises:
        ConfigError: a layer that the model does not have.
    """
    layers = sorted({int(number) for name in _decoder_linears(model) for number in LAYER.findall(name)})
    if config.layers == "all":
        return layers
    if config.layers == "last_third":
        return layers[-max(1, len(layers) // 3) :]
    wanted = sorted(config.layers)
    if any(layer not in layers for layer in wanted):
        raise ConfigError(f"adapter.layers={config.layers}: this model has layers 0 to {layers[-1]}")
    return wanted


def adapted_modules(model: nn.Module, config: LoraConfig) -> list[str]:
    """The full names of the modules that get an adapter, in the model's order."""
    names, layers = target_names(model, config), target_layers(model, config)
    return [
        module
        for module in _decoder_linears(model)
        if module.rsplit(".", 1)[-1] in names and all(int(number) in layers for number in LAYER.findall(module))
    ]


@dataclass(frozen=True)
class Part:
    """A trained tensor of one adapter: the parameter ``owner.name``, whose components lie along ``dim``."""

    owner: nn.Module
    name: str
    dim: int


class Lora:
    """LoRA matrices on a policy's model. The adapter is kept in float32, whatever the base model's dtype.

    There is no dropout: the policy is sampled without it, so it is trained without it too.

    Attributes:
        layers: peft's layer of each adapted module, by the module's name.
        budget: the ranks of all adapters together, at most.
        moves: whether ranks change while it trains.
    """

    moves = False

    def __init__(self, policy: Policy, config: LoraConfig, rank: int, seed: int) -> None:
        """Puts the matrices into ``policy.model``, which becomes a peft model.

        Args:
            rank: r of every matrix pair.
            seed: of A's random start.
        """
        from peft import LoraConfig as PeftLoraConfig
        from peft import get_peft_model

        peft_config = PeftLoraConfig(
            task_type="CAUSAL_LM",
            r=rank,
            lora_alpha=config.scale * rank,
            lora_dropout=0.0,
            target_modules=target_names(policy.model, config),
            layers_to_transform=None if config.layers == "all" else target_layers(policy.model, config),
        )
        with torch.random.fork_rng(devices=[policy.device] if policy.device.type == "cuda" else []):
            torch.manual_seed(seed)
            policy.model = get_peft_model(policy.model, peft_config).eval()
        self.model = policy.model
        self.layers: dict[str, Any] = {
            name.removeprefix("base_model.model."): module
            for name, module in self.model.named_modules()
            if hasattr(module, "lora_A")
        }
        self.budget = rank * len(self.layers)
        policy.first_adapted = target_layers(policy.model, config)[0]
        policy.merged = self.merged

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Inside, the adapted weights are W + ΔW, rounded to W's dtype; afterwards W is back, the very tensors."""
        layers = list(self.layers.values())
        kept = [layer.base_layer.weight.data for layer in layers]
        try:
            for layer, weight in zip(layers, kept, strict=True):
                layer.base_layer.weight.data = weight.clone()
                layer.merge()
            yield
        finally:
            for layer, weight in zip(layers, kept, strict=True):
                layer.base_layer.weight.data = weight
                layer.merged_adapters.clear()

    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer trains, in a fixed order."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def optimizer(self, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        """AdamW over the matrices. A group's ``initial_lr`` is the peak that a schedule takes its share of."""
        groups = [{"params": self.parameters(), "initial_lr": lr}]
        return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)

    def after_step(self, step: int, steps: int) -> dict[str, float]:
        """Called after each training step, counted from 1; the adapter's own metrics, of which LoRA has none."""
        return {}

    def ranks(self) -> dict[str, int]:
        """Rank of the adapter on each module, by module name."""
        return {name: layer.r["default"] for name, layer in self.layers.items()}

    def state(self) -> dict[str, Tensor]:
        """Copies of all trained tensors, named ``<module>.A`` (r, in), ``<module>.B`` (out, r), …"""
        return {
            f"{name}.{key}": getattr(part.owner, part.name).detach().clone()
            for name, layer in self.layers.items()
            for key, part in self._parts(layer).items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up a saved state, its ranks too; before ``optimizer`` is called, whose state loads afterwards.

        Raises:
            ValueError: it is the state of an adapter on other modules.
        """
        if state.keys() != self.state().keys():
            raise ValueError("the adapter's saved state does not fit: it belongs to other modules or another adapter")
        for name, layer in self.layers.items():
            for key, part in self._parts(layer).items():
                value = state[f"{name}.{key}"].to(getattr(part.owner, part.name))
                setattr(part.owner, part.name, nn.Parameter(value.clone()))
            set_rank(layer, state[f"{name}.B"].shape[1])

    def export(self, folder: Path) -> None:
        """Write the adapter in peft's format (``adapter_model.safetensors``, ``adapter_config.json``)."""
        self.model.save_pretrained(str(folder))

    def merge(self) -> Any:
        """Make it part of the weights for good, added in float32; the transformers model, which peft has left."""
        return self.model.float().merge_and_unload()

    def remove(self) -> None:
        """Take it out of the model again, whose weights are what they were."""
        self.model.unload()

    def _parts(self, layer: Any) -> dict[str, Part]:
        return {"A": Part(layer.lora_A["default"], "weight", 0), "B": Part(layer.lora_B["default"], "weight", 1)}


def set_rank(layer: Any, rank: int) -> None:
    """Tell peft's layer the rank that its matrices have."""
    layer.r["default"] = layer.lora_A["default"].out_features = layer.lora_B["default"].in_features = rank


def _decoder_linears(model: nn.Module) -> list[str]:
    modules: Any = model.named_modules()
    names = [name for name, module in modules if isinstance(module, nn.Linear) and LAYER.search(name)]
    if not names:
        raise ConfigError(
            "model: it has no linear modules under .layers.N., so it cannot carry this adapter; take another"
        )
    return names

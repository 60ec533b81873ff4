"""LoRA through peft: ΔW = scale·B·A with B (out, r) zero and A (r, in) random at the start (Hu et al. 2021)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlsparse.config import AdapterConfig, ConfigError, LoraConfig
from rlsparse.policy import Policy

LAYER = re.compile(r"\.layers\.(\d+)\.")


def target_names(model: nn.Module, config: AdapterConfig) -> list[str]:
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


def target_layers(model: nn.Module, config: AdapterConfig) -> list[int]:
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


class Lora:
    """LoRA matrices on a policy's model. The adapter is kept in float32, whatever the base model's dtype.

    There is no dropout: the policy is sampled without it, so it is trained without it too.
    """

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
        policy.first_adapted = target_layers(policy.model, config)[0]
        policy.merged = self.merged

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Inside, the adapted weights are W + ΔW, rounded to W's dtype; afterwards W is back, the very tensors."""
        layers = [module for module in self.model.modules() if hasattr(module, "lora_A")]
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

    def ranks(self) -> dict[str, int]:
        """Rank of the adapter on each module, by module name."""
        return {
            name.removeprefix("base_model.model."): module.r["default"]
            for name, module in self.model.named_modules()
            if hasattr(module, "lora_A")
        }

    def export(self, folder: Path) -> None:
        """Write the adapter in peft's format (``adapter_model.safetensors``, ``adapter_config.json``)."""
        self.model.save_pretrained(str(folder))

    def remove(self) -> None:
        """Take it out of the model again, whose weights are what they were."""
        self.model.unload()


def _decoder_linears(model: nn.Module) -> list[str]:
    modules: Any = model.named_modules()
    names = [name for name, module in modules if isinstance(module, nn.Linear) and LAYER.search(name)]
    if not names:
        raise ConfigError(
            "model: it has no linear modules under .layers.N., so it cannot carry this adapter; take another"
        )
    return names

"""LoRA, implemented with peft."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from rlsparse.components.adapter.base import TrainedAdapter
from rlsparse.components.adapter.targets import Targeted
from rlsparse.components.component import Range
from rlsparse.model.adapters import merged
from rlsparse.model.policy import Policy


@dataclass(frozen=True)
class Lora(Targeted):
    """LoRA, Hu et al. 2021 (2106.09685): ΔW = scale·B·A, B (out, r) zero and A (r, in) random at the start.

    Attributes:
        scale: α/r. It does not depend on the rank, so that a sweep over the rank changes the rank alone.
    """

    scale: Annotated[float, Range(0, above=True)]

    @property
    def exports_lora(self) -> bool:
        return True

    def attach(self, policy: Policy, rank: int, seed: int) -> "LoraMatrices":
        return LoraMatrices(policy, self, rank, seed)

    def check(self, model: nn.Module, rank: int, steps: int) -> None:
        self.check_rank(model, rank)

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


@dataclass(frozen=True)
class Part:
    """Names a trained tensor of one adapter: the parameter ``owner.name`` with its components along ``dim``."""

    owner: nn.Module
    name: str
    dim: int


class LoraMatrices(TrainedAdapter):
    """LoRA matrices in the model of a policy, in float32 for any dtype of the model.

    There is no dropout in training, since completions are sampled without dropout.

    Attributes:
        layers: the LoRA layer of peft for each adapted module, by module name.
        budget: maximum sum of the ranks of all adapters.
    """

    budget: int

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
        policy.first_adapted = config.first_adapted(policy.model)
        policy.merged = self.merged
        policy.reference = self.model.disable_adapter
        policy.export_adapter = self.export

    def merged(self) -> AbstractContextManager[None]:
        """Return a context within which the adapter is added to the weights; see ``model.adapters.merged``."""
        return merged(self.layers.values())

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters in a fixed order."""
        return [p for p in self.model.parameters() if p.requires_grad]

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

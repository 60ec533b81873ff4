"""Full fine-tuning: the weights of the model themselves are trained, without an adapter."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rlsparse.components.adapter.base import TrainedAdapter, add_gradient, pull_to_start
from rlsparse.components.adapter.targets import LAYER, Targeted
from rlsparse.components.component import Digest, Range
from rlsparse.model.policy import Policy

PRECISE = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Full(Targeted):
    """Full fine-tuning of all weights, or of some modules or layers: the control of every adapter.

    A model in bfloat16 computes with rounded copies of float32 weights, which the optimizer keeps: steps of a usual
    size would be lost in the rounding of bfloat16 (mixed precision training, Micikevicius et al. 2018, 1710.03740).

    Attributes:
        target_modules: ``all`` (every weight: embeddings, norms and output head too), ``all-linear`` (linear modules of
            the decoder layers), or a list of names of such modules.
        layers: as for other adapters; with numbers or ``last_third``, ``all`` means all weights of these layers.
        lr: the default of ``train.lr``.
    """

    exports_model: ClassVar[bool] = True

    lr: Annotated[float, Range(0)]

    def problems(self) -> Iterator[str]:
        if isinstance(self.target_modules, str) and self.target_modules not in ("all", "all-linear"):
            yield (
                f"target_modules={self.target_modules}: give all, all-linear, or a list of names such as "
                "[q_proj,v_proj]"
            )
        yield from self.layer_problems()

    @property
    def trains_all_weights(self) -> bool:
        return self.target_modules == "all" and self.layers == "all"

    @property
    def uses_lora_rank(self) -> bool:
        return False

    @property
    def changes_weights(self) -> bool:
        return True

    @property
    def quantization_obstacle(self) -> str | None:
        return "quantized weights cannot be changed in small steps"

    def identity(self, digest: Digest) -> dict[str, Any]:
        """Return the keys without ``lr``, which only feeds ``train.lr``."""
        return {key: value for key, value in super().identity(digest).items() if key != "lr"}

    def check(self, model: nn.Module, rank: int, steps: int) -> None:
        self.trained_weights(model)

    def trained_weights(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the weights that are trained, by name, in the order of the model.

        Raises:
            ConfigError: the model lacks a module or a layer.
        """
        weights = dict(model.named_parameters())
        if self.trains_all_weights:
            return weights
        layers = self.target_layers(model)
        inside = {
            name: weight
            for name, weight in weights.items()
            if LAYER.search(name) and all(int(number) in layers for number in LAYER.findall(name))
        }
        if self.target_modules == "all":
            return inside
        modules = self.target_names(model)
        return {name: weight for name, weight in inside.items() if name.split(".")[-2] in modules}

    def attach(self, policy: Policy, rank: int, seed: int) -> "FullWeights":
        return FullWeights(policy, self)


class FullWeights(TrainedAdapter):
    """The trained weights of a model, each with a float32 value that the optimizer keeps."""

    def __init__(self, policy: Policy, config: Full) -> None:
        """Make the chosen weights of ``policy.model`` trainable, and no others."""
        self._policy, self.model = policy, policy.model
        self._weights = config.trained_weights(self.model)
        self._base: dict[str, Tensor] = {}
        self._precise: dict[str, nn.Parameter] = {}
        self.model.requires_grad_(False)
        for name, weight in self._weights.items():
            weight.requires_grad_(True)
            if weight.dtype in PRECISE:
                self._precise[name] = weight
                continue
            self._precise[name] = precise = nn.Parameter(weight.detach().float())
            weight.register_post_accumulate_grad_hook(partial(_move_gradient, precise))
        numbers = [[int(number) for number in LAYER.findall(name)] for name in self._weights]
        embedding = self.model.get_input_embeddings().weight
        below = any(weight is embedding for weight in self._weights.values())
        policy.first_adapted = 0 if below else min((n for found in numbers for n in found), default=policy.depth - 1)
        policy.reference = self._with_base

    def parameters(self) -> list[nn.Parameter]:
        """Return the float32 values of the trained weights, in the order of the model."""
        return list(self._precise.values())

    def optimizer(self, lr: float, weight_decay: float) -> Optimizer:
        optimizer = super().optimizer(lr, weight_decay)
        optimizer.param_groups[0]["l2"] = False  # see ``penalty``
        optimizer.register_step_post_hook(lambda *_: self.parameters_set())
        return optimizer

    def penalty(self, l2: float) -> float:
        """Add the gradient of l2 · Σ(θ − θ₀)² and return that term, with θ₀ the weights before training.

        For an adapter, Σθ² keeps the model close to its base; of full weights it would pull the base itself to 0.
        """
        return pull_to_start(self.parameters(), list(self._base.values()), l2) if l2 > 0 else 0.0

    @torch.no_grad()
    def parameters_set(self) -> None:
        for name, weight in self._weights.items():
            if weight is not self._precise[name]:
                weight.copy_(self._precise[name])

    def keep_base(self) -> None:
        if not self._base:
            self._base = {name: weight.detach().clone() for name, weight in self._weights.items()}

    def keep_start(self) -> None:
        self.keep_base()

    def state(self) -> dict[str, Tensor]:
        return {name: precise.detach().clone() for name, precise in self._precise.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        if state.keys() != self._precise.keys():
            raise ValueError("the saved weights do not match: they belong to other modules or another kind of adapter")
        for name, precise in self._precise.items():
            precise.copy_(state[name])
        self.parameters_set()

    def export(self, folder: Path) -> None:
        """Write the model and its tokenizer in the format of transformers, in the dtype that it computes in."""
        self.model.save_pretrained(str(folder))
        self._policy.tokenizer.save_pretrained(str(folder))

    def merge(self) -> Any:
        """Return the model with the float32 values as its weights."""
        self.model.float()
        for name, weight in self._weights.items():
            weight.data = self._precise[name].detach().float()
        return self.model

    def remove(self) -> None:
        """Do nothing: the model is not used again; see ``Adapter.changes_weights``."""

    @contextmanager
    def _with_base(self) -> Iterator[None]:
        """Within the context, the trained weights have their values from before training.

        Raises:
            RuntimeError: they were not kept.
        """
        if not self._base:
            raise RuntimeError("the weights from before training were not kept; call keep_base before the first step")
        current = {name: weight.data for name, weight in self._weights.items()}
        for name, weight in self._weights.items():
            weight.data = self._base[name]
        try:
            yield
        finally:
            for name, weight in self._weights.items():
                weight.data = current[name]


@torch.no_grad()
def _move_gradient(precise: nn.Parameter, weight: Tensor) -> None:
    """Add the gradient of a weight to that of its float32 value, so that microbatches are summed in float32."""
    gradient, weight.grad = weight.grad, None  # first: an allocation below may fail, and the step be tried again
    assert gradient is not None
    add_gradient(precise, gradient.float())

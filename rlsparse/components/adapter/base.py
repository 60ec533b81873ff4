"""The base class of adapters, and what the training loops ask of one that is in a model."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from rlsparse.components.component import Component
from rlsparse.model.policy import Policy


class TrainedAdapter(ABC):
    """The trained parameters in the model of a policy.

    Attributes:
        budget: what all modules together have at most: ranks, or parameters where the adapter says so; None where
            nothing has a rank.
    """

    budget: int | None = None

    @abstractmethod
    def parameters(self) -> list[nn.Parameter]:
        """Return what the optimizer trains, in a fixed order."""

    def optimizer(self, lr: float, weight_decay: float) -> Optimizer:
        """Return AdamW over the parameters.

        ``initial_lr`` of a parameter group is its peak rate; a group with ``l2`` false is left out of the penalty
        Σθ², and ``penalty`` may have another one for it.
        """
        return AdamW([{"params": self.parameters(), "initial_lr": lr}], lr=lr, weight_decay=weight_decay)

    def penalty(self, l2: float) -> float:
        """Add the gradient of penalties of its own to the gradients of the parameters; return their value.

        Args:
            l2: ``objective.l2``, for parameter groups that are left out of Σθ².
        """
        return 0.0

    def after_step(self, step: int, steps: int) -> dict[str, float]:
        """Do what the adapter does between steps, counted from 1; return its metrics by their documented names."""
        return {}

    def parameters_set(self) -> None:
        """Carry values into the model that were written into the parameters from outside the optimizer."""
        return

    def keep_base(self) -> None:
        """Keep what ``Policy.reference`` needs; called before the first step where that is used."""
        return

    def keep_start(self) -> None:
        """Keep what ``penalty`` needs; called before the first step where ``objective.l2`` is above 0."""
        return

    def perturbed(self) -> AbstractContextManager[None]:
        """Return a context within which the adapter changes the model, to compare code paths before the first step.

        Adapters whose paths are known to be right need none.
        """
        return nullcontext()

    def parameter_count(self) -> int:
        """Return the number of trained parameters, without those that are masked."""
        return sum(parameter.numel() for parameter in self.parameters())

    def ranks(self) -> dict[str, int]:
        """Return the rank of the adapter on each module, by module name; empty where nothing has a rank."""
        return {}

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return copies of all tensors that training changes, by name, for a checkpoint."""

    @abstractmethod
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over a saved state, before ``optimizer`` is called.

        Raises:
            ValueError: it belongs to an adapter on other modules, or to another kind of adapter.
        """

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the adapter in the format of peft; a whole model where ``Adapter.exports_model`` says so."""

    @abstractmethod
    def merge(self) -> Any:
        """Merge the adapter into the weights permanently and return the model in float32, without peft."""

    @abstractmethod
    def remove(self) -> None:
        """Remove the adapter. The weights of the model are unchanged, unless ``Adapter.changes_weights`` is true."""


@dataclass(frozen=True)
class Adapter(Component, ABC):
    """Chooses the parameters that are trained and puts them into a model.

    Traits:
        only_warm_starts: RL cannot train it.
        moves_ranks: ranks change during training.
        exports_model: ``export`` writes a whole model, in the format of transformers.
    """

    only_warm_starts: ClassVar[bool] = False
    moves_ranks: ClassVar[bool] = False
    exports_model: ClassVar[bool] = False

    @property
    def trains_all_weights(self) -> bool:
        """Whether every weight of the model is trained, so that a model with random weights can be."""
        return False

    @property
    def uses_lora_rank(self) -> bool:
        """Whether ``lora_rank`` has an effect."""
        return not self.trains_all_weights

    @property
    def changes_weights(self) -> bool:
        """Whether the weights of the loaded model are others afterwards, so that the next run must load it again."""
        return False

    @property
    def quantization_obstacle(self) -> str | None:
        """Return why it cannot be trained on quantized weights; None where it can."""
        return None

    @property
    def exports_lora(self) -> bool:
        """Whether ``TrainedAdapter.export`` writes a plain LoRA on the unchanged weights, which vLLM can apply."""
        return False

    def adapted_modules(self, model: nn.Module) -> list[str]:
        """Return the full names of the modules that the adapter is added to, in the order of the model."""
        return []

    def first_adapted(self, model: nn.Module) -> int:
        """Return the number of the first decoder layer with trained parameters; 0 also where others are trained."""
        return 0

    def check(self, model: nn.Module, rank: int, steps: int) -> None:
        """Refuse what this model, or this number of training steps, does not allow.

        Args:
            model: its modules, with weights or without.
            rank: ``lora_rank``.
            steps: training steps, or updates of a warm start.

        Raises:
            ConfigError: key, value and remedy.
        """

    def count(self, policy: Policy, rank: int) -> int:
        """Return the number of trained parameters on the model of a policy without weights, which stays as it was."""
        bare = replace(policy, model=copy.deepcopy(policy.model))
        return sum(parameter.numel() for parameter in self.attach(bare, rank, 0).parameters())

    @abstractmethod
    def attach(self, policy: Policy, rank: int, seed: int) -> TrainedAdapter:
        """Put the adapter into ``policy.model`` and return it.

        Args:
            rank: ``lora_rank``.
            seed: of its random start.
        """


@torch.no_grad()
def pull_to_start(parameters: Iterable[nn.Parameter], start: Sequence[Tensor], l2: float) -> float:
    """Add the gradient of l2 · Σ(θ − θ₀)² to the gradients of the parameters θ, and return that term.

    The form is L2-SP of Li et al. 2018 (1802.01483). Σθ² would pull parameters to 0 whose neutral value is another one.

    Args:
        start: θ₀, in the order of the parameters.

    Raises:
        RuntimeError: the start was not kept.
    """
    total = torch.zeros(())
    for number, parameter in enumerate(parameters):
        if number == len(start):
            raise RuntimeError("the values from before training were not kept; call keep_start before the first step")
        change = parameter - start[number]
        total = total.to(change.device) + change.square().sum()
        add_gradient(parameter, 2 * l2 * change)
    return l2 * float(total)


def add_gradient(parameter: nn.Parameter, gradient: Tensor) -> None:
    """Add a gradient to that of a parameter."""
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad.add_(gradient)


@dataclass(frozen=True)
class NoAdapter(Adapter):
    """Trains all weights of the model, in float32 under autocast (warm starts only)."""

    only_warm_starts: ClassVar[bool] = True

    @property
    def trains_all_weights(self) -> bool:
        return True

    @property
    def label(self) -> str:
        return "none"

    def attach(self, policy: Policy, rank: int, seed: int) -> TrainedAdapter:
        raise NotImplementedError("adapter=none has nothing to attach")

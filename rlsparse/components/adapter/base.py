"""The base class of adapters, and what the training loops ask of one that is in a model."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from rlsparse.components.component import Component
from rlsparse.model.policy import Policy


class TrainedAdapter(Protocol):
    """An adapter in the model of a policy.

    Attributes:
        budget: the ranks of all modules together, at most.
    """

    budget: int

    def parameters(self) -> list[nn.Parameter]:
        """Return what the optimizer trains, in a fixed order."""

    def optimizer(self, lr: float, weight_decay: float) -> Optimizer:
        """Return the optimizer.

        ``initial_lr`` of a parameter group is its peak rate; a group with ``l2`` false is left out of that penalty.
        """

    def after_step(self, step: int, steps: int) -> dict[str, float]:
        """Do what the adapter does between steps, counted from 1; return its metrics by their documented names."""

    def ranks(self) -> dict[str, int]:
        """Return the rank of the adapter on each module, by module name."""

    def state(self) -> dict[str, Tensor]:
        """Return copies of all trained tensors by name, for a checkpoint."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over a saved state, before ``optimizer`` is called."""

    def export(self, folder: Path) -> None:
        """Write the adapter in the format of peft."""

    def merge(self) -> Any:
        """Merge the adapter into the weights permanently and return the model in float32, without peft."""

    def remove(self) -> None:
        """Remove the adapter; the weights of the model are unchanged."""


@dataclass(frozen=True)
class Adapter(Component, ABC):
    """Chooses the parameters that are trained and puts them into a model.

    Traits:
        trains_all_weights: there is no adapter; every weight of the model is trained (warm starts only).
        moves_ranks: ranks change during training.
    """

    trains_all_weights: ClassVar[bool] = False
    moves_ranks: ClassVar[bool] = False

    def check(self, model: nn.Module, rank: int, steps: int) -> None:
        """Refuse what this model, or this number of training steps, does not allow.

        Args:
            model: its modules, with weights or without.
            rank: ``lora_rank``.
            steps: training steps, or updates of a warm start.

        Raises:
            ConfigError: key, value and remedy.
        """

    @abstractmethod
    def attach(self, policy: Policy, rank: int, seed: int) -> TrainedAdapter:
        """Put the adapter into ``policy.model`` and return it.

        Args:
            rank: ``lora_rank``.
            seed: of its random start.
        """


@dataclass(frozen=True)
class NoAdapter(Adapter):
    """Trains all weights of the model (warm starts only)."""

    trains_all_weights: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return "none"

    def attach(self, policy: Policy, rank: int, seed: int) -> TrainedAdapter:
        raise NotImplementedError("adapter=none has nothing to attach")

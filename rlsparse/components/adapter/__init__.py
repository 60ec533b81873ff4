"""Adapters: the few parameters that are trained.

Every adapter is made as ``f(policy, config, rank, seed)``, which puts it into ``policy.model``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from rlsparse.components.adapter.l1ra import L1ra, check_l1ra
from rlsparse.components.adapter.lora import Lora, adapted_modules
from rlsparse.config.schema import AdapterConfig, ConfigError, L1raConfig, LoraConfig


class Adapter(Protocol):
    """What the training loops and the summary ask of an adapter.

    Attributes:
        budget: the ranks of all modules together, at most.
        moves: whether ranks change while it trains.
    """

    budget: int
    moves: bool

    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer trains, in a fixed order."""

    def optimizer(self, lr: float, weight_decay: float) -> Optimizer:
        """What trains it. A group's ``initial_lr`` is its peak rate; one with ``l2`` false is spared that penalty."""

    def after_step(self, step: int, steps: int) -> dict[str, float]:
        """What the adapter does between steps, counted from 1; its metrics by their documented names."""

    def ranks(self) -> dict[str, int]:
        """Rank of the adapter on each module, by module name."""

    def state(self) -> dict[str, Tensor]:
        """Copies of all trained tensors by name, for a checkpoint."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up a saved state, before ``optimizer`` is called."""

    def export(self, folder: Path) -> None:
        """Write the adapter in peft's format."""

    def merge(self) -> Any:
        """Make it part of the weights, for good; the model, in float32, without peft around it."""

    def remove(self) -> None:
        """Take it out of the model again, whose weights are what they were."""


ADAPTERS: dict[str, Callable[..., Adapter]] = {"lora": Lora, "l1ra": L1ra}


def check_adapter(model: nn.Module, config: AdapterConfig, rank: int, steps: int) -> None:
    """Refuse an adapter that this model, or this number of training steps, has no place for.

    Args:
        model: its modules, weights or not.
        rank: ``lora_rank``.
        steps: training steps, or updates of a warm start.

    Raises:
        ConfigError: key, value and remedy.
    """
    if not isinstance(config, LoraConfig):
        return
    modules = adapted_modules(model, config)
    weights: list[Any] = [model.get_submodule(name).weight for name in modules]
    most = max(min(weight.shape) for weight in weights)
    if rank > most:
        raise ConfigError(
            f"lora_rank={rank}: no module that this model adapts has matrices of a rank above {most}; lower it"
        )
    if isinstance(config, L1raConfig):
        check_l1ra(config, len(modules), rank, steps)

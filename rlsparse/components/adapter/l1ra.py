"""L1RA: LoRA with a gate on each component, ΔW = scale·B·diag(c)·A, and ranks that move between adapters (2509.04884).

The gates c start at 1, and a proximal L1 step after each optimizer step moves them towards 0. At regular intervals,
components with a small gate are removed, and their ranks are reassigned to adapters that lost none. Training, merging
and the fast paths use ordinary LoRA matrices, B and diag(c)·A.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rlsparse.components.adapter.lora import Lora, LoraMatrices, Part, set_rank
from rlsparse.components.adapter.reallocation import Change, Room, even_ranks, interval, reallocate
from rlsparse.components.adapter.resize import replace_components
from rlsparse.components.component import OneOf, Range
from rlsparse.config.schema import ConfigError
from rlsparse.model.policy import Policy


class Gate(nn.Module):
    """Replaces A by diag(c)·A in every use of A, as a parametrization of torch."""

    def __init__(self, rank: int, device: torch.device) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.ones(rank, device=device))  # (r,) in [0, 1]

    def forward(self, A: Tensor) -> Tensor:
        return self.c[:, None] * A


@dataclass(frozen=True)
class L1ra(Lora):
    """L1RA, Singh et al. 2025 (2509.04884): ΔW = scale·B·diag(c)·A, c in [0, 1], with ranks that move between adapters.

    Attributes:
        init: start of A and of its later rows: ``peft`` is uniform in ±1/√in; ``normal`` is N(0, 1/r²), with r the rank
            of this adapter before the first step, also for rows that are added later. In units of ``peft``, that is
            √(3·in)/r: 7 for r = 16 on an input of 4,096.
        budget: maximum of all adapters together, distributed evenly at the start; None: that of ``lora_rank`` on each.
        budget_of: what the budget counts: ranks, or trained parameters, of which a component has in + out + 1.
        l1: λ: after each optimizer step, every gate is reduced by gate_lr·λ.
        gate_lr: peak learning rate of the gates.
        update_every: interval between two rank updates, as a share of the training steps.
        threshold: components with a smaller gate are removed.
        threshold_adds_step: whether gate_lr·λ is added to the threshold, with the learning rate of the gates in this
            step: then gates that the next proximal step would close are removed too.
        reassign: whether freed ranks go to other adapters.
        exclude_pruned: whether adapters that lost a component in this update get no rank.
        min_rank: minimum rank of each adapter.
    """

    moves_ranks: ClassVar[bool] = True
    neutral: ClassVar[Mapping[str, Any]] = {"init": "peft", "budget_of": "ranks", "threshold_adds_step": False}

    init: Annotated[str, OneOf("peft", "normal")]
    budget: Annotated[int | None, Range(1)]
    budget_of: Annotated[str, OneOf("ranks", "parameters")]
    l1: Annotated[float, Range(0)]
    gate_lr: Annotated[float, Range(0, above=True)]
    update_every: Annotated[float, Range(0, 1, above=True)]
    threshold: Annotated[float, Range(0, 1, below=True)]
    threshold_adds_step: bool
    reassign: bool
    exclude_pruned: bool
    min_rank: Annotated[int, Range(1)]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        largest = self.threshold + self.gate_lr * self.l1
        if self.threshold_adds_step and largest >= 1:
            yield (
                f"threshold_adds_step=true: threshold + gate_lr x l1 is {largest:g} at the peak; it must be below 1, "
                "since a gate that is open is 1; lower gate_lr or l1"
            )

    def attach(self, policy: Policy, rank: int, seed: int) -> "GatedMatrices":
        return GatedMatrices(policy, self, rank, seed)

    def check(self, model: nn.Module, rank: int, steps: int) -> None:
        super().check(model, rank, steps)
        rooms = [self.room(model.get_submodule(name)) for name in self.adapted_modules(model)]
        least = self.min_rank * sum(room.cost for room in rooms)
        if self.budget is None and rank < self.min_rank:
            raise ConfigError(f"adapter.min_rank={self.min_rank}: above the initial rank lora_rank={rank}; lower it")
        if self.budget is not None and self.budget < least:
            raise ConfigError(
                f"adapter.budget={self.budget}: the model gets {len(rooms)} adapters of rank adapter.min_rank="
                f"{self.min_rank} or more, so the budget must be at least {least} {self.budget_of}; raise it, or "
                "adapt fewer modules (adapter.target_modules, adapter.layers)"
            )
        every = interval(self.update_every, steps)
        if every >= steps:
            raise ConfigError(
                f"adapter.update_every={self.update_every}: the first rank update would be after step {every} of "
                f"{steps}, so there would be none; give a smaller share of the steps (0.1), or more steps"
            )

    def room(self, module: Any) -> Room:
        """Return what the adapter of a linear module can hold."""
        cost = component_size(module) if self.budget_of == "parameters" else 1
        return Room(min(module.in_features, module.out_features), cost)

    def reallocate(self, gates: Sequence[Tensor], rooms: Sequence[Room], budget: int, gate_lr: float) -> list[Change]:
        """Return the change of each adapter in a rank update; see ``reallocation.reallocate``.

        Args:
            gate_lr: learning rate of the gates in this step.
        """
        rules = replace(self, threshold=self.threshold + gate_lr * self.l1) if self.threshold_adds_step else self
        return reallocate(gates, rooms, budget, rules)


def component_size(module: Any) -> int:
    """Return the number of parameters of a component of the adapter on a linear module: row, column and gate."""
    return int(module.in_features + module.out_features + 1)


class GatedMatrices(LoraMatrices):
    """Gated LoRA matrices in the model of a policy, whose ranks change in training.

    Attributes:
        budget: what Σ r, or the number of trained parameters, never exceeds.
    """

    def __init__(self, policy: Policy, config: L1ra, rank: int, seed: int) -> None:
        """Put the gated matrices into ``policy.model``, with ranks as even as possible for the budget.

        Args:
            policy: the policy.
            config: the settings of the adapter; its ``scale`` is α/r for all ranks.
            rank: initial r of every adapter if ``config.budget`` is None.
            seed: seed of the initial values of A and of the rows of A for later components.
        """
        super().__init__(policy, config, rank, seed)
        self._config = config
        self._seed = seed
        self._optimizer: torch.optim.Optimizer | None = None  # before ``optimizer`` is called, ranks may already change
        for layer in self.layers.values():
            gate = Gate(rank, layer.lora_A["default"].weight.device)
            parametrize.register_parametrization(layer.lora_A["default"], "weight", gate)
        self._rooms = [config.room(layer) for layer in self.layers.values()]
        self._sizes = [component_size(layer) for layer in self.layers.values()]
        self._initial = dict.fromkeys(self.layers, rank)
        self.budget = rank * sum(room.cost for room in self._rooms)
        if config.budget is not None:
            self.budget = config.budget
            self._initial = dict(zip(self.layers, even_ranks(config.budget, self._rooms), strict=True))
        self._start()

    def optimizer(self, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        """Return AdamW over matrices and gates, with the proximal step after each of its steps.

        The gates have their own learning rate and no weight decay.
        """
        gates = [_gate(layer).c for layer in self.layers.values()]
        ids = {id(c) for c in gates}
        matrices = [p for p in self.parameters() if id(p) not in ids]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "initial_lr": lr},
            {
                "params": gates,
                "lr": self._config.gate_lr,
                "initial_lr": self._config.gate_lr,
                "weight_decay": 0.0,
                "l2": False,
            },
        ]
        optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)
        optimizer.register_step_post_hook(lambda stepped, *_: self.shrink(stepped))
        self._optimizer = optimizer
        return optimizer

    @torch.no_grad()
    def shrink(self, optimizer: torch.optim.Optimizer) -> None:
        """Apply the L1 term, decoupled from Adam: c ← min(max(c − η_c·λ, 0), 1).

        η_c is the learning rate of the gates in this step.
        """
        group = optimizer.param_groups[1]
        for c in group["params"]:
            c.sub_(group["lr"] * self._config.l1).clamp_(0.0, 1.0)

    def after_step(self, step: int, steps: int) -> dict[str, float]:
        """Move ranks if a rank update is due. None is due after the last step, since new components would get no step.

        Returns:
            Metrics of the step by their documented names. Those of the gates are from before the rank update;
            ``adapter/pruned`` and ``adapter/reassigned`` are present only after a rank update.
        """
        gates = torch.cat([_gate(layer).c.detach() for layer in self.layers.values()])  # (Σ r,)
        metrics: dict[str, float] = {"adapter/gate_min": float(gates.min()), "adapter/gate_mean": float(gates.mean())}
        if step % interval(self._config.update_every, steps) == 0 and step < steps:
            changes = self.move_ranks(torch.Generator().manual_seed((self._seed + step) % 2**63))
            metrics["adapter/pruned"] = len(gates) - sum(len(change.kept) for change in changes)
            metrics["adapter/reassigned"] = sum(change.added for change in changes)
        ranks = self.ranks().values()
        metrics["adapter/parameters"] = sum(rank * size for rank, size in zip(ranks, self._sizes, strict=True))
        return {**metrics, "adapter/rank_total": sum(ranks)}

    def move_ranks(self, generator: torch.Generator) -> list[Change]:
        """Do a rank update and return the change of each adapter.

        The function of the model changes only by the removed components: new ones start with B = 0.

        Args:
            generator: random stream for the rows of A of new components.
        """
        gates = [_gate(layer).c.detach().cpu() for layer in self.layers.values()]
        gate_lr = 0.0 if self._optimizer is None else self._optimizer.param_groups[1]["lr"]
        changes = self._config.reallocate(gates, self._rooms, self.budget, gate_lr)
        for (name, layer), change in zip(self.layers.items(), changes, strict=True):
            if change.added or len(change.kept) < layer.r["default"]:
                self._resize(name, change, generator)
        return changes

    def export(self, folder: Path) -> None:
        """Write an ordinary LoRA adapter in the format of peft: gates multiplied into A, one rank for each module."""
        peft_config = self.model.peft_config["default"]
        # peft matches these patterns with the ends of module names, and divides α by the rank of the module
        peft_config.rank_pattern = {f"^{name}": rank for name, rank in self.ranks().items()}
        peft_config.alpha_pattern = {f"^{name}": self._config.scale * rank for name, rank in self.ranks().items()}
        folded = {}
        for name, layer in self.layers.items():
            for part in ("lora_A", "lora_B"):
                matrix = getattr(layer, part)["default"].weight
                folded[f"base_model.model.{name}.{part}.default.weight"] = matrix.detach().contiguous()
        self.model.save_pretrained(str(folder), state_dict=folded, save_embedding_layers=False)

    def _parts(self, layer: Any) -> dict[str, Part]:
        A = layer.lora_A["default"].parametrizations.weight
        return {**super()._parts(layer), "A": Part(A, "original", 0), "c": Part(A[0], "c", 0)}

    def _resize(self, name: str, change: Change, generator: torch.Generator) -> None:
        layer = self.layers[name]
        new = {
            "A": self._rows(name, change.added, generator),
            "B": torch.zeros(layer.out_features, change.added),
            "c": torch.ones(change.added),
        }
        for key, part in self._parts(layer).items():
            replace_components(part.owner, part.name, part.dim, change.kept, new[key], self._optimizer)
        set_rank(layer, len(change.kept) + change.added)

    def _start(self) -> None:
        """Set the initial ranks; with ``init=normal``, draw every row of A anew."""
        generator = torch.Generator().manual_seed(self._seed)
        for name, rank in self._initial.items():
            kept = min(rank, self.layers[name].r["default"]) if self._config.init == "peft" else 0
            if kept < rank or kept < self.layers[name].r["default"]:
                self._resize(name, Change(torch.arange(kept), rank - kept), generator)

    def _rows(self, name: str, rows: int, generator: torch.Generator) -> Tensor:
        """Return new rows of A, (rows, in), of the distribution that ``init`` names."""
        width = self.layers[name].in_features
        if self._config.init == "normal":
            return torch.randn(rows, width, generator=generator) / self._initial[name]
        return (2 * torch.rand(rows, width, generator=generator) - 1) / width**0.5  # Kaiming with a = √5


def _gate(layer: Any) -> Gate:
    gate: Gate = layer.lora_A["default"].parametrizations.weight[0]
    return gate

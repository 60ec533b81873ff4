"""L1RA: LoRA with a gate on each component, ΔW = scale·B·diag(c)·A, and a rank budget that moves (2509.04884).

c starts at 1 and is drawn to 0 by a proximal L1 step of its own. Now and then the components whose gate has closed are
removed, and their ranks go to the adapters that lost none. Training, merging and the fast paths see ordinary LoRA
matrices, B and diag(c)·A.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rlsparse.components.adapter.lora import Lora, LoraMatrices, Part, set_rank
from rlsparse.components.adapter.reallocation import Change, even_ranks, interval, reallocate
from rlsparse.components.adapter.resize import replace_components
from rlsparse.components.component import Range
from rlsparse.config.schema import ConfigError
from rlsparse.model.policy import Policy


class Gate(nn.Module):
    """What A goes through wherever it is used: diag(c)·A."""

    def __init__(self, rank: int, device: torch.device) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.ones(rank, device=device))  # (r,) in [0, 1]

    def forward(self, A: Tensor) -> Tensor:
        return self.c[:, None] * A


@dataclass(frozen=True)
class L1ra(Lora):
    """L1RA, Singh et al. 2025 (2509.04884): ΔW = scale·B·diag(c)·A, c in [0, 1], and a budget of ranks that moves.

    Attributes:
        budget: ranks of all adapters together, spread evenly at the start; None: ``lora_rank`` times the adapters.
        l1: λ: each optimizer step draws every gate towards 0 by gate_lr·λ.
        gate_lr: peak learning rate of the gates.
        update_every: share of the training steps between two rank updates.
        threshold: components with a smaller gate are removed.
        reassign: whether freed ranks go to other adapters. exclude_pruned: not to those that lost one just now.
        min_rank: what each adapter keeps at least.
    """

    moves_ranks: ClassVar[bool] = True

    budget: Annotated[int | None, Range(1)]
    l1: Annotated[float, Range(0)]
    gate_lr: Annotated[float, Range(0, above=True)]
    update_every: Annotated[float, Range(0, 1, above=True)]
    threshold: Annotated[float, Range(0, 1, below=True)]
    reassign: bool
    exclude_pruned: bool
    min_rank: Annotated[int, Range(1)]

    def attach(self, policy: Policy, rank: int, seed: int) -> "GatedMatrices":
        return GatedMatrices(policy, self, rank, seed)

    def check(self, model: nn.Module, rank: int, steps: int) -> None:
        super().check(model, rank, steps)
        adapters = len(self.adapted_modules(model))
        if self.budget is None and rank < self.min_rank:
            raise ConfigError(f"adapter.min_rank={self.min_rank}: the adapters start with lora_rank={rank}; lower it")
        if self.budget is not None and self.budget < adapters * self.min_rank:
            raise ConfigError(
                f"adapter.budget={self.budget}: the model gets {adapters} adapters of rank adapter.min_rank="
                f"{self.min_rank} or more, so it must be at least {adapters * self.min_rank}; raise it, or take fewer "
                "modules (adapter.target_modules, adapter.layers)"
            )
        every = interval(self.update_every, steps)
        if every >= steps:
            raise ConfigError(
                f"adapter.update_every={self.update_every}: the first rank update would come after step {every} of "
                f"{steps}, so never; give a smaller share of the steps (0.1), or more of them"
            )

    def reallocate(self, gates: Sequence[Tensor], most: Sequence[int], budget: int) -> list[Change]:
        """Return what a rank update does to each adapter: see ``reallocation.reallocate``."""
        return reallocate(gates, most, budget, self)


class GatedMatrices(LoraMatrices):
    """Gated LoRA matrices whose ranks change while they train; Σ r never exceeds ``budget``."""

    def __init__(self, policy: Policy, config: L1ra, rank: int, seed: int) -> None:
        """Puts the gated matrices into ``policy.model``, the ranks as even as the budget allows.

        Args:
            rank: r of every adapter at the start, where ``config.budget`` is null; α/r₀ is ``config.scale``, whatever
                becomes of the ranks.
            seed: of A's random start and of the random rows of later components.
        """
        super().__init__(policy, config, rank, seed)
        self._config = config
        self._seed = seed
        self._optimizer: torch.optim.Optimizer | None = None  # before training: ranks may be spread without one
        for layer in self.layers.values():
            gate = Gate(rank, layer.lora_A["default"].weight.device)
            parametrize.register_parametrization(layer.lora_A["default"], "weight", gate)
        self._most = [min(layer.in_features, layer.out_features) for layer in self.layers.values()]
        if config.budget is not None:
            self.budget = config.budget
            self._spread(even_ranks(config.budget, self._most))

    def optimizer(self, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        """AdamW over matrices and gates, these with their own rate and no decay, and the proximal step after each."""
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
        """The L1 term, decoupled from Adam: c ← min(max(c − η_c·λ, 0), 1), η_c the gates' rate of this step."""
        group = optimizer.param_groups[1]
        for c in group["params"]:
            c.sub_(group["lr"] * self._config.l1).clamp_(0.0, 1.0)

    def after_step(self, step: int, steps: int) -> dict[str, float]:
        """Move ranks where an update is due; none after the last step, whose new components nothing would train.

        Returns:
            The step's metrics by their documented names, the gates' as they were before the ranks moved; those that end
            in pruned and reassigned only where an update was due.
        """
        gates = torch.cat([_gate(layer).c.detach() for layer in self.layers.values()])  # (Σ r,)
        metrics: dict[str, float] = {"adapter/gate_min": float(gates.min()), "adapter/gate_mean": float(gates.mean())}
        if step % interval(self._config.update_every, steps) == 0 and step < steps:
            changes = self.move_ranks(torch.Generator().manual_seed((self._seed + step) % 2**63))
            metrics["adapter/pruned"] = len(gates) - sum(len(change.kept) for change in changes)
            metrics["adapter/reassigned"] = sum(change.added for change in changes)
        return {**metrics, "adapter/rank_total": sum(self.ranks().values())}

    def move_ranks(self, generator: torch.Generator) -> list[Change]:
        """Prune, hand on and grow; the function is the same afterwards, up to what gates below the threshold carried.

        Args:
            generator: for the A rows of new components.
        """
        gates = [_gate(layer).c.detach().cpu() for layer in self.layers.values()]
        changes = self._config.reallocate(gates, self._most, self.budget)
        for layer, change in zip(self.layers.values(), changes, strict=True):
            if change.added or len(change.kept) < layer.r["default"]:
                self._resize(layer, change, generator)
        return changes

    def export(self, folder: Path) -> None:
        """Write an ordinary LoRA adapter in peft's format, gates folded into A, with each module's own rank."""
        peft_config = self.model.peft_config["default"]
        # patterns, of which peft accepts any that a name ends with; α is divided by the module's own rank
        peft_config.rank_pattern = {f"^{name}": rank for name, rank in self.ranks().items()}
        peft_config.alpha_pattern = {f"^{name}": self._config.scale * rank for name, rank in self.ranks().items()}
        folded = {}
        for name, layer in self.layers.items():
            for part in ("lora_A", "lora_B"):
                matrix = getattr(layer, part)["default"].weight
                folded[f"base_model.model.{name}.{part}.default.weight"] = matrix.detach().contiguous()
        self.model.save_pretrained(str(folder), state_dict=folded)

    def _parts(self, layer: Any) -> dict[str, Part]:
        A = layer.lora_A["default"].parametrizations.weight
        return {**super()._parts(layer), "A": Part(A, "original", 0), "c": Part(A[0], "c", 0)}

    def _resize(self, layer: Any, change: Change, generator: torch.Generator) -> None:
        new = {
            "A": _random_rows(change.added, layer.in_features, generator),
            "B": torch.zeros(layer.out_features, change.added),
            "c": torch.ones(change.added),
        }
        for key, part in self._parts(layer).items():
            replace_components(part.owner, part.name, part.dim, change.kept, new[key], self._optimizer)
        set_rank(layer, len(change.kept) + change.added)

    def _spread(self, ranks: Sequence[int]) -> None:
        generator = torch.Generator().manual_seed(self._seed)
        for layer, rank in zip(self.layers.values(), ranks, strict=True):
            kept = torch.arange(min(rank, layer.r["default"]))
            self._resize(layer, Change(kept, rank - len(kept)), generator)


def _gate(layer: Any) -> Gate:
    gate: Gate = layer.lora_A["default"].parametrizations.weight[0]
    return gate


def _random_rows(rows: int, width: int, generator: torch.Generator) -> Tensor:
    """(rows, width): as peft starts A: uniform in ±1/√width (Kaiming with a = √5)."""
    return (2 * torch.rand(rows, width, generator=generator) - 1) / width**0.5

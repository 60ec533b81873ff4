"""Adapters of earlier steps: for rollouts of a stale policy, and for a reference policy that moves."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlsparse.components.adapter import TrainedAdapter
from rlsparse.components.objective.kl import ReferenceUpdate

Snapshot = list[Tensor]  # a copy of each parameter of the adapter


@dataclass
class PolicyHistory:
    """Keeps the adapters that training still needs, and puts one into the model for a while.

    Attributes:
        adapter: the adapter in the model, whose ranks do not move.
        staleness: k: completions are sampled by the policy of k steps ago.
        update: how the reference policy moves; None for the base model.
        past: the adapters after the last k + 1 steps, the current one included; empty where k = 0.
        reference: the adapter of the reference policy; empty for the base model.
    """

    adapter: TrainedAdapter
    staleness: int
    update: ReferenceUpdate | None
    past: list[Snapshot] = field(default_factory=list)
    reference: Snapshot = field(default_factory=list)

    @classmethod
    def start(cls, adapter: TrainedAdapter, staleness: int, update: ReferenceUpdate | None) -> "PolicyHistory":
        """Return the history before the first step: sampling and reference policy are the current one."""
        history = cls(adapter, staleness, update)
        if staleness > 0:
            history.past = [history._snapshot()]
        if update is not None:
            history.reference = history._snapshot()
        return history

    @property
    def age(self) -> int:
        """Return how many steps ago the policy that samples was the current one."""
        return max(0, len(self.past) - 1)

    def behaviour(self) -> AbstractContextManager[None]:
        """Return a context within which the model is the policy that samples."""
        return self._in_model(self.past[0]) if self.age > 0 else nullcontext()

    def reference_policy(self) -> AbstractContextManager[None]:
        """Return a context within which the model is the reference policy, where that is not the base model."""
        return self._in_model(self.reference)

    def after_step(self, step: int) -> None:
        """Take over the adapter after a training step, counted from 1."""
        if self.staleness > 0:
            self.past = [*self.past, self._snapshot()][-self.staleness - 1 :]
        if self.update is not None and step % self.update.every == 0:
            current = self._snapshot()
            pairs = zip(self.reference, current, strict=True)
            share = self.update.share
            self.reference = current if share == 1 else [old.lerp(new, share) for old, new in pairs]

    def state(self) -> dict[str, Tensor]:
        """Return all tensors by name, for a checkpoint."""
        named = {f"past.{age}": one for age, one in enumerate(self.past)} | {"reference": self.reference}
        return {f"{name}.{i}": tensor for name, snapshot in named.items() for i, tensor in enumerate(snapshot)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over a saved state."""
        count = len(self.adapter.parameters())
        device = next(iter(self.adapter.parameters())).device

        def saved(name: str) -> Snapshot:
            return [state[f"{name}.{i}"].to(device) for i in range(count)]

        ages = {int(name.split(".")[1]) for name in state if name.startswith("past.")}
        self.past = [saved(f"past.{age}") for age in sorted(ages)]
        self.reference = saved("reference") if self.reference else []

    def _snapshot(self) -> Snapshot:
        return [parameter.detach().clone() for parameter in self.adapter.parameters()]

    @contextmanager
    def _in_model(self, snapshot: Snapshot) -> Iterator[None]:
        current = self._snapshot()
        self._set(snapshot)
        try:
            yield
        finally:
            self._set(current)

    @torch.no_grad()
    def _set(self, values: Snapshot) -> None:
        for parameter, value in zip(self.adapter.parameters(), values, strict=True):
            parameter.copy_(value)
        self.adapter.parameters_set()

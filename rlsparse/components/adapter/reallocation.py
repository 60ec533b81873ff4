"""The rank update of L1RA: which components are removed, and which adapters get their ranks (2509.04884)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Rules(Protocol):
    """The settings of a rank update; see ``L1ra``."""

    @property
    def threshold(self) -> float: ...
    @property
    def min_rank(self) -> int: ...
    @property
    def reassign(self) -> bool: ...
    @property
    def exclude_pruned(self) -> bool: ...


@dataclass(frozen=True)
class Change:
    """The change of one adapter in a rank update.

    Attributes:
        kept: (k,) indices of the components that stay, in ascending order, k ≥ ``min_rank``.
        added: number of new components, which come after the others.
    """

    kept: Tensor
    added: int


def interval(update_every: float, steps: int) -> int:
    """Return the number of steps between two rank updates; ``update_every`` is a share of the training steps."""
    return max(1, round(update_every * steps))


def reallocate(gates: Sequence[Tensor], most: Sequence[int], budget: int, rules: Rules) -> list[Change]:
    """Remove components with a gate below the threshold and distribute free ranks, one to each adapter in turn.

    The free ranks are the difference between the budget and the remaining ranks, including ranks that earlier updates
    could not distribute. They go to the adapters that lost none (with ``exclude_pruned=false`` to all), in descending
    order of their smallest gate. The sum of the ranks never exceeds the budget. An adapter that is at ``min_rank``
    already loses none, even if its gates are 0; it is then the last in this order.

    Args:
        gates: gates of each adapter, (r,) in [0, 1].
        most: maximum rank of each adapter, min(in, out) of its matrix.
        budget: maximum of Σ r.
        rules: threshold, ``min_rank``, and whether ranks are reassigned.
    """
    kept = [_survivors(gate, rules) for gate in gates]
    ranks = [len(indices) for indices in kept]
    if rules.reassign:
        receivers = [i for i, gate in enumerate(gates) if not rules.exclude_pruned or len(kept[i]) == len(gate)]
        receivers.sort(key=lambda i: -float(gates[i][kept[i]].min()))  # stable: equal gates in the order of adapters
        ranks = _distribute(budget - sum(ranks), ranks, receivers, most)
    return [Change(indices, rank - len(indices)) for indices, rank in zip(kept, ranks, strict=True)]


def even_ranks(budget: int, most: Sequence[int]) -> list[int]:
    """Return the initial ranks: the budget distributed evenly, up to the maximum rank of each adapter."""
    return _distribute(budget, [0] * len(most), range(len(most)), most)


def _distribute(free: int, ranks: Sequence[int], receivers: Sequence[int], most: Sequence[int]) -> list[int]:
    """Return the ranks after free ranks are given one by one to the receivers in turn, up to their maximum ranks."""
    after = list(ranks)
    while free > 0 and (receivers := [i for i in receivers if after[i] < most[i]]):
        for i in receivers[:free]:
            after[i] += 1
        free -= min(free, len(receivers))
    return after


def _survivors(gate: Tensor, rules: Rules) -> Tensor:
    """Return the components with a gate of at least the threshold; if they are too few, the ``min_rank`` largest."""
    above = (gate >= rules.threshold).nonzero().squeeze(1)
    if len(above) >= rules.min_rank:
        return above
    return gate.argsort(descending=True, stable=True)[: rules.min_rank].sort().values

"""The rank update of L1RA: which components are removed, and which adapters get new ones (2509.04884)."""

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


@dataclass(frozen=True)
class Room:
    """What an adapter can hold.

    Attributes:
        most: its maximum rank, min(in, out) of its matrix.
        cost: what each of its components counts in the budget: 1 rank, or in + out + 1 parameters.
    """

    most: int
    cost: int


def interval(update_every: float, steps: int) -> int:
    """Return the number of steps between two rank updates; ``update_every`` is a share of the training steps."""
    return max(1, round(update_every * steps))


def reallocate(gates: Sequence[Tensor], rooms: Sequence[Room], budget: int, rules: Rules) -> list[Change]:
    """Remove components with a gate below the threshold and distribute what is free, one to each adapter in turn.

    Free is the difference between the budget and what the remaining components cost, including what earlier updates
    could not distribute. It goes to the adapters that lost no component (with ``exclude_pruned=false`` to all), in
    descending order of their smallest gate; an adapter is left out once its component costs more than what is still
    free. The cost of all components never exceeds the budget. An adapter that is at ``min_rank`` already loses none,
    even if its gates are 0; it is then the last in this order.

    Args:
        gates: gates of each adapter, (r,) in [0, 1].
        rooms: maximum rank of each adapter and the cost of its components.
        budget: maximum of Σ r·cost.
        rules: threshold, ``min_rank``, and whether ranks are reassigned.
    """
    kept = [_survivors(gate, rules) for gate in gates]
    ranks = [len(indices) for indices in kept]
    if rules.reassign:
        receivers = [i for i, gate in enumerate(gates) if not rules.exclude_pruned or len(kept[i]) == len(gate)]
        receivers.sort(key=lambda i: -float(gates[i][kept[i]].min()))  # stable: equal gates in the order of adapters
        free = budget - sum(rank * room.cost for rank, room in zip(ranks, rooms, strict=True))
        ranks = _distribute(free, ranks, receivers, rooms)
    return [Change(indices, rank - len(indices)) for indices, rank in zip(kept, ranks, strict=True)]


def even_ranks(budget: int, rooms: Sequence[Room]) -> list[int]:
    """Return the initial ranks: the budget distributed evenly, up to the maximum rank of each adapter.

    Ranks below these maxima differ by one at most. What is then left is too little for one of the adapters with the
    smaller rank; it is free in the first rank update.
    """
    return _distribute(budget, [0] * len(rooms), range(len(rooms)), rooms, even=True)


def _distribute(
    free: int, ranks: Sequence[int], receivers: Sequence[int], rooms: Sequence[Room], even: bool = False
) -> list[int]:
    """Return the ranks after components are given to the receivers in turn, as long as they fit.

    Args:
        free: what the new components may cost together.
        even: whether the first turn in which one did not fit is the last.
    """
    after = list(ranks)
    while receivers := [i for i in receivers if after[i] < rooms[i].most]:
        takers = []
        for i in receivers:
            if rooms[i].cost <= free:
                free -= rooms[i].cost
                after[i] += 1
                takers.append(i)
        if even and len(takers) < len(receivers):
            break
        receivers = takers
    return after


def _survivors(gate: Tensor, rules: Rules) -> Tensor:
    """Return the components with a gate of at least the threshold; if they are too few, the ``min_rank`` largest."""
    above = (gate >= rules.threshold).nonzero().squeeze(1)
    if len(above) >= rules.min_rank:
        return above
    return gate.argsort(descending=True, stable=True)[: rules.min_rank].sort().values

"""L1RA's rank update: which components go, and which adapters get their ranks (Singh et al. 2025, 2509.04884)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Rules(Protocol):
    """The settings of an adapter that a rank update follows; see ``L1ra``."""

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
    """What happens to one adapter.

    Attributes:
        kept: (k,) indices of the components that stay, ascending, k ≥ ``min_rank``.
        added: number of new components after them.
    """

    kept: Tensor
    added: int


def interval(update_every: float, steps: int) -> int:
    """Steps from one rank update to the next: ``update_every`` is their share of the training steps."""
    return max(1, round(update_every * steps))


def reallocate(gates: Sequence[Tensor], most: Sequence[int], budget: int, rules: Rules) -> list[Change]:
    """Prune the components whose gate is below the threshold and hand free ranks on, one each in turn.

    Free is what the budget leaves, earlier rounds' rest included. It goes to the adapters that lost none (to all with
    ``exclude_pruned=false``), the one with the largest smallest gate first. The total never exceeds the budget. An
    adapter that is at ``min_rank`` already loses none, even with its gates closed: it comes last.

    Args:
        gates: of each adapter, (r,) in [0, 1].
        most: the rank that each adapter's matrix allows, min(in, out).
        budget: Σ r at most.
    """
    kept = [_survivors(gate, rules) for gate in gates]
    ranks = [len(indices) for indices in kept]
    if rules.reassign:
        takers = [i for i, gate in enumerate(gates) if not rules.exclude_pruned or len(kept[i]) == len(gate)]
        takers.sort(key=lambda i: -float(gates[i][kept[i]].min()))  # stable: ties in the adapters' order
        ranks = _hand_out(budget - sum(ranks), ranks, takers, most)
    return [Change(indices, rank - len(indices)) for indices, rank in zip(kept, ranks, strict=True)]


def even_ranks(budget: int, most: Sequence[int]) -> list[int]:
    """The start: the budget handed out one each in turn, to none more than its matrix allows."""
    return _hand_out(budget, [0] * len(most), range(len(most)), most)


def _hand_out(free: int, ranks: Sequence[int], takers: Sequence[int], most: Sequence[int]) -> list[int]:
    """The ranks after one each in turn to the takers, as long as there are free ones and matrices with room."""
    after = list(ranks)
    while free > 0 and (takers := [i for i in takers if after[i] < most[i]]):
        for i in takers[:free]:
            after[i] += 1
        free -= min(free, len(takers))
    return after


def _survivors(gate: Tensor, rules: Rules) -> Tensor:
    """Components at or above the threshold; where they are too few, the ``min_rank`` largest."""
    above = (gate >= rules.threshold).nonzero().squeeze(1)
    if len(above) >= rules.min_rank:
        return above
    return gate.argsort(descending=True, stable=True)[: rules.min_rank].sort().values

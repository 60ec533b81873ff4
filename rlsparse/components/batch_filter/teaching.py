"""Batch filters that leave out groups in which all completions are right, or all are wrong."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from rlsparse.components.batch_filter.base import BatchFilter
from rlsparse.components.component import OneOf, Range


@dataclass(frozen=True)
class Drop(BatchFilter):
    """Leaves out the groups in which all completions are right or all are wrong; the batch gets smaller."""

    def keeps(self, correct: Tensor) -> Tensor:
        return correct.any(dim=1) & ~correct.all(dim=1)


@dataclass(frozen=True)
class Refill(Drop):
    """Leaves out the same groups and samples until P groups are there: dynamic sampling of DAPO, Yu et al. 2025.

    (2503.14476, eq. 11.) Each round samples as many prompts as groups are missing (ours: DAPO samples whole batches and
    throws away what is too much). Where groups are still missing after the last round, the step has fewer (ours).

    Attributes:
        max_rounds: rounds after the first one, at most.
        source: ``prompts``: the next training prompts (DAPO); ``groups``: the prompts of the groups that were left out
            in the round before, sampled again (T-Router 2026).
    """

    max_rounds: Annotated[int | None, Range(1)]
    source: Annotated[str, OneOf("prompts", "groups")]

    def problems(self) -> Iterator[str]:
        if self.max_rounds is None:
            yield "max_rounds=null: where no prompt teaches, it would sample without end; give a limit, such as 4"

    @property
    def redraws(self) -> int:
        return self.max_rounds or 0

    @property
    def same_prompts(self) -> bool:
        return self.source == "groups"

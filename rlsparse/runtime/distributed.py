"""The processes that share a run under torchrun. One alone is the same thing with nothing to exchange.

All goes through gloo on the CPU: what is exchanged is small (completions, the adapter's gradient), a lost rank is known
at once, and sums are the same bits on every rank, so that adapters stay the same where processors are alike.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import nn

Item = TypeVar("Item")
PATIENCE = timedelta(hours=6)

# torch is imported inside functions: the command line asks for the ranks before it knows whether anything will run


class RankLost(RuntimeError):
    """Another rank of the run is gone, and the run can go on only from its last checkpoint."""


@dataclass(frozen=True)
class Ranks:
    """A rank's view of them all.

    Attributes:
        number: of this one; 0 leads: it alone composes, writes and speaks.
        size: how many there are.
        local: number among those of this machine.
    """

    number: int = 0
    size: int = 1
    local: int = 0

    def bounds(self, count: int) -> tuple[int, int]:
        """First and end of this rank's share of ``count`` rows, shares as even as can be."""
        return count * self.number // self.size, count * (self.number + 1) // self.size

    def gathered(self, part: list[Item]) -> list[Item]:
        """The parts of all ranks, in their order.

        Raises:
            RankLost: as all methods that exchange something.
        """
        if self.size == 1:
            return part
        import torch.distributed as dist

        parts: list[Any] = [None] * self.size
        with _exchange():
            dist.all_gather_object(parts, part)
        return [item for one in parts for item in one]

    def each(self, work: Callable[..., Item], *columns: Sequence[Any]) -> list[Item]:
        """``work`` of each row of the columns, every row done by one rank and known to all."""
        start, end = self.bounds(len(columns[0]))
        return self.gathered([work(*row) for row in zip(*(column[start:end] for column in columns), strict=True)])

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        return max(self.gathered([number]))

    def add_gradients(self, parameters: Sequence["nn.Parameter"]) -> None:
        """Replace each parameter's gradient by the sum over ranks; a rank without one has zeros."""
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([grad.flatten() for grad in grads]).cpu()  # (number of parameters,)
        with _exchange():
            dist.all_reduce(flat)
        pieces = flat.to(parameters[0].device).split([p.numel() for p in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter).clone()

    def tell(self, message: Any) -> None:
        """Rank 0: what the others ``hear``."""
        self._broadcast(message)

    def hear(self) -> Any:
        """Any other rank: what rank 0 tells next."""
        return self._broadcast(None)

    def part(self) -> None:
        """All ranks: nothing more will be exchanged. Without it gloo's threads may die of each other's end."""
        if self.size == 1:
            return
        import torch.distributed as dist

        with _exchange():
            dist.barrier()
        dist.destroy_process_group()

    def _broadcast(self, message: Any) -> Any:
        if self.size == 1:
            return message
        import torch.distributed as dist

        box = [message]
        with _exchange():
            dist.broadcast_object_list(box, src=0)
        return box[0]


ALONE = Ranks()


def join_ranks() -> Ranks:
    """The ranks that torchrun has started this process among; else alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" not in os.environ or size == 1:
        return ALONE
    import torch.distributed as dist

    # a death is noticed by its closed socket; a slow step, or a rank that loads for long, is none
    dist.init_process_group("gloo", timeout=PATIENCE)
    return Ranks(dist.get_rank(), size, int(os.environ["LOCAL_RANK"]))


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise RankLost(f"another rank of the run is gone ({first})") from error

"""The processes that train one run together under torchrun. A single process is the same with nothing to exchange.

Everything is exchanged with gloo on the CPU: it is small (completions, the gradient of the adapter), a lost rank is
noticed at once, and sums have the same bits on every rank, so that adapters stay equal where processors are alike.
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
TIMEOUT = timedelta(hours=6)

# torch is imported inside functions: the command line asks for the ranks before it knows whether anything will run


class RankLost(RuntimeError):
    """Another rank of the run has died; the run can only resume from its last checkpoint."""


@dataclass(frozen=True)
class World:
    """The ranks of a run as one of them sees them.

    Attributes:
        rank: of this process; rank 0 alone composes, writes and logs.
        size: number of ranks.
        local_rank: rank among those of this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    def bounds(self, count: int) -> tuple[int, int]:
        """Return start and end of the share of this rank of ``count`` rows; shares are as even as possible."""
        return count * self.rank // self.size, count * (self.rank + 1) // self.size

    def gathered(self, part: list[Item]) -> list[Item]:
        """Return the parts of all ranks, in the order of the ranks.

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
        """Return ``work(*row)`` of each row of the columns; every row is computed by one rank and known to all."""
        start, end = self.bounds(len(columns[0]))
        return self.gathered([work(*row) for row in zip(*(column[start:end] for column in columns), strict=True)])

    def largest(self, number: int) -> int:
        """Return the largest of the numbers of all ranks."""
        return max(self.gathered([number]))

    def add_gradients(self, parameters: Sequence["nn.Parameter"]) -> None:
        """Replace the gradient of each parameter by the sum over ranks; a rank without a gradient adds zeros."""
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

    def send(self, message: Any) -> None:
        """Rank 0: send a message to all other ranks."""
        self._broadcast(message)

    def receive(self) -> Any:
        """Any other rank: return the next message of rank 0."""
        return self._broadcast(None)

    def leave(self) -> None:
        """All ranks: end the exchange. Without it the threads of gloo may crash when another rank ends first."""
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


ALONE = World()


def join_world() -> World:
    """Return the ranks that torchrun has started this process with; a single one without torchrun."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" not in os.environ or size == 1:
        return ALONE
    import torch.distributed as dist

    # a death is noticed by its closed socket; a slow step, or a rank that loads for long, is none
    dist.init_process_group("gloo", timeout=TIMEOUT)
    return World(dist.get_rank(), size, int(os.environ["LOCAL_RANK"]))


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise RankLost(f"another rank of the run has died ({first})") from error

"""The processes (ranks) that train one run together under torchrun. A single process needs no communication.

Ranks communicate with gloo on the CPU: completions, and the gradients of the trained parameters. A lost rank is noticed
at once, and sums have the same bits on every rank, so trained parameters stay equal if the processors are alike.
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

# torch is imported inside functions: the command line needs the ranks before it knows whether anything will run


class RankLost(RuntimeError):
    """Another rank of the run has died; the run can only resume from its last checkpoint."""


@dataclass(frozen=True)
class World:
    """Describes the ranks of a run to one of them, and exchanges data between them.

    Attributes:
        rank: number of this process; only rank 0 composes the config, writes files and logs.
        size: number of ranks.
        local_rank: number of this process among the ranks of this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    def bounds(self, count: int) -> tuple[int, int]:
        """Return start and end of the share of this rank in ``count`` rows; shares are as even as possible."""
        return count * self.rank // self.size, count * (self.rank + 1) // self.size

    def gathered(self, part: list[Item]) -> list[Item]:
        """Return the parts of all ranks in one list, in the order of the ranks.

        Raises:
            RankLost: another rank has died. All methods that communicate raise this error.
        """
        if self.size == 1:
            return part
        import torch.distributed as dist

        parts: list[Any] = [None] * self.size
        with _exchange():
            dist.all_gather_object(parts, part)
        return [item for one in parts for item in one]

    def each(self, work: Callable[..., Item], *columns: Sequence[Any]) -> list[Item]:
        """Return ``work(*row)`` for each row of the columns. One rank computes each row; all ranks get all results."""
        start, end = self.bounds(len(columns[0]))
        return self.gathered([work(*row) for row in zip(*(column[start:end] for column in columns), strict=True)])

    def largest(self, number: int) -> int:
        """Return the largest of the numbers of all ranks."""
        return max(self.gathered([number]))

    def add_gradients(self, parameters: Sequence["nn.Parameter"]) -> None:
        """Replace the gradient of each parameter by its sum over the ranks; a missing gradient counts as zeros."""
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        # no second copy on the device: with adapter=full the gradient is as large as the model
        grads = [
            torch.zeros(p.numel(), dtype=p.dtype) if p.grad is None else p.grad.flatten().cpu() for p in parameters
        ]
        flat = torch.cat(grads)  # (number of parameters,)
        with _exchange():
            dist.all_reduce(flat)
        for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = piece.view_as(parameter).to(parameter.device, copy=True)

    def send(self, message: Any) -> None:
        """Send a message from rank 0, which calls this, to all other ranks."""
        self._broadcast(message)

    def receive(self) -> Any:
        """Return the next message of rank 0. All other ranks call this."""
        return self._broadcast(None)

    def leave(self) -> None:
        """End the communication on all ranks. Without it, threads of gloo may crash when another rank ends first."""
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
    """Return the ranks that torchrun has started together with this process; without torchrun, a single rank."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # other programs set WORLD_SIZE, too
        return ALONE
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    import torch.distributed as dist

    # a dead rank is noticed by its closed socket; the timeout must be longer than any slow step or long loading
    dist.init_process_group("gloo", timeout=TIMEOUT)
    return World(dist.get_rank(), size, int(os.environ["LOCAL_RANK"]))


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise RankLost(f"another rank of the run has died ({first})") from error

"""What to do when memory runs out: ask for half, and try again."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from rlsparse.config.schema import TrainConfig

Result = TypeVar("Result")
# what the CPU allocator of torch, cuBLAS and oneDNN say in a RuntimeError without a class of its own
SIGNS = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "bad_alloc", "bad allocation")


@dataclass
class MemoryLimits:
    """How much goes through the model at once: the values of the config, halved where memory ran out.

    Attributes:
        rollout_rows: completions sampled at a time.
        microbatch: rows of a training pass.
        tokens: tokens of a training pass.
    """

    rollout_rows: int
    microbatch: int
    tokens: int

    @classmethod
    def of(cls, rollout_rows: int, train: TrainConfig) -> "MemoryLimits":
        """Return the limits at the start of a run."""
        return cls(rollout_rows, train.microbatch, train.max_tokens_per_microbatch)


def until_it_fits(attempt: Callable[[], Result], halve: Callable[[], bool]) -> Result:
    """Return the result of ``attempt``, once it does not run out of memory.

    Args:
        attempt: may be called several times.
        halve: asks for less in the next attempt; returns False where nothing is left to halve.

    Raises:
        Exception: of the attempt, if it is no lack of memory or less cannot be asked for.
    """
    while True:
        try:
            return attempt()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or not halve():
                raise
        # out here the error is gone, and with it what its frames held
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
    )

"""Recovery when memory runs out: try again with half of the rows."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from rlsparse.config.schema import TrainConfig

Result = TypeVar("Result")
# messages of the CPU allocator of torch, cuBLAS and oneDNN, which raise a plain RuntimeError
MESSAGES = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "bad_alloc", "bad allocation")


@dataclass
class MemoryLimits:
    """Limits how much goes through the model at a time: the values of the config, halved when memory runs out.

    Attributes:
        rollout_rows: completions that are sampled at a time.
        microbatch: rows of a microbatch in training.
        tokens: tokens of a microbatch in training.
    """

    rollout_rows: int
    microbatch: int
    tokens: int

    @classmethod
    def of(cls, rollout_rows: int, train: TrainConfig) -> "MemoryLimits":
        """Return the limits at the start of a run."""
        return cls(rollout_rows, train.microbatch, train.max_tokens_per_microbatch)


def until_it_fits(attempt: Callable[[], Result], halve: Callable[[], bool]) -> Result:
    """Call ``attempt`` until it does not run out of memory, and return its result.

    Args:
        attempt: the function; it may be called several times.
        halve: makes the next attempt smaller; returns False if it cannot be smaller.

    Raises:
        Exception: the error of the attempt, if memory did not run out or the attempt cannot be smaller.
    """
    while True:
        try:
            return attempt()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or not halve():
                raise
        # outside of the except block the error is deleted, and with it the tensors that its frames referred to
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)
    )

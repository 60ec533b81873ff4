"""How much goes through the model at once, and what to do when that is too much: half of it, and the same again."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from rlsparse.config.schema import RolloutConfig, TrainConfig

Result = TypeVar("Result")
# what torch's CPU allocator, cuBLAS and oneDNN say in a RuntimeError of no kind of its own
SIGNS = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "bad_alloc", "bad allocation")


@dataclass
class MemoryLimits:
    """What the config allows at first; halved where memory ran out, for the rest of the run.

    Attributes:
        rollout_rows: completions sampled at a time.
        microbatch: rows of a training pass.
        tokens: of a training pass.
    """

    rollout_rows: int
    microbatch: int
    tokens: int

    @classmethod
    def of(cls, rollout: RolloutConfig, train: TrainConfig) -> "MemoryLimits":
        return cls(rollout.max_rows, train.microbatch, train.max_tokens_per_microbatch)


def until_it_fits(attempt: Callable[[], Result], halve: Callable[[], bool]) -> Result:
    """What ``attempt`` returns, once it does not run out of memory.

    Args:
        attempt: may be called several times.
        halve: asks less of the next attempt; False where there is nothing left to halve.

    Raises:
        Exception: of the attempt, if it is no lack of memory or less cannot be asked.
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
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
    )

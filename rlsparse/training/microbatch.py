"""Cutting a batch into forward passes: rows that have something to teach, bounded by rows and by tokens."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from typing import TypeVar

import torch
from torch import Tensor

from rlsparse.batch import ScoredBatch
from rlsparse.config.schema import TrainConfig
from rlsparse.runtime.distributed import World
from rlsparse.runtime.oom import MemoryLimits, until_it_fits

Result = TypeVar("Result")
log = logging.getLogger(__name__)
MOST_PADDED = 1.5  # tokens of a microbatch, padding included, for each that is not


@dataclass(frozen=True)
class Microbatch:
    """Rows that go through the model together.

    Attributes:
        rows: (b,) row numbers into the rollout, those of a prompt side by side.
        needed: (b, T) bool: tokens that the loss looks at; T ends at the last of them.
    """

    rows: Tensor
    needed: Tensor


def share_of(batch: ScoredBatch, world: World) -> ScoredBatch:
    """Return the batch as this rank trains on it: every n-th of the prompts that teach anything, n ranks.

    The other rows get scales of 0. Those of the share stay as they are, so the losses of the ranks add up to that of
    the batch.
    """
    if world.size == 1:
        return batch
    rows = (batch.scales != 0).any(dim=1)  # (B,)
    teaches = rows.view(-1, batch.rollout.group_size).any(dim=1)  # (P,)
    number = teaches.long().cumsum(dim=0) - 1  # (P,) of each among those that teach
    own = (number % world.size == world.rank).repeat_interleave(batch.rollout.group_size)  # (B,)
    return replace(batch, scales=batch.scales * own[:, None])


@dataclass(frozen=True)
class _Stretch:
    """Some completions of one prompt."""

    rows: list[int]
    number: int  # of the prompt
    prompt: int  # tokens
    width: int  # completion columns up to the last one needed

    def tokens(self) -> int:
        return self.prompt + len(self.rows) * self.width


def microbatches(batch: ScoredBatch, config: TrainConfig) -> list[Microbatch]:
    """The rows with a token to teach, in microbatches; all others cost nothing.

    A microbatch has at most ``train.microbatch`` rows and ``train.max_tokens_per_microbatch`` tokens, prompts counted
    once and padding included; one completion that is longer by itself goes alone.
    """
    needed = batch.scales != 0  # (B, T)
    pieces: list[list[_Stretch]] = []
    for stretch in sorted(_stretches(batch, needed, config), key=lambda s: (len(s.rows), s.width, s.prompt)):
        if pieces and _fit([*pieces[-1], stretch], config):
            pieces[-1].append(stretch)
        else:
            pieces.append([stretch])
    return [_piece(piece, needed) for piece in pieces]


def _fit(stretches: list[_Stretch], config: TrainConfig) -> bool:
    """Whether they make one microbatch, padded to the longest prompt, the widest row and the most rows.

    Pieces of one prompt never meet again: a microbatch holds a prompt once.
    """
    most, width = max(len(s.rows) for s in stretches), max(s.width for s in stretches)
    padded = len(stretches) * (max(s.prompt for s in stretches) + most * width)
    return (
        len({s.number for s in stretches}) == len(stretches)
        and sum(len(s.rows) for s in stretches) <= config.microbatch
        and padded <= config.max_tokens_per_microbatch
        and padded <= MOST_PADDED * sum(s.tokens() for s in stretches)
    )


def _stretches(batch: ScoredBatch, needed: Tensor, config: TrainConfig) -> list[_Stretch]:
    """Each prompt's rows with a token to teach, cut where a prompt alone would be too much."""
    found = []
    columns = torch.arange(1, needed.shape[1] + 1, device=needed.device)
    widths = (needed * columns).amax(dim=1).tolist()  # of each row; 0 where nothing is needed
    prompt_lengths = batch.rollout.prompt_lengths.tolist()
    group_size = batch.rollout.group_size
    for p, prompt in enumerate(prompt_lengths):
        rows = [row for row in range(p * group_size, (p + 1) * group_size) if widths[row]]
        while rows:
            width = max(widths[row] for row in rows)
            fitting = (config.max_tokens_per_microbatch - prompt) // width
            most = max(1, min(config.microbatch, fitting))
            size = ceil(len(rows) / ceil(len(rows) / most))  # equal parts, not a full one and a rest
            found.append(_Stretch(rows[:size], p, prompt, max(widths[row] for row in rows[:size])))
            rows = rows[size:]
    return found


def _piece(stretches: list[_Stretch], needed: Tensor) -> Microbatch:
    rows = torch.tensor([row for stretch in stretches for row in stretch.rows], device=needed.device)
    return Microbatch(rows, needed[rows, : max(stretch.width for stretch in stretches)])


@dataclass
class FitMicrobatches:
    """Does something with a batch, microbatch by microbatch, in smaller ones where memory runs out.

    Attributes:
        limits: rows and tokens of a microbatch; halved where memory runs out, for the rest of the run.
    """

    config: TrainConfig
    limits: MemoryLimits
    _warned: bool = False

    def __call__(self, batch: ScoredBatch, attempt: Callable[[list[Microbatch], int], Result]) -> Result:
        """Return what the attempt returns; after memory ran out it starts again from the first microbatch.

        Args:
            attempt: gets the microbatches and the tokens that one may have.
        """
        pieces: list[Microbatch] = []

        def once() -> Result:
            rows, tokens = self.limits.microbatch, self.limits.tokens
            pieces[:] = microbatches(batch, replace(self.config, microbatch=rows, max_tokens_per_microbatch=tokens))
            return attempt(pieces, tokens)

        return until_it_fits(once, lambda: self._halve(batch, pieces))

    def _halve(self, batch: ScoredBatch, pieces: list[Microbatch]) -> bool:
        """Halve what the largest microbatch had, which may be less than it was allowed."""
        rows = max((len(piece.rows) for piece in pieces), default=1)
        if rows == 1:
            return False
        prompts = batch.rollout.prompt_lengths
        tokens = max(
            int(prompts[(piece.rows // batch.rollout.group_size).unique()].sum()) + piece.needed.numel()
            for piece in pieces
        )
        self.limits.microbatch = min(self.limits.microbatch, rows) // 2
        self.limits.tokens = max(1, min(self.limits.tokens, tokens) // 2)
        if not self._warned:
            log.info(
                "out of memory in training: microbatches of %d rows and %d tokens from now on, and fewer if necessary; "
                "the gradient does not depend on it",
                self.limits.microbatch,
                self.limits.tokens,
            )
        self._warned = True
        return True

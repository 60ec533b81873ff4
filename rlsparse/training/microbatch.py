"""Microbatches: the rows of a batch that the loss needs, split by limits on rows and tokens."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from rlsparse.batch import ScoredBatch
from rlsparse.config.schema import TrainConfig
from rlsparse.model.packing.layout import cut_short, last_columns
from rlsparse.runtime.distributed import World
from rlsparse.runtime.oom import MemoryLimits, until_it_fits

Result = TypeVar("Result")
log = logging.getLogger(__name__)
MOST_PADDED = 1.5  # tokens of a microbatch with padding, divided by those without padding


@dataclass(frozen=True)
class Microbatch:
    """Names the rows of one forward and backward pass.

    Attributes:
        rows: (b,) row numbers into the rollout; the rows of a prompt are consecutive.
        needed: (b, T) bool: the tokens that the loss needs; T ends at the last of them.
    """

    rows: Tensor
    needed: Tensor


def share_of(batch: ScoredBatch, world: World) -> ScoredBatch:
    """Return the share of this rank in a batch: of n ranks, each gets every n-th prompt with a token in the loss.

    Rows of other ranks get scales of 0. The scales of the share are unchanged, so that the losses of the ranks add up
    to the loss of the batch.
    """
    if world.size == 1:
        return batch
    in_loss = (batch.scales != 0).any(dim=1)  # (B,)
    used = in_loss.view(-1, batch.rollout.group_size).any(dim=1)  # (P,)
    number = used.long().cumsum(dim=0) - 1  # (P,) of each prompt among the used ones
    own = (number % world.size == world.rank).repeat_interleave(batch.rollout.group_size)  # (B,)
    return replace(batch, scales=batch.scales * own[:, None])


class _Row(NamedTuple):
    """Holds the number of a row of the rollout, how many of its tokens are needed, and its columns up to the last one.

    ``length`` is the number of all tokens of its completion.
    """

    number: int
    needed: int
    width: int
    length: int


@dataclass(frozen=True)
class _Segment:
    """Holds rows of one prompt, which the packed path puts into one segment.

    Attributes:
        rows: rows of the rollout.
        number: number of the prompt.
        prompt: length of the prompt, tokens.
    """

    rows: list[_Row]
    number: int
    prompt: int

    @property
    def width(self) -> int:
        """Number of columns up to the last needed token."""
        return max(row.width for row in self.rows)

    def tokens(self) -> int:
        """Return the number of tokens, with the prompt counted once and rows padded to the widest."""
        return self.prompt + len(self.rows) * self.width


def microbatches(batch: ScoredBatch, config: TrainConfig) -> list[Microbatch]:
    """Return the rows with a token in the loss as microbatches; all other rows are left out.

    A microbatch has at most ``train.microbatch`` rows and ``train.max_tokens_per_microbatch`` tokens, where each prompt
    counts once and padding counts, where there is any: completions that are cut short are packed without padding. A
    completion with more tokens than that is a microbatch of its own.
    """
    needed = batch.needed  # (B, T)
    pieces: list[list[_Segment]] = []
    for segment in sorted(_segments(batch, needed, config), key=lambda s: (len(s.rows), s.width, s.prompt)):
        if pieces and _fit([*pieces[-1], segment], config):
            pieces[-1].append(segment)
        else:
            pieces.append([segment])
    return [_microbatch(piece, needed) for piece in pieces]


def _fit(segments: list[_Segment], config: TrainConfig) -> bool:
    """Return whether segments fit in one microbatch, padded to the longest prompt, the widest row and the most rows.

    A microbatch holds a prompt only once, so two segments of the same prompt do not fit. A ragged row has no padding.
    """
    rows = [row for s in segments for row in s.rows]
    if len({s.number for s in segments}) < len(segments) or len(rows) > config.microbatch:
        return False
    if _ragged(rows, config):
        return sum(s.prompt for s in segments) + sum(row.width for row in rows) <= config.max_tokens_per_microbatch
    most, width = max(len(s.rows) for s in segments), max(s.width for s in segments)
    padded = len(segments) * (max(s.prompt for s in segments) + most * width)
    return padded <= config.max_tokens_per_microbatch and padded <= MOST_PADDED * sum(s.tokens() for s in segments)


def _ragged(rows: list[_Row], config: TrainConfig) -> bool:
    """Return whether the packed path would put these rows into a ragged row, without padding."""
    return config.packing != "off" and cut_short(
        [row.needed for row in rows], [row.width for row in rows], [row.length for row in rows]
    )


def _segments(batch: ScoredBatch, needed: Tensor, config: TrainConfig) -> list[_Segment]:
    """Return the rows of each prompt with a token in the loss; split them if they exceed the limits alone."""
    found = []
    widths = last_columns(needed)  # of each row; 0 if no token is needed
    counts, lengths = needed.sum(dim=1).tolist(), batch.rollout.lengths.tolist()
    prompt_lengths = batch.rollout.prompt_lengths.tolist()
    group_size = batch.rollout.group_size
    for p, prompt in enumerate(prompt_lengths):
        group = range(p * group_size, (p + 1) * group_size)
        rows = [_Row(row, counts[row], widths[row], lengths[row]) for row in group if widths[row]]
        while rows:
            size = _next_part(_Segment(rows, p, prompt), config)
            found.append(_Segment(rows[:size], p, prompt))
            rows = rows[size:]
    return found


def _next_part(left: _Segment, config: TrainConfig) -> int:
    """Return how many of the rows of a prompt that are left make its next segment: equal parts within the limits.

    Cut completions are of different lengths, so as many of them are taken as fit.
    """
    rows = left.rows
    if _ragged(rows, config):
        sizes = range(min(len(rows), config.microbatch), 1, -1)
        return next((n for n in sizes if _fit([replace(left, rows=rows[:n])], config)), 1)
    fitting = (config.max_tokens_per_microbatch - left.prompt) // left.width
    most = max(1, min(config.microbatch, fitting))
    return ceil(len(rows) / ceil(len(rows) / most))  # parts of equal size


def _microbatch(segments: list[_Segment], needed: Tensor) -> Microbatch:
    rows = torch.tensor([row.number for segment in segments for row in segment.rows], device=needed.device)
    return Microbatch(rows, needed[rows, : max(segment.width for segment in segments)])


def _tokens(piece: Microbatch, batch: ScoredBatch, config: TrainConfig) -> int:
    """Return the number of tokens of a microbatch, with each prompt counted once, and padding where there is any."""
    rollout, widths = batch.rollout, last_columns(piece.needed)
    prompts = int(rollout.prompt_lengths[(piece.rows // rollout.group_size).unique()].sum())
    numbers = (piece.rows.tolist(), piece.needed.sum(dim=1).tolist(), widths, rollout.lengths[piece.rows].tolist())
    rows = [_Row(*row) for row in zip(*numbers, strict=True)]
    return prompts + (sum(widths) if _ragged(rows, config) else piece.needed.numel())


@dataclass
class FitMicrobatches:
    """Processes a batch in microbatches, and in smaller ones if memory runs out.

    Attributes:
        config: the limits of the config.
        limits: rows and tokens of a microbatch; halved when memory runs out, for the rest of the run.
    """

    config: TrainConfig
    limits: MemoryLimits
    _warned: bool = False

    def __call__(self, batch: ScoredBatch, attempt: Callable[[list[Microbatch], int], Result]) -> Result:
        """Call ``attempt`` with the microbatches and return its result; call it again if memory runs out.

        Args:
            batch: the batch to split.
            attempt: called with all microbatches and the maximum number of tokens of one.
        """
        pieces: list[Microbatch] = []

        def once() -> Result:
            rows, tokens = self.limits.microbatch, self.limits.tokens
            pieces[:] = microbatches(batch, replace(self.config, microbatch=rows, max_tokens_per_microbatch=tokens))
            return attempt(pieces, tokens)

        return until_it_fits(once, lambda: self._halve(batch, pieces))

    def _halve(self, batch: ScoredBatch, pieces: list[Microbatch]) -> bool:
        """Halve the size of the largest microbatch, which may be below the limits; return False if it has one row."""
        rows = max((len(piece.rows) for piece in pieces), default=1)
        if rows == 1:
            return False
        tokens = max(_tokens(piece, batch, self.config) for piece in pieces)
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

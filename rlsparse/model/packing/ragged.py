"""The ragged row: prompts and completions one after another without any padding, each up to its last needed token.

The linear layers, norms and MLPs of the model see one row of tokens. Attention alone needs blocks of equal width: it
copies queries, keys and values into padded blocks and the results back. Where completions are cut at very different
lengths, most of the padding of the other layouts is left out, and so are the tokens behind the cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlsparse.batch import Rollout
from rlsparse.model.attention import attend, bias

# Blocks of similar width are attended to together; more classes have less padding, but smaller matrix products. With
# four classes, attention to 8 uniformly cut completions takes 0.7 (of 120 tokens) or 0.25 (of 480) of the time with one
# class, measured on a CPU for the heads of SmolLM2-135M.
CLASSES = 4


@dataclass(frozen=True)
class Blocks:
    """Tells where m consecutive tokens of the row lie in n blocks of T places, padded on the right.

    Attributes:
        start: index of the first of the tokens in the row.
        tokens: (n·T,) the token of each place, counted from ``start``; padding repeats the last token of its block.
        places: (m,) the place of each token, counted over all blocks.
        bias: (n or 1, 1, 1, T, K): 0 where a token attends to a key, else −inf; K = T for prompts and S + T for
            completions, which also attend to the S places of their prompt.
        prompts: (n,) number of the block that holds the prompt of each completion; empty for the prompts themselves.
    """

    start: int
    tokens: Tensor
    places: Tensor
    bias: Tensor
    prompts: Tensor

    def padded(self, row: Tensor) -> Tensor:
        """Return the values of these blocks, (n, T, …), from those of the whole row, (L, …)."""
        own = row[self.start : self.start + len(self.places)]
        padded: Tensor = _Padded.apply(own, self.tokens, self.places)
        return padded.unflatten(0, (-1, self.bias.shape[3]))

    def unpadded(self, padded: Tensor) -> Tensor:
        """Return the values of the tokens, (m, …), from those of the blocks, (n, T, …)."""
        unpadded: Tensor = _Unpadded.apply(padded.flatten(0, 1), self.places)
        return unpadded


@dataclass(frozen=True)
class RaggedLayout:
    """Tells attention which tokens of the row are prompts and which are completions.

    Attributes:
        prompts: the p prompts, at the start of the row.
        completions: the completions in classes of similar width.
    """

    prompts: Blocks
    completions: tuple[Blocks, ...]


@dataclass(frozen=True)
class RaggedRow:
    """Holds p prompts and b completions as one row of L tokens without padding; the prompts come first.

    Attributes:
        prompt_rows: (l,) number of the prompt that each of the first l tokens is read from.
        prompt_columns: (l,) its column, counted from the end of the padded prompts: −1 is the last column.
        rows: (L − l,) row of the rollout that each completion token is read from.
        columns: (L − l,) column of the rollout that each completion token is read from.
        predictors: (k,) index into the row of the token that predicts each needed token, in the order of
            ``needed.nonzero()``.
        layout: which tokens are attended to together.
    """

    prompt_rows: Tensor
    prompt_columns: Tensor
    rows: Tensor
    columns: Tensor
    predictors: Tensor
    layout: RaggedLayout

    def tokens(self) -> int:
        """Return the length L of the row."""
        return len(self.prompt_rows) + len(self.rows)

    def positions(self, rollout: Rollout) -> Tensor:
        """Return the position of each token in its sequence, (1, L)."""
        of_prompts = rollout.prompt_lengths[self.prompt_rows] + self.prompt_columns
        of_completions = rollout.prompt_lengths[self.rows // rollout.group_size] + self.columns
        return torch.cat([of_prompts, of_completions])[None]

    def gather(self, of_prompts: Tensor, of_completions: Tensor) -> Tensor:
        """Return the values of the tokens of this row, (1, L, …), from (P, S, …) and (B, T, …) tensors of a rollout."""
        prompts = of_prompts[self.prompt_rows, self.prompt_columns]  # (l, …)
        return torch.cat([prompts, of_completions[self.rows, self.columns]])[None]


def ragged_row(rollout: Rollout, rows: Tensor, needed: Tensor, dtype: torch.dtype) -> RaggedRow:
    """Return the ragged row of some completions, each up to the token that predicts its last needed token.

    Args:
        rows: (b,) row numbers into the rollout; the rows of a prompt are consecutive.
        needed: (b, T) bool: the tokens to score, none after the end of a completion.
        dtype: dtype of the attention scores.
    """
    prompts, segment = (rows // rollout.group_size).unique_consecutive(return_inverse=True)  # (p,), (b,)
    prompt_lengths = rollout.prompt_lengths[prompts]  # (p,)
    total = int(prompt_lengths.sum())
    column = torch.arange(needed.shape[1], device=rows.device)
    lengths = (needed * column).amax(dim=1)  # (b,): the last needed token itself need not go through the model
    order = lengths.argsort(stable=True)  # (b,)
    order = order[lengths[order] > 0]  # (c,)
    # where each completion starts in the row; it matters only where a token of it is there
    starts = torch.zeros_like(lengths).index_copy(0, order, total + lengths[order].cumsum(0) - lengths[order])  # (b,)
    ends = prompt_lengths.cumsum(0) - 1  # (p,) index of the last token of each prompt
    predictors = torch.where(column == 0, ends[segment, None], starts[:, None] + column - 1)  # (b, T)
    in_prompts = torch.arange(int(prompt_lengths.max()), device=rows.device) < prompt_lengths[:, None]  # (p, S)
    prompt, place = in_prompts.nonzero(as_tuple=True)  # (l,)
    completion, columns = (column < lengths[order, None]).nonzero(as_tuple=True)  # (L − l,)
    return RaggedRow(
        prompt_rows=prompts[prompt],
        prompt_columns=place - prompt_lengths[prompt],
        rows=rows[order[completion]],
        columns=columns,
        predictors=predictors[needed],
        layout=_layout(in_prompts, segment[order], lengths[order], dtype),
    )


def _layout(in_prompts: Tensor, segments: Tensor, lengths: Tensor, dtype: torch.dtype) -> RaggedLayout:
    """Return the layout of p prompts and c completions.

    Args:
        in_prompts: (p, S) bool, padded on the right.
        segments: (c,) number of the prompt of each completion.
        lengths: (c,) tokens of each completion, at least one, in ascending order.
    """
    S = in_prompts.shape[1]
    prompts = _blocks(0, in_prompts.sum(dim=1), _earlier(S, lengths.device)[None], dtype, segments[:0])
    completions, start = [], int(in_prompts.sum())
    for own, of in zip(lengths.tensor_split(CLASSES), segments.tensor_split(CLASSES), strict=True):
        if len(own):
            n, T = len(own), int(own[-1])
            visible = torch.cat([in_prompts[of, None].expand(n, T, S), _earlier(T, of.device).expand(n, T, T)], dim=2)
            completions.append(_blocks(start, own, visible, dtype, of))
            start += int(own.sum())
    return RaggedLayout(prompts, tuple(completions))


def _earlier(T: int, device: torch.device) -> Tensor:
    """Return which places of its block each token attends to, (T, T) bool; padding on the right is never among them."""
    return torch.ones(T, T, dtype=torch.bool, device=device).tril()


def _blocks(start: int, lengths: Tensor, visible: Tensor, dtype: torch.dtype, prompts: Tensor) -> Blocks:
    """Return blocks of some lengths, (n,), in which each place attends to the visible keys, (n or 1, T, K)."""
    T = visible.shape[1]
    place = torch.arange(T, device=lengths.device)
    first = (lengths.cumsum(0) - lengths)[:, None]  # (n, 1)
    return Blocks(
        start=start,
        tokens=(first + place.minimum(lengths[:, None] - 1)).flatten(),
        places=(place < lengths[:, None]).flatten().nonzero().squeeze(1),
        bias=bias(visible, dtype)[:, None, None],
        prompts=prompts,
    )


def attend_ragged(query: Tensor, key: Tensor, value: Tensor, layout: RaggedLayout) -> Tensor:
    """Return the attention of each token to its prompt and to the earlier tokens of its completion, (1, L, heads, d).

    Args:
        query: (1, heads, L, d), already scaled.
        key: (1, kv heads, L, d).
        value: (1, kv heads, L, d).
    """
    kv = key.shape[1]
    q = query[0].transpose(0, 1).unflatten(1, (kv, -1))  # (L, kv, r, d); r query heads share a key head
    k, v = key[0].transpose(0, 1), value[0].transpose(0, 1)  # (L, kv, d)
    prompts = layout.prompts
    of_prompts = [prompts.padded(x).transpose(1, 2) for x in (k, v)]  # (p, kv, S, d)
    outputs = [_attend_blocks(q, of_prompts, prompts)]
    for blocks in layout.completions:
        keys_and_values = [
            torch.cat([prompt.index_select(0, blocks.prompts), blocks.padded(x).transpose(1, 2)], dim=2)
            for prompt, x in zip(of_prompts, (k, v), strict=True)
        ]  # (n, kv, S + T, d)
        outputs.append(_attend_blocks(q, keys_and_values, blocks))
    return torch.cat(outputs)[None]


def _attend_blocks(q: Tensor, keys_and_values: Sequence[Tensor], blocks: Blocks) -> Tensor:
    """Return the attention of the tokens of some blocks, (m, heads, d), from the queries of the row, (L, kv, r, d)."""
    queries = blocks.padded(q).permute(0, 2, 3, 1, 4)  # (n, kv, r, T, d)
    keys, values = keys_and_values
    out = attend(queries, keys, values, blocks.bias)  # (n, kv, r, T, d)
    return blocks.unpadded(out.permute(0, 3, 1, 2, 4).flatten(2, 3))


class _Padded(torch.autograd.Function):
    """Copies tokens to the places of blocks. No gradient reaches padding: it is never visible, and no result of it is
    used. So the gradient is a copy as well, where that of an index would add up, which is slow on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, row: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return row.index_select(0, tokens)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        return gradients[0].index_select(0, places), None, None


class _Unpadded(torch.autograd.Function):
    """Copies tokens out of the places of blocks; the gradient of padding is 0."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.shape = padded.shape
        return padded.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        return gradients[0].new_zeros(ctx.shape).index_copy_(0, places, gradients[0]), None

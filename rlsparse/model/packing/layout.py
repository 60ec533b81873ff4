"""The layout of the packed row: which tokens it holds, and which of them each token attends to.

A row is a sequence of segments [prompt | completion tokens], one for each prompt. A completion token attends to the
prompt and to the earlier tokens of its own completion. There are two ways to fill a segment: the completions of the
group side by side, or the tree of their distinct prefixes. A third layout, the ragged row, has no segments; it serves
completions that are cut at very different lengths.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlsparse.batch import Rollout
from rlsparse.model.attention import bias, causal_visible
from rlsparse.model.packing.ragged import RaggedRow, ragged_row
from rlsparse.model.policy import positions

# The ragged row serves completions that are cut, and only where the cuts leave out much. Elsewhere the layout, and with
# it each bit of the results, stays what it was before there was a ragged row:
# - In every row, all tokens up to the last needed one are needed. Other selections (drawn at random, by entropy, from
#   a prefix tree) leave gaps. In a few narrow rows they can have none by chance, so the widest row has a least width.
# - The needed tokens are at most three quarters of those that the completions have up to the width of the widest row.
#   It is 1 for whole completions and for the first k tokens, so these stay side by side, whatever their lengths.
#   Padding is not counted among these tokens, so they are also at most three quarters of the padded tokens.
# - Above three quarters little is saved: attention copies its inputs into padded blocks again, layer by layer.
MOST_OF_COMPLETIONS = 0.75
LEAST_WIDTH = 16  # columns


@dataclass(frozen=True)
class Layout:
    """Tells attention what to mask in p segments of S prompt tokens and g blocks of T completion tokens.

    Attributes:
        prompt_bias: (p, 1, 1, S, S): 0 where a prompt token attends to a key, −inf at padding and at later tokens.
        completion_bias: (p, 1, 1, 1, T, S + T): 0 where a completion token attends to a key of the prompt or of its
            block, else −inf.
        blocks: g; a token attends to no token of another block.
    """

    prompt_bias: Tensor
    completion_bias: Tensor
    blocks: int


@dataclass(frozen=True)
class PackedRow:
    """Holds p segments of S prompt tokens and n = g·T completion tokens as one row of L = p·(S + n) tokens.

    Attributes:
        prompts: (p,) number of the prompt of each segment.
        in_prompt: (p, S) bool: prompt tokens, padded on the left.
        rows: (p, n) row of the rollout that each completion token is read from.
        columns: (p, n) column of the rollout that each completion token is read from.
        predictors: (k,) index into the row of the token that predicts each needed token, in the order of
            ``needed.nonzero()``.
        layout: which keys each token attends to.
    """

    prompts: Tensor
    in_prompt: Tensor
    rows: Tensor
    columns: Tensor
    predictors: Tensor
    layout: Layout

    def tokens(self) -> int:
        """Return the length L of the row, padding included."""
        return self.in_prompt.numel() + self.rows.numel()

    def positions(self, rollout: Rollout) -> Tensor:
        """Return the position of each token in its sequence, (p, S + n)."""
        return torch.cat([positions(self.in_prompt), rollout.prompt_lengths[self.prompts, None] + self.columns], dim=1)

    def gather(self, of_prompts: Tensor, of_completions: Tensor) -> Tensor:
        """Return the values of the tokens of this row, (1, L, …), from (P, S, …) and (B, T, …) tensors of a rollout."""
        S = self.in_prompt.shape[1]
        completion = of_completions[self.rows, self.columns]  # (p, n, …)
        return torch.cat([of_prompts[self.prompts, -S:], completion], dim=1).flatten(0, 1)[None]


def cut_short(needed: Sequence[int], widths: Sequence[int], lengths: Sequence[int]) -> bool:
    """Return whether completions are cut so much earlier than their ends that they are packed as a ragged row.

    Args:
        needed: (b,) number of needed tokens of each row.
        widths: (b,) number of columns of each row up to its last needed token.
        lengths: (b,) tokens of each completion.
    """
    widest = max(widths)
    tokens = sum(min(length, widest) for length in lengths)
    return (
        widest >= LEAST_WIDTH
        and all(one == width for one, width in zip(needed, widths, strict=True))
        and sum(widths) <= MOST_OF_COMPLETIONS * tokens
    )


def pack(rollout: Rollout, rows: Tensor, needed: Tensor, dtype: torch.dtype) -> PackedRow | RaggedRow:
    """Pack rows of a rollout: ragged where ``cut_short`` says so; else side by side or, at half the tokens, as a tree.

    Args:
        rows: (b,) row numbers into the rollout; the rows of a prompt are consecutive.
        needed: (b, T) bool: the tokens to score, none after the end of a completion.
        dtype: dtype of the attention scores.
    """
    counts, widths = needed.sum(dim=1).tolist(), last_columns(needed)
    if cut_short(counts, widths, rollout.lengths[rows].tolist()):
        return ragged_row(rollout, rows, needed, dtype)
    groups = _by_group(rollout, rows, needed, dtype)
    if 2 * int(needed.sum()) > needed.numel():  # most tokens are needed: too few of them are shared for a tree to pay
        return groups
    tree = _by_prefix(rollout, rows, needed, dtype)
    return tree if 2 * tree.tokens() < groups.tokens() else groups


def _by_group(rollout: Rollout, rows: Tensor, needed: Tensor, dtype: torch.dtype) -> PackedRow:
    """Return segments [prompt | completion 1 | … | completion g], each completion up to the last needed column."""
    prompts, counts = (rows // rollout.group_size).unique_consecutive(return_counts=True)  # (p,)
    g, T = int(counts.max()), needed.shape[1]
    in_prompt = _in_prompt(rollout, prompts)  # (p, S)
    length = in_prompt.shape[1] + g * T  # of a segment
    first = (counts.cumsum(dim=0) - counts)[:, None]  # (p, 1)
    block = torch.arange(g, device=rows.device).expand(len(prompts), g)  # (p, g)
    completion = rows[first + block.minimum(counts[:, None] - 1)]  # (p, g): the last one again if there are fewer
    # a token is predicted at the token before it; the first one of a completion at the end of the prompt
    end_of_prompt = torch.arange(1, len(prompts) + 1, device=rows.device)[:, None] * length - g * T - 1  # (p, 1)
    column = torch.arange(T, device=rows.device)
    predictors = (end_of_prompt + block * T)[:, :, None] + column  # (p, g, T)
    predictors[:, :, 0] = end_of_prompt
    return PackedRow(
        prompts=prompts,
        in_prompt=in_prompt,
        rows=completion.repeat_interleave(T, dim=1),
        columns=column.repeat(len(prompts), g),
        predictors=predictors[block < counts[:, None]][needed],
        layout=_layout(in_prompt, torch.ones(1, T, T, dtype=torch.bool, device=rows.device).tril(), g, dtype),
    )


def _by_prefix(rollout: Rollout, rows: Tensor, needed: Tensor, dtype: torch.dtype) -> PackedRow:
    """Return segments [prompt | nodes], with each prefix once, down to the last one that predicts a needed token."""
    prompts = (rows // rollout.group_size).unique_consecutive()  # (p,)
    trees = {prompt: _Tree() for prompt in prompts.tolist()}
    segment_of = {prompt: i for i, prompt in enumerate(trees)}
    completions, widths = rollout.completion_ids[rows].tolist(), last_columns(needed)
    predictors: list[tuple[int, int]] = []  # segment and node that predict each needed token; -1: the last prompt token
    for i, (row, wanted) in enumerate(zip(rows.tolist(), needed.tolist(), strict=True)):
        prompt = row // rollout.group_size
        path = [-1, *trees[prompt].insert(row, completions[i][: widths[i] - 1])]
        predictors += [(segment_of[prompt], path[t]) for t, want in enumerate(wanted) if want]
    n = max(1, *(len(tree.rows) for tree in trees.values()))
    in_prompt = _in_prompt(rollout, prompts)
    S = in_prompt.shape[1]
    visible = torch.stack([tree.visible(n) for tree in trees.values()]).to(rows.device)  # (p, n, n)
    nodes = torch.tensor([[t.padded(t.rows, n), t.padded(t.depths, n)] for t in trees.values()], device=rows.device)
    return PackedRow(
        prompts=prompts,
        in_prompt=in_prompt,
        rows=nodes[:, 0],
        columns=nodes[:, 1],
        predictors=torch.tensor([s * (S + n) + S + node for s, node in predictors], device=rows.device),
        layout=_layout(in_prompt, visible, 1, dtype),
    )


class _Tree:
    """Holds the distinct prefixes of the completions of a prompt as nodes; a parent has a lower number than its child.

    Attributes:
        rows: for each node, a row of the rollout whose completion begins with this prefix.
        depths: for each node, the column of its token in that row.
    """

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.depths: list[int] = []
        self._parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def insert(self, row: int, ids: list[int]) -> list[int]:
        """Return the nodes along these tokens; nodes that do not exist yet are added."""
        path, node = [], -1
        for depth, token in enumerate(ids):
            child = self._children.setdefault((node, token), len(self.rows))
            if child == len(self.rows):
                self.rows.append(row)
                self.depths.append(depth)
                self._parents.append(node)
            path.append(child)
            node = child
        return path

    def visible(self, n: int) -> Tensor:
        """Return which nodes each node attends to, (n, n) bool: itself and its ancestors; padding attends to itself."""
        seen = torch.eye(n, dtype=torch.bool)
        for node, parent in enumerate(self._parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen

    def padded(self, values: list[int], n: int) -> list[int]:
        """Return the values padded with zeros to the length n."""
        return values + [0] * (n - len(values))


def _in_prompt(rollout: Rollout, prompts: Tensor) -> Tensor:
    """Return which columns hold prompt tokens, (p, S) bool, with padding on the left."""
    lengths = rollout.prompt_lengths[prompts]  # (p,)
    return torch.arange(int(lengths.max()), 0, -1, device=lengths.device) <= lengths[:, None]


def last_columns(needed: Tensor) -> list[int]:
    """Return the number of columns of each row up to its last needed token; 0 if there is none."""
    columns = torch.arange(1, needed.shape[1] + 1, device=needed.device)
    last: list[int] = (needed * columns).amax(dim=1).tolist()
    return last


def _layout(in_prompt: Tensor, visible: Tensor, blocks: int, dtype: torch.dtype) -> Layout:
    """Return the layout of segments.

    Args:
        in_prompt: (p, S) bool.
        visible: (p or 1, T, T) bool: which tokens of its block each completion token attends to.
    """
    p, S = in_prompt.shape
    T = visible.shape[1]
    prompt = causal_visible(in_prompt)  # (p, S, S)
    completion = torch.cat([in_prompt[:, None].expand(p, T, S), visible.expand(p, T, T)], dim=2)  # (p, T, S + T)
    return Layout(bias(prompt, dtype)[:, None, None], bias(completion, dtype)[:, None, None, None], blocks)

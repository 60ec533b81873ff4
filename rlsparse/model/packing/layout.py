"""Which tokens stand in the packed row, and what each sees.

A stretch is [prompt | own tokens]: every token sees the prompt, and of the own tokens those that come before it in its
completion. Two ways to fill it: the group's completions side by side, or the tree of their prefixes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlsparse.batch import Rollout
from rlsparse.model.attention import bias, causal_visible
from rlsparse.model.policy import positions


@dataclass(frozen=True)
class Layout:
    """What attention must know: p stretches of S prompt tokens and g blocks of T own tokens.

    Attributes:
        prompt_bias: (p, 1, 1, S, S): 0 where a prompt token sees a key, −inf at padding and at later tokens.
        own_bias: (p, 1, 1, 1, T, S + T): 0 where an own token sees a key of the prompt or of its block, else −inf.
        blocks: g; a token sees nothing of other blocks.
    """

    prompt_bias: Tensor
    own_bias: Tensor
    blocks: int


@dataclass(frozen=True)
class Stretches:
    """A packed row.

    Attributes:
        prompts: (p,) numbers of the prompts.
        in_prompt: (p, S) bool: prompt tokens, padded on the left.
        rows: (p, n) whose completion each own token is read from; n = g·T.
        columns: (p, n) and where.
        predictors: (k,) place in the flat row that predicts each needed token, in the order of ``needed.nonzero()``.
        layout: for attention.
    """

    prompts: Tensor
    in_prompt: Tensor
    rows: Tensor
    columns: Tensor
    predictors: Tensor
    layout: Layout

    def tokens(self) -> int:
        return self.in_prompt.numel() + self.rows.numel()

    def positions(self, rollout: Rollout) -> Tensor:
        """(p, S + n): the distance of each token from the start of its sequence."""
        return torch.cat([positions(self.in_prompt), rollout.prompt_lengths[self.prompts, None] + self.columns], dim=1)

    def gather(self, of_prompts: Tensor, of_completions: Tensor) -> Tensor:
        """(1, L, …): the row's tokens from a rollout's (P, S, …) and (B, T, …) tensors."""
        S = self.in_prompt.shape[1]
        own = of_completions[self.rows, self.columns]  # (p, n, …)
        return torch.cat([of_prompts[self.prompts, -S:], own], dim=1).flatten(0, 1)[None]


def stretches(rollout: Rollout, rows: Tensor, needed: Tensor, dtype: torch.dtype) -> Stretches:
    """The shorter of the two packings; groups where a tree would not be much shorter.

    Args:
        dtype: of the attention scores.
        rows: (b,) row numbers into the rollout, those of a prompt side by side.
        needed: (b, T) bool: tokens to score, none past a completion's end.
    """
    groups = _by_group(rollout, rows, needed, dtype)
    if 2 * int(needed.sum()) > needed.numel():  # most tokens count: seldom are they so alike that a tree pays
        return groups
    tree = _by_prefix(rollout, rows, needed, dtype)
    return tree if 2 * tree.tokens() < groups.tokens() else groups


def _by_group(rollout: Rollout, rows: Tensor, needed: Tensor, dtype: torch.dtype) -> Stretches:
    """[prompt | completion 1 | … | completion g], each completion up to the last column that is needed."""
    prompts, counts = (rows // rollout.group_size).unique_consecutive(return_counts=True)  # (p,)
    g, T = int(counts.max()), needed.shape[1]
    in_prompt = _in_prompt(rollout, prompts)  # (p, S)
    stretch = in_prompt.shape[1] + g * T
    first = (counts.cumsum(dim=0) - counts)[:, None]  # (p, 1)
    block = torch.arange(g, device=rows.device).expand(len(prompts), g)  # (p, g)
    completion = rows[first + block.minimum(counts[:, None] - 1)]  # (p, g): where some are missing, one is repeated
    # a token is predicted where the one before it stands: for a first token, the end of the prompt
    end_of_prompt = torch.arange(1, len(prompts) + 1, device=rows.device)[:, None] * stretch - g * T - 1  # (p, 1)
    column = torch.arange(T, device=rows.device)
    predictors = (end_of_prompt + block * T)[:, :, None] + column  # (p, g, T)
    predictors[:, :, 0] = end_of_prompt
    return Stretches(
        prompts=prompts,
        in_prompt=in_prompt,
        rows=completion.repeat_interleave(T, dim=1),
        columns=column.repeat(len(prompts), g),
        predictors=predictors[block < counts[:, None]][needed],
        layout=_layout(in_prompt, torch.ones(1, T, T, dtype=torch.bool, device=rows.device).tril(), g, dtype),
    )


def _by_prefix(rollout: Rollout, rows: Tensor, needed: Tensor, dtype: torch.dtype) -> Stretches:
    """[prompt | nodes]: each distinct prefix once, down to the deepest one that predicts a needed token."""
    prompts = (rows // rollout.group_size).unique_consecutive()  # (p,)
    trees = {prompt: _Tree() for prompt in prompts.tolist()}
    place = {prompt: i for i, prompt in enumerate(trees)}
    completions, last = rollout.completion_ids[rows].tolist(), _last_needed(needed)
    predictors: list[tuple[int, int]] = []  # stretch and node of each needed token; node -1 is the prompt's end
    for i, (row, wanted) in enumerate(zip(rows.tolist(), needed.tolist(), strict=True)):
        prompt = row // rollout.group_size
        path = [-1, *trees[prompt].insert(row, completions[i][: last[i]])]
        predictors += [(place[prompt], path[t]) for t, want in enumerate(wanted) if want]
    n = max(1, *(len(tree.rows) for tree in trees.values()))
    in_prompt = _in_prompt(rollout, prompts)
    S = in_prompt.shape[1]
    visible = torch.stack([tree.visible(n) for tree in trees.values()]).to(rows.device)  # (p, n, n)
    nodes = torch.tensor([[t.padded(t.rows, n), t.padded(t.depths, n)] for t in trees.values()], device=rows.device)
    return Stretches(
        prompts=prompts,
        in_prompt=in_prompt,
        rows=nodes[:, 0],
        columns=nodes[:, 1],
        predictors=torch.tensor([s * (S + n) + S + node for s, node in predictors], device=rows.device),
        layout=_layout(in_prompt, visible, 1, dtype),
    )


class _Tree:
    """The distinct prefixes of a prompt's completions, numbered parents first."""

    def __init__(self) -> None:
        self.rows: list[int] = []  # a row whose completion holds the node
        self.depths: list[int] = []  # and the column where
        self._parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def insert(self, row: int, ids: list[int]) -> list[int]:
        """The nodes along these tokens, added where they are new."""
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
        """(n, n) bool: a node sees itself and its ancestors; padding sees itself."""
        seen = torch.eye(n, dtype=torch.bool)
        for node, parent in enumerate(self._parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen

    def padded(self, values: list[int], n: int) -> list[int]:
        return values + [0] * (n - len(values))


def _in_prompt(rollout: Rollout, prompts: Tensor) -> Tensor:
    lengths = rollout.prompt_lengths[prompts]  # (p,)
    return torch.arange(int(lengths.max()), 0, -1, device=lengths.device) <= lengths[:, None]


def _last_needed(needed: Tensor) -> list[int]:
    """Column of each row's last needed token; what stands before it must be forwarded."""
    columns = torch.arange(needed.shape[1], device=needed.device)
    last: list[int] = (needed * columns).amax(dim=1).tolist()
    return last


def _layout(in_prompt: Tensor, own_visible: Tensor, blocks: int, dtype: torch.dtype) -> Layout:
    """
    Args:
        in_prompt: (p, S) bool.
        own_visible: (p or 1, T, T) bool.
    """
    p, S = in_prompt.shape
    T = own_visible.shape[1]
    prompt = causal_visible(in_prompt)  # (p, S, S)
    own = torch.cat([in_prompt[:, None].expand(p, T, S), own_visible.expand(p, T, T)], dim=2)  # (p, T, S + T)
    return Layout(bias(prompt, dtype)[:, None, None], bias(own, dtype)[:, None, None, None], blocks)

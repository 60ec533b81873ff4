"""The key-value cache for sampling: prompts are stored once per group, completions in tensors allocated once."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlsparse.model.attention import attend, bias, causal_visible, register

ATTENTION = "rlsparse_rollout"
BLOCK = 32  # columns; products over completions grow in these steps, since a kernel is prepared for each new shape


@dataclass
class _Layer:
    """Holds keys and values of one decoder layer; keys are stored transposed, as the product with queries needs them.

    Attributes:
        prompt_keys: (p, kv, d, S).
        prompt_values: (p, kv, S, d).
        completion_keys: (b, kv, d, T), T a multiple of ``BLOCK``; 0 where nothing is written yet.
        completion_values: (b, kv, T, d), likewise.
    """

    prompt_keys: Tensor
    prompt_values: Tensor
    completion_keys: Tensor
    completion_values: Tensor


class GroupCache:
    """Caches keys and values of p prompts and their b unfinished completions, at first ``group_size`` for each prompt.

    The first forward passes of the model read the prompts, each some of them (see ``read``), and each later one reads a
    token of every unfinished completion. For the products with a prompt, the rows of a group are arranged as the slots
    of one matrix: p groups of as many slots as the largest group has unfinished rows.
    """

    def __init__(self, in_prompt: Tensor, group_size: int, max_new_tokens: int, dtype: torch.dtype) -> None:
        """Create an empty cache.

        Args:
            in_prompt: (p, S) bool: prompt tokens, padded on the left.
            group_size: number of completions for each prompt.
            max_new_tokens: maximum length of a completion.
            dtype: dtype of the attention scores.
        """
        self._layers: dict[int, _Layer] = {}
        self._capacity = _whole_blocks(max_new_tokens)
        self._prompt_of_row = torch.arange(len(in_prompt), device=in_prompt.device).repeat_interleave(group_size)
        self._dtype = dtype
        self._reading = slice(len(in_prompt))
        self._prompt_bias = in_prompt.new_zeros(0)  # set by read
        self._step_bias = bias(in_prompt, dtype)[:, None, None]  # (p, 1, 1, S)
        self._tokens = 0  # columns of completions read so far, including the current one
        self._assign_slots()

    def read(self, prompts: slice, in_prompt: Tensor) -> None:
        """Prepare for the forward pass of some of the prompts.

        Args:
            prompts: which of the p prompts.
            in_prompt: (q, s) bool: their tokens, padded on the left, without columns that are padding in all of them.
        """
        self._reading = prompts
        self._prompt_bias = bias(causal_visible(in_prompt), self._dtype)[:, None, None]  # (q, 1, 1, s, s)

    def next_column(self) -> None:
        """Start the next column; call this before each forward pass except the first."""
        self._tokens += 1

    def keep(self, rows: Tensor) -> None:
        """Remove finished rows, and prompts without any row.

        Args:
            rows: (b',) ascending indices of the rows to keep, among the b current rows.
        """
        prompts, self._prompt_of_row = self._prompt_of_row[rows].unique(return_inverse=True)
        fewer = len(prompts) < len(self._step_bias)
        for layer in self._layers.values():
            _compact(layer.completion_keys[..., : self._tokens], rows)
            _compact(layer.completion_values[:, :, : self._tokens], rows)
            if fewer:
                layer.prompt_keys, layer.prompt_values = layer.prompt_keys[prompts], layer.prompt_values[prompts]
        if fewer:
            self._step_bias = self._step_bias[prompts]
        self._assign_slots()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store keys and values of a layer and return its attention output, (b, L, heads, d).

        Args:
            layer: number of the decoder layer.
            query: (b, heads, L, d), already scaled; of the prompts that are read, or of all unfinished completions.
            key: (b, kv, L, d).
            value: (b, kv, L, d).
        """
        b, heads, L, d = query.shape
        kv = key.shape[1]
        grouped = query.view(b, kv, heads // kv, L, d)
        if self._tokens == 0:
            if layer not in self._layers:
                self._layers[layer] = self._empty(key)
            self._layers[layer].prompt_keys[self._reading, ..., -L:] = key.transpose(2, 3)
            self._layers[layer].prompt_values[self._reading, :, -L:] = value
            out = attend(grouped, key, value, self._prompt_bias)  # (q, kv, r, s, d)
        else:
            out = self._attend_step(self._layers[layer], grouped.squeeze(3), key, value)[:, :, :, None]
        return out.reshape(b, heads, L, d).transpose(1, 2)

    def _empty(self, key: Tensor) -> _Layer:
        """Return a layer without keys and values; padding stays 0.

        Args:
            key: (q, kv, s, d), for heads, dimension, dtype and device.
        """
        kv, d = key.shape[1], key.shape[3]
        (p, S), rows = self._step_bias[:, 0, 0].shape, len(self._prompt_of_row)
        sizes = ((p, kv, d, S), (p, kv, S, d), (rows, kv, d, self._capacity), (rows, kv, self._capacity, d))
        return _Layer(*(key.new_zeros(size) for size in sizes))

    def _attend_step(self, layer: _Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the output for the current token of each row, (b, kv, r, d); the query has the same shape."""
        b, t, T = len(query), self._tokens, _whole_blocks(self._tokens)
        layer.completion_keys[:b, :, :, t - 1] = key[:, :, 0]
        layer.completion_values[:b, :, t - 1] = value[:, :, 0]
        to_completion = query @ layer.completion_keys[:b, :, :, :T]  # (b, kv, r, T)
        to_completion[..., t:] = -torch.inf
        r = query.shape[2]
        to_prompt = self._to_rows(self._to_groups(query) @ layer.prompt_keys + self._step_bias, r)  # (b, kv, r, S)
        S = to_prompt.shape[3]
        weights = torch.cat([to_prompt, to_completion], dim=3).softmax(dim=3, dtype=torch.float32).to(query.dtype)
        from_prompt = self._to_rows(self._to_groups(weights[..., :S]) @ layer.prompt_values, r)  # (b, kv, r, d)
        return from_prompt + weights[..., S:] @ layer.completion_values[:b, :, :T]

    def _assign_slots(self) -> None:
        """Assign each row a slot in the group of its prompt."""
        counts = torch.bincount(self._prompt_of_row)  # (p,)
        p, self._slots = len(counts), int(counts.max())
        first = counts.cumsum(dim=0) - counts
        within = torch.arange(len(self._prompt_of_row), device=counts.device) - first[self._prompt_of_row]
        self._slot_of_row = self._prompt_of_row * self._slots + within  # (b,)
        # an empty slot repeats row 0; its result is never read
        self._row_of_slot = torch.zeros(p * self._slots, dtype=torch.long, device=counts.device)
        self._row_of_slot[self._slot_of_row] = torch.arange(len(within), device=counts.device)
        self._full = p * self._slots == len(within)

    def _to_groups(self, x: Tensor) -> Tensor:
        """Arrange rows (b, kv, r, n) by group, (p, kv, slots·r, n)."""
        _, kv, r, n = x.shape
        by_slot = x if self._full else x[self._row_of_slot]
        return by_slot.view(-1, self._slots, kv, r, n).transpose(1, 2).reshape(-1, kv, self._slots * r, n)

    def _to_rows(self, x: Tensor, r: int) -> Tensor:
        """Arrange groups (p, kv, slots·r, n) by row, (b, kv, r, n)."""
        p, kv, _, n = x.shape
        by_slot = x.view(p, kv, self._slots, r, n).transpose(1, 2).reshape(p * self._slots, kv, r, n)
        return by_slot if self._full else by_slot[self._slot_of_row]


def _whole_blocks(columns: int) -> int:
    """Return a number of columns rounded up to a multiple of ``BLOCK``."""
    return -(-columns // BLOCK) * BLOCK


def _compact(written: Tensor, rows: Tensor) -> None:
    """Move the rows to keep to the front, in place."""
    written[: len(rows)] = written[rows]


def cached_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    *,
    cache: GroupCache,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return the attention output of a layer while sampling; the cache holds the keys that a token attends to."""
    layer: Any = module.layer_idx
    return cache.attend(layer, query * scaling, key, value), None


register(ATTENTION, cached_attention)

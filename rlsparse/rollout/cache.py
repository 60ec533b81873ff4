"""Keys and values while sampling: a prompt's held once for its group, a completion's in place from the start."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlsparse.model.attention import attend, bias, causal_visible, register

ATTENTION = "rlsparse_rollout"
BLOCK = 32  # columns: products over completions grow in these steps, since each new shape costs a kernel's preparation


@dataclass
class _Layer:
    """Keys and values of one decoder layer; keys lie with their last two axes swapped, as the product wants them.

    Attributes:
        prompt_keys: (p, kv, d, S). prompt_values: (p, kv, S, d).
        own_keys: (b, kv, d, T), T in whole blocks; 0 where nothing is written yet. own_values: (b, kv, T, d).
    """

    prompt_keys: Tensor
    prompt_values: Tensor
    own_keys: Tensor
    own_values: Tensor


class GroupCache:
    """What the layers remember of p prompts and their b unfinished completions, ``group_size`` of each at first.

    The first forward pass of the model reads the prompts, each later one a token of every unfinished completion.
    """

    def __init__(self, in_prompt: Tensor, group_size: int, max_new_tokens: int, dtype: torch.dtype) -> None:
        """
        Args:
            in_prompt: (p, S) bool: prompt tokens, padded on the left.
            dtype: of the attention scores.
        """
        self._layers: dict[int, _Layer] = {}
        self._capacity = _whole_blocks(max_new_tokens)
        self._prompt_of_row = torch.arange(len(in_prompt), device=in_prompt.device).repeat_interleave(group_size)
        self._prompt_bias = bias(causal_visible(in_prompt), dtype)[:, None, None]  # (p, 1, 1, S, S)
        self._step_bias = bias(in_prompt, dtype)[:, None, None]  # (p, 1, 1, S)
        self._tokens = 0  # columns of completions read so far, the current one included
        self._seat()

    def next_column(self) -> None:
        """Before each forward pass after the prompts'."""
        self._tokens += 1

    def keep(self, rows: Tensor) -> None:
        """Go on with these of the b rows only, (b',) ascending; prompts without a row are forgotten."""
        prompts, self._prompt_of_row = self._prompt_of_row[rows].unique(return_inverse=True)
        fewer = len(prompts) < len(self._step_bias)
        for layer in self._layers.values():
            _compact(layer.own_keys[..., : self._tokens], rows)
            _compact(layer.own_values[:, :, : self._tokens], rows)
            if fewer:
                layer.prompt_keys, layer.prompt_values = layer.prompt_keys[prompts], layer.prompt_values[prompts]
        if fewer:
            self._step_bias = self._step_bias[prompts]
        self._seat()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(b, L, heads, d); remembers the keys and values.

        Args:
            query: (b, heads, L, d), scaled already. key: (b, kv, L, d). value: the same.
        """
        b, heads, L, d = query.shape
        kv = key.shape[1]
        grouped = query.view(b, kv, heads // kv, L, d)
        if self._tokens == 0:
            rows = len(self._prompt_of_row)
            own_keys, own_values = (key.new_zeros(rows, kv, *s) for s in ((d, self._capacity), (self._capacity, d)))
            self._layers[layer] = _Layer(key.transpose(2, 3).contiguous(), value.contiguous(), own_keys, own_values)
            out = attend(grouped, key, value, self._prompt_bias)  # (p, kv, r, S, d)
        else:
            out = self._attend_step(self._layers[layer], grouped.squeeze(3), key, value)[:, :, :, None]
        return out.reshape(b, heads, L, d).transpose(1, 2)

    def _attend_step(self, layer: _Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(b, kv, r, d) for the newest token of each row; query alike."""
        b, t, T = len(query), self._tokens, _whole_blocks(self._tokens)
        layer.own_keys[:b, :, :, t - 1] = key[:, :, 0]
        layer.own_values[:b, :, t - 1] = value[:, :, 0]
        to_own = query @ layer.own_keys[:b, :, :, :T]  # (b, kv, r, T)
        to_own[..., t:] = -torch.inf
        to_prompt = self._stand(self._sit(query) @ layer.prompt_keys + self._step_bias, query.shape[2])  # (b, kv, r, S)
        S = to_prompt.shape[3]
        weights = torch.cat([to_prompt, to_own], dim=3).softmax(dim=3, dtype=torch.float32).to(query.dtype)
        of_prompt = self._stand(self._sit(weights[..., :S]) @ layer.prompt_values, query.shape[2])
        return of_prompt + weights[..., S:] @ layer.own_values[:b, :, :T]

    def _seat(self) -> None:
        """Rows sit around their prompt: p tables of as many seats as the largest group has unfinished rows."""
        counts = torch.bincount(self._prompt_of_row)  # (p,)
        p, self._seats = len(counts), int(counts.max())
        first = counts.cumsum(dim=0) - counts
        within = torch.arange(len(self._prompt_of_row), device=counts.device) - first[self._prompt_of_row]
        self._seat_of_row = self._prompt_of_row * self._seats + within  # (b,)
        # an empty seat repeats some row; its result is never read
        self._row_of_seat = torch.zeros(p * self._seats, dtype=torch.long, device=counts.device)
        self._row_of_seat[self._seat_of_row] = torch.arange(len(within), device=counts.device)
        self._full = p * self._seats == len(within)

    def _sit(self, x: Tensor) -> Tensor:
        """(b, kv, r, n) → (p, kv, seats·r, n)."""
        _, kv, r, n = x.shape
        seated = x if self._full else x[self._row_of_seat]
        return seated.view(-1, self._seats, kv, r, n).transpose(1, 2).reshape(-1, kv, self._seats * r, n)

    def _stand(self, x: Tensor, r: int) -> Tensor:
        """(p, kv, seats·r, n) → (b, kv, r, n)."""
        p, kv, _, n = x.shape
        standing = x.view(p, kv, self._seats, r, n).transpose(1, 2).reshape(p * self._seats, kv, r, n)
        return standing if self._full else standing[self._seat_of_row]


def _whole_blocks(columns: int) -> int:
    return -(-columns // BLOCK) * BLOCK


def _compact(written: Tensor, rows: Tensor) -> None:
    """Move the rows that are kept to the front, in place."""
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
    """The attention of every layer while sampling: the cache knows what a token sees."""
    layer: Any = module.layer_idx
    return cache.attend(layer, query * scaling, key, value), None


register(ATTENTION, cached_attention)

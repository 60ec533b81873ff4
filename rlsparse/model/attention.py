"""Attention functions of this package for the modules of a model, by the attention interface of transformers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

# f(module, query (b, heads, L, d), key (b, kv heads, L, d), value, mask, scaling, ..., **further keywords of forward)
#   -> (output (b, L, heads, d), None)
Attention = Callable[..., tuple[Tensor, None]]


def obstacle(model: Any) -> str | None:
    """Return why the attention of this model cannot be replaced by full causal softmax attention; None if it can."""
    config = model.config.get_text_config()
    if not getattr(model, "_supports_sdpa", False):
        return "it does not use the attention interface of transformers"
    kinds = getattr(config, "layer_types", None) or ["window" if getattr(config, "sliding_window", None) else "full"]
    if any(not kind.startswith("full") for kind in kinds):
        return "it has layers that do not attend to all earlier tokens"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "it caps its attention scores"
    return None


def register(name: str, attention: Attention) -> None:
    """Register an attention function with transformers under a name."""
    AttentionInterface.register(name, attention)


@contextmanager
def use_attention(model: Any, name: str) -> Iterator[None]:
    """Within the context, every layer of the model uses the attention function registered under ``name``."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def causal_visible(in_prompt: Tensor) -> Tensor:
    """Return which tokens of a left-padded prompt each token attends to, (p, S, S) bool.

    A padding token attends to itself alone, so that no row of the mask is empty.

    Args:
        in_prompt: (p, S) bool, False at padding.
    """
    S = in_prompt.shape[1]
    earlier = torch.ones(S, S, dtype=torch.bool, device=in_prompt.device).tril()
    return (in_prompt[:, None] & earlier) | torch.eye(S, dtype=torch.bool, device=in_prompt.device)


def bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask that is added to attention scores: 0 where a key is visible, −inf where it is not."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)


def attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Return softmax attention, computed as two matrix products, (…, r, L, d).

    Args:
        query: (…, r, L, d), already scaled; r query heads share a key head.
        keys: (…, K, d).
        values: (…, K, d).
        bias: broadcasts to (…, r, L, K); 0 for at least one key of each query, −inf for masked keys.
    """
    *lead, r, L, d = query.shape
    scores = query.reshape(*lead, r * L, d) @ keys.transpose(-1, -2)  # (…, r·L, K)
    scores = scores.view(*lead, r, L, -1).add_(bias)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype).view(*lead, r * L, -1)
    return (weights @ values).view(*lead, r, L, d)

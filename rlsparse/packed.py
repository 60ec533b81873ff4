"""The packed path: a prompt and its completions as one stretch of tokens that computes the prompt once.

A stretch is [prompt | completion 1 | … | completion g]; each completion sees the prompt and itself. Stretches of equal
shape stand one after the other in a single row, so that the model's own modules need no knowledge of it: positions say
where a token stands, and an attention function of our own, chosen through transformers' attention interface, says what
it sees. Exact: log-probabilities and gradients equal the plain path's to rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from rlsparse.batch import Rollout
from rlsparse.policy import Policy

ATTENTION = "rlsparse_packed"


@dataclass(frozen=True)
class Layout:
    """The shape of the stretches in a row.

    Attributes:
        prompt_mask: (P, S) bool: prompt tokens, padded on the left.
        group: g, completions of each stretch.
        width: T, columns of each completion.
    """

    prompt_mask: Tensor
    group: int
    width: int


def can_pack(policy: Policy) -> str | None:
    """Why this model cannot be packed; None where it can."""
    model, config = policy.model, policy.model.config.get_text_config()
    if not getattr(model, "_supports_sdpa", False):
        return "its attention is not transformers' exchangeable one"
    kinds = getattr(config, "layer_types", None) or ["window" if getattr(config, "sliding_window", None) else "full"]
    if any(not kind.startswith("full") for kind in kinds):
        return "it has layers that do not attend to all earlier tokens"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "it caps its attention scores"
    return None


def packed_log_probs(policy: Policy, rollout: Rollout, rows: Tensor, needed: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of chosen completion tokens, (b, T) float32, nats; 0 where they are not needed.

    Args:
        rows: (b,) row numbers into the rollout, ascending, the same number from each prompt that occurs.
        needed: (b, T) bool: tokens to score, none past a completion's end.
    """
    prompts, counts = (rows // rollout.group_size).unique_consecutive(return_counts=True)  # (p,)
    g, T = int(counts[0]), needed.shape[1]
    S = int(rollout.prompt_lengths[prompts].max())
    mask = torch.arange(S, 0, -1, device=rows.device) <= rollout.prompt_lengths[prompts, None]  # (p, S)
    completion = rollout.completion_ids[rows, :T]  # (b, T)
    ids = torch.cat([rollout.prompt_ids[prompts, -S:], completion.reshape(-1, g * T)], dim=1)  # (p, S + gT)
    offset = rollout.prompt_lengths[prompts, None] + torch.arange(T, device=rows.device).repeat(g)  # (p, gT)
    position = torch.cat([(mask.long().cumsum(dim=1) - 1).clamp(min=0), offset], dim=1)  # (p, S + gT)
    # a token is predicted where the one before it stands: for a first token, the end of the prompt
    start = torch.arange(len(prompts), device=rows.device)[:, None, None] * (S + g * T)
    inside = start + S + torch.arange(g * T, device=rows.device).reshape(1, g, T) - 1  # (p, g, T)
    predictor = torch.cat([(start + S - 1).expand(-1, g, 1), inside[:, :, 1:]], dim=2).reshape(-1, T)  # (b, T)
    with _packed_attention(policy.model):
        logits = policy.model(
            input_ids=ids.reshape(1, -1),
            position_ids=position.reshape(1, -1),
            use_cache=False,
            logits_to_keep=predictor[needed],
            layout=Layout(mask, g, T),
        ).logits[0]  # (n, V)
    logits = logits.float() / temperature
    chosen = logits.gather(1, completion[needed][:, None]).squeeze(1) - logits.logsumexp(dim=1)  # (n,)
    return torch.zeros(needed.shape, device=rows.device).masked_scatter(needed, chosen)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    *,
    layout: Layout,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within stretches: prompt tokens see the prompt so far, completion tokens the prompt and their own past.

    Plain matrix products over the group; no mask over the whole row is ever made.

    Args:
        query: (1, heads, L, d) of a row of p stretches, L = p·(S + g·T).
        key: (1, kv heads, L, d); value: the same.
    """
    (p, S), g, T = layout.prompt_mask.shape, layout.group, layout.width
    kv, d = key.shape[1], key.shape[3]
    r = query.shape[1] // kv  # query heads that share a key head
    q = query.reshape(kv, r, p, S + g * T, d).permute(2, 0, 1, 3, 4)  # (p, kv, r, S + gT, d)
    k, v = (x.reshape(kv, p, S + g * T, d).transpose(0, 1) for x in (key, value))  # (p, kv, S + gT, d)
    lowest = torch.finfo(query.dtype).min
    visible = layout.prompt_mask[:, None, None, None, :]  # (p, 1, 1, 1, S)
    causal_S = torch.ones(S, S, dtype=torch.bool, device=q.device).tril()
    causal_T = torch.ones(T, T, dtype=torch.bool, device=q.device).tril()

    k_prompt, v_prompt = k[:, :, :S], v[:, :, :S]  # (p, kv, S, d)
    scores = q[:, :, :, :S] @ k_prompt[:, :, None].transpose(3, 4) * scaling  # (p, kv, r, S, S)
    scores = scores.masked_fill(~(visible & causal_S), lowest)
    of_prompt = scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype) @ v_prompt[:, :, None]  # (p, kv, r, S, d)

    q_own = q[:, :, :, S:].reshape(p, kv, r, g, T, d).transpose(2, 3).reshape(p, kv, g, r * T, d)
    k_own, v_own = (x[:, :, S:].reshape(p, kv, g, T, d) for x in (k, v))
    to_prompt = (q_own.reshape(p, kv, g * r * T, d) @ k_prompt.transpose(2, 3)).reshape(p, kv, g, r * T, S)
    to_prompt = (to_prompt * scaling).masked_fill(~visible, lowest)
    to_own = (q_own @ k_own.transpose(3, 4) * scaling).reshape(p, kv, g, r, T, T)
    to_own = to_own.masked_fill(~causal_T, lowest).reshape(p, kv, g, r * T, T)
    weights = torch.cat([to_prompt, to_own], dim=-1).softmax(dim=-1, dtype=torch.float32).to(q.dtype)
    from_prompt = (weights[..., :S].reshape(p, kv, g * r * T, S) @ v_prompt).reshape(p, kv, g, r * T, d)
    of_own = from_prompt + weights[..., S:] @ v_own  # (p, kv, g, rT, d)
    of_own = of_own.reshape(p, kv, g, r, T, d).transpose(2, 3).reshape(p, kv, r, g * T, d)

    out = torch.cat([of_prompt, of_own], dim=3)  # (p, kv, r, S + gT, d)
    return out.permute(0, 3, 1, 2, 4).reshape(1, p * (S + g * T), kv * r, d), None


AttentionInterface.register(ATTENTION, attend)


@contextmanager
def _packed_attention(model: Any) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)

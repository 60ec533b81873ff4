"""The packed path: log-probabilities from one row of tokens in which every prompt occurs once.

The modules of the model stay as they are: the position ids give the place of each token in its sequence, and an
attention function of this package decides which tokens it attends to. Log-probabilities and gradients equal those of
the plain path up to rounding.
"""

# isort: off
import rlsparse.model.quantization  # noqa: F401 (before peft: it makes peft's import of bitsandbytes short and silent)

# isort: on
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlsparse.batch import FrozenStates, Rollout
from rlsparse.model.attention import attend, obstacle, register, use_attention
from rlsparse.model.frozen_layers import Capture, captured, starting_from
from rlsparse.model.fused_head import chosen_log_probs, chosen_log_probs_and_entropy
from rlsparse.model.packing.layout import Layout, PackedRow, pack
from rlsparse.model.packing.ragged import RaggedLayout, RaggedRow, attend_ragged, ragged_row
from rlsparse.model.policy import Policy, ScoringPath, positions
from rlsparse.model.self_check import TOKENS, differs_from_plain

ATTENTION = "rlsparse_packed"


def can_pack(policy: Policy) -> str | None:
    """Return why the packed path cannot be used for this model; None if its modules and a small batch allow it."""

    def attempt() -> tuple[Rollout, Tensor]:
        rollout, rows = _small_rollout(policy), torch.arange(4, device=policy.device)
        arguments = (rollout, rows, rollout.mask, policy.causal_lm.dtype)
        head = policy.causal_lm.get_output_embeddings()
        found = []
        for packed in (pack(*arguments), ragged_row(*arguments)):
            predictors = _predictors(policy, rollout, packed)  # (4T, H): every token is needed
            targets = rollout.completion_ids.flatten()
            found.append(chosen_log_probs(predictors, head, targets, 1.0).view(rollout.completion_ids.shape))
        return rollout, torch.stack(found)

    reason = obstacle(policy.model)
    if reason is None:
        difference = differs_from_plain(policy, attempt)
        reason = difference and f"packed, {difference}"
    return reason


def packed_log_probs(policy: Policy, rollout: Rollout, rows: Tensor, needed: Tensor, temperature: float) -> Tensor:
    """Return log-probabilities of chosen completion tokens, (b, T) float32, nats; 0 where they are not needed.

    Args:
        rows: (b,) row numbers into the rollout; the rows of a prompt are consecutive.
        needed: (b, T) bool: the tokens to score, none after the end of a completion.
        temperature: divides the logits, as it did when the completions were sampled.
    """
    predictors, targets = _scored(policy, rollout, rows, needed)
    chosen = chosen_log_probs(predictors, policy.causal_lm.get_output_embeddings(), targets, temperature)  # (k,)
    return _table(chosen, needed)


def packed_log_probs_and_entropy(
    policy: Policy, rollout: Rollout, rows: Tensor, needed: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and entropies at chosen completion tokens, each (b, T) float32, both with gradient.

    The entropy is that of the distribution which the token was sampled from, softmax(logits / temperature), without
    top-p and top-k. Both are in nats, and 0 where they are not needed.

    Args:
        rows: (b,), as for ``packed_log_probs``.
        needed: (b, T) bool, as for ``packed_log_probs``.
        temperature: as for ``packed_log_probs``.
    """
    predictors, targets = _scored(policy, rollout, rows, needed)
    head = policy.causal_lm.get_output_embeddings()
    log_probs, entropy = chosen_log_probs_and_entropy(predictors, head, targets, temperature)  # (k,)
    return _table(log_probs, needed), _table(entropy, needed)


PACKED = ScoringPath(packed_log_probs, packed_log_probs_and_entropy, packed=True)


def _scored(policy: Policy, rollout: Rollout, rows: Tensor, needed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hidden states that predict the k needed tokens, (k, H), and these tokens, (k,)."""
    predictors = _predictors(policy, rollout, pack(rollout, rows, needed, policy.causal_lm.dtype))
    return predictors, rollout.completion_ids[rows, : needed.shape[1]][needed]


def _table(values: Tensor, needed: Tensor) -> Tensor:
    """Return the values of the needed tokens at their places, (b, T), and 0 at the others."""
    return values.new_zeros(needed.shape).masked_scatter(needed, values)


def _predictors(policy: Policy, rollout: Rollout, packed: PackedRow | RaggedRow) -> Tensor:
    """Return the hidden states that predict the needed tokens of a packed row, (k, H), in the dtype of the head."""
    dtype = policy.causal_lm.dtype
    decoder = policy.causal_lm.get_decoder()
    with ExitStack() as changed:
        changed.enter_context(use_attention(policy.model, ATTENTION))
        if dtype != torch.float32:
            # multiply the float32 matrices of the adapter in the dtype of the model, as autocast usually does;
            # otherwise peft would copy every input to float32 and keep the copy
            changed.enter_context(torch.autocast(policy.device.type, dtype))
            changed.enter_context(disable_input_dtype_casting(policy.causal_lm))
        if rollout.frozen_states is not None:
            hidden = packed.gather(rollout.frozen_states.prompt, rollout.frozen_states.completion)  # (1, L, H)
            changed.enter_context(starting_from(decoder, policy.first_adapted, hidden))
        states = decoder(
            input_ids=packed.gather(rollout.prompt_ids, rollout.completion_ids),
            position_ids=packed.positions(rollout).reshape(1, -1),
            use_cache=False,
            layout=packed.layout,
        ).last_hidden_state[0]  # (L, H)
    # under autocast on CUDA, the output of a LayerNorm is float32
    return states.index_select(0, packed.predictors).to(policy.causal_lm.get_output_embeddings().weight.dtype)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    *,
    layout: Layout | RaggedLayout,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return the attention within each sequence, (1, L, heads, d). The backward pass recomputes intermediate results.

    Args:
        query: (1, heads, L, d) of a row of L tokens.
        key: (1, kv heads, L, d).
        value: (1, kv heads, L, d).
        layout: which keys each token attends to.
    """
    query = query * scaling
    attention: Callable[..., Tensor] = attend_ragged if isinstance(layout, RaggedLayout) else _attend_segments
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        out = checkpoint(attention, query, key, value, layout, use_reentrant=False, preserve_rng_state=False)
    else:
        out = attention(query, key, value, layout)
    return out, None


def _attend_segments(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    """Return the attention within each of the p segments of a row of L = p·(S + g·T) tokens, (1, L, heads, d)."""
    p, _, _, S, _ = layout.prompt_bias.shape
    T, g = layout.completion_bias.shape[4], layout.blocks
    kv, d = key.shape[1], key.shape[3]
    r = query.shape[1] // kv  # query heads that share a key head
    q = query.reshape(kv, r, p, S + g * T, d).permute(2, 0, 1, 3, 4)  # (p, kv, r, S + gT, d)
    k, v = (x.reshape(kv, p, S + g * T, d).transpose(0, 1) for x in (key, value))  # (p, kv, S + gT, d)
    of_prompt = attend(q[:, :, :, :S], k[:, :, :S], v[:, :, :S], layout.prompt_bias)  # (p, kv, r, S, d)

    def visible_to_blocks(x: Tensor) -> Tensor:
        """Return what each block attends to, (p, kv, g, S + T, d): the prompt and its own tokens."""
        prompt = x[:, :, None, :S].expand(p, kv, g, S, d)
        return torch.cat([prompt, x[:, :, S:].reshape(p, kv, g, T, d)], dim=3)

    queries = q[:, :, :, S:].reshape(p, kv, r, g, T, d).transpose(2, 3)  # (p, kv, g, r, T, d)
    of_blocks = attend(queries, visible_to_blocks(k), visible_to_blocks(v), layout.completion_bias)
    of_blocks = of_blocks.transpose(2, 3).reshape(p, kv, r, g * T, d)
    out = torch.cat([of_prompt, of_blocks], dim=3)  # (p, kv, r, S + gT, d)
    return out.permute(0, 3, 1, 2, 4).reshape(1, p * (S + g * T), kv * r, d)


register(ATTENTION, packed_attention)


def _small_rollout(policy: Policy) -> Rollout:
    """Return a rollout of two prompts of 3 and 2 tokens with two completions each, and their frozen states."""
    vocabulary = policy.causal_lm.get_output_embeddings().out_features
    S, B, T = 3, 4, TOKENS
    ids = torch.arange(1, 1 + 2 * S + B * T, device=policy.device) % vocabulary
    prompt_ids, completion_ids = ids[: 2 * S].view(2, S), ids[2 * S :].view(B, T)
    prompt_lengths = torch.tensor([3, 2], device=policy.device)
    sequences = torch.cat([prompt_ids.repeat_interleave(2, dim=0), completion_ids], dim=1)  # (B, S + T)
    mask = torch.arange(S + T, 0, -1, device=policy.device) <= T + prompt_lengths.repeat_interleave(2)[:, None]
    decoder = policy.causal_lm.get_decoder()
    states = None
    if policy.first_adapted > 0:
        capture = Capture()
        with captured(decoder, policy.first_adapted, capture):
            decoder(input_ids=sequences, attention_mask=mask.long(), position_ids=positions(mask), use_cache=False)
        states = FrozenStates(capture.hidden[::2, :S], capture.hidden[:, S:])
    zeros = torch.zeros(B, T, device=policy.device)
    return Rollout(
        prompt_ids=prompt_ids,
        prompt_lengths=prompt_lengths,
        completion_ids=completion_ids,
        lengths=torch.full((B,), T, device=policy.device),
        ended=zeros[:, 0].bool(),
        log_probs=zeros,
        entropy=zeros,
        frozen_states=states,
    )

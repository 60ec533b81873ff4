"""Aggregation: from terms of tokens to one number, written as a fixed factor for each token.

Every aggregation is ``f(selection, origins (P,), max_new_tokens) -> scales (B, T)`` with loss = Σ scales · term. The
divisors count every row of the batch, so that a group that teaches nothing still dilutes the step as it should.
``origins`` are numbers of prompts: replay makes several groups of one prompt, and T-SPMO's 1/|U| counts them together.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlsparse.batch import Selection
from rlsparse.config.schema import KLConfig, ObjectiveConfig


def sequence_mean(selection: Selection, origins: Tensor, max_new_tokens: int) -> Tensor:
    """Mean over a completion's selected tokens, then over completions: GRPO, RGRA, S-GRPO."""
    rows = len(selection.counts)
    return selection.weights / selection.counts.clamp(min=1)[:, None] / rows


def token_mean(selection: Selection, origins: Tensor, max_new_tokens: int) -> Tensor:
    """Mean over all selected tokens of the batch."""
    return selection.weights / selection.counts.sum().clamp(min=1)


def prompt_mean(selection: Selection, origins: Tensor, max_new_tokens: int) -> Tensor:
    """Mean over a prompt's selected tokens, then over prompts (ours): T-SPMO's 1/|U| is a prompt's own.

    With replay U holds the transitions of all the prompt's trees (ours).
    """
    origin = origins.repeat_interleave(len(selection.counts) // len(origins))  # (B,)
    prompts = int(origins.max()) + 1
    of_prompt = selection.counts.new_zeros(prompts).index_add(0, origin, selection.counts).clamp(min=1)
    return selection.weights / of_prompt[origin, None] / prompts


def constant(selection: Selection, origins: Tensor, max_new_tokens: int) -> Tensor:
    """Sum / (B · max_new_tokens): Dr. GRPO, Liu et al. 2025 (2503.20783)."""
    return selection.weights / (len(selection.counts) * max_new_tokens)


AGGREGATIONS: dict[str, Callable[[Selection, Tensor, int], Tensor]] = {
    "sequence_mean": sequence_mean,
    "token_mean": token_mean,
    "prompt_mean": prompt_mean,
    "constant": constant,
}


def token_scales(
    selection: Selection,
    advantages: Tensor,
    config: ObjectiveConfig,
    origins: Sequence[int],
    max_new_tokens: int,
    kl: KLConfig,
) -> Tensor:
    """(B, T) share of each token in the loss; 0 where its term can move nothing.

    A token with A = 0 adds nothing to the surrogate. It is kept only for the KL term, and only in a group that has an
    advantage somewhere: a degenerate group costs no forward and no backward pass.

    Args:
        origins: P: the number of the prompt that each group belongs to, from 0 without gaps.
    """
    group_size = len(selection.counts) // len(origins)
    of_groups = torch.tensor(origins, device=selection.counts.device)  # (P,)
    scales = AGGREGATIONS[config.aggregation](selection, of_groups, max_new_tokens)  # (B, T)
    if kl.beta == 0:
        return scales * (advantages != 0)
    group_teaches = (advantages != 0).reshape(-1, group_size * advantages.shape[1]).any(dim=1)  # (P,)
    return scales * group_teaches.repeat_interleave(group_size)[:, None]

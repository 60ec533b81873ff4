"""Aggregation: from terms of tokens to one number, written as a fixed factor for each token.

Every aggregation is ``f(selection, group_size, max_new_tokens) -> scales (B, T)`` with loss = Σ scales · term. The
divisors count every row of the batch, so that a group that teaches nothing still dilutes the step as it should.
"""

from collections.abc import Callable

from torch import Tensor

from rlsparse.batch import Selection
from rlsparse.config import KLConfig, ObjectiveConfig


def sequence_mean(selection: Selection, group_size: int, max_new_tokens: int) -> Tensor:
    """Mean over a completion's selected tokens, then over completions: GRPO, RGRA, S-GRPO."""
    rows = len(selection.counts)
    return selection.weights / selection.counts.clamp(min=1)[:, None] / rows


def token_mean(selection: Selection, group_size: int, max_new_tokens: int) -> Tensor:
    """Mean over all selected tokens of the batch."""
    return selection.weights / selection.counts.sum().clamp(min=1)


def prompt_mean(selection: Selection, group_size: int, max_new_tokens: int) -> Tensor:
    """Mean over a prompt's selected tokens, then over prompts (ours): T-SPMO's 1/|U| is a prompt's own."""
    prompts = len(selection.counts) // group_size
    of_prompt = selection.counts.reshape(prompts, group_size).sum(dim=1).clamp(min=1)  # (P,)
    return selection.weights / of_prompt.repeat_interleave(group_size)[:, None] / prompts


def constant(selection: Selection, group_size: int, max_new_tokens: int) -> Tensor:
    """Sum / (B · max_new_tokens): Dr. GRPO, Liu et al. 2025 (2503.20783)."""
    return selection.weights / (len(selection.counts) * max_new_tokens)


AGGREGATIONS: dict[str, Callable[[Selection, int, int], Tensor]] = {
    "sequence_mean": sequence_mean,
    "token_mean": token_mean,
    "prompt_mean": prompt_mean,
    "constant": constant,
}


def token_scales(
    selection: Selection,
    advantages: Tensor,
    config: ObjectiveConfig,
    group_size: int,
    max_new_tokens: int,
    kl: KLConfig,
) -> Tensor:
    """(B, T) share of each token in the loss; 0 where its term can move nothing.

    A token with A = 0 adds nothing to the surrogate. It is kept only for the KL term, and only in a group that has an
    advantage somewhere: a degenerate group costs no forward and no backward pass.
    """
    scales = AGGREGATIONS[config.aggregation](selection, group_size, max_new_tokens)  # (B, T)
    if kl.beta == 0:
        return scales * (advantages != 0)
    group_teaches = (advantages != 0).reshape(-1, group_size * advantages.shape[1]).any(dim=1)  # (P,)
    return scales * group_teaches.repeat_interleave(group_size)[:, None]

"""The check of a faster path on a small batch, before it is used for a model that it was never tested with."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlsparse.batch import Rollout
from rlsparse.model.attention import use_attention
from rlsparse.model.policy import Policy, token_log_probs

TOKENS = 8  # of each completion of the check; enough to average out most of the rounding
TIMES_ROUNDING = 3.0  # correct paths differ by 0.85 to 1.15 times the rounding (SmolLM2 in bfloat16)
MOST_ROUNDING = 0.2  # nats per token; the eager attention of some models is wrong, or NaN in float16
LEAST = {torch.float32: 1e-4}  # nats per token; smaller differences are always accepted
LEAST_LOW_PRECISION = 0.02


@torch.no_grad()
def differs_from_plain(policy: Policy, attempt: Callable[[], tuple[Rollout, Tensor]]) -> str | None:
    """Return how the log-probabilities of another path differ from the plain path; None if only by rounding.

    The rounding of a model is measured by the difference between two attentions of transformers (sdpa and eager) on the
    same tokens. In bfloat16 this is 0.01 to 0.1 nats per token on average, and 0.5 nats for single tokens, so a fixed
    bound would not work.

    Args:
        attempt: returns a rollout and its log-probabilities by the other path, (B, T), or (n, B, T) for n variants of
            it, each of which must be right. It may raise any exception, since the path was never tried with this
            model; the exception is then the difference that is returned.
    """
    try:
        rollout, got = attempt()
    except Exception as error:
        return f"it raises {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    expected = _plain(policy, rollout)
    with use_attention(policy.model, "eager"):
        rounding = _mean_difference(_plain(policy, rollout), expected)
    rounding = rounding if rounding < MOST_ROUNDING else MOST_ROUNDING  # also for NaN
    allowed = TIMES_ROUNDING * rounding + LEAST.get(policy.causal_lm.dtype, LEAST_LOW_PRECISION)
    # the comparison is false for NaN
    return None if _mean_difference(got, expected) <= allowed else "it gives other log-probabilities"


def _plain(policy: Policy, rollout: Rollout) -> Tensor:
    rows = torch.arange(len(rollout.lengths), device=policy.device)
    return token_log_probs(policy, rollout, rows, rollout.mask, 1.0)  # (B, T)


def _mean_difference(a: Tensor, b: Tensor) -> float:
    """Return the mean over the tokens; the largest one of several variants, NaN if one of them is NaN."""
    return float((a - b).abs().mean(dim=(-2, -1)).max())

"""Trying a faster path on a small batch before it is trusted with a model nobody has seen."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlsparse.batch import Rollout
from rlsparse.model.attention import attending_by
from rlsparse.model.policy import Policy, token_log_probs

TOKENS = 8  # of each completion in a trial: enough for a mean that rounding alone does not move far
TIMES_ROUNDING = 3.0  # correct paths come out between 0.85 and 1.15 (SmolLM2 in bfloat16)
MOST_ROUNDING = 0.2  # nats a token; some models' eager attention is itself wrong, or NaN in float16
LEAST = {torch.float32: 1e-4}  # nats: differences that never matter
LEAST_LOW_PRECISION = 0.02


@torch.no_grad()
def differs_from_plain(policy: Policy, attempt: Callable[[], tuple[Rollout, Tensor]]) -> str | None:
    """How another path's log-probabilities on a small batch differ from the plain path's, beyond rounding; None if not.

    What rounding does to this model is what parts transformers' own two attentions on the same tokens: in bfloat16 that
    a mean of 0.01 to 0.1 nats and single tokens of 0.5, so no fixed bound would do.

    Args:
        attempt: gives a rollout and its (B, T) log-probabilities by the other path. Unknown models are tried this way,
            so whatever it raises is an answer.
    """
    try:
        rollout, got = attempt()
    except Exception as error:
        return f"it raises {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    expected = _plain(policy, rollout)
    with attending_by(policy.model, "eager"):
        rounding = _mean_difference(_plain(policy, rollout), expected)
    rounding = rounding if rounding < MOST_ROUNDING else MOST_ROUNDING  # NaN too
    allowed = TIMES_ROUNDING * rounding + LEAST.get(policy.causal_lm.dtype, LEAST_LOW_PRECISION)
    # false for NaN
    return None if _mean_difference(got, expected) <= allowed else "it gives other log-probabilities"


def _plain(policy: Policy, rollout: Rollout) -> Tensor:
    rows = torch.arange(len(rollout.lengths), device=policy.device)
    return token_log_probs(policy, rollout, rows, rollout.mask, 1.0)  # (B, T)


def _mean_difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().mean())

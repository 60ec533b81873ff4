"""Which rows of a rollout have ended: by an end token, or by the text with which a chat template closes a turn."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlsparse.model.policy import Policy

# f(earlier (b, t) completion tokens, tokens (b,) that follow them) -> (b,) bool
HasEnded = Callable[[Tensor, Tensor], Tensor]


def stopping(policy: Policy) -> HasEnded:
    """Return the function that tells which rows a token has ended."""
    eos = torch.tensor(policy.eos_ids, device=policy.device)
    found = _text_criteria(policy)

    def has_ended(earlier: Tensor, tokens: Tensor) -> Tensor:
        ended = torch.isin(tokens, eos)  # (b,)
        return ended if found is None else ended | found(torch.cat([earlier, tokens[:, None]], dim=1), None)

    return has_ended


def _text_criteria(policy: Policy) -> Callable[[Tensor, None], Tensor] | None:
    """Return the criterion of transformers for the stop texts of a policy; None if there are none."""
    if not policy.stop_texts:
        return None
    from transformers import StopStringCriteria

    try:
        criteria: Callable[[Tensor, None], Tensor] = StopStringCriteria(policy.tokenizer, list(policy.stop_texts))
    except ValueError:  # no tokens of this vocabulary make such a text
        return None
    return criteria

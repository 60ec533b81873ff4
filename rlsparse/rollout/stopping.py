"""Which rows of a rollout have ended: by an end token, or by the text with which a chat template closes a turn."""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rlsparse.model.policy import Policy

# f(ids (B, T), rows (b,) of it, t, tokens (b,) that stand in column t) -> (b,) bool
HasEnded = Callable[[Tensor, Tensor, int, Tensor], Tensor]
Criteria = Callable[[Tensor, None], Tensor]

_criteria: WeakKeyDictionary[Any, dict[str, Criteria | None]] = WeakKeyDictionary()  # tokenizer -> text -> criterion


def stopping(policy: Policy) -> HasEnded:
    """Return the function that tells which rows a token has ended."""
    eos = torch.tensor(policy.eos_ids, device=policy.device)
    found = None if policy.stop_text is None else _text_criteria(policy.tokenizer, policy.stop_text)

    def has_ended(ids: Tensor, rows: Tensor, t: int, tokens: Tensor) -> Tensor:
        ended = torch.isin(tokens, eos)  # (b,)
        return ended if found is None else ended | found(torch.cat([ids[rows, :t], tokens[:, None]], dim=1), None)

    return has_ended


def _text_criteria(tokenizer: Any, text: str) -> Criteria | None:
    """Return the criterion of transformers for a text, which takes part of a second to make; None if there is none."""
    from transformers import StopStringCriteria

    made = _criteria.setdefault(tokenizer, {})
    if text not in made:
        try:
            made[text] = StopStringCriteria(tokenizer, [text])
        except ValueError:  # no tokens of this vocabulary make such a text
            made[text] = None
    return made[text]

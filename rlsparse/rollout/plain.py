"""The reference engine: the cache and the attention of transformers, the adapter beside the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlsparse.batch import FrozenStates
from rlsparse.model.policy import Policy, positions
from rlsparse.rollout.engine import LocalEngine, Part, Request


@dataclass(frozen=True)
class Plain(LocalEngine):
    """Works for any model: the cache of a prompt is repeated for its group, then one token a step."""

    @contextmanager
    def session(self, policy: Policy, request: Request) -> Iterator["PlainSession"]:
        yield PlainSession(policy)


class PlainSession:
    """See ``Session``."""

    _cache: Any
    _mask: Tensor  # (b, S + t) long, grows by a column a step

    def __init__(self, policy: Policy) -> None:
        self._model = policy.model

    def prefill(self, part: Part) -> Tensor:
        reply = self._model(
            input_ids=part.prompt_ids,
            attention_mask=part.in_prompt.long(),
            position_ids=positions(part.in_prompt),
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = reply.past_key_values
        self._cache.batch_repeat_interleave(part.per_prompt)
        self._mask = part.in_prompt.long().repeat_interleave(part.per_prompt, dim=0)
        logits: Tensor = reply.logits[:, -1].repeat_interleave(part.per_prompt, dim=0)  # (b, V)
        return logits

    def keep(self, rows: Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._mask = self._mask[rows]

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        logits: Tensor = self._model(
            input_ids=tokens[:, None],
            attention_mask=self._mask,
            position_ids=positions[:, None],
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]  # (b, V)
        return logits

    def states(self) -> FrozenStates | None:
        return None

"""The data that travels from stage to stage.

Axis letters, everywhere in the code:

====  =============================================================
P     prompts of a step
G     completions of a prompt (the group)
B     rows, B = P·G; row p·G + g is completion g of prompt p
S     prompt length, tokens, padding included
T     completion length, tokens, EOS included, padding included
V     vocabulary
H     hidden size
====  =============================================================
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Row = TypeVar("Row")


def chunks(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    """The rows in pieces of at most ``size``."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


class NonFiniteError(RuntimeError):
    """The loss, its gradient or the policy's own log-probabilities are not finite numbers."""


@dataclass(frozen=True)
class Problem:
    """A row of a task.

    Attributes:
        question: what is asked, without instructions or template.
        answer: the gold answer as text.
        solution: the written-out solution that a warm start teaches; ends in the task's answer format.
    """

    question: str
    answer: str
    solution: str


@dataclass(frozen=True)
class Prompt:
    """A problem as the model reads it.

    Attributes:
        ids: token ids of the prompt, chat template included.
        begun: how many of them, at the end, are a completion's first tokens; 0 but in replay.
    """

    problem: Problem
    ids: tuple[int, ...]
    begun: int = 0


@dataclass(frozen=True)
class FrozenStates:
    """What the layers below the first adapted one gave out during the rollout: training need not compute it again.

    Attributes:
        prompt: (P, S, H), padded on the left.
        completion: (B, T, H): where each completion token stands; 0 past the end and at a completion's last token,
            which predicts nothing.
    """

    prompt: Tensor
    completion: Tensor


@dataclass(frozen=True)
class Rollout:
    """Completions of P prompts, G each, and what the behaviour model thought of them.

    Attributes:
        prompt_ids: (P, S) long, padded on the left.
        prompt_lengths: (P,) long.
        completion_ids: (B, T) long, padded on the right.
        lengths: (B,) long: completion tokens, EOS included. Padding is told by length alone, since EOS may equal PAD.
        ended: (B,) bool: the completion closed with EOS, it was not cut off.
        log_probs: (B, T) float32: log-probability of each token under the behaviour model at the sampling temperature,
            before top-p and top-k (nats); 0 past the end.
        entropy: (B, T) float32: entropy of the behaviour model where the token was drawn (nats); 0 past the end.
        frozen_states: kept where the engine has them and the policy's own layers made them.
    """

    prompt_ids: Tensor
    prompt_lengths: Tensor
    completion_ids: Tensor
    lengths: Tensor
    ended: Tensor
    log_probs: Tensor
    entropy: Tensor
    frozen_states: FrozenStates | None = None

    @property
    def group_size(self) -> int:
        return len(self.lengths) // len(self.prompt_lengths)

    def require_finite(self) -> None:
        """Stop where the policy itself is broken, before its garbage is scored.

        Raises:
            NonFiniteError: a log-probability that is not a finite number.
        """
        if not bool(torch.isfinite(self.log_probs).all()):
            raise NonFiniteError("the policy's log-probabilities are not finite")

    @property
    def mask(self) -> Tensor:
        """(B, T) bool: True on completion tokens."""
        columns = torch.arange(self.completion_ids.shape[1], device=self.lengths.device)
        return columns < self.lengths[:, None]


@dataclass(frozen=True)
class Selection:
    """Which tokens enter the loss.

    Attributes:
        weights: (B, T) float32: 0 where a token is left out, else its weight (1, or 1/p when reweighted).
        counts: (B,) float32: how many tokens a mean over this completion is divided by.
    """

    weights: Tensor
    counts: Tensor


@dataclass(frozen=True)
class ScoredBatch:
    """A rollout with everything the optimizer step needs.

    Attributes:
        advantages: (B, T) float32.
        scales: (B, T) float32: a token's share in the loss: weight and aggregation in one factor; 0 for a token that
            is not selected or whose term cannot move the policy.
        on_policy: the policy itself sampled the completions, so that nothing is to be corrected.
    """

    rollout: Rollout
    advantages: Tensor
    scales: Tensor
    on_policy: bool = True

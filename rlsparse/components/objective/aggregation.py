"""Aggregation: from the terms of tokens to one number. Config group ``objective``.

An aggregation is written as a fixed factor of each token, the scale: loss = Σ scale · term. Scales are computed over
the whole batch, so the loss of a microbatch is a plain sum and the gradient does not depend on how the batch is cut.
The divisors count every row of the batch: a group without any advantage still dilutes the step.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from rlsparse.batch import Selection
from rlsparse.components.component import Component, Range


@dataclass(frozen=True)
class Aggregation(Component, ABC):
    """Turns the terms of the selected tokens into one number.

    Attributes:
        l2: weight of the squared weights of the adapter in the loss (T-SPMO).
    """

    l2: Annotated[float, Range(0)]

    @abstractmethod
    def __call__(self, selection: Selection, origins: Tensor, max_new_tokens: int) -> Tensor:
        """Return the scale of each token, (B, T).

        Args:
            origins: (P,) number of the prompt that each group belongs to, from 0 without gaps: replay makes several
                groups of one prompt.
            max_new_tokens: the longest completion, tokens.
        """


@dataclass(frozen=True)
class SequenceMean(Aggregation):
    """Mean over the selected tokens of a completion, then over completions: GRPO, RGRA, S-GRPO."""

    def __call__(self, selection: Selection, origins: Tensor, max_new_tokens: int) -> Tensor:
        rows = len(selection.counts)
        return selection.weights / selection.counts.clamp(min=1)[:, None] / rows


@dataclass(frozen=True)
class TokenMean(Aggregation):
    """Mean over all selected tokens of the batch: DAPO, Yu et al. 2025 (2503.14476)."""

    def __call__(self, selection: Selection, origins: Tensor, max_new_tokens: int) -> Tensor:
        return selection.weights / selection.counts.sum().clamp(min=1)


@dataclass(frozen=True)
class SequenceSum(Aggregation):
    """Sum over the selected tokens of a completion, then mean over completions: LUSPO, Liu et al. 2026 (2602.05261).

    LUSPO multiplies the term of a whole completion, as GSPO has it, by the length of the completion. That is the sum
    over its tokens where each has the same term. verl calls it ``seq-mean-token-sum``.
    """

    def __call__(self, selection: Selection, origins: Tensor, max_new_tokens: int) -> Tensor:
        return selection.weights / len(selection.counts)


@dataclass(frozen=True)
class PromptMean(Aggregation):
    """Mean over the selected tokens of a prompt, then over prompts (ours): 1/|U| of T-SPMO is that of one prompt.

    With replay, U holds the transitions of all trees of the prompt (ours).
    """

    def __call__(self, selection: Selection, origins: Tensor, max_new_tokens: int) -> Tensor:
        origin = origins.repeat_interleave(len(selection.counts) // len(origins))  # (B,)
        prompts = int(origins.max()) + 1
        of_prompt = selection.counts.new_zeros(prompts).index_add(0, origin, selection.counts).clamp(min=1)
        return selection.weights / of_prompt[origin, None] / prompts


@dataclass(frozen=True)
class Constant(Aggregation):
    """Sum / (B · max_new_tokens): Dr. GRPO, Liu et al. 2025 (2503.20783)."""

    def __call__(self, selection: Selection, origins: Tensor, max_new_tokens: int) -> Tensor:
        return selection.weights / (len(selection.counts) * max_new_tokens)

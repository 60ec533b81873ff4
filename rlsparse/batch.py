"""The data types that the stages of training exchange.

The letters of axes, in all of the code:

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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor

Row = TypeVar("Row")


def chunks(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    """Yield the rows in parts of at most ``size``."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


class NonFiniteError(RuntimeError):
    """The loss, its gradient or the log-probabilities of the policy are not finite numbers."""


@dataclass(frozen=True)
class Problem:
    """A row of a task.

    Attributes:
        question: the question without instructions or template.
        answer: the gold answer as text.
        solution: the solution with all its steps, for a warm start; it ends with the answer in the format of the task.
        context: earlier turns of a conversation, (role, content) each; the question is the content of the last turn.
        preamble: how many turns at the start of ``context`` the task adds to each question (its system text and its
            examples); the others are those of the row.
        columns: the row of the data set as it was read, by column, numbers as numbers; for rewards and checks.
    """

    question: str
    answer: str
    solution: str
    context: tuple[tuple[str, str], ...] = ()
    preamble: int = 0
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def own_context(self) -> tuple[tuple[str, str], ...]:
        """Return the earlier turns of the row itself, without those that the task adds."""
        return self.context[self.preamble :]


@dataclass(frozen=True)
class Prompt:
    """A problem as input of the model.

    Attributes:
        problem: the problem.
        ids: token ids of the prompt, chat template included.
        begun: number of tokens at the end of ``ids`` that belong to the completion; 0 except in replay.
    """

    problem: Problem
    ids: tuple[int, ...]
    begun: int = 0


@dataclass(frozen=True)
class FrozenStates:
    """Outputs of the frozen layers (those below the first adapted one) in a rollout, which training can reuse.

    Attributes:
        prompt: (P, S, H), padded on the left.
        completion: (B, T, H): at each completion token; 0 after the end and at the last token of a completion, which
            predicts no token.
    """

    prompt: Tensor
    completion: Tensor


@dataclass(frozen=True)
class Rollout:
    """Completions of P prompts, G each, with their log-probabilities under the behaviour model.

    Attributes:
        prompt_ids: (P, S) long, padded on the left.
        prompt_lengths: (P,) long.
        completion_ids: (B, T) long, padded on the right.
        lengths: (B,) long: number of completion tokens, EOS included. Only the length identifies padding, since the
            padding token may equal EOS.
        ended: (B,) bool: whether the completion ended with EOS; False if it was cut off.
        log_probs: (B, T) float32: log-probability of each token under the behaviour model at the sampling temperature,
            before top-p and top-k (nats); 0 after the end.
        entropy: (B, T) float32: entropy of the behaviour model at each token, before top-p and top-k (nats); 0 after
            the end. None where the engine does not know it and no token sampler needs it.
        frozen_states: None if they were not kept.
    """

    prompt_ids: Tensor
    prompt_lengths: Tensor
    completion_ids: Tensor
    lengths: Tensor
    ended: Tensor
    log_probs: Tensor
    entropy: Tensor | None
    frozen_states: FrozenStates | None = None

    @property
    def group_size(self) -> int:
        """G, the number of completions of each prompt; 0 without prompts."""
        return len(self.lengths) // max(1, len(self.prompt_lengths))

    def require_finite(self) -> None:
        """Check the log-probabilities, so that completions of a diverged policy are not scored.

        Raises:
            NonFiniteError: a log-probability is not a finite number.
        """
        if not bool(torch.isfinite(self.log_probs).all()):
            raise NonFiniteError("the policy's log-probabilities are not finite")

    def rows_of(self, groups: Tensor) -> Tensor:
        """Return the numbers of the rows of some groups, (g·G,) long.

        Args:
            groups: (g,) long, numbers of groups.
        """
        G = self.group_size
        return (groups[:, None] * G + torch.arange(G, device=groups.device)).flatten()

    def take(self, groups: Tensor) -> "Rollout":
        """Return some of the groups, in this order; widths stay.

        Args:
            groups: (g,) long, numbers of groups.
        """
        rows, states = self.rows_of(groups), self.frozen_states
        return Rollout(
            prompt_ids=self.prompt_ids[groups],
            prompt_lengths=self.prompt_lengths[groups],
            completion_ids=self.completion_ids[rows],
            lengths=self.lengths[rows],
            ended=self.ended[rows],
            log_probs=self.log_probs[rows],
            entropy=None if self.entropy is None else self.entropy[rows],
            frozen_states=states and FrozenStates(states.prompt[groups], states.completion[rows]),
        )

    @property
    def mask(self) -> Tensor:
        """(B, T) bool: True on completion tokens."""
        columns = torch.arange(self.completion_ids.shape[1], device=self.lengths.device)
        return columns < self.lengths[:, None]


@dataclass(frozen=True)
class RewardTerms:
    """The terms of a reward that is a weighted sum, for P prompts with G completions each.

    Attributes:
        names: of the K terms.
        weights: (K,) float32.
        values: (K, P, G) float32: each term without its weight.
    """

    names: tuple[str, ...]
    weights: Tensor
    values: Tensor

    def take(self, groups: Tensor) -> "RewardTerms":
        """Return the terms of some of the groups.

        Args:
            groups: (g,) long, numbers of groups.
        """
        return RewardTerms(self.names, self.weights, self.values[:, groups])

    def __add__(self, other: "RewardTerms") -> "RewardTerms":
        return RewardTerms(self.names, self.weights, torch.cat([self.values, other.values], dim=1))


@dataclass(frozen=True)
class Selection:
    """The tokens in the loss.

    Attributes:
        weights: (B, T) float32: 0 for a token that is not selected, else its weight (1, or 1/p if reweighted).
        counts: (B,) float32: the number of tokens that a mean over the completion is divided by.
        passes: (B, T) long: number of the optimizer step on the batch that a token enters, from 0 without gaps; None
            where all tokens enter the same step.
    """

    weights: Tensor
    counts: Tensor
    passes: Tensor | None = None

    def take(self, rows: Tensor) -> "Selection":
        """Return the selection in some rows.

        Args:
            rows: (b,) long.
        """
        return Selection(self.weights[rows], self.counts[rows], None if self.passes is None else self.passes[rows])

    def without(self, rows: Tensor) -> "Selection":
        """Return the selection in which some rows choose no token and count none.

        Args:
            rows: (B,) bool.
        """
        return replace(
            self, weights=self.weights.masked_fill(rows[:, None], 0.0), counts=self.counts.masked_fill(rows, 0.0)
        )


@dataclass(frozen=True)
class TokenBatch:
    """A rollout with an advantage for each token, and which tokens enter the loss.

    Attributes:
        rollout: of P groups.
        advantages: (B, T) float32.
        selection: of these tokens.
        origins: P numbers: the prompt that each group belongs to, from 0 without gaps; replay makes several groups of
            one prompt.
        on_policy: whether the policy itself sampled the completions, so that no correction is needed.
    """

    rollout: Rollout
    advantages: Tensor
    selection: Selection
    origins: Sequence[int]
    on_policy: bool = True

    def minibatches(self, count: int, generator: Generator) -> "list[TokenBatch]":
        """Return parts with as equal numbers of prompts as possible; the groups of a prompt stay together.

        Args:
            count: number of parts; fewer if there are fewer prompts.
            generator: CPU stream of the order of the prompts. Nothing is drawn for a single part, which is the batch.
        """
        prompts = len(set(self.origins))
        if count == 1 or prompts == 0:
            return [self]
        order = torch.randperm(prompts, generator=generator)
        return [self._of_prompts(part.tolist()) for part in order.tensor_split(min(count, prompts))]

    def _of_prompts(self, prompts: Sequence[int]) -> "TokenBatch":
        number = {prompt: i for i, prompt in enumerate(prompts)}
        kept = [group for group, prompt in enumerate(self.origins) if prompt in number]
        kept.sort(key=lambda group: number[self.origins[group]])
        groups = torch.tensor(kept, device=self.advantages.device)  # (g,)
        rows = self.rollout.rows_of(groups)  # (b,)
        return TokenBatch(
            rollout=self.rollout.take(groups),
            advantages=self.advantages[rows],
            selection=self.selection.take(rows),
            origins=[number[self.origins[group]] for group in kept],
            on_policy=self.on_policy,
        )


@dataclass(frozen=True)
class ScoredBatch:
    """A rollout with everything that an optimizer step needs.

    Attributes:
        rollout: the completions.
        advantages: (B, T) float32.
        scales: (B, T) float32: factor of each token in the loss, the product of its weight and the aggregation; 0 for
            a token that is not selected or whose gradient is always 0.
        on_policy: whether the policy itself sampled the completions, so that no correction is needed.
        whole_rows: whether the loss of a token depends on all tokens of its completion.
    """

    rollout: Rollout
    advantages: Tensor
    scales: Tensor
    on_policy: bool = True
    whole_rows: bool = False

    @property
    def needed(self) -> Tensor:
        """(B, T) bool: the tokens whose log-probabilities the loss needs."""
        chosen = self.scales != 0  # (B, T)
        return self.rollout.mask & chosen.any(dim=1, keepdim=True) if self.whole_rows else chosen

"""The tensors of a rollout while completions are sampled, column by column."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlsparse.batch import FrozenStates, Prompt, Rollout
from rlsparse.model.policy import Policy


@dataclass
class Columns:
    """Holds the tensors of a rollout; for their meaning see ``Rollout``.

    Attributes:
        ids, log_probs, entropy: (B, T).
        lengths, ended: (B,).
    """

    ids: Tensor
    lengths: Tensor
    ended: Tensor
    log_probs: Tensor
    entropy: Tensor

    @classmethod
    def empty(cls, B: int, T: int, policy: Policy) -> "Columns":
        """Return the tensors of B completions of at most T tokens before the first token is sampled."""
        device = policy.device
        return cls(
            ids=torch.full((B, T), policy.pad_id, device=device),
            lengths=torch.zeros(B, dtype=torch.long, device=device),
            ended=torch.zeros(B, dtype=torch.bool, device=device),
            log_probs=torch.zeros(B, T, device=device),
            entropy=torch.zeros(B, T, device=device),
        )

    def write(self, rows: Tensor, t: int, tokens: Tensor, log_probs: Tensor, entropy: Tensor, ended: Tensor) -> None:
        """Write column t of some rows.

        Args:
            rows: (b,) row numbers.
            t: number of the column.
            tokens, log_probs, entropy, ended: (b,).
        """
        self.ids[rows, t] = tokens
        self.log_probs[rows, t] = log_probs
        self.entropy[rows, t] = entropy
        self.lengths[rows] = t + 1
        self.ended[rows] = ended

    def rollout(self, prompt_ids: Tensor, prompt_lengths: Tensor, states: FrozenStates | None = None) -> Rollout:
        """Return the rollout, cut off after its longest completion.

        Args:
            prompt_ids: (P, S), padded on the left.
            prompt_lengths: (P,).
            states: outputs of the frozen layers for prompts and all T columns; None if they were not kept.
        """
        T = int(self.lengths.max())
        return Rollout(
            prompt_ids=prompt_ids,
            prompt_lengths=prompt_lengths,
            completion_ids=self.ids[:, :T],
            lengths=self.lengths,
            ended=self.ended,
            log_probs=self.log_probs[:, :T],
            entropy=self.entropy[:, :T],
            frozen_states=None if states is None else FrozenStates(states.prompt, states.completion[:, :T]),
        )


def left_pad(prompts: Sequence[Prompt], policy: Policy) -> tuple[Tensor, Tensor]:
    """Return the token ids of prompts padded on the left, (P, S), and their lengths, (P,)."""
    lengths = [len(prompt.ids) for prompt in prompts]
    rows = [[policy.pad_id] * (max(lengths) - len(prompt.ids)) + list(prompt.ids) for prompt in prompts]
    return torch.tensor(rows, device=policy.device), torch.tensor(lengths, device=policy.device)


def completion_limits(prompts: Sequence[Prompt], max_new_tokens: int, group_size: int, policy: Policy) -> Tensor:
    """Return the maximum number of tokens to sample for each completion, (B,), at least 1."""
    limits = torch.tensor([max_new_tokens - prompt.begun for prompt in prompts], device=policy.device)
    return limits.repeat_interleave(group_size)

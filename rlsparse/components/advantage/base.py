"""The base classes of advantages."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlsparse.batch import RewardTerms, Rollout
from rlsparse.components.component import Component


@dataclass(frozen=True)
class Advantage(Component, ABC):
    """Gives every completion token an advantage.

    Traits:
        min_group_size: the fewest completions of a prompt that it can compare.
        per_transition: it credits the distinct transitions of a prefix tree, each once, and nothing else; the token
            sampler must then pick these.
        per_term: it needs each term of a reward that is a sum; see ``TermAdvantage``.
        scale_of: the advantage that it is a multiple of, by a factor that depends on the group size alone; advantages
            with the same value here differ in the scale of the gradient only. None where there is no other.
        smallest_reward: the smallest reward that it is defined for.
        is_reward: the advantage of a token is the reward of its completion, with its sign.
    """

    per_transition: ClassVar[bool] = False
    per_term: ClassVar[bool] = False
    smallest_reward: ClassVar[float] = -math.inf
    is_reward: ClassVar[bool] = False

    @property
    def min_group_size(self) -> int:
        return 1

    @property
    def scale_of(self) -> str | None:
        return None

    @abstractmethod
    def __call__(self, rewards: Tensor, rollout: Rollout) -> Tensor:
        """Return the advantages, (B, T), in units of reward; exactly 0 past the end of a completion.

        Args:
            rewards: (P, G).
            rollout: of P prompts with G completions each.
        """


@dataclass(frozen=True)
class GroupBaseline(Advantage):
    """An advantage that compares a completion with its group and is the same for all tokens of a completion.

    Where all rewards of a group are equal, the advantage is exactly 0: the floating-point mean of equal numbers may
    differ from them by a rounding error, which a division by a small standard deviation would enlarge.
    """

    @property
    def min_group_size(self) -> int:
        return 2

    @abstractmethod
    def per_completion(self, rewards: Tensor) -> Tensor:
        """Return the advantage of each completion, (P, G).

        Args:
            rewards: (P, G).
        """

    def __call__(self, rewards: Tensor, rollout: Rollout) -> Tensor:
        equal = equal_rewards(rewards)[:, None]  # (P, 1)
        per_row = self.per_completion(rewards).masked_fill(equal, 0.0).reshape(-1, 1)  # (B, 1)
        return per_row * rollout.mask  # (B, T)


@dataclass(frozen=True)
class TermAdvantage(Advantage):
    """An advantage that is made from each term of the reward, not from their sum."""

    per_term: ClassVar[bool] = True

    @abstractmethod
    def of_terms(self, terms: RewardTerms, rollout: Rollout) -> Tensor:
        """Return the advantages, (B, T); exactly 0 past the end of a completion.

        Args:
            terms: of P prompts with G completions each.
            rollout: of these prompts.
        """

    def __call__(self, rewards: Tensor, rollout: Rollout) -> Tensor:
        """Return the advantages of a reward that is its only term, (B, T)."""
        return self.of_terms(RewardTerms(("reward",), rewards.new_ones(1), rewards[None]), rollout)


def equal_rewards(rewards: Tensor) -> Tensor:
    """Return which groups have rewards that are all equal, (P,) bool. Compared exactly, not through a mean.

    Args:
        rewards: (P, G).
    """
    return torch.eq(rewards, rewards[:, :1]).all(dim=1)

"""The advantage of MaxRL: the gradient of the logarithm of the mean reward."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlsparse.batch import Rollout
from rlsparse.components.advantage.base import GroupBaseline
from rlsparse.components.component import ComponentError


@dataclass(frozen=True)
class MaxRl(GroupBaseline):
    """(R − mean) / mean of the group, 0 where the mean is 0. MaxRL, Tajwar et al. 2026 (2602.02710).

    For rewards 0 and 1, K of them 1, the mean of A·∇log π over the group is Σ ∇log π / K over the right completions,
    less Σ ∇log π / G over all. The first sum alone is an unbiased estimate of the gradient of the first G terms of
    log p = −Σ_k (1 − p)^k / k, p being the probability of a right completion. The second sum reduces the variance. It
    is left out where K = 0, since A = 0 there, so the expectation is the gradient of the first G − 1 terms.

    Other rewards of at least 0 estimate the gradient of log E[R] in the same way (ours). No ε is added to the mean
    (other implementations add 1e-8 to 1e-4): a mean of 0 means that all rewards are 0, and then A = 0.

    Rewards below 0 are refused (ours). Where the mean is below 0, log E[R] is not defined, and a division by it would
    raise the probability of the worse completions; where rewards of both signs almost cancel, A has no bound. With
    rewards of at least 0, A lies in [−1, G − 1].
    """

    smallest_reward: ClassVar[float] = 0.0

    def __call__(self, rewards: Tensor, rollout: Rollout) -> Tensor:
        """Return the advantages, (B, T).

        Raises:
            ComponentError: a reward is below 0.
        """
        if bool((rewards < self.smallest_reward).any()):
            raise ComponentError(
                f"advantage={self.label}: the step has a reward of {float(rewards.min()):g}; the logarithm of the mean "
                "reward needs rewards of at least 0, so take such a reward, or advantage=group_mean"
            )
        return super().__call__(rewards, rollout)

    def per_completion(self, rewards: Tensor) -> Tensor:
        mean = rewards.mean(dim=1, keepdim=True)  # (P, 1)
        return torch.where(mean > 0, (rewards - mean) / mean, 0.0)

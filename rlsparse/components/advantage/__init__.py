"""Credit: what a token is worth (rewards → advantages). Pure functions.

Every advantage is ``f(rewards (P, G), rollout, config) -> (B, T)`` and exactly zero past a completion's end.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rlsparse.batch import Rollout
from rlsparse.components.advantage import group
from rlsparse.components.advantage.prefix_tree import prefix_tree
from rlsparse.config.schema import AdvantageConfig, NegativeFeedbackConfig

GROUP_ADVANTAGES: dict[str, Callable[[Tensor, AdvantageConfig], Tensor]] = {
    "group_zscore": group.group_zscore,
    "group_mean": group.group_mean,
    "leave_one_out": group.leave_one_out,
    "raw_reward": group.raw_reward,
}
NAMES = (*GROUP_ADVANTAGES, "prefix_tree")


def token_advantages(
    rewards: Tensor, rollout: Rollout, config: AdvantageConfig, negative_feedback: NegativeFeedbackConfig
) -> Tensor:
    """Advantage of every completion token, (B, T), in units of reward (of its standard deviation for group_zscore).

    Args:
        rewards: (P, G).
        negative_feedback: when disabled, max(A, 0) replaces A, whatever the credit.
    """
    if config.name == "prefix_tree":
        advantages = prefix_tree(rewards, rollout)  # (B, T)
    else:
        per_row = GROUP_ADVANTAGES[config.name](rewards, config).reshape(-1, 1)  # (B, 1)
        advantages = per_row * rollout.mask  # (B, T)
    return advantages if negative_feedback.enabled else advantages.clamp(min=0)


def degenerate_groups(rewards: Tensor) -> Tensor:
    """(P,) bool: groups whose rewards are all equal. Compared exactly, not through a float mean."""
    return torch.eq(rewards, rewards[:, :1]).all(dim=1)

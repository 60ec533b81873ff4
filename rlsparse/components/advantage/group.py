"""Advantages that compare a completion with its group: rewards (P, G) → (P, G).

Where all rewards of a group are equal, a baseline leaves exactly 0: the float mean of equal numbers may miss them by a
rounding error, which a division by a small standard deviation would blow up.
"""

from typing import cast

import torch
from torch import Tensor

from rlsparse.config.schema import AdvantageConfig, GroupZscoreConfig


def _zero_where_equal(advantages: Tensor, rewards: Tensor) -> Tensor:
    equal = (rewards == rewards[:, :1]).all(dim=1, keepdim=True)  # (P, 1)
    return advantages.masked_fill(equal, 0.0)


def group_zscore(rewards: Tensor, config: AdvantageConfig) -> Tensor:
    """(R − mean) / (std + ε), sample standard deviation (ddof 1). GRPO, Shao et al. 2024 (2402.03300), eq. 3's Â."""
    epsilon = cast(GroupZscoreConfig, config).epsilon
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return _zero_where_equal(centred / (rewards.std(dim=1, keepdim=True) + epsilon), rewards)


def group_mean(rewards: Tensor, config: AdvantageConfig) -> Tensor:
    """R − mean. Dr. GRPO, Liu et al. 2025 (2503.20783)."""
    return _zero_where_equal(rewards - rewards.mean(dim=1, keepdim=True), rewards)


def leave_one_out(rewards: Tensor, config: AdvantageConfig) -> Tensor:
    """R − mean of the other G−1 rewards. RLOO, Ahmadian et al. 2024 (2402.14740)."""
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (rewards.shape[1] - 1)  # (P, G)
    return _zero_where_equal(rewards - others, rewards)


def raw_reward(rewards: Tensor, config: AdvantageConfig) -> Tensor:
    """R itself: REINFORCE without a baseline. Carrino et al. 2026 (2603.18756), the "no group advantage" ablation."""
    return torch.clone(rewards)

"""The advantage of Lite PPO: the mean of the group, the standard deviation of the batch."""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from rlsparse.components.advantage.base import GroupBaseline
from rlsparse.components.component import Range


@dataclass(frozen=True)
class GroupMeanBatchStd(GroupBaseline):
    """(R − mean of the group) / (std of the batch + ε). Lite PPO, Liu et al. 2025 (2508.08221).

    The standard deviation is that of all P·G rewards of the step, of a sample (ddof 1), as in TRL with
    ``scale_rewards="batch"``. It is the same number for all groups, so a group in which one reward differs weighs less
    than under ``group_zscore``.

    Attributes:
        epsilon: ε, in units of reward.
    """

    epsilon: Annotated[float, Range(0)]

    def per_completion(self, rewards: Tensor) -> Tensor:
        centred = rewards - rewards.mean(dim=1, keepdim=True)  # (P, G)
        return centred / (rewards.std() + self.epsilon)

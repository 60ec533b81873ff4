"""Advantages that compare a completion with its group."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from rlsparse.batch import Rollout
from rlsparse.components.advantage.base import Advantage, GroupBaseline
from rlsparse.components.component import Range


@dataclass(frozen=True)
class GroupZscore(GroupBaseline):
    """(R − mean) / (std + ε), sample standard deviation (ddof 1). GRPO, Shao et al. 2024 (2402.03300), eq. 3."""

    epsilon: Annotated[float, Range(0)]

    def per_completion(self, rewards: Tensor) -> Tensor:
        centred = rewards - rewards.mean(dim=1, keepdim=True)  # (P, G)
        return centred / (rewards.std(dim=1, keepdim=True) + self.epsilon)


@dataclass(frozen=True)
class GroupMean(GroupBaseline):
    """R − mean. Dr. GRPO, Liu et al. 2025 (2503.20783)."""

    scale_of: ClassVar[str | None] = "group_mean"

    def per_completion(self, rewards: Tensor) -> Tensor:
        return rewards - rewards.mean(dim=1, keepdim=True)


@dataclass(frozen=True)
class LeaveOneOut(GroupBaseline):
    """R − mean of the other G−1 rewards, which is G/(G−1) times R − mean. RLOO, Ahmadian et al. 2024 (2402.14740)."""

    scale_of: ClassVar[str | None] = "group_mean"

    def per_completion(self, rewards: Tensor) -> Tensor:
        others = (rewards.sum(dim=1, keepdim=True) - rewards) / (rewards.shape[1] - 1)  # (P, G)
        return rewards - others


@dataclass(frozen=True)
class RawReward(Advantage):
    """R itself: REINFORCE without a baseline. Carrino et al. 2026 (2603.18756), ablation "no group advantage"."""

    is_reward: ClassVar[bool] = True

    def __call__(self, rewards: Tensor, rollout: Rollout) -> Tensor:
        return rewards.reshape(-1, 1) * rollout.mask  # (B, T)

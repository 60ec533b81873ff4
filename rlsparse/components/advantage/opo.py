"""The advantage of OPO: a baseline in which each reward weighs as much as its completion is long."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlsparse.batch import Rollout
from rlsparse.components.advantage.base import Advantage, equal_rewards


@dataclass(frozen=True)
class Opo(Advantage):
    """R − Σ len·R / Σ len, the sums over the group. OPO, Hao et al. 2025 (2505.23585).

    It is the baseline of the smallest variance where the squared norm of a completion's gradient grows in proportion to
    its length. The lengths count all completion tokens, EOS included, whichever of them the token sampler chooses. The
    mean of A over the tokens of a group is 0; its mean over the completions need not be. With completions of equal
    length it equals ``group_mean``. A group of equal rewards has A = 0 exactly.
    """

    min_group_size: ClassVar[int] = 2

    def __call__(self, rewards: Tensor, rollout: Rollout) -> Tensor:
        lengths = rollout.lengths.reshape(rewards.shape).to(rewards.dtype)  # (P, G)
        tokens = lengths.sum(dim=1, keepdim=True).clamp(min=1)  # (P, 1)
        baseline = (lengths * rewards).sum(dim=1, keepdim=True) / tokens
        centred = (rewards - baseline).masked_fill(equal_rewards(rewards)[:, None], 0.0)  # (P, G)
        return centred.reshape(-1, 1) * rollout.mask  # (B, T)

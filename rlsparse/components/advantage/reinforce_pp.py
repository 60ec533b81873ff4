"""The advantage of REINFORCE++-baseline: the mean of the group, then whitened over the tokens of the step."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from rlsparse.batch import Rollout
from rlsparse.components.advantage.base import Advantage, equal_rewards
from rlsparse.components.component import Range


@dataclass(frozen=True)
class ReinforcePp(Advantage):
    """REINFORCE++ with baseline, Hu et al. 2025 (2501.03262): R − mean of the group, whitened over the batch.

    With c = R − mean of the group, the same for all tokens of a completion, and N completion tokens in the step::

        A = (c − μ) / (σ + ε)      μ, σ: mean and standard deviation of c over all N tokens

    A completion weighs as many times as it has tokens. The mean of c over the completions of a group is 0, but μ is a
    mean over tokens and need not be 0: it is negative where the worse completions are the longer ones. So a group of
    equal rewards, whose c is 0, gets A = −μ / (σ + ε) at each of its tokens. The paper subtracts the mean from every
    advantage of the batch without an exception, as verl does, and so do we, although other advantages give such a group
    exactly 0. Such a group then costs a forward and a backward pass. With ``batch_filter=drop`` it leaves the step
    before μ is computed.

    Where the completions of each group have one length, μ is exactly 0, and a group of equal rewards has A = 0 exactly.
    If every group of the step has equal rewards, A = 0. The standard deviation is that of a sample (ddof 1), as in
    verl. ε is added to σ (ours); verl divides by sqrt(σ² + 1e-8). The KL penalty of the paper is another component.

    Attributes:
        epsilon: ε, in units of reward.
    """

    min_group_size: ClassVar[int] = 2
    epsilon: Annotated[float, Range(0)]

    def __call__(self, rewards: Tensor, rollout: Rollout) -> Tensor:
        centred = rewards - rewards.mean(dim=1, keepdim=True)  # (P, G)
        centred = centred.masked_fill(equal_rewards(rewards)[:, None], 0.0)
        lengths = rollout.lengths.reshape(rewards.shape)  # (P, G) long
        group_size, tokens = rewards.shape[1], lengths.sum()
        # c adds up to 0 in a group, so Σ len·c = Σ (len − mean len)·c. The latter is exactly 0 for equal lengths.
        excess = group_size * lengths - lengths.sum(dim=1, keepdim=True)  # (P, G) long: G·(len − mean len)
        mean = (excess * centred).sum() / (group_size * tokens.clamp(min=1))
        variance = (lengths * (centred - mean).square()).sum() / (tokens - 1).clamp(min=1)
        whitened = (centred - mean) / (variance.sqrt() + self.epsilon)  # (P, G)
        return torch.where(variance > 0, whitened, 0.0).reshape(-1, 1) * rollout.mask  # (B, T)

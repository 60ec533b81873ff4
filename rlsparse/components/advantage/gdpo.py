"""The advantage of GDPO: each term of the reward is normalised before the terms are added."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from rlsparse.batch import RewardTerms, Rollout
from rlsparse.components.advantage.base import TermAdvantage
from rlsparse.components.component import Range


@dataclass(frozen=True)
class Gdpo(TermAdvantage):
    """Group reward-Decoupled Normalization Policy Optimization, Liu et al. 2026 (2601.05242), eq. 4 to 6.

    With the terms r_k, their weights w_k, prompts i and completions j::

        A_k(i,j) = (r_k(i,j) − mean_j r_k(i,j)) / (std_j r_k(i,j) + ε)
        S(i,j)   = Σ_k w_k A_k(i,j)
        A(i,j)   = (S(i,j) − mean S) / (std S + ε_batch)      mean and std over all completions of the step

    Standard deviations are those of a sample (ddof 1), as in TRL. A term that is equal in the whole group has A_k = 0
    exactly, and a group in which every term is equal has A = 0. The mean of S over a group is 0, so the mean over the
    batch, which replayed groups are a part of, is 0 up to rounding.

    Attributes:
        epsilon: ε, in units of a term.
        batch_norm: whether the last equation is applied; else A = S.
        batch_epsilon: ε_batch, in standard deviations.
    """

    min_group_size: ClassVar[int] = 2
    epsilon: Annotated[float, Range(0)]
    batch_norm: bool
    batch_epsilon: Annotated[float, Range(0)]

    def of_terms(self, terms: RewardTerms, rollout: Rollout) -> Tensor:
        values = terms.values  # (K, P, G)
        equal = torch.eq(values, values[..., :1]).all(dim=2, keepdim=True)  # (K, P, 1)
        centred = values - values.mean(dim=2, keepdim=True)
        scores = (centred / (values.std(dim=2, keepdim=True) + self.epsilon)).masked_fill(equal, 0.0)  # (K, P, G)
        total = (terms.weights[:, None, None] * scores).sum(dim=0)  # (P, G)
        if self.batch_norm:
            total = self._over_batch(total)
        counts = ~equal & (terms.weights != 0)[:, None, None]  # (K, P, 1)
        return (total * counts.any(dim=0)).reshape(-1, 1) * rollout.mask  # (B, T)

    def _over_batch(self, total: Tensor) -> Tensor:
        """Return the sums with mean 0 and standard deviation 1, (P, G); 0 where all are equal."""
        deviation = total.std() + self.batch_epsilon
        return (total - total.mean()) / deviation if deviation > 0 else torch.zeros_like(total)

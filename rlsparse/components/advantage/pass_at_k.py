"""The advantage of the best of k completions."""

from dataclasses import dataclass
from math import comb
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlsparse.components.advantage.base import GroupBaseline
from rlsparse.components.component import MOST_ROWS, Range


@dataclass(frozen=True)
class PassAtK(GroupBaseline):
    """E[max R over the k-subsets of the group that contain completion i] − E[max R over all k-subsets].

    Both expectations run over the subsets of k of the G completions, so nothing is drawn at random. The rewards in
    ascending order are r_1 ≤ ... ≤ r_G, and F_j = C(j, k) / C(G, k) is the share of the k-subsets that lie among the j
    lowest. Then, with sums over j from 1 to G − 1::

        E[max over all k-subsets]            = r_G − Σ_j (r_{j+1} − r_j) F_j
        E[max over k-subsets that have r_p]  = r_G − Σ_{j ≥ p} (r_{j+1} − r_j) F_j G / j
        A_p = Σ_j (r_{j+1} − r_j) F_j − Σ_{j ≥ p} (r_{j+1} − r_j) F_j G / j

    The mean of A over a group is 0, and a number added to all rewards leaves A as it is. With ``normalize``, A is
    divided by the standard deviation of max R over all k-subsets, plus ε.

    For rewards 0 and 1, with ``normalize`` and ε = 0, this is the analytic advantage of Pass@k training, Chen et al.
    2025 (2508.10751). With n wrong completions, R̄ = 1 − C(n, k) / C(G, k) and σ = sqrt(R̄ (1 − R̄)), a right completion
    has (1 − R̄) / σ and a wrong one (1 − R̄ − C(n−1, k−1) / C(G−1, k−1)) / σ. With fewer than k wrong completions, every
    subset has a right one, and A = 0 for all. The form for other rewards is ours.

    Without ``normalize``, A is (G − k) / G times E[max over k-subsets with i] − E[max over k-subsets without i]. So it
    gives, up to a constant factor, an unbiased estimate of the gradient of the best of k (Walder & Karkhanis 2025,
    2505.15201). Tang et al. 2025 (2503.19595) take the whole group as the only subset and the best of the others as the
    baseline. That is another estimate: with k = G, all completions are in the only subset, and A here is 0. A group
    must therefore have more than k completions. k = 1 is ``group_mean``; normalised, ``group_zscore`` with ddof 0.

    Attributes:
        k: size of the subsets, completions.
        normalize: whether A is divided by the standard deviation of the best.
        epsilon: ε, in units of reward; without effect if ``normalize`` is off.
    """

    k: Annotated[int, Range(1, MOST_ROWS)]
    normalize: bool
    epsilon: Annotated[float, Range(0)]

    @property
    def min_group_size(self) -> int:
        return self.k + 1

    @property
    def scale_of(self) -> str | None:
        return "group_mean" if self.k == 1 and not self.normalize else None

    def per_completion(self, rewards: Tensor) -> Tensor:
        group_size = rewards.shape[1]
        ordered, order = rewards.sort(dim=1)  # (P, G) each, ascending
        lowest = range(1, group_size)  # the numbers j
        shares = rewards.new_tensor([comb(j, self.k) / comb(group_size, self.k) for j in lowest])  # (G−1,) F_j
        factors = rewards.new_tensor([group_size / j for j in lowest])  # (G−1,)
        steps = ordered.diff(dim=1) * shares  # (P, G−1)
        own = (steps * factors).flip(1).cumsum(dim=1).flip(1)  # (P, G−1) sums over j ≥ p
        advantages = steps.sum(dim=1, keepdim=True) - pad(own, (0, 1))  # (P, G), in order of the rewards
        if self.normalize:
            deviation = self._deviation(ordered)  # (P, 1)
            advantages = torch.where(deviation > 0, advantages / (deviation + self.epsilon), 0.0)
        return torch.empty_like(rewards).scatter(1, order, advantages)

    def _deviation(self, ordered: Tensor) -> Tensor:
        """Return the standard deviation of the best over all k-subsets, (P, 1).

        Args:
            ordered: (P, G), ascending.
        """
        group_size = ordered.shape[1]
        chances = [comb(j - 1, self.k - 1) / comb(group_size, self.k) for j in range(1, group_size + 1)]
        chance = ordered.new_tensor(chances)  # (G,) share of the subsets whose best is r_j
        above = ordered - ordered[:, :1]  # (P, G)
        mean = (chance * above).sum(dim=1, keepdim=True)
        return (chance * (above - mean).square()).sum(dim=1, keepdim=True).sqrt()

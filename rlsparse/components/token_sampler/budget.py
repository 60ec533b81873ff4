"""Controls (ours) at a fixed budget of k tokens a completion: does S-GRPO's shape matter, or only its sparsity?"""

import torch
from torch import Generator, Tensor

from rlsparse.batch import Rollout, Selection
from rlsparse.config.schema import BudgetConfig, RandomConfig


def _largest(scores: Tensor, mask: Tensor, budget: int) -> Tensor:
    """(B, T) bool: the ``budget`` completion tokens of each row with the largest scores, the earlier first in a tie."""
    order = scores.masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True)  # (B, T)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(mask.shape[1], device=mask.device).expand_as(order))
    return mask & (rank < budget)


def _selection(chosen: Tensor) -> Selection:
    return Selection(weights=chosen.float(), counts=chosen.sum(dim=1).float())


def random(advantages: Tensor, rollout: Rollout, config: RandomConfig, generator: Generator) -> Selection:
    """k tokens drawn uniformly without replacement; with ``reweight`` each weighs length/k (1/p)."""
    scores = torch.rand(rollout.completion_ids.shape, generator=generator).to(rollout.lengths.device)  # (B, T)
    chosen = _largest(scores, rollout.mask, config.budget)
    if not config.reweight:
        return _selection(chosen)
    lengths = rollout.lengths.float()  # (B,)
    inverse_probability = (lengths / config.budget).clamp(min=1.0)
    return Selection(weights=chosen * inverse_probability[:, None], counts=lengths)


def first(advantages: Tensor, rollout: Rollout, config: BudgetConfig, generator: Generator) -> Selection:
    """The first k tokens."""
    position = torch.arange(rollout.completion_ids.shape[1], device=rollout.lengths.device)
    return _selection(_largest(-position.float().expand_as(rollout.completion_ids), rollout.mask, config.budget))


def high_entropy(advantages: Tensor, rollout: Rollout, config: BudgetConfig, generator: Generator) -> Selection:
    """The k tokens at which the policy that sampled them had the highest entropy."""
    return _selection(_largest(rollout.entropy, rollout.mask, config.budget))

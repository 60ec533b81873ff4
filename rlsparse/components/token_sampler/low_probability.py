"""Token samplers that keep unlikely tokens from dominating the update: Yang et al. 2025 (2505.12929)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Generator, Tensor

from rlsparse.batch import Rollout, Selection
from rlsparse.components.component import Range
from rlsparse.components.token_sampler.base import TokenSampler


@dataclass(frozen=True)
class LowProbability(TokenSampler):
    """Every token, with the weight α·π + 1 - α, π the probability that the token was sampled with.

    Advantage reweighting, Yang et al. 2025 (2505.12929). It is biased: unlikely tokens weigh less. Means are over all
    tokens of the completion. The paper multiplies the advantage; a weight does the same to every surrogate, since
    α·π + 1 - α ≥ 0. It also multiplies the KL term, which the paper leaves as it is.

    Attributes:
        alpha: α; 0 weighs all tokens equally.
    """

    alpha: Annotated[float, Range(0, 1)]

    def __call__(self, advantages: Tensor, rollout: Rollout, generator: Generator) -> Selection:
        return Selection(weights=probability_weights(rollout, self.alpha), counts=rollout.lengths.float())


@dataclass(frozen=True)
class LowProbabilityFirst(TokenSampler):
    """Every token, in two optimizer steps: first the tokens of a probability below η, then the others.

    Low-probability token isolation (Lopti), Yang et al. 2025 (2505.12929). Both steps have the divisors of the whole
    batch, as in the code of its authors, so that no token is dropped. The second gradient is computed after the first
    step has moved the policy, with ratios to the policy of the rollout; the two together are therefore no unbiased
    estimate of the full gradient. A batch with tokens of one kind only takes one step.

    Attributes:
        threshold: η.
        alpha: of advantage reweighting on top (the paper's combination of both), see ``LowProbability``; 0: none.
    """

    makes_passes: ClassVar[bool] = True

    threshold: Annotated[float, Range(0, 1, above=True)]
    alpha: Annotated[float, Range(0, 1)]

    def __call__(self, advantages: Tensor, rollout: Rollout, generator: Generator) -> Selection:
        is_low = rollout.log_probs.exp() < self.threshold  # (B, T)
        passes = (rollout.mask & ~is_low).long()  # (B, T)
        if not bool((rollout.mask & is_low).any()):
            passes = torch.zeros_like(passes)
        weights = probability_weights(rollout, self.alpha)  # (B, T)
        return Selection(weights=weights, counts=rollout.lengths.float(), passes=passes)


def probability_weights(rollout: Rollout, alpha: float) -> Tensor:
    """Return α·π + 1 - α for each completion token, (B, T); 0 after the end."""
    return torch.where(rollout.mask, alpha * rollout.log_probs.exp() + (1 - alpha), 0.0)

"""Samplers that choose a fixed number or share of tokens: is it the shape of S-GRPO that matters, or sparsity?"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Generator, Tensor

from rlsparse.batch import Rollout, Selection
from rlsparse.components.component import OneOf
from rlsparse.components.token_sampler.base import ROUNDING, SizedSampler, largest

LARGEST_QUANTILE = 2**24  # torch.quantile refuses more numbers before torch 2.15, and on Apple's GPUs


@dataclass(frozen=True)
class Random(SizedSampler):
    """k tokens of each completion, drawn uniformly without replacement (ours).

    With ``reweight`` each has the weight length/k, which is 1/p of its inclusion probability p = min(1, k/length), and
    means are over the whole completion. The sparse gradient is then an unbiased estimate of the full one
    (Horvitz-Thompson), as that of uniform random sampling in NAT (2603.06619). Without ``reweight`` means are over the
    chosen tokens. That is unbiased for ``objective=sequence_mean``, and biased for means over several completions.

    Attributes:
        reweight: whether weights are 1/p instead of 1.
    """

    reweight: bool

    def __call__(self, advantages: Tensor, rollout: Rollout, generator: Generator) -> Selection:
        scores = torch.rand(rollout.completion_ids.shape, generator=generator).to(rollout.lengths.device)  # (B, T)
        selection = largest(scores, rollout.mask, self.sizes(rollout.lengths))
        return self.reweighted(selection, rollout.lengths) if self.reweight else selection

    def reweighted(self, selection: Selection, lengths: Tensor) -> Selection:
        """Return a selection of k tokens a completion with the weights 1/p.

        Args:
            lengths: (B,) long.
        """
        inverse_probability = (lengths.float() / self.sizes(lengths)).clamp(min=1.0)  # (B,)
        return Selection(weights=selection.weights * inverse_probability[:, None], counts=lengths.float())


@dataclass(frozen=True)
class First(SizedSampler):
    """The first k tokens of each completion (ours). It is biased: later tokens never enter the loss."""

    def __call__(self, advantages: Tensor, rollout: Rollout, generator: Generator) -> Selection:
        position = torch.arange(rollout.completion_ids.shape[1], device=rollout.lengths.device)  # (T,)
        scores = -position.float().expand_as(rollout.completion_ids)  # (B, T)
        return largest(scores, rollout.mask, self.sizes(rollout.lengths))


@dataclass(frozen=True)
class HighEntropy(SizedSampler):
    """The tokens at which the model that sampled them had the highest entropy. It is biased.

    ``scope=completion`` (ours) takes the k tokens of each completion with the highest entropy; a mean is over the
    chosen tokens.

    ``scope=batch`` is Wang et al. 2025 (2506.01939, top 20 %): it takes all tokens of the batch whose entropy is at
    least the (1 - share)-quantile of all entropies of the batch, with linear interpolation. Equal entropies at that
    bound are all taken. A mean is over all tokens of the completion: the divisor counts the tokens that are left out,
    as in the paper and in TRL 1.16. The mask equals that of TRL's ``top_entropy_quantile`` on the same entropies.
    Three things differ from TRL. TRL takes the entropy of the policy at each update and the quantile over the
    microbatch of all ranks; here it is the entropy at sampling, over the whole rollout batch. TRL keeps the KL term on
    all tokens; here it is on the chosen tokens, as with every token sampler. With ``train.mask_truncated`` the tokens
    of truncated completions count in the quantile here, and not in TRL.

    Attributes:
        scope: ``completion`` or ``batch``. A batch has no budget, since its number of completions may vary.
    """

    needs_entropy: ClassVar[bool] = True

    scope: Annotated[str, OneOf("completion", "batch")]
    neutral: ClassVar[Mapping[str, Any]] = {**SizedSampler.neutral, "scope": "completion"}

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.scope == "batch" and self.budget is not None and self.share is None:
            yield (
                f"budget={self.budget}: token_sampler.scope=batch takes a share of all tokens of the batch; give "
                "token_sampler.share=0.2 token_sampler.budget=null, or token_sampler.scope=completion"
            )

    def __call__(self, advantages: Tensor, rollout: Rollout, generator: Generator) -> Selection:
        assert rollout.entropy is not None
        if self.scope == "completion":
            return largest(rollout.entropy, rollout.mask, self.sizes(rollout.lengths))
        assert self.share is not None
        chosen = highest_share(rollout.entropy, rollout.mask, self.share)  # (B, T)
        return Selection(weights=chosen.float(), counts=rollout.lengths.float())


def highest_share(scores: Tensor, mask: Tensor, share: float) -> Tensor:
    """Return which tokens have a score of at least the (1 - share)-quantile of all tokens, (B, T) bool.

    Args:
        scores: (B, T). mask: (B, T) bool, True on completion tokens.
    """
    inside = scores[mask].float()  # (number of completion tokens,)
    if len(inside) == 0:
        return torch.zeros_like(mask)
    return mask & (scores.float() >= _quantile(inside, 1 - share))


def _quantile(numbers: Tensor, q: float) -> Tensor:
    """Return the q-quantile with linear interpolation; of very many numbers, the next of them that is not below it.

    No number lies between the two, so that the same numbers are at least as large.
    """
    if len(numbers) <= LARGEST_QUANTILE:
        return torch.quantile(numbers, q)
    place = math.ceil(q * (len(numbers) - 1) - ROUNDING)  # from 0
    return numbers.kthvalue(place + 1).values

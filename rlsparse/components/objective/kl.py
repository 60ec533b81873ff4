"""The KL penalty, from sampled tokens. Config group ``kl``."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from rlsparse.components.component import Component, Range


@dataclass(frozen=True)
class KLPenalty(Component, ABC):
    """A term of each selected token that keeps the policy near the base model.

    Attributes:
        beta: weight of the term in the loss; where it is 0 the base model is never evaluated.
    """

    beta: Annotated[float, Range(0)]

    @abstractmethod
    def __call__(self, log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
        """Return the estimate at each token, (b, T), nats.

        Args:
            log_probs: (b, T) under the policy, with gradient.
            reference_log_probs: (b, T) under the base model.
        """


@dataclass(frozen=True)
class K3(KLPenalty):
    """exp(d) − d − 1, d = log π_ref − log π: unbiased for KL(π‖π_ref) under π, never negative. Shao et al. 2024, eq. 4.

    Its gradient in the loss, on tokens sampled from π, is that of KL(π_ref‖π).
    """

    def __call__(self, log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
        d = reference_log_probs - log_probs  # (b, T)
        return torch.exp(d) - d - 1

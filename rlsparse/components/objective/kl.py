"""KL(π ‖ π_ref) from sampled tokens."""

import torch
from torch import Tensor


def k3(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """exp(d) − d − 1 with d = log π_ref − log π: unbiased under π, never negative (nats). Shao et al. 2024, eq. 4."""
    d = reference_log_probs - log_probs
    return torch.exp(d) - d - 1

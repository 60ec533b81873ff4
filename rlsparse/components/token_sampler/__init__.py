"""Which tokens enter the loss, and with what weight. Pure functions of the advantages and the rollout.

Every sampler is ``f(advantages (B, T), rollout, config, generator) -> Selection``.
"""

from collections.abc import Callable
from typing import Any

from torch import Generator, Tensor

from rlsparse.batch import Rollout, Selection
from rlsparse.components.token_sampler.budget import first, high_entropy, random
from rlsparse.components.token_sampler.stochastic import stochastic
from rlsparse.config.schema import TokenSamplerConfig


def full(advantages: Tensor, rollout: Rollout, config: TokenSamplerConfig, generator: Generator) -> Selection:
    """Every completion token: GRPO, RGRA."""
    return Selection(weights=rollout.mask.float(), counts=rollout.lengths.float())


def prefix_tree(advantages: Tensor, rollout: Rollout, config: TokenSamplerConfig, generator: Generator) -> Selection:
    """The transitions with a non-zero advantage: T-SPMO. They are distinct, since the credit names each only once."""
    weights = (advantages != 0).float()  # (B, T)
    return Selection(weights=weights, counts=weights.sum(dim=1))


TOKEN_SAMPLERS: dict[str, Callable[[Tensor, Rollout, Any, Generator], Selection]] = {
    "full": full,
    "stochastic": stochastic,
    "prefix_tree": prefix_tree,
    "random": random,
    "first": first,
    "high_entropy": high_entropy,
}

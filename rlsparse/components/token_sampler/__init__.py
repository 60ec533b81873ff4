"""Token samplers: which tokens enter the loss, and with what weight. Config group ``token_sampler``."""

from rlsparse.components.token_sampler.base import SizedSampler, TokenSampler, largest

__all__ = ["SizedSampler", "TokenSampler", "largest"]

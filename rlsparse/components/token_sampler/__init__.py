"""Token samplers: which tokens enter the loss, and with what weight. Config group ``token_sampler``."""

from rlsparse.components.token_sampler.base import TokenSampler, largest

__all__ = ["TokenSampler", "largest"]

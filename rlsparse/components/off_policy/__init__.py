"""Off-policy corrections: weights for tokens that another model sampled. Config group ``off_policy``."""

from rlsparse.components.off_policy.base import Mismatch, OffPolicyWeight

__all__ = ["Mismatch", "OffPolicyWeight"]

"""The objective: surrogate, KL penalty and aggregation. Config groups ``clipping``, ``kl`` and ``objective``."""

from rlsparse.components.objective.aggregation import Aggregation
from rlsparse.components.objective.kl import KLPenalty
from rlsparse.components.objective.surrogate import RowSurrogate, Surrogate
from rlsparse.components.objective.token_loss import ScoredTokens, TokenLoss, TokenObjective

__all__ = ["Aggregation", "KLPenalty", "RowSurrogate", "ScoredTokens", "Surrogate", "TokenLoss", "TokenObjective"]

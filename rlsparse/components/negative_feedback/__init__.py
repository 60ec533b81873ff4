"""Negative feedback: what happens to advantages below zero. Config group ``negative_feedback``."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from rlsparse.components.component import Component


@dataclass(frozen=True)
class NegativeFeedback(Component, ABC):
    """Changes advantages by their sign, after any advantage."""

    @abstractmethod
    def __call__(self, advantages: Tensor) -> Tensor:
        """Return the advantages that enter the loss, (B, T).

        Args:
            advantages: (B, T).
        """


@dataclass(frozen=True)
class Switch(NegativeFeedback):
    """Keeps A, or replaces it by max(A, 0): the ablation "positive only" of Carrino et al. 2026 (2603.18756)."""

    enabled: bool

    def __call__(self, advantages: Tensor) -> Tensor:
        return advantages if self.enabled else advantages.clamp(min=0)

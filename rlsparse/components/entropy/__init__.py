"""The entropy bonus. Config group ``entropy``."""

from dataclasses import dataclass
from typing import Annotated

from rlsparse.components.component import Component, Range

__all__ = ["EntropyBonus"]


@dataclass(frozen=True)
class EntropyBonus(Component):
    """Adds −coefficient·H(π(·|prefix)) to the loss of each chosen token: H is the entropy at the sampling temperature.

    As in A3C, Mnih et al. 2016 (1602.01783), section 4, and PPO, Schulman et al. 2017 (1707.06347), eq. 9.

    Attributes:
        coefficient: weight of the entropy, reward per nat; where it is 0, no entropy is computed. A negative one lowers
            the entropy.
    """

    coefficient: Annotated[float, Range()]

    @property
    def is_neutral(self) -> bool:
        return self.coefficient == 0

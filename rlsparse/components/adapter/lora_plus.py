"""LoRA+: the learning rate of B is a multiple of that of A (2402.12354)."""

from dataclasses import dataclass
from typing import Annotated

from torch.optim import AdamW, Optimizer

from rlsparse.components.adapter.lora import Lora, LoraMatrices
from rlsparse.components.component import Range
from rlsparse.model.policy import Policy


@dataclass(frozen=True)
class LoraPlus(Lora):
    """LoRA+, Hayou et al. 2024 (2402.12354): LoRA whose B learns ``lr_ratio`` times as fast as its A.

    Attributes:
        lr_ratio: λ = η_B / η_A; ``train.lr`` is η_A.
    """

    lr_ratio: Annotated[float, Range(0, above=True)]

    def attach(self, policy: Policy, rank: int, seed: int) -> "TwoRateMatrices":
        return TwoRateMatrices(policy, self, rank, seed)


class TwoRateMatrices(LoraMatrices):
    """LoRA matrices, of which A and B have learning rates of their own."""

    def __init__(self, policy: Policy, config: LoraPlus, rank: int, seed: int) -> None:
        super().__init__(policy, config, rank, seed)
        self._lr_ratio = config.lr_ratio

    def optimizer(self, lr: float, weight_decay: float) -> Optimizer:
        """Return AdamW with a group of all A and one of all B; a schedule moves both alike."""
        A = [layer.lora_A["default"].weight for layer in self.layers.values()]
        B = [layer.lora_B["default"].weight for layer in self.layers.values()]
        rates = ((A, lr), (B, self._lr_ratio * lr))
        groups = [{"params": matrices, "lr": rate, "initial_lr": rate} for matrices, rate in rates]
        return AdamW(groups, lr=lr, weight_decay=weight_decay)

"""AdaLoRA: triplets B·diag(E)·A, of which the unimportant ones are masked on a schedule (2303.10512)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rlsparse.components.adapter.base import add_gradient
from rlsparse.components.adapter.peft_method import PeftMethod, PeftParameters
from rlsparse.components.adapter.peft_settings import refused_values
from rlsparse.components.component import Range
from rlsparse.config.schema import ConfigError
from rlsparse.model.policy import Policy

RATIO = 1.5  # init_r / target_r of the paper
TINY = 1e-12  # of a norm, whose gradient at 0 is taken to be 0
MASK, MEAN, DEVIATION, PHASE = "mask.", "sensitivity_mean.", "sensitivity_deviation.", "phase"  # in a checkpoint
BEFORE_THE_FIRST_STEP = {"total_step": 10**9, "tinit": 0, "tfinal": 0}  # the steps are known after the first one


@dataclass(frozen=True)
class AdaLora(PeftMethod):
    """AdaLoRA, Zhang et al. 2023 (2303.10512): ΔW = scale·B·diag(E)·A, with a falling number of non-zero entries of E.

    The importance of a triplet (a row of A, a column of B, an entry of E) is a running mean of |θ·∂L/∂θ| times its
    running deviation. All triplets of the model compete: the least important ones are masked, E = 0, until
    ``target_r`` times the number of adapters are left.

    Attributes:
        warmup: share of the training steps before the first triplet is masked.
        final: share of the training steps after the last one; the mask stays as it is.
    """

    moves_ranks: ClassVar[bool] = True

    warmup: Annotated[float, Range(0, 1, below=True)]
    final: Annotated[float, Range(0, 1, below=True)]

    def method_problem(self) -> str | None:
        wrong = f"method={self.method}: must be ADALORA; take adapter=peft for another method of peft"
        return None if self.method == "ADALORA" else wrong

    def setting_problems(self, values: Mapping[str, Any]) -> Iterator[str]:
        keys = {"tinit": "adapter.warmup", "tfinal": "adapter.final", "total_step": "the number of training steps"}
        for key in ("rank_pattern", "r", *keys):
            if key in values:
                yield f"settings.{key}={values[key]}: give {keys.get(key, 'adapter.settings.target_r')} instead"
        for key in ("target_r", "init_r", "deltaT"):
            if values.get(key, 1) < 1:
                yield f"settings.{key}={values[key]}: must be at least 1"
        for key in ("beta1", "beta2"):
            if not 0 < values.get(key, 0.85) < 1:
                yield f"settings.{key}={values[key]}: must be in (0, 1)"
        yield from refused_values(self.method, {**values, **BEFORE_THE_FIRST_STEP, "init_r": 1})

    @property
    def target_rank(self) -> int:
        """The mean rank at the end."""
        return int(self.settings.get("target_r", 8))

    @property
    def first_rank(self) -> int:
        """The rank of each adapter at the start."""
        return int(self.settings.get("init_r") or ceil(RATIO * self.target_rank))

    def schedule(self, steps: int) -> tuple[int, int]:
        """Return the last step before triplets are masked, and the step at which the mask becomes final."""
        return round(self.warmup * steps), steps - round(self.final * steps)

    def check(self, model: nn.Module, rank: int, steps: int) -> None:
        if self.first_rank <= self.target_rank:
            raise ConfigError(
                f"adapter.settings.init_r={self.first_rank}: must be above adapter.settings.target_r="
                f"{self.target_rank}, so that there is something to mask; raise it"
            )
        begin, end = self.schedule(steps)
        if end < max(2, begin + 1):  # step 1 gives the first importance
            raise ConfigError(
                f"adapter.warmup={self.warmup} adapter.final={self.final}: of {steps} steps they leave none in which "
                "ranks fall; give smaller shares, or more steps"
            )
        super().check(model, rank, steps)

    def check_ranks(self, model: nn.Module) -> None:
        self.check_rank(model, self.first_rank, "adapter.settings.init_r")

    def schedule_values(self) -> dict[str, Any]:
        return {**BEFORE_THE_FIRST_STEP, "init_r": self.first_rank}

    def trains(self, name: str) -> bool:
        return "ranknum" not in name  # a constant, which peft 0.21 makes trainable where it casts it to float32

    def attach(self, policy: Policy, rank: int, seed: int) -> "Triplets":
        return Triplets(policy, self, seed)


class Triplets(PeftParameters):
    """The triplets of AdaLoRA in the model of a policy, with their importance.

    Attributes:
        budget: sum of the ranks at the start.
    """

    budget: int

    def __init__(self, policy: Policy, config: AdaLora, seed: int) -> None:
        self._mask: dict[str, Tensor] = {}  # by module: (r,) bool, the triplets that stay; empty before the first mask
        super().__init__(policy, config, seed)
        self._adalora = config
        self._allocator: Any = self.model.base_model.rankallocator
        self._counts = True  # whether gradients of the next training step count in the importance
        self._final = False  # whether the mask stays as it is

    def optimizer(self, lr: float, weight_decay: float) -> Optimizer:
        optimizer = super().optimizer(lr, weight_decay)
        optimizer.register_step_post_hook(self._after_optimizer_step)
        return optimizer

    @torch.no_grad()
    def penalty(self, l2: float) -> float:
        """Add the gradients of the penalties and return their value.

        That of AdaLoRA is ``orth_reg_weight`` times the mean of ‖P·Pᵀ − I‖ over all A and Bᵀ, which keeps the triplets
        apart. peft adds it to the loss in a forward pass of its own, which is not used here.
        """
        total = super().penalty(l2)
        weight = self.model.peft_config["default"].orth_reg_weight
        matrices = [(one, "lora_A" in name) for name, one in self._trained.items() if "lora_E" not in name]
        norms = torch.zeros((), device=matrices[0][0].device)
        for matrix, is_A in matrices if weight > 0 else []:
            P = matrix if is_A else matrix.T  # (r, in) or (r, out)
            difference = P @ P.T - torch.eye(len(P), device=P.device)  # (r, r)
            norm = difference.norm()
            norms = norms + norm
            gradient = (2 * weight / len(matrices)) / norm.clamp(min=TINY) * (difference @ P)  # as P
            add_gradient(matrix, gradient if is_A else gradient.T)
        return total + weight / len(matrices) * float(norms)

    def after_step(self, step: int, steps: int) -> dict[str, float]:
        """Mask triplets where the schedule says so; return metrics by their names."""
        begin, end = self._adalora.schedule(steps)
        peft_config = self.model.peft_config["default"]
        peft_config.total_step, peft_config.tinit, peft_config.tfinal = steps, begin, steps - end
        metrics: dict[str, float] = {}
        budget, due = self._allocator.budget_schedule(step)
        if step <= end and (due or step == end) and self._allocator.exp_avg_ipt:
            metrics = self._mask_to(budget)
        if step == end:
            self._allocator.reset_ipt()
        self._counts, self._final = step + 1 < end, step >= end
        metrics["adapter/rank_total"] = sum(self.ranks().values())
        return {**metrics, "adapter/parameters": self.parameter_count()}

    def parameter_count(self) -> int:
        """Return the number of parameters of the triplets that are not masked."""
        ranks = self.ranks()
        return sum(ranks[name] * (layer.in_features + layer.out_features + 1) for name, layer in self.layers.items())

    def ranks(self) -> dict[str, int]:
        """Return the number of triplets that the latest mask has kept, by module; before the first one, all of them."""
        return {name: int(self._mask[name].sum()) if self._mask else rank for name, rank in super().ranks().items()}

    def state(self) -> dict[str, Tensor]:
        phase = torch.tensor([self._counts, self._final])  # (2,)
        return {**super().state(), **{name: one.clone() for name, one in self._importance().items()}, PHASE: phase}

    def load_state(self, state: dict[str, Tensor]) -> None:
        own = {name: one for name, one in state.items() if not name.startswith((MASK, MEAN, DEVIATION, PHASE))}
        super().load_state(own)
        device = next(iter(self._trained.values())).device
        self._mask = {name: one.to(device) for name, one in _under(MASK, state).items()}
        self._allocator.exp_avg_ipt = {name: one.to(device) for name, one in _under(MEAN, state).items()}
        self._allocator.exp_avg_unc = {name: one.to(device) for name, one in _under(DEVIATION, state).items()}
        self._allocator.ipt = dict(self._allocator.exp_avg_ipt)  # peft looks for its keys alone
        self._counts, self._final = state[PHASE].tolist()

    def export(self, folder: Path) -> None:
        """Write the adapter in the format of peft, without triplets that are 0.

        A run that ends between two masks, since it diverged, may have brought masked triplets back: these are written.
        """
        with self._exported_config() as config:
            if self._mask:
                config.rank_pattern = {
                    f"{name}.lora_E": (layer.lora_E["default"] != 0).flatten().tolist()
                    for name, layer in self.layers.items()
                }
            self.model.save_pretrained(str(folder), save_embedding_layers=False)

    def _after_optimizer_step(self, *_: Any) -> None:
        """Update the importance from the gradients; or, once the mask is final, mask what the optimizer has moved.

        With several optimizer steps in a training step, this is done after each, as in peft.
        """
        if self._final:
            self._apply_mask()
        elif self._counts:
            self._allocator.update_ipt(self.model.get_base_model())

    def _mask_to(self, budget: int) -> dict[str, float]:
        """Mask all but the most important triplets; return how many have left, and how many have come back."""
        pattern = self._allocator.mask_to_budget(self.model.get_base_model(), budget)
        before = self._mask
        self._mask = {
            name: torch.tensor(pattern[f"{name}.lora_E.default"], device=layer.lora_E["default"].device)
            for name, layer in self.layers.items()
        }
        left = sum(int((before.get(name, torch.ones_like(one)) & ~one).sum()) for name, one in self._mask.items())
        back = sum(int((~before.get(name, torch.ones_like(one)) & one).sum()) for name, one in self._mask.items())
        return {"adapter/pruned": left, "adapter/reassigned": back}

    @torch.no_grad()
    def _apply_mask(self) -> None:
        for name, mask in self._mask.items():
            self.layers[name].lora_E["default"].masked_fill_(~mask[:, None], 0.0)

    def _importance(self) -> dict[str, Tensor]:
        """Return mask, mean and deviation of the sensitivities by name, for a checkpoint."""
        parts = ((MASK, self._mask), (MEAN, self._allocator.exp_avg_ipt), (DEVIATION, self._allocator.exp_avg_unc))
        return {f"{prefix}{name}": one for prefix, named in parts for name, one in named.items()}


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): one for name, one in state.items() if name.startswith(prefix)}

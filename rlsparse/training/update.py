"""The optimizer step: microbatches of the rows with a token in the loss, forward, loss, backward, AdamW."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rlsparse.algorithm import Algorithm
from rlsparse.batch import NonFiniteError, ScoredBatch
from rlsparse.components.component import with_shape
from rlsparse.components.off_policy import Mismatch
from rlsparse.config.schema import TrainConfig
from rlsparse.model.policy import LogProbs, Policy
from rlsparse.runtime.distributed import World
from rlsparse.training.microbatch import FitMicrobatches, Microbatch, share_of

# share of the peak learning rate, by the share of the steps after warm-up that are done
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the learning rate of a training step, counted from 1: linear warm-up, then the schedule.

    ``linear`` and ``cosine`` fall towards 0, which they would reach one step after the last. The rate is a function of
    the step alone: a step without an update moves it too, and resuming needs nothing saved.
    """
    return config.lr * _share_of_peak(step, config)


def set_learning_rates(optimizer: Optimizer, step: int, config: TrainConfig) -> None:
    """Give each parameter group its share of its own peak, ``initial_lr``; the schedule is the same for all."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * _share_of_peak(step, config)


def _share_of_peak(step: int, config: TrainConfig) -> float:
    if step <= config.warmup_steps:
        return step / (config.warmup_steps + 1)
    done = (step - 1 - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return SCHEDULES[config.schedule](done)


@dataclass(frozen=True)
class UpdateMetrics:
    """Means over the optimizer steps of a batch, by their documented names without prefix."""

    updates: int = 0
    loss: float = 0.0
    kl: float = 0.0
    frac_clipped: float = 0.0
    grad_norm: float = 0.0
    mismatch: Mismatch = field(default_factory=Mismatch)


@dataclass(frozen=True)
class Updater:
    """Takes the optimizer steps on a batch.

    Attributes:
        log_probs_of: the code path that scores tokens: ``token_log_probs`` or ``packed_log_probs``.
        fit: cuts a batch into microbatches.
        world: the ranks that share the prompts of a batch; each takes the step of the whole batch.
    """

    policy: Policy
    log_probs_of: LogProbs
    optimizer: Optimizer
    algorithm: Algorithm
    config: TrainConfig
    fit: FitMicrobatches
    world: World

    def __call__(self, batch: ScoredBatch) -> UpdateMetrics:
        """Take ``train.updates_per_rollout`` optimizer steps on a batch; none if no token has an advantage.

        Raises:
            NonFiniteError: before a step that would make the parameters non-finite.
        """
        if not bool((batch.scales != 0).any()):
            return UpdateMetrics()
        passes = _Passes.of(self, share_of(batch, self.world))
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        penalised = [p for group in self.optimizer.param_groups if group.get("l2", True) for p in group["params"]]
        total = _Sums()
        grad_norm = 0.0
        for _ in range(self.config.updates_per_rollout):
            done = self.fit(passes.batch, passes.gradient)
            self.world.add_gradients(parameters)
            total += done.over(self.world)
            total.loss += _add_l2(penalised, self.algorithm.objective.l2)
            norm = _clip_gradient(parameters, self.config.max_grad_norm)
            grad_norm += norm
            if not (math.isfinite(total.loss) and math.isfinite(norm)):
                raise NonFiniteError(f"the loss is {total.loss}, its gradient norm {norm}")
            self.optimizer.step()
        n = self.config.updates_per_rollout
        mismatch = sum(self.world.gathered([passes.mismatch]), Mismatch())
        clipped = total.clipped / max(1, total.tokens)
        return UpdateMetrics(n, total.loss / n, total.kl / n, clipped, grad_norm / n, mismatch)


@dataclass
class _Sums:
    """Sums over the microbatches of a pass."""

    loss: float = 0.0
    kl: float = 0.0
    clipped: float = 0.0
    tokens: int = 0

    def __add__(self, other: "_Sums") -> "_Sums":
        return _Sums(
            self.loss + other.loss, self.kl + other.kl, self.clipped + other.clipped, self.tokens + other.tokens
        )

    def over(self, world: World) -> "_Sums":
        """Return the sums over all ranks."""
        return sum(world.gathered([self]), _Sums())


@dataclass
class _Passes:
    """Several passes over one batch.

    Attributes:
        reference: (B, T) log-probabilities under the base model; None without a KL term.
        completion_ratios: (B, 1) π_old/μ of whole completions; None where no weight depends on them.
        old: (B, T) log π_old, from the first pass, on the same code path as π; None before it.
        scales: (B, T) corrected for the model that sampled the tokens; such a weight may underflow to 0.
    """

    updater: Updater
    batch: ScoredBatch
    reference: Tensor | None = None
    completion_ratios: Tensor | None = None
    old: Tensor | None = None
    scales: Tensor | None = None
    mismatch: Mismatch = field(default_factory=Mismatch)

    @classmethod
    def of(cls, updater: Updater, batch: ScoredBatch) -> "_Passes":
        passes = cls(updater, batch)
        if updater.algorithm.kl.beta > 0:
            passes.reference = updater.fit(batch, passes._reference_log_probs)
        if not batch.on_policy and updater.algorithm.off_policy.needs_whole_rows:
            passes.completion_ratios = updater.fit(batch, passes._completion_ratios)
        return passes

    def gradient(self, pieces: list[Microbatch], _: int) -> _Sums:
        """Compute the gradient of the loss from zero and store it in the parameters."""
        self.updater.optimizer.zero_grad()
        first = self.old is None
        old = torch.zeros_like(self.batch.scales) if self.old is None else self.old  # (B, T)
        scales = torch.zeros_like(self.batch.scales) if self.scales is None else self.scales  # (B, T)
        if first:
            self.mismatch = Mismatch()  # an attempt that ran out of memory has left a part of it
        done = _Sums()
        for piece in pieces:
            rows, width = piece.rows, piece.needed.shape[1]
            log_probs = self._log_probs(rows, piece.needed)  # (b, T)
            if first:
                old[rows, :width] = log_probs.detach()
                scales[rows, :width] = self._corrected(piece, log_probs.detach())
            part = self.updater.algorithm.token_objective(
                log_probs,
                old[rows, :width],
                None if self.reference is None else self.reference[rows, :width],
                self.batch.advantages[rows, :width],
                scales[rows, :width],
            )
            part.loss.backward()
            done += _Sums(float(part.loss.detach()), part.kl, part.clipped, part.tokens)
        self.old, self.scales = old, scales
        return done

    def _log_probs(self, rows: Tensor, needed: Tensor) -> Tensor:
        """Return the log-probabilities of the policy, (b, T)."""
        temperature = self.updater.algorithm.rollout.temperature
        return self.updater.log_probs_of(self.updater.policy, self.batch.rollout, rows, needed, temperature)

    def _reference_log_probs(self, pieces: list[Microbatch], _: int) -> Tensor:
        """Return the log-probabilities under the base model, (B, T)."""
        found = torch.zeros_like(self.batch.scales)
        with torch.no_grad(), self.updater.policy.reference():
            for piece in pieces:
                found[piece.rows, : piece.needed.shape[1]] = self._log_probs(piece.rows, piece.needed)
        return found

    def _completion_ratios(self, pieces: list[Microbatch], tokens: int) -> Tensor:
        """Return π_old/μ of whole completions, (B, 1).

        A completion may be longer than the tokens of it that the loss looks at, so the rows are cut anew.
        """
        rollout, found = self.batch.rollout, torch.ones_like(self.batch.scales[:, :1])
        most = max(1, tokens // rollout.completion_ids.shape[1])  # rows
        with torch.no_grad():
            for piece in pieces:
                for rows in piece.rows.split(most):
                    mask = rollout.mask[rows]  # (b, T)
                    old = self._log_probs(rows, mask)  # (b, T)
                    ratio = self.updater.algorithm.off_policy.ratio(old, rollout.log_probs[rows], mask)
                    found[rows] = ratio[:, :1]
        return found

    def _corrected(self, piece: Microbatch, old: Tensor) -> Tensor:
        """Return the scales of a microbatch times the off-policy weights of its tokens, (b, T), and note the mismatch.

        Args:
            old: (b, T) log π_old.
        """
        chosen, width = piece.needed, piece.needed.shape[1]  # (b, T)
        scales = self.batch.scales[piece.rows, :width]  # (b, T)
        if self.batch.on_policy:
            return scales
        correction = self.updater.algorithm.off_policy
        behaviour = self.batch.rollout.log_probs[piece.rows, :width]  # (b, T)
        if self.completion_ratios is None:
            ratio = correction.ratio(old, behaviour, chosen)  # (b, T)
        else:
            ratio = self.completion_ratios[piece.rows].expand_as(old)
        weights = torch.where(chosen, correction(ratio), 0.0)  # (b, T)
        with_shape("off_policy", correction, weights, tuple(chosen.shape))  # they may overflow, as ratios do
        self.mismatch.add((old - behaviour)[chosen], ratio[chosen], weights[chosen], correction.ceiling)
        return torch.where(chosen, scales * weights, 0.0)


def _add_l2(parameters: list[nn.Parameter], weight: float) -> float:
    """Add the gradient of weight · Σθ² to the gradients of the parameters and return that term of the loss."""
    if weight == 0:
        return 0.0
    total = 0.0
    for parameter in parameters:
        total += weight * float(parameter.detach().square().sum())
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach(), alpha=2 * weight)
    return total


def _clip_gradient(parameters: list[nn.Parameter], max_norm: float) -> float:
    limit = max_norm if max_norm > 0 else math.inf
    return float(nn.utils.clip_grad_norm_(parameters, limit))

"""The optimizer step: microbatches of the rows with a token in the loss, forward, loss, backward, AdamW."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rlsparse.algorithm import Algorithm
from rlsparse.batch import NonFiniteError, Rollout, ScoredBatch
from rlsparse.components.component import with_shape
from rlsparse.components.objective import ScoredTokens
from rlsparse.components.off_policy import Mismatch
from rlsparse.config.schema import TrainConfig
from rlsparse.model.policy import Policy, ScoringPath
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
    """Means over the optimizer steps of a rollout batch, by their documented names without prefix."""

    updates: int = 0
    loss: float = 0.0
    kl: float = 0.0
    entropy: float | None = None
    frac_clipped: float = 0.0
    grad_norm: float = 0.0
    mismatch: Mismatch = field(default_factory=Mismatch)


@dataclass(frozen=True)
class Updater:
    """Takes the optimizer steps on a rollout batch.

    Attributes:
        path: the code path that scores tokens.
        fit: cuts a batch into microbatches.
        world: the ranks that share the prompts of a batch; each takes the step of the whole batch.
        reference: returns a context within which the model is the reference policy of the KL term.
        penalty: adds the gradient of further penalties on the parameters; see ``TrainedAdapter.penalty``.
    """

    policy: Policy
    path: ScoringPath
    optimizer: Optimizer
    algorithm: Algorithm
    config: TrainConfig
    fit: FitMicrobatches
    world: World
    reference: Callable[[], AbstractContextManager[None]]
    penalty: Callable[[float], float] = lambda l2: 0.0

    def __call__(self, batches: Sequence[ScoredBatch]) -> UpdateMetrics:
        """Take an optimizer step on each batch, in this order, and all of them ``train.updates_per_rollout`` times.

        A batch in which no token has a scale gets no step.

        Args:
            batches: the minibatches of a rollout batch. Their log-probabilities under π_old are those of the policy
                before the first step.

        Raises:
            NonFiniteError: before a step that would make the parameters non-finite.
        """
        parts = [
            _Minibatch.of(self, share_of(batch, self.world)) for batch in batches if bool((batch.scales != 0).any())
        ]
        bonus = self.algorithm.entropy.coefficient != 0
        if not parts:
            return UpdateMetrics(entropy=0.0 if bonus else None)
        for part in parts[1:]:  # the first one is scored in the forward pass of its gradient
            part.score_old()
        total, grad_norm = _Sums(), 0.0
        n = self.config.updates_per_rollout * len(parts)
        for _ in range(self.config.updates_per_rollout):
            for part in parts:
                total, norm = self._step(part, total)
                grad_norm += norm
        mismatch = sum(self.world.gathered([part.mismatch for part in parts]), Mismatch())
        return UpdateMetrics(
            updates=n,
            loss=total.loss / n,
            kl=total.kl / n,
            entropy=total.entropy / n if bonus else None,
            frac_clipped=total.clipped / max(1, total.tokens),
            grad_norm=grad_norm / n,
            mismatch=mismatch,
        )

    def _step(self, part: "_Minibatch", total: "_Sums") -> "tuple[_Sums, float]":
        """Take an optimizer step on a minibatch; return the sums with those of the step, and its gradient norm."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        penalised = [p for group in self.optimizer.param_groups if group.get("l2", True) for p in group["params"]]
        done = self.fit(part.batch, part.gradient)
        self.world.add_gradients(parameters)
        total = total + done.over(self.world)
        l2 = self.algorithm.objective.l2
        total.loss += _add_l2(penalised, l2) + self.penalty(l2)
        norm = _clip_gradient(parameters, self.config.max_grad_norm)
        if not (math.isfinite(total.loss) and math.isfinite(norm)):
            raise NonFiniteError(f"the loss is {total.loss}, its gradient norm {norm}")
        self.optimizer.step()
        return total, norm


@dataclass
class _Sums:
    """Sums over the microbatches of a step."""

    loss: float = 0.0
    kl: float = 0.0
    entropy: float = 0.0
    clipped: float = 0.0
    tokens: int = 0

    def __add__(self, other: "_Sums") -> "_Sums":
        return _Sums(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def over(self, world: World) -> "_Sums":
        """Return the sums over all ranks."""
        return sum(world.gathered([self]), _Sums())


@dataclass
class _Minibatch:
    """Several passes over one minibatch.

    Attributes:
        reference: (B, T) log-probabilities under the reference policy; None without a KL term.
        completion_ratios: (B, 1) π_old/μ of whole completions; None where no weight depends on them.
        old: (B, T) log π_old, on the same code path as π; None before it is known.
        scales: (B, T) corrected for the model that sampled the tokens; such a weight may underflow to 0.
        measures: whether the mismatch of its tokens is measured.
    """

    updater: Updater
    batch: ScoredBatch
    reference: Tensor | None = None
    completion_ratios: Tensor | None = None
    old: Tensor | None = None
    scales: Tensor | None = None
    mismatch: Mismatch = field(default_factory=Mismatch)
    measures: bool = True

    @classmethod
    def of(cls, updater: Updater, batch: ScoredBatch) -> "_Minibatch":
        part = cls(updater, batch)
        if updater.algorithm.kl.beta > 0:
            part.reference = updater.fit(batch, part._reference_log_probs)
        if not batch.on_policy and updater.algorithm.off_policy.needs_whole_rows:
            part.completion_ratios = updater.fit(batch, part._completion_ratios)
        return part

    def score_old(self) -> None:
        """Compute log π_old now, where the loss or a weight depends on it; else the first gradient does."""
        algorithm = self.updater.algorithm
        if algorithm.token_objective.uses_old_policy or (not self.batch.on_policy and algorithm.off_policy.corrects):
            self.old, self.scales = self.updater.fit(self.batch, self._old)
        else:
            self.measures = False  # its first forward pass comes after a step, and is not that of π_old

    def gradient(self, pieces: list[Microbatch], _: int) -> _Sums:
        """Compute the gradient of the loss from zero and store it in the parameters."""
        self.updater.optimizer.zero_grad()
        objective, path = self.updater.algorithm.token_objective, self.updater.path
        known = self.old is not None
        old, scales = self._unknown() if self.old is None or self.scales is None else (self.old, self.scales)  # (B, T)
        done = _Sums()
        for piece in pieces:
            rows, width = piece.rows, piece.needed.shape[1]
            entropy = None
            if objective.entropy:
                log_probs, entropy = path.log_probs_and_entropy(*self._what(rows, piece.needed))  # (b, T), (b, T)
            else:
                log_probs = path.log_probs(*self._what(rows, piece.needed))  # (b, T)
            if not known:
                old[rows, :width] = log_probs.detach()
                scales[rows, :width] = self._corrected(piece, log_probs.detach())
            tokens = ScoredTokens(
                log_probs=log_probs,
                old_log_probs=old[rows, :width],
                advantages=self.batch.advantages[rows, :width],
                scales=scales[rows, :width],
                reference=None if self.reference is None else self.reference[rows, :width],
                entropy=entropy,
                mask=piece.needed if self.batch.whole_rows else None,
            )
            part = objective(tokens)
            part.loss.backward()
            done += _Sums(float(part.loss.detach()), part.kl, part.entropy, part.clipped, part.tokens)
        self.old, self.scales = old, scales
        return done

    def _unknown(self) -> tuple[Tensor, Tensor]:
        """Return room for log π_old and the scales, (B, T) each, which the microbatches fill."""
        self.mismatch = Mismatch()  # an attempt that ran out of memory has left a part of it
        return torch.zeros_like(self.batch.scales), torch.zeros_like(self.batch.scales)

    def _what(self, rows: Tensor, needed: Tensor) -> tuple[Policy, Rollout, Tensor, Tensor, float]:
        """Return the arguments of the code path that scores tokens."""
        temperature = self.updater.algorithm.rollout.temperature
        return self.updater.policy, self.batch.rollout, rows, needed, temperature

    def _log_probs(self, rows: Tensor, needed: Tensor) -> Tensor:
        """Return the log-probabilities of the model, (b, T)."""
        return self.updater.path.log_probs(*self._what(rows, needed))

    def _old(self, pieces: list[Microbatch], _: int) -> tuple[Tensor, Tensor]:
        """Return log π_old and the corrected scales, (B, T) each."""
        old, scales = self._unknown()
        with torch.no_grad():
            for piece in pieces:
                rows, width = piece.rows, piece.needed.shape[1]
                old[rows, :width] = self._log_probs(rows, piece.needed)
                scales[rows, :width] = self._corrected(piece, old[rows, :width])
        return old, scales

    def _reference_log_probs(self, pieces: list[Microbatch], _: int) -> Tensor:
        """Return the log-probabilities under the reference policy, (B, T)."""
        found = torch.zeros_like(self.batch.scales)
        with torch.no_grad(), self.updater.reference():
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
        width = piece.needed.shape[1]
        scales = self.batch.scales[piece.rows, :width]  # (b, T)
        if self.batch.on_policy:
            return scales
        chosen = scales != 0  # (b, T)
        correction = self.updater.algorithm.off_policy
        behaviour = self.batch.rollout.log_probs[piece.rows, :width]  # (b, T)
        if self.completion_ratios is None:
            ratio = correction.ratio(old, behaviour, chosen)  # (b, T)
        else:
            ratio = self.completion_ratios[piece.rows].expand_as(old)
        weights = torch.where(chosen, correction(ratio), 0.0)  # (b, T)
        with_shape("off_policy", correction, weights, tuple(chosen.shape))  # they may overflow, as ratios do
        if self.measures:
            self.mismatch.add((old - behaviour)[chosen], weights[chosen], correction.cut(ratio[chosen]))
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

"""The optimizer step: microbatches of the rows that have something to teach, forward, loss, backward, AdamW."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rlsparse.batch import NonFiniteError, ScoredBatch
from rlsparse.components.objective import token_loss
from rlsparse.components.off_policy import OFF_POLICY, Mismatch, correction_ratio, needs_whole_rows
from rlsparse.config.schema import Config, TrainConfig
from rlsparse.model.policy import LogProbs, Policy
from rlsparse.runtime.distributed import ALONE, Ranks
from rlsparse.training.microbatch import FitMicrobatches, Microbatch, share_of

# share of the peak learning rate, by the share of the steps after warm-up that are done
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


@dataclass(frozen=True)
class UpdateMetrics:
    """Means over the step's updates, by their documented names without prefix."""

    updates: int = 0
    loss: float = 0.0
    kl: float = 0.0
    frac_clipped: float = 0.0
    grad_norm: float = 0.0
    mismatch: Mismatch = field(default_factory=Mismatch)


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of a training step, counted from 1: linear warm-up, then constant, linear or cosine.

    The latter two fall towards 0, which they would reach one step after the last.

    A function of the step alone: a step without update moves it too, and nothing about it needs saving.
    """
    return config.lr * _share_of_peak(step, config)


def set_learning_rates(optimizer: torch.optim.Optimizer, step: int, config: TrainConfig) -> None:
    """Give each parameter group its share of its own peak, ``initial_lr``; the schedule is the same for all."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * _share_of_peak(step, config)


def update(
    policy: Policy,
    log_probs_of: LogProbs,
    optimizer: torch.optim.Optimizer,
    batch: ScoredBatch,
    config: Config,
    fit: FitMicrobatches,
    ranks: Ranks = ALONE,
) -> UpdateMetrics:
    """Take ``train.updates_per_rollout`` optimizer steps on one rollout batch; none where no token can teach.

    Args:
        log_probs_of: the path that scores tokens: ``policy.token_log_probs`` or ``packed.packed_log_probs``.
        fit: cuts the batch into microbatches.
        ranks: share its prompts; each takes the step of the whole batch.

    Raises:
        NonFiniteError: before the step that would have spoiled the parameters.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    penalised = [p for group in optimizer.param_groups if group.get("l2", True) for p in group["params"]]
    if not bool((batch.scales != 0).any()):
        return UpdateMetrics()
    batch = share_of(batch, ranks)
    reference = fit(batch, lambda pieces, _: _reference_log_probs(policy, log_probs_of, batch, pieces, config))
    whole = fit(batch, lambda pieces, tokens: _completion_ratios(policy, log_probs_of, batch, pieces, tokens, config))
    before: _Before | None = None

    def one_pass(pieces: list[Microbatch], _: int) -> _Gradient:
        return _gradient(policy, log_probs_of, optimizer, batch, pieces, config, reference, whole, before)

    loss = kl = clipped = grad_norm = 0.0
    tokens = 0
    for _ in range(config.train.updates_per_rollout):
        done = fit(batch, one_pass)
        before = done.before
        ranks.add_gradients(parameters)
        done = _whole(done, ranks)
        penalty = _add_l2(penalised, config.objective.l2)
        norm = _clip_gradient(parameters, config.train.max_grad_norm)
        loss, grad_norm = loss + done.loss + penalty, grad_norm + norm
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NonFiniteError(f"the loss is {loss}, its gradient norm {norm}")
        kl, clipped, tokens = kl + done.kl, clipped + done.clipped, tokens + done.tokens
        optimizer.step()
    n = config.train.updates_per_rollout
    mismatch = sum(ranks.gathered([before.mismatch if before is not None else Mismatch()]), Mismatch())
    return UpdateMetrics(n, loss / n, kl / n, clipped / max(1, tokens), grad_norm / n, mismatch)


@dataclass(frozen=True)
class _Before:
    """What the first of several passes over a batch finds out about the policy before it moves.

    Attributes:
        old: (B, T) log π_old, on the same code path as π.
        scales: (B, T), corrected for who sampled the tokens; such a weight may underflow to 0.
    """

    old: Tensor
    scales: Tensor
    mismatch: Mismatch


@dataclass
class _Gradient:
    """Sums over a pass, whose gradient stands in the parameters."""

    before: _Before
    loss: float = 0.0
    kl: float = 0.0
    clipped: float = 0.0
    tokens: int = 0


def _gradient(
    policy: Policy,
    log_probs_of: LogProbs,
    optimizer: torch.optim.Optimizer,
    batch: ScoredBatch,
    pieces: list[Microbatch],
    config: Config,
    reference: Tensor | None,
    whole: Tensor | None,
    known: _Before | None,
) -> _Gradient:
    """The gradient of the loss, from zero; (B, T) reference log-probs and (B, 1) completion ratios where needed."""
    optimizer.zero_grad()
    zeros = torch.zeros_like(batch.scales)  # (B, T)
    done = _Gradient(known or _Before(zeros, zeros.clone(), Mismatch()))
    before = done.before
    for piece in pieces:
        rows, width = piece.rows, piece.needed.shape[1]
        log_probs = log_probs_of(policy, batch.rollout, rows, piece.needed, config.rollout.temperature)  # (b, T)
        if known is None:
            old = log_probs.detach()
            ratios = None if whole is None else whole[rows]
            before.old[rows, :width] = old
            before.scales[rows, :width] = _corrected(batch, piece, old, ratios, config, before.mismatch)
        part = token_loss(
            log_probs,
            before.old[rows, :width],
            None if reference is None else reference[rows, :width],
            batch.advantages[rows, :width],
            before.scales[rows, :width],
            config.clipping,
            config.kl,
        )
        part.loss.backward()
        done.loss += float(part.loss.detach())
        done.kl, done.clipped, done.tokens = done.kl + part.kl, done.clipped + part.clipped, done.tokens + part.tokens
    return done


def _whole(done: _Gradient, ranks: Ranks) -> _Gradient:
    """The sums over all ranks."""
    parts = ranks.gathered([(done.loss, done.kl, done.clipped, done.tokens)])
    loss, kl, clipped, tokens = (sum(values) for values in zip(*parts, strict=True))
    return _Gradient(done.before, loss, kl, clipped, int(tokens))


def _completion_ratios(
    policy: Policy, log_probs_of: LogProbs, batch: ScoredBatch, pieces: list[Microbatch], tokens: int, config: Config
) -> Tensor | None:
    """(B, 1) π_old/μ of whole completions, where a weight depends on them; else None.

    A completion may be longer than the tokens of it that the loss looks at, so the rows are cut anew.
    """
    if batch.on_policy or not needs_whole_rows(config.off_policy):
        return None
    rollout, found = batch.rollout, torch.ones_like(batch.scales[:, :1])
    most = max(1, tokens // rollout.completion_ids.shape[1])  # rows
    with torch.no_grad():
        for piece in pieces:
            for rows in piece.rows.split(most):
                mask = rollout.mask[rows]  # (b, T)
                old = log_probs_of(policy, rollout, rows, mask, config.rollout.temperature)
                found[rows] = correction_ratio(old, rollout.log_probs[rows], mask, config.off_policy)[:, :1]
    return found


def _corrected(
    batch: ScoredBatch, piece: Microbatch, old: Tensor, whole: Tensor | None, config: Config, mismatch: Mismatch
) -> Tensor:
    """The piece's scales (b, T) times the off-policy weights of its tokens; how far off they were, to ``mismatch``.

    Args:
        old: (b, T) log π_old.
        whole: (b, 1) ratios of whole completions, where they make the weights.
    """
    chosen = piece.needed  # (b, T)
    scales = batch.scales[piece.rows, : chosen.shape[1]]
    if batch.on_policy:
        return scales
    behaviour = batch.rollout.log_probs[piece.rows, : chosen.shape[1]]
    ratio = correction_ratio(old, behaviour, chosen, config.off_policy) if whole is None else whole.expand_as(old)
    weights = OFF_POLICY[config.off_policy.name](ratio, config.off_policy)  # (b, T)
    mismatch.add((old - behaviour)[chosen], ratio[chosen], weights[chosen], config.off_policy)
    return torch.where(chosen, scales * weights, 0.0)


def _share_of_peak(step: int, config: TrainConfig) -> float:
    if step <= config.warmup_steps:
        return step / (config.warmup_steps + 1)
    done = (step - 1 - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return SCHEDULES[config.schedule](done)


def _reference_log_probs(
    policy: Policy, log_probs_of: LogProbs, batch: ScoredBatch, pieces: list[Microbatch], config: Config
) -> Tensor | None:
    """(B, T) under the base model, where the loss has a KL penalty."""
    if config.kl.beta == 0:
        return None
    found = torch.zeros_like(batch.scales)
    with torch.no_grad(), policy.reference():
        for piece in pieces:
            found[piece.rows, : piece.needed.shape[1]] = log_probs_of(
                policy, batch.rollout, piece.rows, piece.needed, config.rollout.temperature
            )
    return found


def _add_l2(parameters: list[nn.Parameter], weight: float) -> float:
    """Add the gradient of weight · Σθ² to the parameters' gradients and return that term of the loss."""
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

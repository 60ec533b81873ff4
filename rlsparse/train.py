"""The training loop: prompts → rollouts → rewards → advantages → token selection → objective → optimizer → metrics."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rlsparse.adapter import Adapter
from rlsparse.advantage import degenerate_groups, token_advantages
from rlsparse.batch import Prompt, Rollout, ScoredBatch, Selection
from rlsparse.config import Config
from rlsparse.evaluate import evaluate
from rlsparse.objective.aggregation import token_scales
from rlsparse.packed import can_pack, packed_log_probs
from rlsparse.policy import LogProbs, Policy, decode, token_log_probs
from rlsparse.prompts import TaskPrompts
from rlsparse.rollout import engine
from rlsparse.streams import stream
from rlsparse.task.verifier import Score, Verifier
from rlsparse.token_sampler import TOKEN_SAMPLERS
from rlsparse.tracking.measure import Clock
from rlsparse.tracking.tracker import Tracker
from rlsparse.update import UpdateMetrics, learning_rate, set_learning_rates, update


def train(
    config: Config,
    policy: Policy,
    adapter: Adapter,
    data: TaskPrompts,
    verifier: Verifier,
    tracker: Tracker,
    clock: Clock,
) -> None:
    """Train the adapter, with an evaluation at step 0, every ``eval.every`` steps and at the end.

    Raises:
        NonFiniteError: the loss, its gradient or the policy's own log-probabilities are no longer finite numbers.
    """
    generate = engine(policy, config.rollout, tracker.say)
    select = TOKEN_SAMPLERS[config.token_sampler.name]
    group_size, max_new_tokens = config.train.group_size, config.rollout.max_new_tokens
    batches = prompt_batches(data.train, config.train.prompts_per_step, stream(config.seed, "prompts"))
    sampling, choosing = stream(config.seed, "rollout"), stream(config.seed, "token_sampler")
    log_probs_of = scoring_path(policy, config.train.packing, tracker)
    packs = log_probs_of is packed_log_probs
    optimizer = adapter.optimizer(config.train.lr, config.train.weight_decay)
    generated = selected = 0

    def held_out(step: int) -> None:
        with clock("eval"):
            result = evaluate(policy, generate, data.test, verifier, config.eval, config.rollout, config.seed)
        tracker.evaluation(step, {**result, "time/eval": clock.last["eval"]})

    held_out(0)
    if adapter.moves:
        tracker.ranks(0, adapter.ranks())
    for step in range(1, config.train.steps + 1):
        with clock("rollout"):
            prompts = next(batches)
            rollout = generate(policy, prompts, config.rollout, group_size, sampling, keep_trunk=packs)
            rollout.require_finite()
        with clock("reward"):
            texts = decode(policy, rollout)
            scores = score(verifier, prompts, texts, group_size)
            rewards = reward_tensor(scores, config).to(policy.device)  # (P, G)
        with clock("train"):
            advantages = token_advantages(rewards, rollout, config.advantage, config.negative_feedback)  # (B, T)
            selection = select(advantages, rollout, config.token_sampler, choosing)
            scales = token_scales(selection, advantages, config.objective, group_size, max_new_tokens, config.kl)
            set_learning_rates(optimizer, step, config.train)
            updated = update(policy, log_probs_of, optimizer, ScoredBatch(rollout, advantages, scales), config)
            moved = adapter.after_step(step, config.train.steps)
        generated += int(rollout.lengths.sum())
        selected += int((selection.weights != 0).sum())
        metrics = step_metrics(scores, rewards, rollout, advantages, selection, scales, updated, clock)
        totals = {
            "train/lr": learning_rate(step, config.train),
            "tokens/generated": generated,
            "tokens/selected": selected,
        }
        tracker.train(step, {**metrics, **totals, **moved})
        if "adapter/pruned" in moved:
            tracker.ranks(step, adapter.ranks())
        for row in sample_rows(step, prompts, texts, scores, rewards, config.tracker.samples):
            tracker.sample(row)
        if step % config.eval.every == 0 or step == config.train.steps:
            held_out(step)


def scoring_path(policy: Policy, packing: str, tracker: Tracker) -> LogProbs:
    """The packed path where it is wanted and the model can; else the plain one, with a line that says why."""
    if packing == "off":
        return token_log_probs
    obstacle = can_pack(policy)
    if obstacle is None:
        return packed_log_probs
    tracker.say(f"train.packing: off for this model: {obstacle}")
    return token_log_probs


def prompt_batches(prompts: Sequence[Prompt], size: int, generator: torch.Generator) -> Iterator[list[Prompt]]:
    """Endless batches of ``size`` prompts: shuffled passes over all of them, one after the other."""
    pending: list[int] = []
    while True:
        while len(pending) < size:
            pending += torch.randperm(len(prompts), generator=generator).tolist()
        yield [prompts[i] for i in pending[:size]]
        pending = pending[size:]


def score(verifier: Verifier, prompts: Sequence[Prompt], texts: Sequence[str], group_size: int) -> list[Score]:
    """The verifier's word on each of the B completions."""
    return [verifier.score(text, prompts[row // group_size].problem.answer) for row, text in enumerate(texts)]


def reward_tensor(scores: Sequence[Score], config: Config) -> Tensor:
    """(P, G) rewards."""
    rewards = [one.reward(config.task.reward) for one in scores]
    return torch.tensor(rewards).reshape(-1, config.train.group_size)


def step_metrics(
    scores: Sequence[Score],
    rewards: Tensor,
    rollout: Rollout,
    advantages: Tensor,
    selection: Selection,
    scales: Tensor,
    updated: UpdateMetrics,
    clock: Clock,
) -> dict[str, float]:
    """The step's metrics by their documented names."""
    generated = int(rollout.lengths.sum())
    in_forward = (scales != 0).any(dim=1)  # (B,)
    return {
        "task/reward_mean": float(rewards.mean()),
        "task/reward_std": float(rewards.std()) if rewards.numel() > 1 else 0.0,
        "task/accuracy": sum(one.correct for one in scores) / len(scores),
        "task/frac_answered": sum(one.answered for one in scores) / len(scores),
        "task/verifier_timeouts": sum(one.timed_out for one in scores),
        "rollout/length_mean": generated / len(scores),
        "rollout/frac_truncated": 1 - float(rollout.ended.float().mean()),
        "rollout/entropy": float(rollout.entropy.sum()) / generated,
        "rollout/frac_degenerate_groups": float(degenerate_groups(rewards).float().mean()),
        "rollout/tokens_per_second": generated / clock.last["rollout"],
        "advantage/abs_mean": float(advantages.abs().sum()) / generated,
        "tokens/frac_updated": int((selection.weights != 0).sum()) / generated,
        "tokens/frac_forward": int(rollout.lengths[in_forward].sum()) / generated,
        "objective/loss": updated.loss,
        "objective/kl": updated.kl,
        "objective/frac_clipped": updated.frac_clipped,
        "train/grad_norm": updated.grad_norm,
        "train/updates": updated.updates,
        "time/rollout": clock.last["rollout"],
        "time/reward": clock.last["reward"],
        "time/train": clock.last["train"],
    }


def sample_rows(
    step: int, prompts: Sequence[Prompt], texts: Sequence[str], scores: Sequence[Score], rewards: Tensor, count: int
) -> list[dict[str, Any]]:
    """The first ``count`` completions of the step, for ``samples.jsonl``."""
    flat, group_size = rewards.flatten().tolist(), rewards.shape[1]
    return [
        {
            "step": step,
            "question": prompts[row // group_size].problem.question,
            "completion": texts[row],
            "gold": prompts[row // group_size].problem.answer,
            "reward": flat[row],
            "correct": scores[row].correct,
        }
        for row in range(min(count, len(texts)))
    ]

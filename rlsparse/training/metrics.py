"""A training step's metrics by their documented names, from what the stages gave out."""

from dataclasses import dataclass
from typing import Any

from rlsparse.batch import ScoredBatch, Selection
from rlsparse.components.advantage import degenerate_groups
from rlsparse.tracking.profiling import Clock
from rlsparse.training.collect import Experience
from rlsparse.training.update import UpdateMetrics


@dataclass
class TokenCount:
    """Completion tokens since the start: generated, of those in replay, and chosen by the token sampler."""

    generated: int = 0
    replayed: int = 0
    selected: int = 0

    def add(self, first: Experience, seen: Experience, selection: Selection) -> None:
        self.generated += seen.sampled
        self.replayed += seen.sampled - first.sampled
        self.selected += int((selection.weights != 0).sum())

    def metrics(self) -> dict[str, float]:
        return {
            "tokens/generated": self.generated,
            "tokens/replayed": self.replayed,
            "tokens/selected": self.selected,
        }


def of_rollout(first: Experience, seen: Experience, clock: Clock) -> dict[str, float]:
    """How the model that sampled did on the step's prompts, and what that took.

    Args:
        first: the step's prompts. seen: with the groups that replay added, which only count towards the cost.
    """
    scores, rewards, rollout = first.scores, first.rewards, first.rollout
    return {
        "task/reward_mean": float(rewards.mean()),
        "task/reward_std": float(rewards.std()) if rewards.numel() > 1 else 0.0,
        "task/accuracy": sum(one.correct for one in scores) / len(scores),
        "task/frac_answered": sum(one.answered for one in scores) / len(scores),
        "task/verifier_timeouts": sum(one.timed_out for one in seen.scores),
        "rollout/length_mean": first.sampled / len(scores),
        "rollout/frac_truncated": 1 - float(rollout.ended.float().mean()),
        "rollout/entropy": float(rollout.entropy.sum()) / first.sampled,
        "rollout/frac_degenerate_groups": float(degenerate_groups(rewards).float().mean()),
        "rollout/tokens_per_second": seen.sampled / clock.last["rollout"],
        "rollout/replayed_groups": len(seen.prompts) - len(first.prompts),
        "time/rollout": clock.last["rollout"],
        "time/reward": clock.last["reward"],
    }


def of_update(
    seen: Experience, batch: ScoredBatch, selection: Selection, updated: UpdateMetrics, clock: Clock
) -> dict[str, float]:
    """What was learned from, and what the optimizer did with it."""
    lengths = seen.rollout.lengths  # (B,)
    chosen = selection.weights != 0  # (B, T)
    in_forward = (batch.scales != 0).any(dim=1)  # (B,)
    metrics = {
        "advantage/abs_mean": float(batch.advantages.abs().sum()) / seen.sampled,
        "tokens/frac_updated": int(chosen.sum()) / seen.sampled,
        "tokens/frac_forward": int(lengths[in_forward].sum()) / seen.sampled,
        "objective/loss": updated.loss,
        "objective/kl": updated.kl,
        "objective/frac_clipped": updated.frac_clipped,
        "train/grad_norm": updated.grad_norm,
        "train/updates": updated.updates,
        "time/train": clock.last["train"],
        **updated.mismatch.metrics(),
    }
    if bool(chosen.any()):
        rows, columns = chosen.nonzero(as_tuple=True)
        depths = (columns + seen.begun[rows]).float()
        metrics["tokens/depth_mean"] = float(depths.mean())
        metrics["tokens/depth_p90"] = float(depths.quantile(0.9))
    return metrics


def sample_rows(step: int, experience: Experience, count: int) -> list[dict[str, Any]]:
    """The first ``count`` completions of the step, for ``samples.jsonl``."""
    rewards, group_size = experience.rewards.flatten().tolist(), experience.rollout.group_size
    rows = []
    for row, text in enumerate(experience.texts[:count]):
        problem, score = experience.prompts[row // group_size].problem, experience.scores[row]
        rows.append(
            {
                "step": step,
                "question": problem.question,
                "completion": text,
                "gold": problem.answer,
                "reward": rewards[row],
                "correct": score.correct,
            }
        )
    return rows

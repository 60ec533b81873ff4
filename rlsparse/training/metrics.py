"""The metrics of a training step by their documented names, and the object that records them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlsparse.batch import ScoredBatch, TokenBatch
from rlsparse.components.adapter import TrainedAdapter
from rlsparse.components.advantage import equal_rewards
from rlsparse.config.schema import Config
from rlsparse.model.packing.layout import last_columns
from rlsparse.tracking.metrics import TERM_PREFIX
from rlsparse.tracking.profiling import Clock
from rlsparse.tracking.tracker import Tracker
from rlsparse.training.collect import Collected, Experience
from rlsparse.training.evaluate import HELD_OUT, Outcome, benchmark_metrics, evaluation_metrics
from rlsparse.training.update import UpdateMetrics, learning_rate


@dataclass(frozen=True)
class Step:
    """Holds the outputs of the stages of a training step.

    Attributes:
        scored: the minibatches of the batch.
        moved: metrics of the adapter.
    """

    collected: Collected
    batch: TokenBatch
    scored: Sequence[ScoredBatch]
    updated: UpdateMetrics
    moved: dict[str, float]


@dataclass
class TokenCount:
    """Completion tokens since the start: generated, of those in replay, and chosen by the token sampler."""

    generated: int = 0
    replayed: int = 0
    selected: int = 0

    def add(self, step: Step) -> None:
        """Add the tokens of a step."""
        self.generated += step.collected.sampled
        self.replayed += step.collected.replayed
        self.selected += int((step.batch.selection.weights != 0).sum())

    def metrics(self) -> dict[str, float]:
        """Return the counts by their documented names."""
        return {
            "tokens/generated": self.generated,
            "tokens/replayed": self.replayed,
            "tokens/selected": self.selected,
        }


@dataclass
class Recorder:
    """Records training steps and evaluations.

    Attributes:
        config: of the run.
        count: tokens since the start of the run.
    """

    tracker: Tracker
    clock: Clock
    config: Config
    count: TokenCount = field(default_factory=TokenCount)

    def start(self, adapter: TrainedAdapter, moves_ranks: bool) -> None:
        """Record the ranks before the first step, where they change during training."""
        if moves_ranks:
            self.tracker.ranks(0, adapter.ranks())

    def step(self, number: int, step: Step, adapter: TrainedAdapter) -> None:
        """Record a training step, counted from 1."""
        self.clock.stop()
        self.count.add(step)
        metrics = {
            **rollout_metrics(step.collected, self.clock),
            **update_metrics(step, self.clock),
            **self.count.metrics(),
            **step.moved,
            **({"rollout/policy_age": step.collected.age} if self.config.train.staleness else {}),
            "rollout/layers_skipped": len(step.collected.skipped),
            "train/lr": learning_rate(number, self.config.train),
        }
        self.tracker.train(number, metrics)
        if "adapter/pruned" in step.moved:
            self.tracker.ranks(number, adapter.ranks())
        for row in sample_rows(number, step.collected.first, self.config.tracker.samples):
            self.tracker.sample(row)

    def evaluation(self, number: int, name: str, outcomes: Sequence[Outcome]) -> None:
        """Record the outcome of each question of a set, and its metrics.

        Args:
            name: ``HELD_OUT``, or the name of a benchmark.
        """
        self.tracker.answers([one.row(number, name) for one in outcomes])
        if name == HELD_OUT:
            values = prefixed("eval", evaluation_metrics(outcomes, self.config.eval))
            self.tracker.evaluation(number, {**values, "time/eval": self.clock.last["eval"]})
        else:
            values = benchmark_metrics(outcomes, self.config.eval)
            self.tracker.benchmark(number, name, values, self.clock.last["benchmarks"])


def prefixed(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    """Return metrics with a prefix before each name."""
    return {f"{prefix}/{name}": value for name, value in values.items()}


def rollout_metrics(collected: Collected, clock: Clock) -> dict[str, float]:
    """Return how the model that sampled did on the prompts of the step, and what that took.

    Groups of further rounds, and those that replay added, count towards the cost alone.
    """
    first = collected.first
    scores, rewards, rollout = first.scores, first.rewards, first.rollout
    filtered = {"rollout/kept_groups": collected.kept, "rollout/rounds": collected.rounds}
    return {
        **term_metrics(first),
        **(filtered if collected.filtered else {}),
        "task/reward_mean": float(rewards.mean()),
        "task/reward_std": float(rewards.std()) if rewards.numel() > 1 else 0.0,
        "task/accuracy": sum(one.correct for one in scores) / len(scores),
        "task/frac_answered": sum(one.answered for one in scores) / len(scores),
        "task/verifier_timeouts": collected.timeouts,
        "rollout/length_mean": first.sampled / len(scores),
        "rollout/frac_truncated": 1 - float(rollout.ended.float().mean()),
        **({} if rollout.entropy is None else {"rollout/entropy": float(rollout.entropy.sum()) / first.sampled}),
        "rollout/frac_degenerate_groups": float(equal_rewards(rewards).float().mean()),
        "rollout/tokens_per_second": collected.sampled / clock.last["rollout"],
        "rollout/replayed_groups": len(collected.all.prompts) - collected.kept,
        "time/rollout": clock.last["rollout"],
        "time/reward": clock.last["reward"],
    }


def term_metrics(experience: Experience) -> dict[str, float]:
    """Return the mean of each term of the reward, without its weight; nothing for a single reward."""
    terms = experience.terms
    if terms is None:
        return {}
    return {
        f"{TERM_PREFIX}{name}": float(values.mean()) for name, values in zip(terms.names, terms.values, strict=True)
    }


def update_metrics(step: Step, clock: Clock) -> dict[str, float]:
    """Return what was learned from, and what the optimizer did with it."""
    experience, updated, sampled = step.collected.all, step.updated, step.collected.sampled
    chosen = step.batch.selection.weights != 0  # (B, T)
    in_forward = sum(sum(last_columns(one.needed)) for one in step.scored)
    metrics = {
        "advantage/abs_mean": float(step.batch.advantages.abs().sum()) / max(1, experience.sampled),
        "tokens/frac_updated": int(chosen.sum()) / sampled,
        "tokens/frac_forward": in_forward / sampled,
        "objective/loss": updated.loss,
        "objective/kl": updated.kl,
        "objective/frac_clipped": updated.frac_clipped,
        "train/grad_norm": updated.grad_norm,
        "train/updates": updated.updates,
        "time/train": clock.last["train"],
        **updated.mismatch.metrics(),
    }
    if updated.entropy is not None:
        metrics["objective/entropy"] = updated.entropy
    if bool(chosen.any()):
        rows, columns = chosen.nonzero(as_tuple=True)
        depths = (columns + experience.begun[rows]).float()  # (number of chosen tokens,)
        metrics["tokens/depth_mean"] = float(depths.mean())
        metrics["tokens/depth_p90"] = float(depths.quantile(0.9))
    return metrics


def sample_rows(step: int, experience: Experience, count: int) -> list[dict[str, Any]]:
    """Return the first ``count`` completions of a step, for ``samples.jsonl``."""
    rewards, group_size = experience.rewards.flatten().tolist(), experience.rollout.group_size
    terms = experience.terms
    values = [] if terms is None else terms.values.flatten(1).T.tolist()  # B lists of K
    rows = []
    for row, text in enumerate(experience.texts[:count]):
        problem, score = experience.prompts[row // group_size].problem, experience.scores[row]
        parts = {} if terms is None else {"terms": dict(zip(terms.names, values[row], strict=True))}
        rows.append(
            {
                "step": step,
                "question": problem.question,
                "completion": text,
                "gold": problem.answer,
                "reward": rewards[row],
                "correct": score.correct,
                **parts,
            }
        )
    return rows

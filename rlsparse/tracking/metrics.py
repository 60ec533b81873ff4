"""Every metric's meaning and unit: the one place. A run logs no other name (a test sees to it).

Prefixes are the folders of the code that makes them. Printed by ``python -m rlsparse.tracking.metrics``, and by
``python -m rlsparse.tracking.metrics --markdown`` as docs/metrics.md.
"""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

STEP = "step"  # of each row: training steps done, the x axis of every curve
SAMPLE_TABLE = "samples"  # W&B's table of completions, once at the end of a run

# name -> (unit, meaning)
TRAIN_METRICS: dict[str, tuple[str, str]] = {
    "task/reward_mean": ("reward", "mean reward of the step's completions"),
    "task/reward_std": ("reward", "standard deviation of the step's rewards"),
    "task/accuracy": ("share", "completions with the right answer, sampled on training prompts"),
    "task/frac_answered": ("share", "completions with an answer in the asked format, right or wrong"),
    "task/verifier_timeouts": ("count", "answers that math-verify did not settle in time; they count as wrong"),
    "rollout/length_mean": ("tokens", "mean completion length, EOS included"),
    "rollout/frac_truncated": ("share", "completions cut off at rollout.max_new_tokens"),
    "rollout/entropy": ("nats", "mean entropy of the model that sampled, over its tokens"),
    "rollout/frac_degenerate_groups": ("share", "groups whose rewards are all equal"),
    "rollout/tokens_per_second": ("tokens/s", "completion tokens sampled, replay included, per second of rollout"),
    "rollout/layers_skipped": ("count", "decoder layers left out while sampling"),
    "rollout/replayed_groups": ("count", "groups sampled from the middle of completions (token_sampler.replay)"),
    "advantage/abs_mean": (
        "reward",
        "mean |A| over completion tokens (standard deviations, where A is divided by one)",
    ),
    "tokens/frac_updated": ("share", "completion tokens that the token sampler chose"),
    "tokens/frac_forward": ("share", "completion tokens in rows that took part in the forward and backward pass"),
    "tokens/depth_mean": ("tokens", "tokens of its completion that stand before a chosen token; absent without any"),
    "tokens/depth_p90": ("tokens", "the same, 90th percentile of the step's chosen tokens"),
    "tokens/generated": ("tokens", "completion tokens sampled for training since the start"),
    "tokens/replayed": ("tokens", "of those, sampled from the middle of earlier completions (token_sampler.replay)"),
    "tokens/selected": ("tokens", "of the generated ones, chosen by the token sampler"),
    "objective/loss": ("reward", "loss that was minimised, mean over the step's updates"),
    "objective/kl": ("nats", "aggregated KL(pi || base model), k3 estimator; 0 where beta = 0"),
    "objective/frac_clipped": ("share", "selected tokens whose ratio the clipping held back"),
    "train/grad_norm": ("1", "gradient norm before clipping, mean over the step's updates"),
    "train/lr": ("1", "learning rate of the step"),
    "train/updates": ("count", "optimizer steps taken; 0 when no token had anything to teach"),
    "time/rollout": ("s", "sampling, this step"),
    "time/reward": ("s", "verifying, this step"),
    "time/train": ("s", "advantages to optimizer, this step"),
}
OFF_POLICY_METRICS: dict[str, tuple[str, str]] = {
    "off_policy/kl": (
        "nats",
        "KL(mu || pi_old) a token of the loss, mu the sampling model: mean of r - 1 - log r, r = pi_old/mu",
    ),
    "off_policy/effective_sample_size": ("share", "(sum w)^2 / (n sum w^2) of the weights: 1 where all are equal"),
    "off_policy/weight_mean": ("1", "mean weight: near 1 where the correction neither shrinks nor blows up the step"),
    "off_policy/weight_max": ("1", "largest weight"),
    "off_policy/frac_truncated": ("share", "tokens whose ratio truncated or retrace held down"),
}
RANK_PREFIX = "adapter/rank/"
ADAPTER_METRICS: dict[str, tuple[str, str]] = {
    "adapter/rank_total": ("rank", "ranks of all adapters together, after the step; never above adapter.budget"),
    "adapter/gate_min": ("1", "smallest gate, before ranks moved"),
    "adapter/gate_mean": ("1", "mean gate, before ranks moved"),
    "adapter/pruned": ("count", "components removed by a rank update after this step; absent where there was none"),
    "adapter/reassigned": ("count", "components given to other adapters by it"),
    RANK_PREFIX: (
        "rank",
        "of the adapter on the module that ends the name; a line at the start and for each rank update",
    ),
}
EVAL_METRICS: dict[str, tuple[str, str]] = {
    "eval/accuracy_greedy": ("share", "held-out rows answered right by greedy decoding"),
    "eval/accuracy_sampled": ("share", "held-out completions with the right answer, sampled as in training"),
    "eval/mean_length": ("tokens", "mean length of the sampled held-out completions"),
    "eval/frac_answered": ("share", "sampled held-out completions with an answer in the asked format"),
    "eval/frac_truncated": ("share", "sampled held-out completions cut off at rollout.max_new_tokens"),
    "eval/pass_at_": ("share", "pass@k, the unbiased estimate from eval.samples completions a row; k ends the name"),
    "time/eval": ("s", "this evaluation"),
}

SUPERVISED_METRICS: dict[str, tuple[str, str]] = {
    "supervised/loss": ("nats", "cross-entropy of the batch's solution tokens"),
    "eval/loss": ("nats", "cross-entropy of held-out solution tokens, over warm_start.loss_rows rows"),
}
METRICS = TRAIN_METRICS | OFF_POLICY_METRICS | SUPERVISED_METRICS | ADAPTER_METRICS | EVAL_METRICS


def rank_row(step: int, ranks: Mapping[str, int]) -> dict[str, Any]:
    """The line of ``metrics.jsonl`` that holds each adapter's rank, by module name."""
    return {STEP: step, "kind": "ranks", **{RANK_PREFIX + module: rank for module, rank in ranks.items()}}


def is_documented(name: str) -> bool:
    """Whether a logged name stands in the tables above; one that ends in / or _ there begins a family of names."""
    return name in METRICS or any(name.startswith(family) for family in METRICS if family[-1] in "/_")


# the tables of the page: heading, where its metrics are found, and the metrics
FAMILIES: tuple[tuple[str, str, dict[str, tuple[str, str]]], ...] = (
    ("Training", "In rows of kind `train`.", TRAIN_METRICS),
    (
        "Off-policy",
        "In `train` rows of steps whose completions another model than the policy wrote (`layer_skip`), over the\n"
        "tokens of the loss; absent where there are none.",
        OFF_POLICY_METRICS,
    ),
    (
        "Adapter",
        "Of an adapter whose ranks move (`adapter=l1ra`): in `train` rows, and the rank of each module in rows of\n"
        "kind `ranks`.",
        ADAPTER_METRICS,
    ),
    ("Evaluation", "In rows of kind `eval`: at step 0, every `eval.every` steps and at the end.", EVAL_METRICS),
    (
        "Warm start",
        "Of `python -m rlsparse.warm_start`: the first in its `train` rows, beside `train/lr`, `train/grad_norm` and\n"
        "`time/train`; the second in its `eval` rows, beside those above.",
        SUPERVISED_METRICS,
    ),
)
INTRODUCTION = """\
# Metrics

Made by `python -m rlsparse.tracking.metrics --markdown`; without the flag it prints the same for a terminal. A run logs
these names and no others: to `metrics.jsonl` in its folder, which W&B shows.

A line of `metrics.jsonl` is a JSON object: `step`, `kind` (`train`, `eval` or `ranks`) and the metrics of that kind. A
name below that ends in `/` or `_` begins a family of names. A share is between 0 and 1; `reward` is the unit of
`task.reward`."""


def markdown() -> Iterator[str]:
    """The lines of docs/metrics.md."""
    yield INTRODUCTION
    for heading, where, metrics in FAMILIES:
        yield from ("", f"## {heading}", "", where, "", "| name | unit | meaning |", "|:--|:--|:--|")
        for name, (unit, meaning) in metrics.items():
            yield f"| `{name}` | {unit} | {meaning.replace('|', chr(92) + '|')} |"


def plain() -> Iterator[str]:
    """The same for a terminal, a line a metric."""
    for name, (unit, meaning) in METRICS.items():
        yield f"{name:32} {unit:9} {meaning}"


if __name__ == "__main__":
    print("\n".join(markdown() if "--markdown" in sys.argv[1:] else plain()))

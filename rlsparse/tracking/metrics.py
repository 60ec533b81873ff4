"""The meaning and the unit of every metric. A run logs no other names, which a test checks.

``python -m rlsparse.tracking.metrics`` prints them, and with ``--markdown`` it prints docs/metrics.md.
"""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rlsparse.storage.streams import prepare_streams

STEP = "step"  # key of each row: number of completed training steps, the x axis of every curve
SAMPLE_TABLE = "samples"  # table of completions on W&B, written once at the end of a run

# name -> (unit, meaning)
TRAIN_METRICS: dict[str, tuple[str, str]] = {
    "task/reward_mean": ("reward", "mean reward of the completions of the step"),
    "task/reward_std": ("reward", "standard deviation of the rewards of the step"),
    "task/accuracy": ("share", "completions with the right answer, sampled from training prompts"),
    "task/frac_answered": ("share", "completions with an answer in the requested format, right or wrong"),
    "task/verifier_timeouts": ("count", "answers for which math-verify took too long; they count as wrong"),
    "rollout/length_mean": ("tokens", "mean completion length, EOS included"),
    "rollout/frac_truncated": ("share", "completions cut off at rollout.max_new_tokens"),
    "rollout/entropy": (
        "nats",
        "mean entropy of the sampling model over its tokens; absent where the engine does not know it",
    ),
    "rollout/frac_degenerate_groups": ("share", "groups whose rewards are all equal"),
    "rollout/tokens_per_second": ("tokens/s", "completion tokens sampled, replay included, per second of rollout"),
    "rollout/layers_skipped": ("count", "decoder layers skipped while sampling"),
    "rollout/kept_groups": ("count", "groups that the batch filter kept; absent with batch_filter=dilute"),
    "rollout/rounds": ("count", "rounds of sampling, more than 1 where batch_filter=refill samples again; likewise"),
    "rollout/policy_age": (
        "steps",
        "steps since the sampling policy was the current one; absent if train.staleness = 0",
    ),
    "rollout/replayed_groups": ("count", "groups sampled from the middle of completions (replay)"),
    "advantage/abs_mean": (
        "reward",
        "mean |A| over completion tokens (in standard deviations if A is divided by one)",
    ),
    "tokens/frac_updated": ("share", "sampled completion tokens that the token sampler selected"),
    "tokens/frac_forward": (
        "share",
        "sampled completion tokens up to the last one of their completion that the loss needs, which are those of the "
        "forward and backward pass; token_sampler=low_probability_first counts a token in each of its two steps",
    ),
    "tokens/depth_mean": ("tokens", "tokens of its completion before a selected token; absent if none is selected"),
    "tokens/depth_p90": ("tokens", "the same, 90th percentile of the selected tokens of the step"),
    "tokens/generated": ("tokens", "completion tokens sampled for training since the start of the run"),
    "tokens/replayed": ("tokens", "the part of them sampled from the middle of earlier completions (replay)"),
    "tokens/selected": ("tokens", "the part of the generated tokens that the token sampler selected"),
    "objective/loss": ("reward", "minimised loss, mean over the updates of the step"),
    "objective/kl": ("nats", "aggregated KL estimate of the config group kl; 0 if beta = 0"),
    "objective/entropy": ("nats", "aggregated entropy of the policy; absent if entropy.coefficient = 0"),
    "objective/frac_clipped": ("share", "selected tokens whose gradient is 0 because their ratio is clipped"),
    "train/grad_norm": ("1", "gradient norm before clipping, mean over the updates of the step"),
    "train/lr": ("1", "learning rate of the step"),
    "train/updates": ("count", "optimizer steps; 0 if no token contributes to the loss"),
    "time/rollout": ("s", "time of sampling in this step"),
    "time/reward": ("s", "time of verifying answers and computing rewards in this step"),
    "time/train": ("s", "time from advantages to optimizer in this step"),
}
TERM_PREFIX = "reward/"
REWARD_METRICS: dict[str, tuple[str, str]] = {
    TERM_PREFIX: (
        "reward",
        "mean of a term of the reward over the completions of the step, without its weight; the name ends in the term",
    ),
}
OFF_POLICY_METRICS: dict[str, tuple[str, str]] = {
    "off_policy/kl": (
        "nats",
        "KL(mu || pi_old) per token of the loss, mu the sampling model: mean of r - 1 - log r, r = pi_old/mu",
    ),
    "off_policy/effective_sample_size": ("share", "(sum w)^2 / (n sum w^2) of the weights w; 1 if all are equal"),
    "off_policy/weight_mean": ("1", "mean weight; near 1 if the correction does not change the size of the step"),
    "off_policy/weight_max": ("1", "maximum weight"),
    "off_policy/frac_truncated": (
        "share",
        "tokens whose weight a bound changes: truncated, masked, retrace",
    ),
}
RANK_PREFIX = "adapter/rank/"
ADAPTER_METRICS: dict[str, tuple[str, str]] = {
    "adapter/rank_total": (
        "rank",
        "sum of the ranks of all adapters after the step; of AdaLoRA, triplets that are not masked",
    ),
    "adapter/parameters": (
        "count",
        "trained parameters of all adapters after the step; of AdaLoRA, without masked triplets",
    ),
    "adapter/gate_min": ("1", "smallest gate, before ranks move"),
    "adapter/gate_mean": ("1", "mean gate, before ranks move"),
    "adapter/pruned": (
        "count",
        "components removed (AdaLoRA: masked) by the rank update after this step; absent if there is none",
    ),
    "adapter/reassigned": (
        "count",
        "components added to adapters by that rank update; AdaLoRA: triplets that came back",
    ),
    RANK_PREFIX: (
        "rank",
        "rank of the adapter on the module at the end of the name; a row at the start and for each rank update",
    ),
}
EVAL_METRICS: dict[str, tuple[str, str]] = {
    "eval/accuracy_greedy": ("share", "held-out rows with the right answer by greedy decoding"),
    "eval/accuracy_sampled": ("share", "sampled held-out completions with the right answer: avg@n, n = eval.samples"),
    "eval/mean_length": ("tokens", "mean length of the sampled held-out completions"),
    "eval/frac_answered": ("share", "sampled held-out completions with an answer in the requested format"),
    "eval/frac_truncated": ("share", "sampled held-out completions cut off at the longest length"),
    "eval/pass_at_": ("share", "pass@k, unbiased estimate from eval.samples completions per row; the name ends in k"),
    "eval/maj_at_": (
        "share",
        "maj@k, majority vote, mean over all choices of k of the eval.samples completions; the name ends in k",
    ),
    "time/eval": ("s", "time of this evaluation"),
}

BENCHMARK_PREFIX = "benchmark/"
BENCHMARK_METRICS: dict[str, tuple[str, str]] = {
    BENCHMARK_PREFIX: (
        "",
        "benchmark/NAME/METRIC: questions (their number), and each metric of the table above without eval/",
    ),
    "time/benchmarks": ("s", "time of this evaluation on the benchmark"),
}

SUPERVISED_METRICS: dict[str, tuple[str, str]] = {
    "supervised/loss": ("nats", "cross-entropy of the solution tokens of the batch"),
    "eval/loss": ("nats", "cross-entropy of the solution tokens of warm_start.loss_rows held-out rows"),
}
METRICS = (
    TRAIN_METRICS
    | REWARD_METRICS
    | OFF_POLICY_METRICS
    | SUPERVISED_METRICS
    | ADAPTER_METRICS
    | EVAL_METRICS
    | BENCHMARK_METRICS
)


def rank_row(step: int, ranks: Mapping[str, int]) -> dict[str, Any]:
    """Return the row of ``metrics.jsonl`` with the rank of each adapter, by module name."""
    return {STEP: step, "kind": "ranks", **{RANK_PREFIX + module: rank for module, rank in ranks.items()}}


def benchmark_row(step: int, name: str, values: Mapping[str, float], seconds: float) -> dict[str, Any]:
    """Return the row of ``metrics.jsonl`` with the metrics of a benchmark.

    Args:
        values: metrics without prefix.
        seconds: time of the evaluation.
    """
    named = {f"{BENCHMARK_PREFIX}{name}/{key}": value for key, value in values.items()}
    return {STEP: step, "kind": "benchmark", **named, "time/benchmarks": seconds}


def is_documented(name: str) -> bool:
    """Return whether a name is in the tables above, where a name that ends in / or _ is the prefix of a family."""
    return name in METRICS or any(name.startswith(family) for family in METRICS if family[-1] in "/_")


# the tables of the page: heading, where its metrics are logged, and the metrics
FAMILIES: tuple[tuple[str, str, dict[str, tuple[str, str]]], ...] = (
    ("Training", "In rows of kind `train`.", TRAIN_METRICS),
    (
        "Terms of the reward",
        "In `train` rows where the reward is a sum (`reward=terms`); `samples.jsonl` has the terms of each completion.",
        REWARD_METRICS,
    ),
    (
        "Off-policy",
        "In `train` rows of steps in which another model than the policy sampled the completions (`layer_skip`,\n"
        "`train.staleness`, `rollout=vllm`), or the policy with other rounding (bfloat16), over the tokens of the\n"
        "loss; absent if there are none.",
        OFF_POLICY_METRICS,
    ),
    (
        "Adapter",
        "For an adapter whose ranks move (`adapter=l1ra`): in `train` rows, and the rank of each module in rows of\n"
        "kind `ranks`.",
        ADAPTER_METRICS,
    ),
    ("Evaluation", "In rows of kind `eval`: at step 0, every `eval.every` steps and at the end.", EVAL_METRICS),
    (
        "Benchmarks",
        "In rows of kind `benchmark`, one for each that `eval.benchmarks` names: at step 0, at the end, and every\n"
        "`eval.benchmarks_every` steps.",
        BENCHMARK_METRICS,
    ),
    (
        "Warm start",
        "Of `python -m rlsparse.warm_start`: the first in `train` rows, with `train/lr`, `train/grad_norm` and\n"
        "`time/train`; the second in `eval` rows, with the metrics of an evaluation.",
        SUPERVISED_METRICS,
    ),
)
INTRODUCTION = """\
# Metrics

This page is the output of `python -m rlsparse.tracking.metrics --markdown`; without the flag, the command prints the
metrics for a terminal. A run logs these names and no others, to `metrics.jsonl` in its folder, which W&B shows.

Each line of `metrics.jsonl` is a JSON object: `step`, `kind` (`train`, `eval`, `benchmark` or `ranks`) and the metrics
of that kind. A name below that ends in `/` or `_` is the prefix of a family of names. A share is between 0 and 1. The
unit `reward` is that of the config group `reward`."""


def markdown() -> Iterator[str]:
    """Yield the lines of docs/metrics.md."""
    yield INTRODUCTION
    for heading, where, metrics in FAMILIES:
        yield from ("", f"## {heading}", "", where, "", "| name | unit | meaning |", "|:--|:--|:--|")
        for name, (unit, meaning) in metrics.items():
            yield f"| `{name}` | {unit} | {meaning.replace('|', chr(92) + '|')} |"


def plain() -> Iterator[str]:
    """Yield one line for each metric, for a terminal."""
    for name, (unit, meaning) in METRICS.items():
        yield f"{name:32} {unit:9} {meaning}"


if __name__ == "__main__":
    prepare_streams()
    print("\n".join(markdown() if "--markdown" in sys.argv[1:] else plain()))

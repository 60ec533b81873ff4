"""Held-out accuracy: greedy and sampled, completion length, pass@k."""

from collections.abc import Sequence
from math import comb

from rlsparse.batch import Prompt, chunks
from rlsparse.components.reward.verifier import Verifier
from rlsparse.config.schema import EvalConfig, RolloutConfig
from rlsparse.model.policy import Policy, decode
from rlsparse.rollout import Engine
from rlsparse.runtime.distributed import ALONE, Ranks
from rlsparse.runtime.rng import stream


def pass_at(k: int, samples: int, correct: int) -> float:
    """Chance that one of k completions is right, estimated without bias from ``samples`` (Chen et al. 2021, eq. 1)."""
    return 1.0 - comb(samples - correct, k) / comb(samples, k)


def evaluate(
    policy: Policy,
    generate: Engine,
    prompts: Sequence[Prompt],
    verifier: Verifier,
    config: EvalConfig,
    rollout_config: RolloutConfig,
    seed: int,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Metrics of the policy on held-out prompts, by their documented names (see tracking/metrics.py).

    Args:
        seed: of the sampled completions; the same for every evaluation of a run, so that its noise is common to them.
        ranks: share the verifying; ``generate`` may share the sampling.

    Raises:
        NonFiniteError: the policy's log-probabilities are not finite numbers.
    """
    generator = stream(seed, "eval")
    greedy_correct = 0
    correct: list[int] = []  # right completions of each row
    lengths: list[int] = []
    answered = ended = 0
    for rows in chunks(prompts, config.batch_rows):
        rollout = generate(policy, rows, rollout_config, 1, generator, greedy=True)
        rollout.require_finite()
        answers = [prompt.problem.answer for prompt in rows]
        greedy_correct += sum(one.correct for one in ranks.each(verifier.score, decode(policy, rollout, rows), answers))
    for rows in chunks(prompts, max(1, config.batch_rows // config.samples)):
        rollout = generate(policy, rows, rollout_config, config.samples, generator)
        rollout.require_finite()
        lengths += rollout.lengths.tolist()
        ended += int(rollout.ended.sum())
        answers = [prompt.problem.answer for prompt in rows for _ in range(config.samples)]
        for scores in chunks(ranks.each(verifier.score, decode(policy, rollout, rows), answers), config.samples):
            correct.append(sum(score.correct for score in scores))
            answered += sum(score.answered for score in scores)
    completions = len(prompts) * config.samples
    metrics = {
        "eval/accuracy_greedy": greedy_correct / len(prompts),
        "eval/accuracy_sampled": sum(correct) / completions,
        "eval/mean_length": sum(lengths) / completions,
        "eval/frac_answered": answered / completions,
        "eval/frac_truncated": 1 - ended / completions,
    }
    for k in (k for k in config.pass_at if k <= config.samples):
        metrics[f"eval/pass_at_{k}"] = sum(pass_at(k, config.samples, c) for c in correct) / len(prompts)
    return metrics

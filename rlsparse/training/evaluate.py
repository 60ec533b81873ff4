"""Held-out accuracy: greedy and sampled, completion length, pass@k."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

from rlsparse.batch import Prompt, Rollout, chunks
from rlsparse.components.reward import Score, Verifier
from rlsparse.config.schema import EvalConfig
from rlsparse.model.policy import decode
from rlsparse.rollout import Request, RolloutSampler
from rlsparse.runtime.distributed import World
from rlsparse.runtime.rng import stream
from rlsparse.tracking.profiling import Clock


def pass_at(k: int, samples: int, correct: int) -> float:
    """Return the chance that one of k completions is right, an unbiased estimate (Chen et al. 2021, eq. 1).

    Args:
        samples: completions that were sampled. correct: how many of them are right.
    """
    return 1.0 - comb(samples - correct, k) / comb(samples, k)


@dataclass(frozen=True)
class Evaluator:
    """Measures the policy on held-out prompts.

    Attributes:
        seed: of the sampled completions; the same for every evaluation of a run, so that its noise is common to them.
        world: the ranks that share the work.
    """

    sampler: RolloutSampler
    verifier: Verifier
    prompts: Sequence[Prompt]
    config: EvalConfig
    seed: int
    clock: Clock
    world: World

    def __call__(self) -> dict[str, float]:
        """Return the metrics by their documented names (see tracking/metrics.py).

        Raises:
            NonFiniteError: the log-probabilities of the policy are not finite.
        """
        with self.clock("eval"):
            return self._metrics()

    def _metrics(self) -> dict[str, float]:
        generator = stream(self.seed, "eval")
        greedy_correct = 0
        correct: list[int] = []  # right completions of each row
        lengths: list[int] = []
        answered = ended = 0
        for rows in chunks(self.prompts, self.config.batch_rows):
            rollout = self.sampler(Request(rows, group_size=1, greedy=True), generator)
            greedy_correct += sum(score.correct for score in self._scores(rows, rollout))
        for rows in chunks(self.prompts, max(1, self.config.batch_rows // self.config.samples)):
            rollout = self.sampler(Request(rows, group_size=self.config.samples), generator)
            lengths += rollout.lengths.tolist()
            ended += int(rollout.ended.sum())
            for scores in chunks(self._scores(rows, rollout), self.config.samples):
                correct.append(sum(score.correct for score in scores))
                answered += sum(score.answered for score in scores)
        completions = len(self.prompts) * self.config.samples
        metrics = {
            "eval/accuracy_greedy": greedy_correct / len(self.prompts),
            "eval/accuracy_sampled": sum(correct) / completions,
            "eval/mean_length": sum(lengths) / completions,
            "eval/frac_answered": answered / completions,
            "eval/frac_truncated": 1 - ended / completions,
        }
        for k in (k for k in self.config.pass_at if k <= self.config.samples):
            found = sum(pass_at(k, self.config.samples, count) for count in correct)
            metrics[f"eval/pass_at_{k}"] = found / len(self.prompts)
        return metrics

    def _scores(self, prompts: Sequence[Prompt], rollout: Rollout) -> list[Score]:
        answers = [prompt.problem.answer for prompt in prompts for _ in range(rollout.group_size)]
        return self.world.each(self.verifier.score, decode(self.sampler.policy, rollout, prompts), answers)

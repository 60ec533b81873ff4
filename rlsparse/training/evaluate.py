"""Evaluation on held-out questions: one greedy completion and n sampled ones of each, their verdicts, and metrics."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import comb
from typing import Any

from torch import Generator

from rlsparse.batch import Prompt, Rollout, chunks
from rlsparse.components.reward.values.comparison import canonical
from rlsparse.config.schema import EvalConfig
from rlsparse.model.policy import decode
from rlsparse.rollout import Request, RolloutSampler
from rlsparse.runtime.rng import stream
from rlsparse.tracking.profiling import Clock
from rlsparse.training.scoring import Scorer

HELD_OUT = "held_out"  # name of the held-out rows of the task that is trained on


@dataclass(frozen=True)
class EvalSet:
    """Held-out questions and what is needed to ask them.

    Attributes:
        name: of the benchmark, or ``HELD_OUT``.
        prompts: the questions that fit the context of the model.
        ids: a name for each of them, which no other question of the set has.
        scorer: judges the completions.
        max_new_tokens: longest completion.
        skipped: number of questions that do not fit.
    """

    name: str
    prompts: Sequence[Prompt]
    ids: Sequence[str]
    scorer: Scorer
    max_new_tokens: int
    skipped: int = 0


@dataclass(frozen=True)
class Graded:
    """A completion of a held-out question.

    Attributes:
        answer: the answer that was found in it; None if there is none.
        length: tokens, EOS included. ended: it closed with EOS.
    """

    correct: bool
    answer: str | None
    length: int
    ended: bool


@dataclass(frozen=True)
class Outcome:
    """The outcome of a held-out question.

    Attributes:
        question: its id. gold: its gold answer.
    """

    question: str
    gold: str
    greedy: Graded
    sampled: tuple[Graded, ...]

    @property
    def right(self) -> int:
        """Number of sampled completions that are right."""
        return sum(one.correct for one in self.sampled)

    def row(self, step: int, benchmark: str) -> dict[str, Any]:
        """Return the row of ``answers.jsonl``; see docs/files.md."""
        return {
            "step": step,
            "benchmark": benchmark,
            "question": self.question,
            "gold": self.gold,
            "greedy": self.greedy.correct,
            "greedy_answer": self.greedy.answer,
            "greedy_length": self.greedy.length,
            "samples": len(self.sampled),
            "right": self.right,
            "correct": [one.correct for one in self.sampled],
            "answers": [one.answer for one in self.sampled],
            "lengths": [one.length for one in self.sampled],
        }


@dataclass(frozen=True)
class Examiner:
    """Asks a policy held-out questions.

    Attributes:
        seed: of the sampled completions; the same for every evaluation of a run, so that its noise is common to them.
    """

    sampler: RolloutSampler
    config: EvalConfig
    seed: int
    clock: Clock

    def __call__(self, questions: EvalSet) -> list[Outcome]:
        """Return the outcome of each question of a set.

        Raises:
            NonFiniteError: the log-probabilities of the policy are not finite.
        """
        held_out = questions.name == HELD_OUT
        self.clock.lap()
        with self.clock("eval" if held_out else "benchmarks"):
            return self._outcomes(questions, stream(self.seed, "eval" if held_out else f"eval/{questions.name}"))

    def _outcomes(self, questions: EvalSet, generator: Generator) -> list[Outcome]:
        """Return the outcome of each question of a set."""
        engine = replace(
            self.sampler.engine,
            max_new_tokens=questions.max_new_tokens,
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            top_k=self.config.top_k,
        )
        sampler, samples = replace(self.sampler, engine=engine), self.config.samples
        greedy: list[Graded] = []
        for prompts in chunks(questions.prompts, self.config.batch_rows):
            rollout = sampler(Request(prompts, group_size=1, greedy=True), generator)
            greedy += self._graded(questions.scorer, prompts, rollout)
        sampled: list[Graded] = []
        for prompts in chunks(questions.prompts, max(1, self.config.batch_rows // samples)):
            rollout = sampler(Request(prompts, group_size=samples), generator)
            sampled += self._graded(questions.scorer, prompts, rollout)
        golds = [prompt.problem.answer for prompt in questions.prompts]
        rows = zip(questions.ids, golds, greedy, chunks(sampled, samples), strict=True)
        return [Outcome(question, gold, one, tuple(several)) for question, gold, one, several in rows]

    def _graded(self, score: Scorer, prompts: Sequence[Prompt], rollout: Rollout) -> list[Graded]:
        """Return the completions of some prompts with their verdicts, (p·g,)."""
        problems = [prompt.problem for prompt in prompts for _ in range(rollout.group_size)]
        scores = self.sampler.world.each(score, decode(self.sampler.policy, rollout, prompts), problems)
        rows = zip(scores, rollout.lengths.tolist(), rollout.ended.tolist(), strict=True)
        return [Graded(one.correct, one.answer, length, ended) for one, length, ended in rows]


@dataclass(frozen=True)
class Evaluator:
    """The evaluations of a policy while it is trained.

    Attributes:
        ask: asks the questions of a set.
        held_out: held-out rows of the task.
        last: the last training step, after which every set is due.
    """

    ask: Examiner
    held_out: EvalSet
    benchmarks: Sequence[EvalSet]
    config: EvalConfig
    last: int

    def due(self, step: int) -> list[EvalSet]:
        """Return the sets that are evaluated after a training step."""

        def at(every: int | None) -> bool:
            return step in (0, self.last) or (every is not None and step % every == 0)

        held_out = [self.held_out] if at(self.config.every) else []
        return [*held_out, *(self.benchmarks if at(self.config.benchmarks_every) else [])]


def evaluation_metrics(outcomes: Sequence[Outcome], config: EvalConfig) -> dict[str, float]:
    """Return the metrics of a set of questions by their documented names without prefix (see tracking/metrics.py)."""
    completions = [one for outcome in outcomes for one in outcome.sampled]
    n = len(outcomes[0].sampled)
    found = {
        "accuracy_greedy": sum(outcome.greedy.correct for outcome in outcomes) / len(outcomes),
        "accuracy_sampled": sum(one.correct for one in completions) / len(completions),
        "mean_length": sum(one.length for one in completions) / len(completions),
        "frac_answered": sum(one.answer is not None for one in completions) / len(completions),
        "frac_truncated": 1 - sum(one.ended for one in completions) / len(completions),
    }
    for k in (k for k in config.pass_at if k <= n):
        found[f"pass_at_{k}"] = sum(pass_at(k, n, outcome.right) for outcome in outcomes) / len(outcomes)
    for k in config.maj_at:
        found[f"maj_at_{k}"] = sum(majority_at(k, outcome.sampled) for outcome in outcomes) / len(outcomes)
    return found


def benchmark_metrics(outcomes: Sequence[Outcome], config: EvalConfig) -> dict[str, float]:
    """Return the metrics of a benchmark, with the number of its questions."""
    return {"questions": len(outcomes), **evaluation_metrics(outcomes, config)}


def pass_at(k: int, samples: int, correct: int) -> float:
    """Return the chance that one of k completions is right, an unbiased estimate (Chen et al. 2021, eq. 1).

    Args:
        samples: completions that were sampled. correct: how many of them are right.
    """
    return 1.0 - comb(samples - correct, k) / comb(samples, k)


def majority_at(k: int, sampled: Sequence[Graded]) -> float:
    """Return the chance that the majority vote of k of the sampled completions is right, over all choices of k.

    It is maj@k without bias, as ``pass_at`` is pass@k: the mean over all subsets of k completions. All right answers
    are one candidate; two other answers are one if they have the same canonical form. A completion without an
    answer does not vote. Where several candidates have the most votes, each of them counts with equal chance.

    Args:
        k: at most the number of completions.
    """
    right = sum(one.correct for one in sampled)
    others = Counter(canonical(one.answer) for one in sampled if not one.correct and one.answer is not None)
    silent = len(sampled) - right - others.total()
    ways = 0.0
    for votes in range(1, min(right, k) + 1):
        # (other votes so far, candidates with as many votes as the right one) -> number of choices
        choices = Counter({(0, 0): 1})
        for count in others.values():
            grown: Counter[tuple[int, int]] = Counter()
            for (drawn, ties), number in choices.items():
                for more in range(min(count, votes, k - votes - drawn) + 1):
                    grown[drawn + more, ties + (more == votes)] += number * comb(count, more)
            choices = grown
        shares = (n * comb(silent, k - votes - drawn) / (ties + 1) for (drawn, ties), n in choices.items())
        ways += comb(right, votes) * sum(shares)
    return ways / comb(len(sampled), k)

"""Collection of training data: prompts → rollouts → rewards, and replay from the middle of completions."""

import time
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from rlsparse.algorithm import Algorithm
from rlsparse.batch import Prompt, RewardTerms, Rollout, chunks
from rlsparse.components.reward import Completion, Score
from rlsparse.model.policy import decode
from rlsparse.rollout import Request, RolloutSampler
from rlsparse.rollout.layer_skip import without_layers
from rlsparse.rollout.replay import joined
from rlsparse.runtime.distributed import World
from rlsparse.tracking.profiling import Clock
from rlsparse.training.rewards import SlowNotice, rewards_of
from rlsparse.training.scoring import Scorer


@dataclass(frozen=True)
class Experience:
    """Completions of P prompts, G each, and their rewards.

    Attributes:
        prompts: P.
        rollout: of these prompts.
        texts: B whole completions, what a prompt holds of them included.
        scores: B verdicts of the verifier.
        rewards: (P, G).
        terms: of the rewards; None for a single reward.
    """

    prompts: list[Prompt]
    rollout: Rollout
    texts: list[str]
    scores: list[Score]
    rewards: Tensor
    terms: RewardTerms | None = None

    @property
    def sampled(self) -> int:
        """Completion tokens that were generated."""
        return int(self.rollout.lengths.sum())

    @property
    def correct(self) -> Tensor:
        """(P, G) bool."""
        return torch.tensor([score.correct for score in self.scores]).view(self.rewards.shape)

    @property
    def begun(self) -> Tensor:
        """(B,) long: tokens of the completion of each row that its prompt holds."""
        begun = torch.tensor([prompt.begun for prompt in self.prompts], device=self.rewards.device)
        return begun.repeat_interleave(self.rollout.group_size)

    def __add__(self, other: "Experience") -> "Experience":
        return Experience(
            prompts=self.prompts + other.prompts,
            rollout=joined([self.rollout, other.rollout]),
            texts=self.texts + other.texts,
            scores=self.scores + other.scores,
            rewards=torch.cat([self.rewards, other.rewards]),
            terms=None if self.terms is None or other.terms is None else self.terms + other.terms,
        )


@dataclass(frozen=True)
class Collected:
    """The experience of a step.

    Attributes:
        first: the prompts of the step.
        all: the same, followed by the groups that replay added.
        origins: the number of the prompt that each group of ``all`` belongs to.
        skipped: decoder layers that did not take part in sampling.
    """

    first: Experience
    all: Experience
    origins: list[int]
    skipped: list[int]


@dataclass(frozen=True)
class Collector:
    """Makes the experience of a step.

    Attributes:
        score: judges completions.
        group_size: G, completions of each prompt.
        streams: random streams by stage.
        keep_states: keep the outputs of the frozen layers, where the policy itself samples.
        world: the ranks that share the verifying; the sampler shares the sampling.
    """

    algorithm: Algorithm
    sampler: RolloutSampler
    score: Scorer
    group_size: int
    streams: dict[str, Generator]
    clock: Clock
    keep_states: bool
    world: World

    def __call__(self, prompts: list[Prompt]) -> Collected:
        """Return a group of completions of each prompt with rewards, and the groups that replay adds.

        Raises:
            NonFiniteError: the log-probabilities of the policy are not finite.
            ComponentError: the reward returned no finite number; see ``rewards_of``.
        """
        self.clock.lap()
        skipped = self.algorithm.layer_skip.choose(self.sampler.policy.depth, self.streams["layer_skip"])
        first = self._experience(prompts, skipped, self.streams["rollout"])
        both, origins = first, list(range(len(prompts)))
        if self.algorithm.replay.active:
            draws = self.streams["replay"]
            cut, of = self.algorithm.replay.cut(prompts, first.rollout, first.correct, draws)
            if cut:
                both, origins = first + self._experience(cut, skipped, draws), origins + of
        self.clock.start("train")  # what follows, up to the record of the step
        return Collected(first, both, origins, skipped)

    def _experience(self, prompts: list[Prompt], skipped: list[int], draws: Generator) -> Experience:
        policy = self.sampler.policy
        with self.clock("rollout"), without_layers(policy, skipped):
            # the states of another model would be of no use to the training of the policy
            request = Request(prompts, self.group_size, keep_states=self.keep_states and not skipped)
            rollout = self.sampler(request, draws)
        with self.clock("reward"):
            texts = decode(policy, rollout, prompts)
            problems = [prompt.problem for prompt in prompts for _ in range(self.group_size)]
            scores = self.world.each(self.score, texts, problems)
            completions = self._completions(prompts, rollout, texts, scores)
            groups = list(chunks(completions, self.group_size))
            found = rewards_of(self.algorithm.reward, groups, SlowNotice(time.monotonic))
        device = policy.device
        terms = None
        if found.weights:
            values = torch.tensor(found.terms, device=device).view(len(found.terms), -1, self.group_size)  # (K, P, G)
            weights = torch.tensor(list(found.weights.values()), device=device)  # (K,)
            terms = RewardTerms(tuple(found.weights), weights, values)
        rewards = torch.tensor(found.total, device=device).view(-1, self.group_size)  # (P, G)
        return Experience(prompts, rollout, texts, scores, rewards, terms)

    def _completions(
        self, prompts: list[Prompt], rollout: Rollout, texts: list[str], scores: list[Score]
    ) -> list[Completion]:
        """Return B completions as a reward sees them; the part that a prompt of replay holds belongs to them."""
        of_rows = [prompt for prompt in prompts for _ in range(self.group_size)]
        kept = [prompt.ids[len(prompt.ids) - prompt.begun :] for prompt in of_rows]
        own = zip(rollout.completion_ids.tolist(), rollout.lengths.tolist(), strict=True)
        ids = [(*before, *row[:length]) for before, (row, length) in zip(kept, own, strict=True)]
        draws = torch.rand(len(of_rows), generator=self.streams["reward"], dtype=torch.float64).tolist()
        rows = zip(texts, rollout.ended.tolist(), of_rows, scores, ids, draws, strict=True)
        return [
            Completion(text, len(tokens), ended, prompt.problem, score, tokens, draw)
            for text, ended, prompt, score, tokens, draw in rows
        ]

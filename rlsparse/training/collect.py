"""Collection of training data: prompts → rollouts → rewards → batch filter, and replay from the middle."""

import time
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from rlsparse.algorithm import Algorithm
from rlsparse.batch import Prompt, RewardTerms, Rollout, chunks
from rlsparse.components.component import with_shape
from rlsparse.components.reward import Completion, Score
from rlsparse.model.policy import decode
from rlsparse.rollout import Request, RolloutSampler
from rlsparse.rollout.layer_skip import without_layers
from rlsparse.rollout.replay import joined
from rlsparse.runtime.distributed import World
from rlsparse.tracking.profiling import Clock
from rlsparse.training.data import PromptBatches
from rlsparse.training.history import PolicyHistory
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

    def take(self, kept: Tensor) -> "Experience":
        """Return the groups that are kept; the experience itself where all are.

        Args:
            kept: (P,) bool.
        """
        if bool(kept.all()):
            return self
        numbers, G = kept.nonzero().squeeze(1).tolist(), self.rollout.group_size
        groups = torch.tensor(numbers, dtype=torch.long, device=self.rewards.device)
        return Experience(
            prompts=[self.prompts[p] for p in numbers],
            rollout=self.rollout.take(groups),
            texts=[text for p in numbers for text in self.texts[p * G : (p + 1) * G]],
            scores=[score for p in numbers for score in self.scores[p * G : (p + 1) * G]],
            rewards=self.rewards[groups],
            terms=self.terms and self.terms.take(groups),
        )

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
    """The experience of a step, and what it has cost.

    Attributes:
        first: the prompts of the step, before the batch filter.
        all: what training sees: the groups that the batch filter kept, followed by those that replay added.
        origins: the number of the prompt that each group of ``all`` belongs to.
        skipped: decoder layers that did not take part in sampling.
        age: how many steps ago the policy that sampled was the current one.
        exact: whether the engine gives completions the probabilities that training computes.
        rounds: rounds of sampling, without replay.
        filtered: whether a batch filter may leave out groups.
        kept: groups that it kept.
        sampled: completion tokens that were generated, with those of groups that were left out.
        replayed: the part of them that replay generated.
        timeouts: answers for which math-verify took too long.
    """

    first: Experience
    all: Experience
    origins: list[int]
    skipped: list[int]
    age: int
    exact: bool
    rounds: int
    filtered: bool
    kept: int
    sampled: int
    replayed: int
    timeouts: int

    @property
    def on_policy(self) -> bool:
        """Whether the policy itself sampled the completions."""
        return self.exact and not self.skipped and self.age == 0


@dataclass(frozen=True)
class Collector:
    """Makes the experience of a step.

    Attributes:
        score: judges completions.
        group_size: G, completions of each prompt.
        streams: random streams by stage.
        keep_states: keep the outputs of the frozen layers, where all layers sample.
        history: the policies of earlier steps.
        world: the ranks that share the verifying; the sampler shares the sampling.
    """

    algorithm: Algorithm
    sampler: RolloutSampler
    score: Scorer
    group_size: int
    streams: dict[str, Generator]
    clock: Clock
    keep_states: bool
    history: PolicyHistory
    world: World

    def __call__(self, batches: PromptBatches) -> Collected:
        """Return a group of completions of each prompt of the next batch with rewards, filtered, and replayed groups.

        Raises:
            NonFiniteError: the log-probabilities of the policy are not finite.
            ComponentError: the reward returned no finite number; see ``rewards_of``.
        """
        self.clock.lap()
        skipped = self.algorithm.layer_skip.choose(self.sampler.policy.depth, self.streams["layer_skip"])
        with self.history.behaviour():
            rounds, kept = self._rounds(batches, skipped)
            replayed = self._replayed(kept, skipped)
        sampled = rounds if replayed is None else [*rounds, replayed[0]]
        origins = list(range(len(kept.prompts)))
        self.clock.start("train")  # what follows, up to the record of the step
        return Collected(
            first=rounds[0],
            all=kept if replayed is None else kept + replayed[0],
            origins=origins if replayed is None else origins + replayed[1],
            skipped=skipped,
            age=self.history.age,
            exact=self.sampler.is_exact,
            rounds=len(rounds),
            filtered=self.algorithm.batch_filter.active,
            kept=len(kept.prompts),
            sampled=sum(one.sampled for one in sampled),
            replayed=0 if replayed is None else replayed[0].sampled,
            timeouts=sum(score.timed_out for one in sampled for score in one.scores),
        )

    def _rounds(self, batches: PromptBatches, skipped: list[int]) -> tuple[list[Experience], Experience]:
        """Return all that is sampled, without replay, and the groups that the batch filter keeps.

        Each round after the first has as many prompts as the one before left out, so no group is too much.
        """
        batch_filter, draws = self.algorithm.batch_filter, self.streams["rollout"]
        rounds = [self._experience(next(batches), skipped, draws)]
        flags = self._flags(rounds[0])
        kept = rounds[0].take(flags)
        for _ in range(batch_filter.redraws):
            left_out = [prompt for prompt, keep in zip(rounds[-1].prompts, flags.tolist(), strict=True) if not keep]
            if not left_out:
                break
            prompts = left_out if batch_filter.same_prompts else batches.draw(len(left_out))
            rounds.append(self._experience(prompts, skipped, draws))
            flags = self._flags(rounds[-1])
            kept = kept + rounds[-1].take(flags)
        return rounds, kept

    def _flags(self, experience: Experience) -> Tensor:
        """Return which groups the batch filter keeps, (P,) bool."""
        batch_filter = self.algorithm.batch_filter
        flags = batch_filter.keeps(experience.correct)
        return with_shape("batch_filter", batch_filter, flags, (len(experience.prompts),)).bool()

    def _replayed(self, kept: Experience, skipped: list[int]) -> tuple[Experience, list[int]] | None:
        """Return the groups that replay adds, and the number of the prompt of each; None without any."""
        if not self.algorithm.replay.active:
            return None
        draws = self.streams["replay"]
        cut, origins = self.algorithm.replay.cut(kept.prompts, kept.rollout, kept.correct, draws)
        return (self._experience(cut, skipped, draws), origins) if cut else None

    def _experience(self, prompts: list[Prompt], skipped: list[int], draws: Generator) -> Experience:
        policy = self.sampler.policy
        with self.clock("rollout"), without_layers(policy, skipped):
            # the states of another model would be of no use to the training of the policy
            request = Request(
                prompts,
                self.group_size,
                keep_states=self.keep_states and not skipped,
                needs_entropy=self.algorithm.token_sampler.needs_entropy,
            )
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

"""What a step learns from: prompts → rollouts → rewards, and the same again from the middle where it replays."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from rlsparse.batch import Prompt, Rollout
from rlsparse.components.reward.verifier import Score, Verifier
from rlsparse.config.schema import Config
from rlsparse.model.policy import Policy, decode
from rlsparse.rollout import Engine
from rlsparse.rollout.layer_skip import without_layers
from rlsparse.rollout.replay import cut_completions, joined
from rlsparse.runtime.distributed import ALONE, Ranks
from rlsparse.tracking.profiling import Clock


@dataclass(frozen=True)
class Experience:
    """Completions of P prompts, G each, and what they are worth.

    Attributes:
        prompts: P.
        rollout: of them.
        texts: B: whole completions, what a prompt holds of them included.
        scores: B: the verifier's word.
        rewards: (P, G).
    """

    prompts: list[Prompt]
    rollout: Rollout
    texts: list[str]
    scores: list[Score]
    rewards: Tensor

    @property
    def sampled(self) -> int:
        """Completion tokens that were generated."""
        return int(self.rollout.lengths.sum())

    @property
    def correct(self) -> Tensor:
        """(P, G) bool."""
        return torch.tensor([one.correct for one in self.scores]).view(self.rewards.shape)

    @property
    def begun(self) -> Tensor:
        """(B,) long: tokens of each row's completion that its prompt holds."""
        begun = torch.tensor([prompt.begun for prompt in self.prompts], device=self.rewards.device)
        return begun.repeat_interleave(self.rollout.group_size)


@dataclass(frozen=True)
class Environment:
    """Where experience comes from.

    Attributes:
        keep_trunk: have rollouts keep what the trunk gave out, where the policy itself writes them.
        ranks: share the verifying; ``generate`` may share the sampling.
    """

    policy: Policy
    generate: Engine
    verifier: Verifier
    config: Config
    clock: Clock
    keep_trunk: bool
    ranks: Ranks = ALONE

    def experience(self, prompts: list[Prompt], left_out: list[int], generator: Generator) -> Experience:
        """A group of completions of each prompt, scored.

        Args:
            left_out: decoder layers that do not take part in sampling.

        Raises:
            NonFiniteError: the policy's own log-probabilities are not finite.
        """
        group_size, settings = self.config.train.group_size, self.config.rollout
        with self.clock("rollout"), without_layers(self.policy, left_out):
            # another model's states would be of no use to the policy's training
            keep_trunk = self.keep_trunk and not left_out
            rollout = self.generate(self.policy, prompts, settings, group_size, generator, keep_trunk=keep_trunk)
            rollout.require_finite()
        with self.clock("reward"):
            texts = decode(self.policy, rollout, prompts)
            answers = [prompt.problem.answer for prompt in prompts for _ in range(group_size)]
            scores = self.ranks.each(self.verifier.score, texts, answers)
            rewards = torch.tensor([one.reward(self.config.task.reward) for one in scores], device=self.policy.device)
        return Experience(prompts, rollout, texts, scores, rewards.view(-1, group_size))


def with_replay(
    environment: Environment, first: Experience, left_out: list[int], generator: Generator
) -> tuple[Experience, list[int]]:
    """The experience and, where ``token_sampler.replay`` asks for it, groups that go on from its completions.

    Returns:
        all groups, the given ones first; and for each the number of the prompt it belongs to.
    """
    own = list(range(len(first.prompts)))
    replay = environment.config.token_sampler.replay
    if replay.successes + replay.failures == 0:
        return first, own
    prompts, origins = cut_completions(first.prompts, first.rollout, first.correct, replay, generator)
    if not prompts:
        return first, own
    second = environment.experience(prompts, left_out, generator)
    both = Experience(
        prompts=first.prompts + second.prompts,
        rollout=joined([first.rollout, second.rollout]),
        texts=first.texts + second.texts,
        scores=first.scores + second.scores,
        rewards=torch.cat([first.rewards, second.rewards]),
    )
    return both, own + origins

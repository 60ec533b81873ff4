"""An algorithm: one component of each kind, built from a config, and the few rules over several of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

import torch
from torch import Generator, Tensor

from rlsparse.batch import RewardTerms, Rollout, Selection
from rlsparse.components.adapter import Adapter
from rlsparse.components.advantage import Advantage, TermAdvantage
from rlsparse.components.component import Component, Digest, build, checked, describe, use_import_path
from rlsparse.components.negative_feedback import NegativeFeedback
from rlsparse.components.objective import Aggregation, KLPenalty, Surrogate, TokenObjective
from rlsparse.components.off_policy import OffPolicyWeight
from rlsparse.components.reward import Reward
from rlsparse.components.task import Task
from rlsparse.components.token_sampler import TokenSampler
from rlsparse.config.schema import Config, ConfigError, EvaluateConfig, TrainConfig, WarmStartConfig
from rlsparse.rollout.engine import RolloutEngine
from rlsparse.rollout.layer_skip import LayerSkip
from rlsparse.rollout.replay import Replay


@dataclass(frozen=True)
class Algorithm:
    """A point in the space of components; each field is a config group.

    Build one from a config, ``Algorithm.build(compose(["algorithm=tspmo"]))``, or by hand from components.
    """

    task: Task
    reward: Reward
    advantage: Advantage
    negative_feedback: NegativeFeedback
    token_sampler: TokenSampler
    clipping: Surrogate
    kl: KLPenalty
    objective: Aggregation
    adapter: Adapter
    rollout: RolloutEngine
    replay: Replay
    layer_skip: LayerSkip
    off_policy: OffPolicyWeight

    @classmethod
    def build(cls, config: Config) -> "Algorithm":
        """Build every component of a config.

        Raises:
            ConfigError: all that is wrong, with the components and between them, a line each: key, value and remedy.
        """
        algorithm = cls(**build_parts(config, get_type_hints(cls)))
        problems = list(algorithm.problems(config.train))
        if problems:
            raise ConfigError("\n".join(problems))
        return algorithm

    def token_advantages(self, rewards: Tensor, rollout: Rollout, terms: RewardTerms | None = None) -> Tensor:
        """Return the advantage of every completion token after negative feedback, (B, T).

        Args:
            rewards: (P, G).
            terms: of these rewards; None for a single reward.

        Raises:
            ComponentError: a component returned another shape, or numbers that are not finite.
        """
        shape = tuple(rollout.completion_ids.shape)
        if terms is not None and isinstance(self.advantage, TermAdvantage):
            found = self.advantage.of_terms(terms, rollout)
        else:
            found = self.advantage(rewards, rollout)
        advantages = checked("advantage", self.advantage, found, shape)  # (B, T)
        return checked("negative_feedback", self.negative_feedback, self.negative_feedback(advantages), shape)

    def select(self, advantages: Tensor, rollout: Rollout, generator: Generator) -> Selection:
        """Return which tokens enter the loss.

        Args:
            advantages: (B, T).
            generator: CPU stream of the draws of this stage.

        Raises:
            ComponentError: weights or counts have another shape than the rollout, or are not finite.
        """
        selection = self.token_sampler(advantages, rollout, generator)
        checked("token_sampler", self.token_sampler, selection.weights, tuple(advantages.shape))
        checked("token_sampler", self.token_sampler, selection.counts, (len(advantages),))
        return selection

    def token_scales(self, selection: Selection, advantages: Tensor, origins: Sequence[int]) -> Tensor:
        """Return the share of each token in the loss, (B, T); 0 where its term cannot change the policy.

        A token with A = 0 adds nothing to the surrogate. It is kept for the KL term alone, and only in a group that has
        an advantage somewhere: a group of equal rewards costs no forward and no backward pass.

        Args:
            advantages: (B, T).
            origins: P numbers: the prompt that each group belongs to, from 0 without gaps.
        """
        group_size = len(selection.counts) // len(origins)
        of_groups = torch.tensor(origins, device=selection.counts.device)  # (P,)
        scales = self.objective(selection, of_groups, self.rollout.max_new_tokens)  # (B, T)
        if self.kl.beta == 0:
            return scales * (advantages != 0)
        group_teaches = (advantages != 0).reshape(-1, group_size * advantages.shape[1]).any(dim=1)  # (P,)
        return scales * group_teaches.repeat_interleave(group_size)[:, None]

    @property
    def token_objective(self) -> TokenObjective:
        """Return the objective that the update minimises."""
        return TokenObjective(self.clipping, self.kl)

    def identity(self, digest: Digest) -> dict[str, Any]:
        """Return what of each component can change the numbers of a run: see ``run_id.identify``."""
        return identities({field.name: getattr(self, field.name) for field in fields(self)}, digest)

    def problems(self, train: TrainConfig) -> Iterator[str]:
        """Yield the problems of combinations of components. The rules use traits, never names."""
        if self.adapter.trains_all_weights:
            yield (
                f"adapter={self.adapter.label}: trains all weights, which only a warm start does; take adapter=lora or "
                "adapter=l1ra"
            )
        if train.group_size < self.advantage.min_group_size:
            yield (
                f"train.group_size={train.group_size}: advantage={self.advantage.label} compares completions of one "
                f"prompt; take a group of at least {self.advantage.min_group_size}, or advantage=raw_reward"
            )
        if self.advantage.per_term and self.reward.term_count < 2:
            yield (
                f"advantage={self.advantage.label}: normalises each term of the reward, and reward={self.reward.label} "
                "has one; take reward=terms with several terms, or advantage=group_zscore"
            )
        yield from self._transition_problems()
        yield from self._off_policy_problems()
        yield from self._replay_problems(train)

    def _transition_problems(self) -> Iterator[str]:
        if self.advantage.per_transition and self.clipping.bounds_ratio:
            yield (
                f"clipping ({self.clipping.label}): advantage={self.advantage.label} weighs the probability of each "
                "distinct transition, which is not clipped; take clipping=prob"
            )
        if self.advantage.per_transition and not self.token_sampler.per_transition:
            yield (
                f"token_sampler={self.token_sampler.label}: advantage={self.advantage.label} credits each distinct "
                "transition once; take one that does, such as token_sampler=prefix_tree"
            )
        if self.token_sampler.per_transition and not self.advantage.per_transition:
            yield (
                f"advantage={self.advantage.label}: token_sampler=prefix_tree picks the branch points that "
                "advantage=prefix_tree credits; take both or neither"
            )

    def _off_policy_problems(self) -> Iterator[str]:
        if not self.off_policy.corrects:
            return
        label, rollout = self.off_policy.label, self.rollout
        if self.layer_skip.active and (rollout.top_p < 1 or rollout.top_k > 0):
            yield (
                f"off_policy={label}: its ratios need the probability that a token was sampled with, and "
                f"rollout.top_p={rollout.top_p} rollout.top_k={rollout.top_k} change that; take rollout.top_p=1 "
                "rollout.top_k=0, or off_policy=none"
            )
        if self.token_sampler.per_transition:
            yield (
                f"off_policy={label}: the term of a transition (T-SPMO) is no sample whose weight could be corrected, "
                "since each distinct transition counts once, whichever model sampled it; take off_policy=none"
            )

    def _replay_problems(self, train: TrainConfig) -> Iterator[str]:
        for kind, count in (("successes", self.replay.successes), ("failures", self.replay.failures)):
            if count > 0 and not self.token_sampler.per_transition:
                yield (
                    f"replay.{kind}={count}: only T-SPMO replays, whose trees need deep branch points; leave it 0 with "
                    f"token_sampler={self.token_sampler.label}, or take algorithm=tspmo"
                )
            elif count > train.group_size:
                yield (
                    f"replay.{kind}={count}: a group has train.group_size={train.group_size} completions to cut; give "
                    "at most that many"
                )


def build_parts(config: Config | WarmStartConfig | EvaluateConfig, bases: Mapping[str, type]) -> dict[str, Any]:
    """Build the components of some config groups.

    Args:
        bases: base class of each group by name.

    Raises:
        ConfigError: all that is wrong with them, a line each.
    """
    use_import_path(config.import_path)
    built: dict[str, Any] = {}
    problems: list[str] = []
    for group, base in bases.items():
        try:
            built[group] = build(group, getattr(config, group), base)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return built


def identities(parts: Mapping[str, Component], digest: Digest) -> dict[str, Any]:
    """Return the part of each component in the run id, by config group."""
    return {group: describe(part, digest) for group, part in parts.items()}

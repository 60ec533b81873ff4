"""An algorithm: one component of each kind, built from a config, and the few rules over several of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_type_hints

import torch
from torch import Generator, Tensor

from rlsparse.batch import RewardTerms, Rollout, ScoredBatch, Selection, TokenBatch
from rlsparse.components.adapter import Adapter
from rlsparse.components.advantage import Advantage, TermAdvantage
from rlsparse.components.batch_filter import BatchFilter
from rlsparse.components.component import Component, Digest, build, checked, describe, use_import_path
from rlsparse.components.entropy import EntropyBonus
from rlsparse.components.negative_feedback import NegativeFeedback
from rlsparse.components.objective import Aggregation, KLPenalty, RowSurrogate, Surrogate, TokenObjective
from rlsparse.components.off_policy import OffPolicyWeight
from rlsparse.components.reward import Reward
from rlsparse.components.task import Task
from rlsparse.components.token_sampler import TokenSampler
from rlsparse.config.schema import (
    Config,
    ConfigError,
    EvaluateConfig,
    ModelConfig,
    TrainConfig,
    WarmStartConfig,
)
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
    batch_filter: BatchFilter
    advantage: Advantage
    negative_feedback: NegativeFeedback
    token_sampler: TokenSampler
    clipping: Surrogate
    kl: KLPenalty
    entropy: EntropyBonus
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
        problems = [*algorithm.problems(config.train), *algorithm.model_problems(config.model)]
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
        if len(rewards) == 0:  # the batch filter has left nothing
            return rewards.new_zeros(shape)
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
        if len(advantages) == 0:
            return Selection(advantages, advantages.new_zeros(0))
        selection = self.token_sampler(advantages, rollout, generator)
        checked("token_sampler", self.token_sampler, selection.weights, tuple(advantages.shape))
        checked("token_sampler", self.token_sampler, selection.counts, (len(advantages),))
        return selection

    def token_scales(self, selection: Selection, advantages: Tensor, origins: Sequence[int]) -> Tensor:
        """Return the share of each token in the loss, (B, T); 0 where its term cannot change the policy.

        A token with A = 0 adds nothing to the surrogate. It is kept for the KL term and the entropy alone, and only in
        a group that has an advantage somewhere: a group of equal rewards costs no forward and no backward pass.

        Args:
            advantages: (B, T).
            origins: P numbers: the prompt that each group belongs to, from 0 without gaps.
        """
        group_size = len(selection.counts) // len(origins)
        of_groups = torch.tensor(origins, device=selection.counts.device)  # (P,)
        scales = self.objective(selection, of_groups, self.rollout.max_new_tokens)  # (B, T)
        if self.kl.beta == 0 and self.entropy.coefficient == 0:
            return scales * (advantages != 0)
        group_teaches = (advantages != 0).reshape(-1, group_size * advantages.shape[1]).any(dim=1)  # (P,)
        return scales * group_teaches.repeat_interleave(group_size)[:, None]

    def scored(self, batch: TokenBatch) -> list[ScoredBatch]:
        """Return a batch with the scales of its tokens; one for each pass where the token sampler makes several."""
        if len(batch.origins) == 0:
            return []
        scales = self.token_scales(batch.selection, batch.advantages, batch.origins)  # (B, T)
        whole = ScoredBatch(batch.rollout, batch.advantages, scales, batch.on_policy, self.clipping.needs_whole_rows)
        passes = batch.selection.passes
        if passes is None:
            return [whole]
        return [replace(whole, scales=scales * (passes == number)) for number in passes.unique().tolist()]

    @property
    def token_objective(self) -> TokenObjective:
        """Return the objective that the update minimises."""
        return TokenObjective(self.clipping, self.kl, self.entropy.coefficient)

    def identity(self, digest: Digest) -> dict[str, Any]:
        """Return what of each component can change the numbers of a run: see ``run_id.identify``."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        neutral = {name: None for name, part in parts.items() if part.is_neutral}
        return {**identities({name: part for name, part in parts.items() if name not in neutral}, digest), **neutral}

    def problems(self, train: TrainConfig) -> Iterator[str]:
        """Yield the problems of combinations of components. The rules use traits, never names."""
        if self.adapter.only_warm_starts:
            yield (
                f"adapter={self.adapter.label}: is for warm starts; take adapter=full to train all weights, or "
                "adapter=lora"
            )
        if train.group_size < self.advantage.min_group_size:
            yield (
                f"train.group_size={train.group_size}: advantage={self.advantage.label} compares completions of one "
                f"prompt; take a group of at least {self.advantage.min_group_size}, or another option of advantage, "
                "such as raw_reward"
            )
        if self.advantage.per_term and self.reward.term_count < 2:
            yield (
                f"advantage={self.advantage.label}: normalises each term of the reward, and reward={self.reward.label} "
                "has one; take reward=terms with several terms, or advantage=group_zscore"
            )
        yield from self._batch_problems(train)
        yield from self._reward_problems()
        yield from self._transition_problems()
        yield from self._row_problems()
        yield from self._history_problems(train)
        yield from self._off_policy_problems(train)
        yield from self._engine_problems()
        yield from self._replay_problems(train)

    def _reward_problems(self) -> Iterator[str]:
        """Yield what is wrong with the sign of the rewards, where the reward says how small they can be."""
        smallest = self.reward.smallest_reward
        if smallest is None:
            return
        if smallest < self.advantage.smallest_reward:
            yield (
                f"advantage={self.advantage.label}: is defined for rewards of at least "
                f"{self.advantage.smallest_reward:g}, and reward ({self.reward.label}) can give {smallest:g}; raise "
                "the values of the reward, or take advantage=group_mean"
            )
        if self.advantage.is_reward and smallest >= 0 and not bool(self.negative_feedback(torch.ones(1, 1)).any()):
            yield (
                f"negative_feedback ({self.negative_feedback.label}): keeps advantages below 0 alone, and with "
                f"advantage={self.advantage.label} and rewards of at least {smallest:g} there are none; take "
                "reward=signed"
            )

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

    def _batch_problems(self, train: TrainConfig) -> Iterator[str]:
        if self.batch_filter.active and train.group_size == 1:
            yield (
                f"batch_filter={self.batch_filter.label}: a group of one completion is all right or all wrong, so none "
                "would be kept; raise train.group_size=1, or take batch_filter=dilute"
            )
        if train.mask_truncated and self.token_sampler.per_transition:
            yield (
                f"train.mask_truncated=true: token_sampler ({self.token_sampler.label}) counts a transition once for "
                "all completions that share it, so one of them cannot leave; take train.mask_truncated=false"
            )

    def _row_problems(self) -> Iterator[str]:
        """Yield what is wrong with a surrogate that needs all tokens of a completion."""
        if not self.clipping.needs_whole_rows:
            return
        if not isinstance(self.clipping, RowSurrogate):
            yield (
                f"clipping ({self.clipping.label}): needs_whole_rows is true, but the class gets no whole rows; derive "
                "it from rlsparse.components.objective.RowSurrogate"
            )
        if self.token_sampler.cuts_completions:
            yield (
                f"clipping ({self.clipping.label}): needs the ratio of the whole completion, and token_sampler="
                f"{self.token_sampler.label} leaves out the tokens behind its cut to save their forward pass; take "
                "another token_sampler, or clipping=on"
            )
        if self.token_sampler.per_transition and not self.clipping.bounds_ratio:  # else the rule on transitions says it
            yield (
                f"clipping ({self.clipping.label}): weighs whole completions, and token_sampler ("
                f"{self.token_sampler.label}) single transitions, which several completions share; take clipping=prob"
            )

    def _history_problems(self, train: TrainConfig) -> Iterator[str]:
        """Yield what is wrong with keeping adapters of earlier steps."""
        if not self.adapter.moves_ranks:
            return
        label = self.adapter.label
        moved = f"keeps adapters of earlier steps, and the ranks of adapter={label} move; take adapter=lora"
        if train.staleness > 0:
            yield f"train.staleness={train.staleness}: {moved}, or train.staleness=0"
        if self.kl.reference_update is not None:
            yield f"kl.reference={getattr(self.kl, 'reference', 'moving')}: {moved}, or kl.reference=base"

    def model_problems(self, model: ModelConfig) -> Iterator[str]:
        """Yield the problems of training these parameters of the model as it is loaded."""
        obstacle = self.adapter.quantization_obstacle
        if model.quantization != "off" and obstacle is not None:
            yield (
                f"model.quantization={model.quantization}: adapter={self.adapter.label} cannot be trained on quantized "
                f"weights: {obstacle}; take model.quantization=off, or adapter=lora"
            )

    def _off_policy_problems(self, train: TrainConfig) -> Iterator[str]:
        if not self.off_policy.corrects:
            return
        label, rollout = self.off_policy.label, self.rollout
        if rollout.top_p < 1 or rollout.top_k > 0:
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

    def _engine_problems(self) -> Iterator[str]:
        """Yield what an engine with a copy of the base model cannot do."""
        if self.rollout.uses_policy:
            return
        label = self.rollout.label
        if self.layer_skip.active:
            yield (
                f"layer_skip: rollout={label} samples from a copy of the whole model; take layer_skip=off, or "
                "rollout=fast"
            )
        if not self.adapter.exports_lora:
            yield (
                f"adapter={self.adapter.label}: rollout={label} applies plain LoRA alone; take adapter=lora, or "
                "rollout=fast"
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

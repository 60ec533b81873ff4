"""The steps on a rollout batch: minibatches, old policies, batch filters, stale rollouts, moving references, entropy."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rlsparse.algorithm import Algorithm
from rlsparse.batch import Problem, RewardTerms, ScoredBatch, Selection, TokenBatch
from rlsparse.components.batch_filter.base import Dilute
from rlsparse.components.batch_filter.teaching import Drop, Refill
from rlsparse.components.objective import ScoredTokens
from rlsparse.components.objective.kl import ReferenceUpdate
from rlsparse.components.reward import Score
from rlsparse.config.schema import Config, ConfigError
from rlsparse.execution.point_warnings import (
    endless_staleness,
    idle_clipping,
    idle_kl,
    idle_off_policy,
    idle_reference,
    point_warnings,
    uncorrected_staleness,
)
from rlsparse.model.cache import ModelCache
from rlsparse.model.packing import PACKED
from rlsparse.model.policy import PLAIN, Policy, encode_prompt, token_log_probs, token_log_probs_and_entropy
from rlsparse.rollout import RolloutSampler
from rlsparse.runtime.distributed import ALONE
from rlsparse.runtime.oom import MemoryLimits
from rlsparse.runtime.rng import stream
from rlsparse.runtime.signals import StopRequest
from rlsparse.tracking.metrics import is_documented
from rlsparse.tracking.profiling import Clock
from rlsparse.tracking.tracker import NullTracker
from rlsparse.train import train
from rlsparse.training.collect import Collector
from rlsparse.training.data import PromptBatches
from rlsparse.training.history import PolicyHistory
from rlsparse.training.microbatch import FitMicrobatches
from rlsparse.training.setup import RunContext, training
from rlsparse.training.update import Updater
from tests.conftest import make_rollout
from tests.test_config import check
from tests.test_objective import assert_same, gradient
from tests.test_properties import Sampled, T, quickly_composed, two_ranks
from tests.test_properties import token_batch as random_batch

FIRST = ("token_sampler=first", "token_sampler.budget=4")
TSPMO = ("advantage=prefix_tree", "token_sampler=prefix_tree", "clipping=prob", "objective=prompt_mean")


def algorithm_of(*overrides: str) -> Algorithm:
    return Algorithm.build(quickly_composed(*overrides))


# --- minibatches ---------------------------------------------------------------------------------------------------


def token_batch(origins, group_size=2) -> TokenBatch:
    """Return groups of completions whose tokens, advantages and weights name the group and the row."""
    groups = len(origins)
    rows = [[10 * group + g + 1] * (1 + g) for group in range(groups) for g in range(group_size)]
    rollout = make_rollout(rows, prompts=groups)
    rollout = replace(rollout, prompt_ids=torch.arange(groups)[:, None].expand(groups, 2))
    advantages = rollout.completion_ids.float()
    selection = Selection(rollout.mask.float() * advantages, rollout.lengths.float())
    return TokenBatch(rollout, advantages, selection, origins, on_policy=False)


def groups_of(batch: TokenBatch) -> list[int]:
    """Return the numbers of the groups in the order of a minibatch, and check that all of its parts agree."""
    groups = batch.rollout.prompt_ids[:, 0].tolist()
    of_rows = [10 * group + g + 1 for group in groups for g in range(2)]
    assert batch.rollout.completion_ids[:, 0].tolist() == of_rows
    assert batch.advantages[:, 0].tolist() == of_rows
    assert torch.equal(batch.selection.weights, batch.advantages * batch.rollout.mask)
    assert batch.selection.counts.tolist() == [1, 2] * len(groups)
    assert not batch.on_policy
    return groups


def test_minibatches_hold_whole_groups_and_replayed_groups_stay_with_their_prompt():
    origins = [0, 1, 2, 3, 4, 0, 2, 2]  # three replayed groups, of prompts 0 and 2
    parts = token_batch(origins).minibatches(2, torch.Generator().manual_seed(0))
    order = torch.randperm(5, generator=torch.Generator().manual_seed(0)).tolist()
    # 5 prompts in 2 parts: 3 and 2, in the order of the generator; a prompt's groups side by side
    expected = [[g for prompt in some for g in range(8) if origins[g] == prompt] for some in (order[:3], order[3:])]
    assert [groups_of(part) for part in parts] == expected
    for part in parts:
        before = [origins[group] for group in groups_of(part)]
        numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(before))}
        assert list(part.origins) == [numbers[prompt] for prompt in before]  # from 0 without gaps


@pytest.mark.parametrize(("prompts", "count", "sizes"), [(7, 3, [3, 2, 2]), (4, 4, [1] * 4), (3, 5, [1] * 3)])
def test_minibatches_have_as_equal_numbers_of_prompts_as_possible_and_none_is_empty(prompts, count, sizes):
    parts = token_batch(list(range(prompts))).minibatches(count, torch.Generator().manual_seed(1))
    assert [len(part.origins) for part in parts] == sizes
    assert sorted(group for part in parts for group in groups_of(part)) == list(range(prompts))


def test_minibatches_of_count_1_are_the_batch_and_draw_nothing():
    generator, batch = torch.Generator().manual_seed(2), token_batch([0, 1, 2])
    (only,) = batch.minibatches(1, generator)
    assert only is batch
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(2).get_state())


def test_minibatches_from_one_generator_differ_from_step_to_step():
    generator, batch = torch.Generator().manual_seed(3), token_batch(list(range(8)))
    orders = {tuple(tuple(groups_of(part)) for part in batch.minibatches(2, generator)) for _ in range(4)}
    assert len(orders) == 4


@pytest.mark.parametrize(
    ("objective", "of_first", "of_second"),
    [
        # groups of two completions with 1 and 2 tokens; the first minibatch has two prompts, the second one
        ("sequence_mean", [1 / 4, 1 / 8], [1 / 2, 1 / 4]),  # rows 4 | 2, then tokens of the row
        ("token_mean", [1 / 6, 1 / 6], [1 / 3, 1 / 3]),  # chosen tokens 6 | 3
        ("sequence_sum", [1 / 4, 1 / 4], [1 / 2, 1 / 2]),  # rows 4 | 2
        ("prompt_mean", [1 / 6, 1 / 6], [1 / 3, 1 / 3]),  # 3 tokens of each prompt; prompts 2 | 1
        ("constant", [1 / 40, 1 / 40], [1 / 20, 1 / 20]),  # rows 4 | 2 of at most 10 tokens
    ],
)
def test_scales_of_a_minibatch_are_those_of_the_aggregation_on_it_alone(objective, of_first, of_second):
    algorithm = algorithm_of(f"objective={objective}", "rollout.max_new_tokens=10")
    batch = token_batch([0, 1, 2])
    batch = replace(batch, selection=Selection(batch.rollout.mask.float(), batch.rollout.lengths.float()))
    scored = [one for part in batch.minibatches(2, torch.Generator()) for one in algorithm.scored(part)]
    for one, (single, pair) in zip(scored, (of_first, of_second), strict=True):
        assert one.scales[0].tolist() == pytest.approx([single, 0])
        assert one.scales[1].tolist() == pytest.approx([pair, pair])
        assert not one.on_policy


def test_scales_of_a_sampler_with_two_passes_add_up_to_those_of_the_batch():
    rollout = make_rollout([[5, 6, 7], [5, 6], [8, 9], [7]], prompts=2)
    rollout = replace(
        rollout, log_probs=torch.tensor([[0.9, 0.1, 0.6], [0.2, 0.3, 1], [0.8, 0.7, 1], [0.9, 1, 1]]).log()
    )
    advantages = torch.tensor([[1.0], [-1], [1], [-1]]) * rollout.mask
    algorithm = algorithm_of("token_sampler=low_probability_first", "clipping=gspo")
    selection = algorithm.select(advantages, rollout, torch.Generator())
    low, high = algorithm.scored(TokenBatch(rollout, advantages, selection, [0, 1]))
    # below 0.5: the second token of row 0 and both of row 1; means over all 3, 2, 2, 1 tokens of 4 rows
    assert low.scales.tolist() == [[0, pytest.approx(1 / 12), 0], [1 / 8, 1 / 8, 0], [0] * 3, [0] * 3]
    whole = algorithm_of("clipping=gspo").token_scales(selection, advantages, [0, 1])
    torch.testing.assert_close(low.scales + high.scales, whole)
    assert low.whole_rows
    # a row of which one token is in a pass needs all its tokens, for the ratio of the completion
    assert high.needed.tolist() == [[True] * 3, [False] * 3, [True, True, False], [True, False, False]]


# --- optimizer steps -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampled(loaded_tiny: Policy) -> Sampled:
    return two_ranks(loaded_tiny)


class Steps:
    """An updater of a random adapter on the embedded policy, with two minibatches of different prompts.

    Attributes:
        a, b: the minibatches, of three and two prompts.
    """

    def __init__(self, sampled: Sampled, copy: int, *overrides: str, behaviour="policy", lr=0.05):
        """Put the adapter of a copy of the policy, 0 or 1, to its start."""
        config = quickly_composed("train.max_grad_norm=0.0", f"rollout.max_new_tokens={T}", *overrides)
        self.algorithm = Algorithm.build(config)
        self.policy, self.adapter = sampled.at_start(copy)
        fit = FitMicrobatches(config.train, MemoryLimits.of(64, config.train))
        optimizer = torch.optim.SGD(self.adapter.parameters(), lr)
        arguments = (self.policy, PLAIN, optimizer, self.algorithm, config.train, fit, ALONE, self.policy.reference)
        self.update = Updater(*arguments)
        whole = random_batch(self.algorithm, sampled.rollout, behaviour, 0)
        self.a, self.b = whole.minibatches(2, torch.Generator().manual_seed(0))

    def scored(self, batch: TokenBatch) -> ScoredBatch:
        (found,) = self.algorithm.scored(batch)
        return found

    def log_probs(self, batch: ScoredBatch) -> torch.Tensor:
        """Return the log-probabilities of all tokens under the present policy, (B, T), with gradient."""
        rows = torch.arange(len(batch.scales))
        return token_log_probs(self.policy, batch.rollout, rows, batch.rollout.mask, 1.0)

    def parameters(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.adapter.parameters()])

    def gradient_of(self, loss: torch.Tensor) -> torch.Tensor:
        self.policy.model.zero_grad()
        loss.backward()
        return gradient(self.adapter)


def two(sampled: Sampled, *overrides: str, **more) -> tuple[Steps, Steps, ScoredBatch, ScoredBatch]:
    """Return the same updater twice, each with a copy of the policy of its own, and two scored minibatches."""
    one, other = (Steps(sampled, copy, *overrides, **more) for copy in (0, 1))
    return one, other, one.scored(one.a), one.scored(one.b)


@pytest.mark.parametrize("clipping", ["on", "gspo", "gmpo", "dual_clip"])
def test_second_minibatch_is_compared_with_the_policy_before_the_first_step(sampled, clipping):
    one, other, a, b = two(sampled, f"clipping={clipping}", *FIRST, lr=0.3)
    with torch.no_grad():
        old = other.log_probs(b)
    metrics = one.update([a, b])
    other.update([a])
    new = other.log_probs(b)
    assert float((new.detach() - old)[b.scales != 0].abs().max()) > 0.2  # some ratios are outside of the bounds
    # gspo and gmpo look at all tokens of a completion, also at those that the sampler leaves out
    mask = b.rollout.mask if one.algorithm.clipping.needs_whole_rows else None
    tokens = ScoredTokens(new, old, b.advantages, b.scales, mask=mask)
    part = other.algorithm.token_objective(tokens)
    assert part.clipped > 0
    assert_same(gradient(one.adapter), other.gradient_of(part.loss))
    assert metrics.updates == 2
    assert metrics.frac_clipped > 0


@pytest.mark.parametrize("correction", ["truncated", "sequence_mask", "geometric", "retrace"])
def test_weights_of_the_second_minibatch_are_those_of_the_policy_before_the_first_step(sampled, correction):
    """The surrogate does not look at the old policy, only the weights do: those of completions at all of their tokens."""
    setting = ("clipping=off", f"off_policy={correction}", *FIRST)
    one, other, a, b = two(sampled, *setting, behaviour=correction, lr=0.3)
    chosen, off_policy = b.scales != 0, one.algorithm.off_policy
    with torch.no_grad():
        old = other.log_probs(b)
    assert int(chosen.sum()) < int(b.rollout.mask.sum())
    mask = b.rollout.mask if off_policy.needs_whole_rows else chosen
    weights = off_policy(off_policy.ratio(old, b.rollout.log_probs, mask))
    metrics = one.update([a, b])
    other.update([a])
    loss = -(b.scales * weights * b.advantages * other.log_probs(b))[chosen].sum()
    assert_same(gradient(one.adapter), other.gradient_of(loss))
    assert metrics.mismatch.tokens == int(sum((batch.scales != 0).sum() for batch in (a, b)))


def test_penalty_in_the_reward_of_the_second_minibatch_is_that_of_the_policy_before_the_first_step(sampled):
    kl = ("kl=on", "kl.beta=0.3", "kl.estimator=k1", "kl.place=reward")
    one, other, a, b = two(sampled, "clipping=off", *kl, lr=0.3)
    with torch.no_grad():
        old = other.log_probs(b)
        with other.policy.reference():
            reference = other.log_probs(b)
    one.update([a, b])
    other.update([a])
    advantages = b.advantages - 0.3 * (old - reference)  # k1 = log pi_old - log pi_ref
    loss = -(b.scales * advantages * other.log_probs(b)).sum()
    assert_same(gradient(one.adapter), other.gradient_of(loss))


def test_second_pass_over_tokens_is_compared_with_the_policy_before_the_first_step(sampled):
    one, other = (Steps(sampled, copy, "token_sampler=low_probability_first", lr=0.3) for copy in (0, 1))
    low, high = one.algorithm.scored(one.a)
    with torch.no_grad():
        old = other.log_probs(high)
    assert one.update([low, high]).updates == 2
    other.update([low])
    tokens = ScoredTokens(other.log_probs(high), old, high.advantages, high.scales)
    assert_same(gradient(one.adapter), other.gradient_of(other.algorithm.token_objective(tokens).loss))


def test_surrogate_without_an_old_policy_takes_the_steps_of_two_updates_bit_for_bit(sampled):
    one, other, a, b = two(sampled, "clipping=off")
    both = one.update([a, b])
    first, second = other.update([a]), other.update([b])
    assert torch.equal(one.parameters(), other.parameters())
    assert both.loss == pytest.approx((first.loss + second.loss) / 2)
    assert both.grad_norm == pytest.approx((first.grad_norm + second.grad_norm) / 2)
    assert (both.updates, first.updates, second.updates) == (2, 1, 1)


def test_minibatch_without_any_scale_takes_no_step(sampled):
    one, other, a, b = two(sampled, "train.updates_per_rollout=2")
    nothing = replace(b, scales=torch.zeros_like(b.scales))
    assert one.update([nothing, a, nothing]).updates == 2
    other.update([a])
    assert torch.equal(one.parameters(), other.parameters())
    before = one.parameters()
    assert one.update([nothing]).updates == one.update([]).updates == 0
    assert torch.equal(one.parameters(), before)


def test_updates_are_the_minibatches_times_the_passes_and_go_round_them(sampled):
    one, _, a, b = two(sampled, "clipping=off", "train.updates_per_rollout=2")
    other = Steps(sampled, 1, "clipping=off")
    assert one.update([a, b]).updates == 4
    for _ in range(2):
        other.update([a, b])
    assert torch.equal(one.parameters(), other.parameters())


# --- entropy bonus, truncated completions ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", [PLAIN, PACKED], ids=["plain", "packed"])
def test_entropy_bonus_adds_the_gradient_of_the_weighted_entropy_of_the_tokens_in_the_loss(sampled, path):
    with_it = Steps(sampled, 0, "entropy=on", "entropy.coefficient=0.2", "train.microbatch=4")
    without = Steps(sampled, 1)
    a = with_it.scored(with_it.a)
    rows, mask = torch.arange(len(a.scales)), a.rollout.mask
    mean = (a.scales * token_log_probs_and_entropy(with_it.policy, a.rollout, rows, mask, 1.0)[1]).sum()
    of_entropy = with_it.gradient_of(mean)
    metrics = replace(with_it.update, path=path)([a])
    plain = without.update([a])
    assert_same(gradient(with_it.adapter), gradient(without.adapter) - 0.2 * of_entropy)
    assert metrics.entropy == pytest.approx(float(mean.detach()), rel=1e-5)
    assert metrics.loss == pytest.approx(plain.loss - 0.2 * float(mean.detach()), abs=1e-6)
    assert plain.entropy is None


def test_entropy_bonus_keeps_the_tokens_without_an_advantage_in_groups_that_teach():
    advantages = torch.tensor([[1.0, 0, 0], [0, -1, 0], [0, 0, 0], [0, 0, 0]])
    rollout = make_rollout([[5, 6, 7], [5, 6], [8, 9], [7]], prompts=2)
    batch = TokenBatch(rollout, advantages, Selection(rollout.mask.float(), rollout.lengths.float()), [0, 1])
    (scored,) = algorithm_of("entropy=on").scored(batch)
    assert scored.scales.tolist() == [[pytest.approx(1 / 12)] * 3, [1 / 8, 1 / 8, 0], [0] * 3, [0] * 3]


def test_selection_without_truncated_completions_has_neither_their_weights_nor_their_counts():
    selection = Selection(torch.tensor([[1.0, 2], [3, 0], [4, 5]]), torch.tensor([2.0, 1, 2]), torch.ones(3, 2).long())
    masked = selection.without(torch.tensor([True, False, True]))
    assert masked.weights.tolist() == [[0, 0], [3, 0], [0, 0]]
    assert masked.counts.tolist() == [0, 1, 0]
    assert masked.passes is selection.passes


# --- batch filters -------------------------------------------------------------------------------------------------


def test_batch_filters_keep_the_groups_that_are_neither_all_right_nor_all_wrong():
    correct = torch.tensor([[True] * 3, [False] * 3, [True, False, True], [False, False, True]])
    refill = Refill(max_rounds=4, source="prompts")
    assert Drop().keeps(correct).tolist() == refill.keeps(correct).tolist() == [False, False, True, True]
    assert Dilute().keeps(correct).tolist() == [True] * 4
    assert [one.redraws for one in (Dilute(), Drop(), refill)] == [0, 0, 4]
    assert [one.same_prompts for one in (Drop(), refill, Refill(2, "groups"))] == [False, False, True]
    assert [one.active for one in (Dilute(), Drop(), refill)] == [False, True, True]


NO_HISTORY = PolicyHistory(adapter=None, staleness=0, update=None)


class Judge:
    """Takes the place of the scorer: every second completion of the questions in ``teaching`` is right, others never.

    Attributes:
        asked: the questions in the order of their completions.
        from_round: of a question, the number of times that its groups were judged before one teaches.
    """

    def __init__(self, teaching, from_round=None):
        self.teaching, self.from_round, self.asked = teaching, from_round or {}, []

    def __call__(self, text, problem):
        number = self.asked.count(problem.question)  # of completions of this question before
        self.asked.append(problem.question)
        teaches = problem.question in self.teaching and number // 4 >= self.from_round.get(problem.question, 0)
        return Score(correct=teaches and number % 2 == 0, answered=True, timed_out=number % 4 == 3)

    @property
    def groups(self):
        return self.asked[::4]


def collected(policy: Policy, judge: Judge, *overrides: str):
    """Return what a collector makes of the prompts 0 to 3 of twelve, four completions each."""
    config = quickly_composed("rollout.max_new_tokens=6", *overrides)
    algorithm = Algorithm.build(config)
    sampler = RolloutSampler(policy, algorithm.rollout, MemoryLimits.of(64, config.train), ALONE)
    streams = {name: stream(0, name) for name in ("rollout", "layer_skip", "replay", "reward")}
    collector = Collector(algorithm, sampler, judge, 4, streams, Clock(policy.device), False, NO_HISTORY, ALONE)
    prompts = [encode_prompt(policy, Problem(str(n), "", ""), f"{n + 10}*7=") for n in range(12)]
    batches = PromptBatches(prompts, 4, stream(0, "prompts"))
    batches.pending = list(range(12))
    return algorithm, collector(batches), batches


REFILL = ("batch_filter=refill", "batch_filter.max_rounds=3")


def test_refill_draws_the_next_prompts_until_all_groups_teach(tiny):
    # round 1: prompts 0-3, of which 1 and 2 teach; round 2: 4, 5, of which 5 teaches; round 3: 6, which teaches
    judge = Judge({"1", "2", "5", "6"})
    _, found, batches = collected(tiny, judge, *REFILL)
    assert judge.groups == ["0", "1", "2", "3", "4", "5", "6"]
    assert [prompt.problem.question for prompt in found.all.prompts] == ["1", "2", "5", "6"]
    assert (found.rounds, found.kept, found.filtered) == (3, 4, True)
    assert list(found.origins) == [0, 1, 2, 3]
    assert batches.pending == [7, 8, 9, 10, 11]
    # rewards are those of every second completion
    assert found.all.rewards.tolist() == [[1, 0, 1, 0]] * 4
    assert found.first.rewards.tolist() == [[0] * 4, [1, 0, 1, 0], [1, 0, 1, 0], [0] * 4]
    # groups that were left out count in the cost: seven groups, a verdict of each of which timed out
    assert found.timeouts == 7
    dropped = collected(tiny, Judge({"1", "2"}), "batch_filter=drop")[1]
    assert found.sampled > found.all.sampled
    assert found.first.sampled == dropped.sampled
    assert found.sampled - found.first.sampled >= found.all.sampled - dropped.all.sampled > 0


def test_refill_after_the_last_round_leaves_the_step_with_fewer_groups(tiny):
    judge = Judge({"2"})
    _, found, _ = collected(tiny, judge, "batch_filter=refill", "batch_filter.max_rounds=2")
    assert judge.groups == [str(n) for n in range(4 + 3 + 3)]
    assert (found.rounds, found.kept) == (3, 1)


def test_refill_from_groups_samples_the_same_prompts_again(tiny):
    # of the prompts 0 to 3, number 1 teaches at once, 3 at the second try, 0 at the third, 2 never
    judge = Judge({"0", "1", "3"}, from_round={"3": 1, "0": 2})
    _, found, batches = collected(tiny, judge, *REFILL, "batch_filter.source=groups")
    assert judge.groups == ["0", "1", "2", "3", "0", "2", "3", "0", "2", "2"]
    assert [prompt.problem.question for prompt in found.all.prompts] == ["1", "3", "0"]
    assert (found.rounds, found.kept) == (4, 3)
    assert batches.pending == list(range(4, 12))
    texts, of_round_1 = found.all.texts, found.first.texts
    assert texts[:4] == of_round_1[4:8]
    again = found.all.rollout.take(torch.tensor([2]))
    first = found.first.rollout.take(torch.tensor([0]))
    width = min(again.completion_ids.shape[1], first.completion_ids.shape[1])
    assert not torch.equal(again.completion_ids[:, :width], first.completion_ids[:, :width])  # new draws


def test_drop_keeps_the_groups_that_teach_in_order_with_all_that_belongs_to_them(tiny):
    _, found, _ = collected(tiny, Judge({"1", "3"}), "batch_filter=drop")
    first, kept = found.first, found.all
    groups = torch.tensor([1, 3])
    assert [prompt.problem.question for prompt in kept.prompts] == ["1", "3"]
    assert kept.texts == first.texts[4:8] + first.texts[12:]
    assert kept.scores == first.scores[4:8] + first.scores[12:]
    assert torch.equal(kept.rollout.lengths, first.rollout.lengths[first.rollout.rows_of(groups)])
    assert torch.equal(kept.correct, first.correct[groups])
    assert (found.rounds, found.kept, found.sampled) == (1, 2, first.sampled)


def test_replay_after_a_filter_continues_the_groups_that_are_kept(tiny):
    setting = (*TSPMO, "replay=on", "batch_filter=drop")
    _, found, _ = collected(tiny, Judge({"1", "3"}), *setting)
    questions = [prompt.problem.question for prompt in found.all.prompts]
    assert questions[:2] == ["1", "3"]
    assert len(questions) > 2
    assert [questions[origin] for origin in found.origins] == questions
    assert found.replayed == found.sampled - found.first.sampled > 0


def test_terms_of_groups_that_are_kept_are_theirs():
    terms = RewardTerms(("a", "b"), torch.tensor([1.0, 2.0]), torch.arange(12.0).view(2, 3, 2))
    taken = terms.take(torch.tensor([2, 0]))
    assert taken.values.tolist() == [[[4, 5], [0, 1]], [[10, 11], [6, 7]]]
    both = taken + terms.take(torch.tensor([1]))
    assert both.values.tolist() == [[[4, 5], [0, 1], [2, 3]], [[10, 11], [6, 7], [8, 9]]]
    assert (both.names, both.weights.tolist()) == (("a", "b"), [1.0, 2.0])


# --- policies of earlier steps -------------------------------------------------------------------------------------


class Scalars:
    """An adapter of two parameters; only what a history asks for."""

    def __init__(self, *values: float):
        self.values = [nn.Parameter(torch.tensor([value])) for value in values]

    def parameters(self):
        return self.values

    def parameters_set(self):
        pass

    def set(self, *values: float):
        with torch.no_grad():
            for parameter, value in zip(self.values, values, strict=True):
                parameter.fill_(value)

    def read(self):
        return [float(parameter.detach()) for parameter in self.values]


def test_stale_history_samples_with_the_policy_of_k_steps_ago_and_fewer_at_the_start():
    adapter = Scalars(0.0, 10.0)
    history = PolicyHistory.start(adapter, 2, None)
    seen = []
    for step in range(1, 6):
        with history.behaviour():
            seen.append((history.age, adapter.read()))
        assert adapter.read() == [step - 1, step + 9]
        adapter.set(step, step + 10)
        history.after_step(step)
    # the policy before steps 1, 2, 3 is number 0, then it follows two steps behind
    assert seen == [(0, [0, 10]), (1, [0, 10]), (2, [0, 10]), (2, [1, 11]), (2, [2, 12])]
    assert len(history.past) == 3


def test_history_without_staleness_keeps_nothing():
    history = PolicyHistory.start(Scalars(1.0), 0, None)
    history.after_step(1)
    assert (history.age, history.past, history.reference, history.state()) == (0, [], [], {})


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        (ReferenceUpdate(every=2, share=1.0), [0, 0, 2, 2, 4]),
        # 0.25 · 2 = 0.5, then 0.25 · 4 + 0.75 · 0.5 = 1.375
        (ReferenceUpdate(every=2, share=0.25), [0, 0, 0.5, 0.5, 1.375]),
        (ReferenceUpdate(every=1, share=0.5), [0, 0.5, 1.25, 2.125, 3.0625]),
    ],
    ids=["sync", "ema", "ema_every_step"],
)
def test_reference_policy_moves_every_n_steps_by_its_share(update, expected):
    adapter, found = Scalars(0.0), []
    history = PolicyHistory.start(adapter, 0, update)
    for step in range(1, 6):
        with history.reference_policy():
            found += adapter.read()
        adapter.set(float(step))
        history.after_step(step)
    assert found == pytest.approx(expected)
    assert adapter.read() == [5.0]


def fail_after(adapter, seen):
    """Read an adapter and fail."""
    seen += adapter.read()
    raise ZeroDivisionError


def test_policy_after_a_context_of_a_history_is_bit_for_bit_the_present_one_also_after_an_error():
    adapter = Scalars(1 / 3, -0.0)
    history = PolicyHistory.start(adapter, 1, ReferenceUpdate(1, 0.5))
    adapter.set(0.1, 7.7)
    history.after_step(1)
    before = [parameter.detach().clone() for parameter in adapter.parameters()]
    # half of the start and half of the present
    expected = [[1 / 3, 0], [(1 / 3 + 0.1) / 2, 7.7 / 2]]
    for context, values in zip((history.behaviour, history.reference_policy), expected, strict=True):
        seen = []
        with pytest.raises(ZeroDivisionError), context():
            fail_after(adapter, seen)
        assert seen == pytest.approx(values)
        assert all(torch.equal(a, b) for a, b in zip(adapter.parameters(), before, strict=True))
    assert all(parameter.requires_grad for parameter in adapter.parameters())


@pytest.mark.parametrize(
    ("staleness", "update"), [(2, None), (0, ReferenceUpdate(3, 0.5)), (11, ReferenceUpdate(1, 1))]
)
def test_history_that_is_saved_and_loaded_goes_on_as_before(staleness, update):
    def after(adapter, history, first, last):
        for step in range(first, last):
            adapter.set(step / 3, -step / 7)
            history.after_step(step)
        with history.behaviour():
            behaviour = adapter.read()
        return behaviour, history.age, {name: value.tolist() for name, value in history.state().items()}

    whole, saved, resumed = (Scalars(0.5, 0.25) for _ in range(3))
    expected = after(whole, PolicyHistory.start(whole, staleness, update), 1, 30)
    first = PolicyHistory.start(saved, staleness, update)
    after(saved, first, 1, 15)
    second = PolicyHistory.start(resumed, staleness, update)
    second.load_state({name: value.clone() for name, value in first.state().items()})
    assert after(resumed, second, 15, 30) == expected


# --- steps of runs -------------------------------------------------------------------------------------------------


class Rows(NullTracker):
    """Keeps the metrics that a run would write."""

    def train(self, step, metrics):
        assert all(is_documented(name) for name in metrics)
        self.history.append(dict(metrics))


@pytest.fixture(scope="module")
def models() -> ModelCache:
    return ModelCache()


def trained(models: ModelCache, *overrides: str):
    """Return the metrics of each step of a run, the gradient of each optimizer step, and the adapter at the end."""
    small = ("train.prompts_per_step=4", "train.group_size=4", "eval.max_rows=1", "eval.samples=1")
    config = quickly_composed(*small, *overrides)
    device, tracker, gradients = torch.device("cpu"), Rows(), []

    def keep(optimizer, *_):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients.append(torch.cat([p.grad.flatten() for p in parameters]))

    context = RunContext(device, ALONE, None, None, tracker, Clock(device), StopRequest(), models)
    hook = register_optimizer_step_pre_hook(keep)
    try:
        with training(config, Algorithm.build(config), context) as run:
            train(run)
            end = torch.cat([p.detach().flatten() for p in run.adapter.parameters()])
    finally:
        hook.remove()
    return tracker.history, gradients, end


def without_times(row):
    return {name: value for name, value in row.items() if not name.startswith("time/") and "per_second" not in name}


def test_first_step_with_stale_rollouts_is_that_without_and_later_ones_are_off_policy(models):
    setting = ("train.steps=3", "train.lr=0.02", "off_policy=truncated", "clipping=off")
    stale, stale_gradients, _ = trained(models, *setting, "train.staleness=1")
    fresh, fresh_gradients, _ = trained(models, *setting)
    assert [row["rollout/policy_age"] for row in stale] == [0, 1, 1]
    assert without_times(stale[0]) == {**without_times(fresh[0]), "rollout/policy_age": 0}
    assert torch.equal(stale_gradients[0], fresh_gradients[0])
    assert not torch.equal(stale_gradients[1], fresh_gradients[1])
    assert ["off_policy/kl" in row for row in stale] == [False, True, True]
    assert all(row["off_policy/kl"] > 1e-4 for row in stale[1:])
    assert not any("off_policy/kl" in row or "rollout/policy_age" in row for row in fresh)


def test_stale_policy_that_has_not_moved_has_no_mismatch(models):
    rows, _, _ = trained(models, "train.steps=3", "train.lr=0", "train.staleness=2", "off_policy=importance")
    assert [row["rollout/policy_age"] for row in rows] == [0, 1, 2]
    for row in rows[1:]:
        assert row["off_policy/kl"] == pytest.approx(0, abs=1e-6)
        assert row["off_policy/weight_mean"] == pytest.approx(1, abs=1e-4)


FILTERS = {
    "drop": ("batch_filter=drop",),
    "refill": ("batch_filter=refill", "batch_filter.max_rounds=2"),
}
EVERYTHING = (
    "train.minibatches=2",
    "train.updates_per_rollout=2",
    "clipping=gspo",
    "kl=on",
    "kl.reference=ema",
    "kl.reference_every=1",
    "entropy=on",
    "train.staleness=1",
    "off_policy=sequence_mask",
)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("more", [(), EVERYTHING, (*TSPMO, "replay=on")], ids=["grpo", "everything", "tspmo"])
def test_step_in_which_every_completion_is_wrong_takes_no_step(models, name, more):
    """One token is too few for an answer of two digits, so that no group is kept."""
    setting = ("rollout.max_new_tokens=1", "train.steps=2", "objective.l2=0")
    rows, gradients, _ = trained(models, *setting, *FILTERS[name], *more)
    assert gradients == []
    rounds = {"drop": 1, "refill": 3}[name]
    for row in rows:
        assert row["train/updates"] == row["task/accuracy"] == row["objective/loss"] == 0
        assert row["rollout/length_mean"] == 1  # of the first round
        assert row["rollout/kept_groups"] == row["tokens/frac_updated"] == row["tokens/frac_forward"] == 0
        assert row["rollout/rounds"] == rounds
    # 4 prompts of 4 completions of one token, each round, and two steps
    assert rows[-1]["tokens/generated"] == 2 * 16 * rounds
    assert rows[-1]["tokens/selected"] == 0


def test_run_with_refilled_batches_logs_rounds_and_counts_all_tokens(models):
    rows, gradients, _ = trained(models, *FILTERS["refill"], "train.steps=2", "train.minibatches=2")
    plain, _, _ = trained(models, "train.steps=2", "train.minibatches=2")
    assert all(1 <= row["rollout/rounds"] <= 3 and 0 < row["rollout/kept_groups"] <= 4 for row in rows)
    for name in ("task/reward_mean", "task/accuracy", "rollout/length_mean", "rollout/frac_degenerate_groups"):
        assert rows[0][name] == plain[0][name]  # of the first round, before any is left out
    # the step has 16 completions in its first round
    first = round(rows[0]["rollout/length_mean"] * 16)
    assert (rows[0]["tokens/generated"] > first) == (rows[0]["rollout/rounds"] > 1)
    assert plain[0]["tokens/generated"] == first
    assert len(gradients) == sum(row["train/updates"] for row in rows)
    assert 0 < rows[0]["tokens/frac_updated"] <= 1


def test_run_without_truncated_completions_learns_from_those_that_ended_alone(models):
    short = ("rollout.max_new_tokens=4", "train.steps=1", "reward.wrong=-1", "advantage=raw_reward")
    masked, _, _ = trained(models, *short, "train.mask_truncated=true")
    whole, _, _ = trained(models, *short)
    truncated = round(masked[0]["rollout/frac_truncated"] * 16)
    assert 0 < truncated < 16
    assert masked[0]["task/reward_mean"] == whole[0]["task/reward_mean"]
    assert whole[0]["tokens/selected"] - masked[0]["tokens/selected"] == 4 * truncated  # each has 4 tokens


def test_moving_reference_is_the_first_policy_until_it_moves(models):
    """The adapter starts as the base model, so the references agree before the first move, after step 1."""
    setting = ("train.steps=2", "train.lr=0.02", "kl=on", "kl.beta=0.5")
    base, _, _ = trained(models, *setting)
    moving, _, _ = trained(models, *setting, "kl.reference=sync", "kl.reference_every=1")
    assert moving[0]["objective/kl"] == pytest.approx(base[0]["objective/kl"], abs=1e-6)
    assert base[1]["objective/kl"] > 1e-3
    assert moving[1]["objective/kl"] == pytest.approx(0, abs=1e-6)  # the policy itself, after step 1


# --- messages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            "advantage=raw_reward train.group_size=1 batch_filter=drop",
            r"batch_filter=drop: a group of one completion .*; raise train\.group_size=1, or take batch_filter=dilute",
        ),
        (
            "negative_feedback=only advantage=raw_reward",
            r"negative_feedback \(sign_weights\): .* rewards of at least 0 there are none; take reward=signed",
        ),
        (
            "tspmo train.mask_truncated=true",
            r"train\.mask_truncated=true: token_sampler \(branch_points\) .*; take train\.mask_truncated=false",
        ),
        (
            "clipping=gspo token_sampler=prefix_cut",
            r"clipping \(gspo\): needs .* token_sampler=prefix_cut .*; take another token_sampler, or clipping=on",
        ),
        (
            "clipping=gmpo token_sampler=prefix_cut",
            r"clipping \(gmpo\): needs .* token_sampler=prefix_cut .*; take another token_sampler, or clipping=on",
        ),
        ("tspmo clipping=gspo", r"clipping \(gspo\): advantage=prefix_tree .*; take clipping=prob"),
        ("tspmo clipping=gmpo", r"clipping \(gmpo\): advantage=prefix_tree .*; take clipping=prob"),
        (
            "adapter=l1ra train.staleness=1",
            r"train\.staleness=1: keeps adapters .* adapter=l1ra move; take adapter=lora, or train\.staleness=0$",
        ),
        (
            "adapter=l1ra kl=on kl.reference=ema",
            r"kl\.reference=ema: keeps adapters .* adapter=l1ra move; take adapter=lora, or kl\.reference=base$",
        ),
        (
            "off_policy=truncated train.staleness=1 rollout.top_p=0.9",
            r"off_policy=truncated: its ratios .* rollout\.top_p=0\.9 .*; take rollout\.top_p=1 rollout\.top_k=0, or off",
        ),
        (
            "batch_filter=refill batch_filter.max_rounds=null",
            r"batch_filter\.max_rounds=null: .* without end; give a limit, such as 4",
        ),
        (
            "kl=on kl.estimator=k1",
            r"kl\.estimator=k1: its gradient .* mean 0 .*; take kl\.estimator=k3_ratio or k2, or",
        ),
        (
            "token_sampler=first token_sampler.budget=null token_sampler.share=0",
            r"token_sampler\.share=0\.0: must be in",
        ),
        (
            "token_sampler=random token_sampler.budget=null token_sampler.share=1.5",
            r"token_sampler\.share=1\.5: must be",
        ),
        ("batch_filter=refill batch_filter.max_rounds=0", r"batch_filter\.max_rounds=0: must be at least 1"),
        ("batch_filter=refill batch_filter.source=all", r"batch_filter\.source=all: must be .*prompts.*groups"),
        ("entropy.coefficient=.inf", r"entropy\.coefficient=inf: must be a finite number"),
    ],
)
def test_combination_that_cannot_be_is_refused_in_one_line_with_key_value_and_remedy(overrides, line):
    words = [word for one in overrides.split() for word in (TSPMO if one == "tspmo" else (one,))]
    with pytest.raises(ConfigError, match=line) as error:
        algorithm_of(*words)
    assert len(str(error.value).splitlines()) == 1, error.value


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.minibatches=0", r"train\.minibatches=0: must be"),
        ("train.staleness=-1", r"train\.staleness=-1: must be"),
        (
            "train.minibatches=9",
            r"train\.minibatches=9: a step has train\.prompts_per_step=8 prompts, .*; give at most that many",
        ),
    ],
)
def test_train_key_out_of_range_is_refused_in_one_line(override, line):
    with pytest.raises(ConfigError, match=line) as error:
        check(quickly_composed(override))
    assert len(str(error.value).splitlines()) == 1


def points(*lists: tuple[str, ...]) -> list[tuple[Config, Algorithm]]:
    configs = [quickly_composed(*overrides) for overrides in lists]
    return [(config, Algorithm.build(config)) for config in configs]


def test_clipping_that_is_swept_gets_a_warning_only_where_each_batch_has_one_step():
    one, other = ("clipping=on",), ("clipping=off",)
    (line,) = idle_clipping(points(one, other))
    assert "add train.minibatches=4 or train.updates_per_rollout=4" in line
    for steps in ("train.minibatches=2", "token_sampler=low_probability_first"):
        assert idle_clipping(points((*one, steps), (*other, steps))) == []


def test_staleness_without_a_correction_gets_a_warning():
    (line,) = point_warnings(points(("train.staleness=2",)))
    assert line.startswith("train.staleness=2 with off_policy=none: ")
    assert line.endswith("add off_policy=truncated to correct for it")
    (both,) = uncorrected_staleness(points(("train.staleness=2",), ("train.staleness=1",), ()))
    assert both.startswith("train.staleness=1,2 with")
    assert point_warnings(points(("train.staleness=2", "off_policy=truncated"))) == []
    (idle,) = idle_off_policy(points(("off_policy=truncated",)))
    assert "train.staleness=1" in idle


def test_reference_that_would_not_move_before_the_end_gets_a_warning():
    moving = ("kl=on", "kl.reference=sync", "train.steps=5")
    (line,) = idle_kl(points(("kl.estimator=k1",), ("kl=on", "kl.estimator=k2")))
    assert line == "kl.estimator=k1: no effect with kl.beta=0, where there is no KL term; add kl=on"
    (line,) = endless_staleness(points(("train.staleness=4", "train.steps=4"), ("train.staleness=3", "train.steps=4")))
    assert line.startswith("train.staleness=4 with train.steps=4: ")
    (line,) = idle_reference(points((*moving, "kl.reference_every=5")))
    assert line.startswith("kl.reference_every=5: ")
    assert line.endswith("train.steps=5; lower it, or take kl.reference=base")
    assert idle_reference(points((*moving, "kl.reference_every=4"))) == []
    assert (
        idle_reference(points(("kl=on", "kl.reference_every=99"), ("kl.reference=sync", "kl.reference_every=99"))) == []
    )

"""Advantages and negative feedback, against values computed by hand and against brute force."""

import math
import random
import re
from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import combinations
from math import comb, sqrt
from statistics import fmean, pstdev, stdev

import pytest
import torch

from rlsparse.algorithm import Algorithm
from rlsparse.components.advantage import equal_rewards
from rlsparse.components.advantage.group import GroupMean, GroupZscore, LeaveOneOut, RawReward
from rlsparse.components.advantage.group_mean_batch_std import GroupMeanBatchStd
from rlsparse.components.advantage.max_rl import MaxRl
from rlsparse.components.advantage.opo import Opo
from rlsparse.components.advantage.pass_at_k import PassAtK
from rlsparse.components.advantage.prefix_tree import PrefixTree
from rlsparse.components.advantage.reinforce_pp import ReinforcePp
from rlsparse.components.component import ComponentError
from rlsparse.components.negative_feedback import SignWeights
from rlsparse.components.objective.aggregation import SequenceMean
from rlsparse.components.reward.correctness import Correctness
from rlsparse.config.schema import ConfigError
from rlsparse.execution.point_warnings import idle_scale
from tests.conftest import built, composed, make_rollout

A, B, C, D, E = 5, 6, 7, 8, 9
GROUP_BASELINES = [GroupZscore(epsilon=1e-8), GroupMean(), LeaveOneOut()]
BEST_OF = [PassAtK(k=2, normalize=False, epsilon=0.0), PassAtK(k=3, normalize=True, epsilon=0.0)]
OF_THE_FIELD = [GroupMeanBatchStd(epsilon=0.0), MaxRl(), Opo(), ReinforcePp(epsilon=0.0), *BEST_OF]
KEEP, POSITIVE_ONLY = SignWeights(positive=1.0, negative=1.0), SignWeights(positive=1.0, negative=0.0)
NEGATIVE_ONLY, WEIGHTED = SignWeights(positive=0.0, negative=1.0), SignWeights(positive=0.1, negative=1.0)
every_new_advantage = pytest.mark.parametrize(
    "advantage", OF_THE_FIELD, ids=lambda one: f"{one.label}-{getattr(one, 'k', '')}"
)


@cache
def example():
    """Return a config and its components, for rules over several of them."""
    config = composed()
    return config, Algorithm.build(config)


def per_row(advantage, rewards):
    """Return the advantage of each completion, for completions of one token."""
    rewards = torch.tensor(rewards)
    rollout = make_rollout([[A]] * rewards.numel(), prompts=len(rewards))
    return advantage(rewards, rollout)[:, 0].tolist()


def test_group_zscore_matches_values_computed_by_hand():
    # mean 0.5; squared deviations 4 x 0.25 = 1, over n - 1 = 3: std = sqrt(1/3) = 0.57735
    assert per_row(GroupZscore(epsilon=0.0), [[1.0, 0.0, 0.0, 1.0]]) == pytest.approx(
        [0.5 / 3**-0.5, -0.5 / 3**-0.5, -0.5 / 3**-0.5, 0.5 / 3**-0.5]
    )
    # epsilon joins the denominator: 0.5 / (0.57735 + 1)
    assert per_row(GroupZscore(epsilon=1.0), [[1.0, 0.0, 0.0, 1.0]])[0] == pytest.approx(0.5 / (3**-0.5 + 1))


def test_other_baselines_match_values_computed_by_hand():
    rewards = [[1.0, 0.0, 0.0, 1.0], [3.0, 0.0, 0.0, 0.0]]
    # means 2/4 and 3/4
    assert per_row(GroupMean(), rewards) == pytest.approx([0.5, -0.5, -0.5, 0.5, 2.25, -0.75, -0.75, -0.75])
    # others: for 1 they are 0, 0, 1 (1/3), for 0 they are 1, 0, 1 (2/3); for 3 they are 0, for 0 they sum to 3 (1)
    assert per_row(LeaveOneOut(), rewards) == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3, 3, -1, -1, -1])
    assert per_row(RawReward(), rewards) == [1, 0, 0, 1, 3, 0, 0, 0]


@pytest.mark.parametrize(
    ("advantage", "rewards", "expected"),
    [
        pytest.param(GroupMean(), [[1.0, 0.0]], [[0.5, 0.5], [-0.5, -0.5]], id="group_mean"),
        pytest.param(RawReward(), [[1.0, -1.0]], [[1.0, 1.0], [-1.0, -1.0]], id="raw_reward"),
        pytest.param(PrefixTree(), [[1.0, 0.0]], [[0, 0.5], [0, -0.5]], id="prefix_tree"),
    ],
)
def test_negative_feedback_with_any_advantage_is_a_or_max_of_a_and_zero(advantage, rewards, expected):
    rollout = make_rollout([[A, B], [A, C]])
    advantages = advantage(torch.tensor(rewards), rollout)
    assert advantages.tolist() == expected
    assert KEEP(advantages) is advantages
    assert POSITIVE_ONLY(advantages).tolist() == [[max(0, value) for value in row] for row in expected]


def test_sign_weights_with_random_advantages_are_a_weighted_sum_of_both_signs():
    advantages = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(POSITIVE_ONLY(advantages), advantages.clamp(min=0))  # bit for bit what (1, 0) has always been
    assert torch.equal(NEGATIVE_ONLY(advantages), advantages.clamp(max=0))
    # 0.1 * 2 = 0.2 and 1 * -3 = -3; 2 * 2 = 4 and 0.5 * -3 = -1.5
    two_signs = torch.tensor([[2.0, -3.0, 0.0]])
    assert WEIGHTED(two_signs).tolist() == [pytest.approx([0.2, -3.0, 0.0])]
    assert SignWeights(positive=2.0, negative=0.5)(two_signs).tolist() == [[4.0, -1.5, 0.0]]


def test_sign_weights_in_the_run_id_are_the_words_of_an_earlier_version_where_it_had_them():
    assert KEEP.identity(str) == {"class": "Switch", "enabled": True}
    assert POSITIVE_ONLY.identity(str) == {"class": "Switch", "enabled": False}
    assert NEGATIVE_ONLY.identity(str) == {"positive": 0.0, "negative": 1.0}
    assert WEIGHTED.identity(str) == {"positive": 0.1, "negative": 1.0}


@pytest.mark.parametrize(
    ("component", "values", "message"),
    [
        (SignWeights, {"positive": -1, "negative": 1}, "here.positive=-1.0: must be at least 0"),
        (SignWeights, {"positive": 1, "negative": math.inf}, "here.negative=inf: must be a finite number"),
        (SignWeights, {"positive": 0, "negative": 0}, "here.positive=0.0: with negative=0.0 every .* give one of them"),
        (PassAtK, {"k": 0, "normalize": True, "epsilon": 0}, "here.k=0: must be in"),
        (GroupMeanBatchStd, {"epsilon": -1}, "here.epsilon=-1.0: must be at least 0"),
        (ReinforcePp, {"epsilon": -1}, "here.epsilon=-1.0: must be at least 0"),
    ],
)
def test_credit_with_a_value_out_of_range_is_refused_with_key_value_and_remedy(component, values, message):
    with pytest.raises(ConfigError, match=message) as error:
        component.of("here", values)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("advantage", "group_size", "message"),
    [
        (PassAtK(k=7, normalize=True, epsilon=0.0), 8, None),
        (PassAtK(k=8, normalize=True, epsilon=0.0), 8, "train.group_size=8: advantage=pass_at_k .* at least 9"),
        (Opo(), 1, "train.group_size=1: advantage=opo .* at least 2"),
        (ReinforcePp(epsilon=0.0), 1, "train.group_size=1: advantage=reinforce_pp .* at least 2"),
    ],
)
def test_advantage_with_a_group_too_small_for_it_is_refused(advantage, group_size, message):
    config, algorithm = example()
    lines = list(replace(algorithm, advantage=advantage).problems(replace(config.train, group_size=group_size)))
    assert len(lines) == (message is not None)
    assert all(re.match(message, line) for line in lines)


@pytest.mark.parametrize(
    ("reward", "lowest"), [((1.0, 0.0, 0.5), None), ((1.0, -1.0, 0.0), "-1"), ((1.0, 0.25, -0.5), "-0.25")]
)
def test_max_rl_with_a_reward_that_can_be_below_zero_is_refused(reward, lowest):
    config, algorithm = example()
    correct, wrong, form = reward
    reward = Correctness(correct=correct, wrong=wrong, format=form)
    lines = list(replace(algorithm, advantage=MaxRl(), reward=reward).problems(config.train))
    assert len(lines) == (lowest is not None)
    assert all(f"at least 0, and reward (correctness) can give {lowest}; raise" in line for line in lines)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("on", [[0.5, 0.5], [-0.5, -0.5]]),
        ("off", [[0.5, 0.5], [0, 0]]),
        ("only", [[0, 0], [-0.5, -0.5]]),
        ("weighted", [pytest.approx([0.05, 0.05]), [-0.5, -0.5]]),
    ],
)
def test_token_advantages_of_an_algorithm_apply_its_negative_feedback(option, expected):
    algorithm = built("advantage=group_mean", f"negative_feedback={option}")
    rollout = make_rollout([[A, B], [A, C]])
    assert algorithm.token_advantages(torch.tensor([[1.0, 0.0]]), rollout).tolist() == expected


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7])
@pytest.mark.parametrize("advantage", GROUP_BASELINES, ids=lambda one: one.label)
def test_group_baseline_with_equal_rewards_is_exactly_zero(advantage, value):
    # seven times 0.1 does not have 0.1 as its float32 mean
    assert per_row(advantage, [[value] * 7]) == [0.0] * 7
    assert equal_rewards(torch.tensor([[value] * 7, [value] * 6 + [0.0]])).tolist() == [True, False]


def test_group_baseline_past_the_end_of_a_completion_is_zero():
    rollout = make_rollout([[A, B, C], [A]])
    advantages = GroupMean()(torch.tensor([[1.0, 0.0]]), rollout)
    assert advantages.tolist() == [[0.5, 0.5, 0.5], [-0.5, 0, 0]]


def test_prefix_tree_of_the_worked_example_matches_values_computed_by_hand():
    """Completions a b c, a b d, a e with rewards 1, 0, 0, as in docs/methods/tspmo.md."""
    rollout = make_rollout([[A, B, C], [A, B, D], [A, E]])
    advantages = PrefixTree()(torch.tensor([[1.0, 0.0, 0.0]]), rollout)
    # a|root 0; b|a 1/2 - 1/3; c|ab 1 - 1/2; d|ab 0 - 1/2; e|a 0 - 1/3. Shared transitions stand in the first row only.
    expected = torch.tensor([[0, 1 / 6, 1 / 2], [0, 0, -1 / 2], [0, -1 / 3, 0]])
    torch.testing.assert_close(advantages, expected)


def test_prefix_tree_at_a_branch_of_equal_values_is_exactly_zero():
    # after `a` the two continuations both have mean (0.1 + 0.3) / 2; in floats 0.1 + 0.3 and 0.3 + 0.1 agree,
    # but the mean of the four, 0.8 / 4, need not equal 0.4 / 2
    rollout = make_rollout([[A, B, C], [A, B, D], [A, E, C], [A, E, D]])
    advantages = PrefixTree()(torch.tensor([[0.1, 0.3, 0.3, 0.1]]), rollout)
    assert advantages[0, 1] == 0
    assert advantages[2, 1] == 0
    assert advantages[0, 2] < 0 < advantages[1, 2]


def brute_force(completions, rewards):
    """Return A(v|p) = V(pv) - V(p) of every distinct transition; V reads all completions for each prefix."""

    def value(prefix):
        through = [Fraction(r) for c, r in zip(completions, rewards, strict=True) if tuple(c[: len(prefix)]) == prefix]
        return sum(through) / len(through)

    transitions = {tuple(c[: t + 1]) for c in completions for t in range(len(c))}
    return {p: float(value(p) - value(p[:-1])) for p in transitions}


@pytest.mark.parametrize("seed", range(30))
def test_prefix_tree_of_random_completions_equals_brute_force(seed):
    rng = random.Random(seed)
    prompts, group = rng.randint(1, 3), rng.randint(2, 7)
    completions = [[rng.randint(1, 3) for _ in range(rng.randint(1, 6))] for _ in range(prompts * group)]
    rewards = [[rng.choice([0.0, 1.0, 0.1, -0.5]) for _ in range(group)] for _ in range(prompts)]
    got = PrefixTree()(torch.tensor(rewards, dtype=torch.float64), make_rollout(completions, prompts))
    for p in range(prompts):
        mine = completions[p * group : (p + 1) * group]
        found = {}
        for row, completion in enumerate(mine):
            for t in range(len(completion)):
                value = float(got[p * group + row, t])
                if value != 0:
                    transition = tuple(completion[: t + 1])
                    assert transition not in found, "a transition counts once"
                    found[transition] = value
        expected = {k: v for k, v in brute_force(mine, rewards[p]).items() if v != 0}
        assert found == pytest.approx(expected)


def test_traits_of_advantages_say_what_each_compares():
    compared = {one.label: one.min_group_size for one in (*GROUP_BASELINES, PrefixTree(), RawReward())}
    assert compared == {"group_zscore": 2, "group_mean": 2, "leave_one_out": 2, "prefix_tree": 2, "raw_reward": 1}
    # the prefix tree alone credits a transition that two completions share once
    rollout, rewards = make_rollout([[A, B], [A, C], [D, E]]), torch.tensor([[1.0, 1.0, 0.0]])
    for advantage in (*GROUP_BASELINES, PrefixTree(), RawReward()):
        of_a_shared_token = advantage(rewards, rollout)[:2, 0]
        assert of_a_shared_token[0] > 0
        assert (of_a_shared_token[1] == 0) == advantage.per_transition, advantage.label


# --- the field's other advantages ----------------------------------------------------------------------------------


def test_group_mean_batch_std_matches_values_computed_by_hand():
    rewards = [[1.0, 0.0], [2.0, 0.0]]
    # means of the groups 1/2 and 1; all four: mean 3/4; deviations 1/4, -3/4, 5/4, -3/4; squares (1 + 9 + 25 + 9) / 16 = 11/4; over n - 1 = 3: 11/12
    std = sqrt(11 / 12)
    expected = [0.5 / std, -0.5 / std, 1 / std, -1 / std]
    assert per_row(GroupMeanBatchStd(epsilon=0.0), rewards) == pytest.approx(expected)
    assert per_row(GroupMeanBatchStd(epsilon=1.0), rewards)[2] == pytest.approx(1 / (std + 1))


def test_max_rl_matches_values_computed_by_hand():
    # mean 1/4: (1 - 1/4) / (1/4) = 3 and -1; all 0: 0; mean 2: (3 - 2) / 2 and (1 - 2) / 2
    rewards = [[1.0, 0.0, 0.0, 0.0], [0.0] * 4, [3.0, 1.0, 1.0, 3.0]]
    assert per_row(MaxRl(), rewards) == pytest.approx([3, -1, -1, -1, 0, 0, 0, 0, 0.5, -0.5, -0.5, 0.5])


def test_max_rl_with_a_reward_below_zero_is_refused_with_the_reward_and_a_remedy():
    with pytest.raises(ComponentError, match=r"max_rl: the step has a reward of -0.5; .* advantage=group_mean"):
        per_row(MaxRl(), [[1.0, 1.0], [-0.5, 1.0]])


def test_max_rl_in_the_mean_over_all_groups_is_the_gradient_of_the_first_terms_of_log_p():
    """Enumerate the groups of G = 4 completions that are right with probability p."""
    p, size = 0.3, 4
    mean = 0.0  # of (1/G) sum A_i d log pi_i / dp, with d log pi / dp = 1/p if right and -1/(1 - p) if wrong
    for group in range(2**size):
        rewards = [float(group >> i & 1) for i in range(size)]
        right = int(sum(rewards))
        scores = [1 / p if reward else -1 / (1 - p) for reward in rewards]
        advantages = per_row(MaxRl(), [rewards])
        mean += p**right * (1 - p) ** (size - right) * fmean(a * s for a, s in zip(advantages, scores, strict=True))
    # log p = -sum_k (1 - p)^k / k; the derivative of term k is (1 - p)^(k - 1)
    assert mean == pytest.approx(sum((1 - p) ** (k - 1) for k in range(1, size)))


def test_opo_matches_values_computed_by_hand():
    # lengths 1, 3: baseline (1 * 1 + 3 * 0) / 4 = 1/4; lengths 2, 2: baseline (2 * 1 + 2 * 3) / 4 = 2
    rollout = make_rollout([[A], [A, B, C], [A, B], [C, D]], prompts=2)
    advantages = Opo()(torch.tensor([[1.0, 0.0], [1.0, 3.0]]), rollout)
    assert advantages.tolist() == [[0.75, 0, 0], [-0.25, -0.25, -0.25], [-1, -1, 0], [1, 1, 0]]


def test_opo_with_completions_of_one_token_or_none_is_finite():
    rewards = [[1.0, 0.0, 0.0], [0.25, 0.5, 0.75]]
    assert per_row(Opo(), rewards) == pytest.approx(per_row(GroupMean(), rewards))  # all lengths are 1
    rollout = make_rollout([[], [], [A], []], prompts=2)
    # the first group has no token; the baseline of the second is the reward 2 of its only completion with a token
    assert Opo()(torch.tensor([[1.0, 0.0], [2.0, 5.0]]), rollout).tolist() == [[0], [0], [0], [0]]


def test_reinforce_pp_matches_values_computed_by_hand():
    # c = 1/2, -1/2 | 0, 0 with 1, 3 | 2, 2 tokens, 8 in all: mu = (1/2 - 3/2) / 8 = -1/8
    # squares: 1 * (5/8)^2 + 3 * (3/8)^2 + 4 * (1/8)^2 = (25 + 27 + 4) / 64 = 7/8; over n - 1 = 7: sigma = sqrt(1/8)
    rollout = make_rollout([[A], [A, B, C], [A, B], [C, D]], prompts=2)
    rewards, sigma = torch.tensor([[1.0, 0.0], [0.3, 0.3]]), sqrt(1 / 8)
    expected = torch.tensor([[5.0, 0, 0], [-3, -3, -3], [1, 1, 0], [1, 1, 0]]) / 8  # equal rewards: -mu, as published
    torch.testing.assert_close(ReinforcePp(epsilon=0.0)(rewards, rollout), expected / sigma)
    torch.testing.assert_close(ReinforcePp(epsilon=1.0)(rewards, rollout), expected / (sigma + 1))


def test_reinforce_pp_over_the_tokens_has_mean_zero_and_standard_deviation_one():
    rollout = make_rollout([[A] * length for length in (1, 5, 2, 7, 3, 3)], prompts=2)
    rewards = torch.tensor([[0.1, 0.7, 0.4], [0.0, 1.0, 0.3]], dtype=torch.float64)
    tokens = ReinforcePp(epsilon=0.0)(rewards, rollout)[rollout.mask]
    assert float(tokens.mean()) == pytest.approx(0, abs=1e-12)
    assert float(tokens.std()) == pytest.approx(1)


def test_reinforce_pp_with_equal_lengths_gives_a_group_of_equal_rewards_exactly_zero():
    rollout = make_rollout([[A, B], [C, D], [E, A], [A] * 3, [B] * 3, [C] * 3], prompts=2)
    advantages = ReinforcePp(epsilon=1e-4)(torch.tensor([[0.1, 0.3, 0.9], [0.1, 0.1, 0.1]]), rollout)
    assert torch.count_nonzero(advantages[3:]) == 0
    assert torch.count_nonzero(advantages[:3]) == 6  # 3 rows of 2 tokens


def best_of(rewards, k, contained=None):
    """Return max R of every subset of k completions, or of those that contain one of them."""
    groups = combinations(range(len(rewards)), k)
    return [max(rewards[i] for i in group) for group in groups if contained is None or contained in group]


def test_pass_at_k_matches_values_computed_by_hand():
    # k = 2 of 1, 0, 0: subsets 1, 1, 0, mean 2/3. With the 1: both 1, so 1 - 2/3; with a 0: 1 and 0, so 1/2 - 2/3.
    plain, normalized = (PassAtK(k=2, normalize=value, epsilon=0.0) for value in (False, True))
    assert per_row(plain, [[1.0, 0.0, 0.0]]) == pytest.approx([1 / 3, -1 / 6, -1 / 6])
    # real rewards 3, 2, 0: subsets 3, 3, 2, mean 8/3. With the 3: 3; with the 2: 5/2; with the 0: 5/2.
    assert per_row(plain, [[2.0, 0.0, 3.0]]) == pytest.approx([-1 / 6, -1 / 6, 1 / 3])
    # standard deviation of 1, 1, 0: sqrt(2/3 * 1/3); epsilon joins it
    assert per_row(normalized, [[1.0, 0.0, 0.0]])[0] == pytest.approx(1 / 3 / sqrt(2 / 9))
    with_epsilon = PassAtK(k=2, normalize=True, epsilon=1.0)
    assert per_row(with_epsilon, [[1.0, 0.0, 0.0]])[0] == pytest.approx(1 / 3 / (sqrt(2 / 9) + 1))


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_pass_at_k_of_random_rewards_equals_brute_force_over_all_subsets(size):
    rng = random.Random(size)
    groups = [[rng.choice([0.0, 1.0]) for _ in range(size)] for _ in range(6)]
    groups += [[rng.choice([-1.0, 0.3, 0.3, 2.0]) for _ in range(size)] for _ in range(6)]  # with ties
    groups += [[rng.gauss(0, 1) for _ in range(size)] for _ in range(6)]
    rewards = torch.tensor(groups, dtype=torch.float64)
    rollout = make_rollout([[A]] * rewards.numel(), prompts=len(groups))
    for k in range(1, size):
        plain, normalized = (
            PassAtK(k=k, normalize=value, epsilon=1e-3)(rewards, rollout)[:, 0].reshape(rewards.shape).tolist()
            for value in (False, True)
        )
        for group, one, other in zip(groups, plain, normalized, strict=True):
            every = best_of(group, k)
            expected = [fmean(best_of(group, k, i)) - fmean(every) for i in range(size)]
            assert one == pytest.approx(expected, abs=1e-12)
            assert other == pytest.approx([value / (pstdev(every) + 1e-3) for value in expected], abs=1e-11)


@pytest.mark.parametrize(("size", "wrong", "k"), [(8, 6, 4), (8, 4, 4), (16, 15, 8), (5, 3, 2), (32, 20, 7)])
def test_pass_at_k_of_rewards_zero_and_one_is_the_published_closed_form(size, wrong, k):
    """Chen et al. 2025 (2508.10751): the analytic advantage of right and of wrong completions."""
    mean = 1 - comb(wrong, k) / comb(size, k)
    sigma = sqrt(mean * (1 - mean))
    right = (1 - mean) / sigma
    of_wrong = (1 - mean - comb(wrong - 1, k - 1) / comb(size - 1, k - 1)) / sigma
    rewards = torch.tensor([[0.0] * wrong + [1.0] * (size - wrong)], dtype=torch.float64)
    advantages = PassAtK(k=k, normalize=True, epsilon=0.0)(rewards, make_rollout([[A]] * size))[:, 0].tolist()
    assert advantages == pytest.approx([of_wrong] * wrong + [right] * (size - wrong))


def test_pass_at_k_of_one_is_the_group_mean_and_normalized_the_zscore():
    rewards = torch.tensor([[0.2, -1.0, 3.0, 0.2, 0.5]], dtype=torch.float64)
    rollout = make_rollout([[A]] * 5)
    one = PassAtK(k=1, normalize=False, epsilon=0.0)(rewards, rollout)
    torch.testing.assert_close(one, GroupMean()(rewards, rollout))
    scaled = PassAtK(k=1, normalize=True, epsilon=0.0)(rewards, rollout)
    torch.testing.assert_close(scaled, GroupZscore(epsilon=0.0)(rewards, rollout) * sqrt(5 / 4))  # ddof 0 for ddof 1


def test_pass_at_k_with_fewer_wrong_completions_than_k_is_exactly_zero():
    # every subset of 4 has a right completion: the best is 1 whichever is drawn
    for normalize in (False, True):
        assert per_row(PassAtK(k=4, normalize=normalize, epsilon=0.0), [[0.0] * 3 + [1.0] * 5]) == [0.0] * 8


def test_pass_at_k_in_the_mean_over_all_groups_is_the_gradient_of_the_best():
    """Enumerate groups of G = 4 with three rewards: A, times k G / (G - k), is unbiased for the gradient of E[max of k]."""
    values, chances, size, k = [0.0, 1.0, 3.0], torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), 4, 2
    logits = chances.log().requires_grad_()
    log_p = logits.log_softmax(0)
    pairs = [(a, b) for a in range(3) for b in range(3)]
    best = torch.stack([max(values[a], values[b]) * (log_p[a] + log_p[b]).exp() for a, b in pairs]).sum()
    (expected,) = torch.autograd.grad(best, logits)
    groups = torch.cartesian_prod(*[torch.arange(3)] * size)  # (81, 4)
    rewards = torch.tensor(values, dtype=torch.float64)[groups]
    advantages = PassAtK(k=k, normalize=False, epsilon=0.0)(rewards, make_rollout([[A]] * groups.numel(), len(groups)))
    weights = chances[groups].prod(dim=1, keepdim=True) * advantages.reshape(groups.shape) / size
    scores = torch.nn.functional.one_hot(groups, 3) - chances  # d log p / d logits
    found = (weights[..., None] * scores).sum(dim=(0, 1)) * k * size / (size - k)
    torch.testing.assert_close(found, expected)


@every_new_advantage
def test_new_advantage_of_a_batch_of_equal_rewards_is_exactly_zero(advantage):
    # seven times 0.1 does not have 0.1 as its float32 mean; the lengths differ
    rollout = make_rollout([[A] * (1 + i % 4) for i in range(21)], prompts=3)
    advantages = advantage(torch.tensor([[0.1] * 7, [0.7] * 7, [0.0] * 7]), rollout)
    assert torch.count_nonzero(advantages) == 0


@every_new_advantage
def test_new_advantage_past_the_end_of_a_completion_is_zero(advantage):
    rollout = make_rollout([[A] * length for length in (3, 1, 4, 2)])
    for dtype in (torch.float32, torch.float64):
        advantages = advantage(torch.tensor([[0.0, 1.0, 0.0, 0.0]], dtype=dtype), rollout)
        assert advantages.dtype == dtype
        assert torch.isfinite(advantages).all()
        assert torch.count_nonzero(advantages[~rollout.mask]) == 0
        assert (advantages[1, 0] > 0 > advantages[0, 0]).item()


@every_new_advantage
def test_new_advantage_with_another_order_of_prompts_and_completions_moves_with_them(advantage):
    rng = torch.Generator().manual_seed(3)
    rewards = torch.rand(4, 6, generator=rng, dtype=torch.float64)
    rewards[1] = rewards[1].round()  # a group of zeros and ones, with ties
    lengths = torch.randint(1, 6, (24,), generator=rng)
    prompts, completions = torch.randperm(4, generator=rng), torch.randperm(6, generator=rng)
    rows = (prompts[:, None] * 6 + completions).reshape(-1)
    before = advantage(rewards, make_rollout([[A] * int(n) for n in lengths], prompts=4))
    after = advantage(rewards[prompts][:, completions], make_rollout([[A] * int(n) for n in lengths[rows]], prompts=4))
    torch.testing.assert_close(after, before[rows])


@every_new_advantage
def test_new_advantage_with_a_number_added_to_all_rewards_changes_only_where_it_is_relative(advantage):
    rollout = make_rollout([[A] * length for length in (3, 1, 4, 2, 2, 5)], prompts=2)
    rewards = torch.tensor([[0.0, 1.0, 0.5], [0.2, 0.2, 0.9]], dtype=torch.float64)
    before, after = advantage(rewards, rollout), advantage(rewards + 2, rollout)
    assert torch.allclose(before, after) == (advantage.label != "max_rl")


def test_batch_wide_statistics_use_the_sample_standard_deviation():
    rewards = [[0.3, 0.1, 0.9], [0.0, 1.0, 0.5]]
    centred = [value - fmean(group) for group in rewards for value in group]
    of_rewards, of_centred = stdev(rewards[0] + rewards[1]), stdev(centred)
    assert per_row(GroupMeanBatchStd(epsilon=0.0), rewards) == pytest.approx([c / of_rewards for c in centred])
    # with one token each, REINFORCE++ divides by the standard deviation of R - mean of the group instead of that of R
    assert per_row(ReinforcePp(epsilon=0.0), rewards) == pytest.approx([c / of_centred for c in centred])


# --- a sweep that measures a constant factor -----------------------------------------------------------------------


def warnings(*changes, l2=0.0):
    """Return the warning about a sweep of points, each an advantage and a seed."""
    config, algorithm = example()
    objective = SequenceMean(l2=l2)
    return idle_scale(
        [
            (replace(config, seed=seed), replace(algorithm, advantage=advantage, objective=objective))
            for advantage, seed in changes
        ]
    )


def best_of_one(normalize):
    return PassAtK(k=1, normalize=normalize, epsilon=0.0)


def test_advantages_that_differ_by_a_constant_factor_get_a_warning_when_swept():
    (line,) = warnings((LeaveOneOut(), 0), (GroupMean(), 0), (Opo(), 0), (LeaveOneOut(), 1), (GroupMean(), 1))
    assert "advantage is swept (group_mean, leave_one_out): they differ by a constant factor alone" in line
    (line,) = warnings((GroupMean(), 0), (best_of_one(normalize=False), 0))
    assert "(group_mean, pass_at_k)" in line


@pytest.mark.parametrize(
    ("other", "seed", "l2"),
    [
        pytest.param(GroupZscore(epsilon=0.0), 0, 0.0, id="another advantage"),
        pytest.param(GroupMean(), 1, 0.0, id="one advantage"),
        pytest.param(LeaveOneOut(), 1, 0.0, id="another seed"),
        pytest.param(best_of_one(normalize=True), 0, 0.0, id="normalized"),
        pytest.param(PassAtK(k=2, normalize=False, epsilon=0.0), 0, 0.0, id="k above 1"),
        pytest.param(LeaveOneOut(), 0, 0.1, id="balance with l2"),
    ],
)
def test_advantages_that_differ_otherwise_get_no_warning_when_swept(other, seed, l2):
    assert warnings((GroupMean(), 0), (other, seed), l2=l2) == []


def test_trait_scale_of_says_which_advantages_are_multiples_of_the_group_mean_in_every_batch():
    rng = torch.Generator().manual_seed(0)
    batches = [
        (size * torch.rand(2, 5, generator=rng, dtype=torch.float64), make_rollout(rows, prompts=2))
        for size, rows in ((1, [[A]] * 10), (2, [[A] * (1 + i % 3) for i in range(10)]))
    ]
    for advantage in (*GROUP_BASELINES, best_of_one(normalize=False), RawReward(), *OF_THE_FIELD):
        pairs = [(advantage(*batch)[:, 0], GroupMean()(*batch)[:, 0]) for batch in batches]
        ratios = torch.cat([one / base for one, base in pairs])
        assert bool((ratios - ratios[0]).abs().max() < 1e-9) == (advantage.scale_of == "group_mean"), advantage

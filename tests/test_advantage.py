"""Advantages and negative feedback, against values computed by hand and against brute force."""

import random
from fractions import Fraction

import pytest
import torch

from rlsparse.components.advantage import equal_rewards
from rlsparse.components.advantage.group import GroupMean, GroupZscore, LeaveOneOut, RawReward
from rlsparse.components.advantage.prefix_tree import PrefixTree
from rlsparse.components.negative_feedback import Switch
from tests.conftest import built, make_rollout

A, B, C, D, E = 5, 6, 7, 8, 9
GROUP_BASELINES = [GroupZscore(epsilon=1e-8), GroupMean(), LeaveOneOut()]


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
    assert Switch(enabled=True)(advantages).tolist() == expected
    assert Switch(enabled=False)(advantages).tolist() == [[max(0, value) for value in row] for row in expected]


@pytest.mark.parametrize(("option", "expected"), [("on", [[0.5, 0.5], [-0.5, -0.5]]), ("off", [[0.5, 0.5], [0, 0]])])
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

"""Credit, by hand and against brute force."""

import random
from fractions import Fraction

import pytest
import torch

from rlsparse.components.advantage import degenerate_groups, token_advantages
from rlsparse.config.schema import AdvantageConfig, GroupZscoreConfig, NegativeFeedbackConfig
from tests.conftest import make_rollout

ON, OFF = NegativeFeedbackConfig(True), NegativeFeedbackConfig(False)
A, B, C, D, E = 5, 6, 7, 8, 9


def per_row(name, rewards, feedback=ON, **keys):
    config = GroupZscoreConfig(name, **keys) if keys else AdvantageConfig(name)
    rewards = torch.tensor(rewards)
    rollout = make_rollout([[A]] * rewards.numel(), prompts=len(rewards))
    return token_advantages(rewards, rollout, config, feedback)[:, 0].tolist()


def test_group_zscore_by_hand():
    # mean 0.5; squared deviations 4 x 0.25 = 1, over n - 1 = 3: std = sqrt(1/3) = 0.57735
    assert per_row("group_zscore", [[1.0, 0.0, 0.0, 1.0]], epsilon=0.0) == pytest.approx(
        [0.5 / 3**-0.5, -0.5 / 3**-0.5, -0.5 / 3**-0.5, 0.5 / 3**-0.5]
    )
    # epsilon joins the denominator: 0.5 / (0.57735 + 1)
    assert per_row("group_zscore", [[1.0, 0.0, 0.0, 1.0]], epsilon=1.0)[0] == pytest.approx(0.5 / (3**-0.5 + 1))


def test_other_baselines_by_hand():
    rewards = [[1.0, 0.0, 0.0, 1.0], [3.0, 0.0, 0.0, 0.0]]
    # means 2/4 and 3/4
    assert per_row("group_mean", rewards) == pytest.approx([0.5, -0.5, -0.5, 0.5, 2.25, -0.75, -0.75, -0.75])
    # others: for 1 they are 0, 0, 1 (1/3), for 0 they are 1, 0, 1 (2/3); for 3 they are 0, for 0 they sum to 3 (1)
    assert per_row("leave_one_out", rewards) == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3, 3, -1, -1, -1])
    assert per_row("raw_reward", rewards) == [1, 0, 0, 1, 3, 0, 0, 0]


def test_positive_only_is_max_of_zero_whatever_the_credit():
    assert per_row("group_mean", [[1.0, 0.0]], OFF) == [0.5, 0.0]
    assert per_row("raw_reward", [[1.0, -1.0]], OFF) == [1.0, 0.0]
    rollout = make_rollout([[A, B], [A, C]])
    tree = token_advantages(torch.tensor([[1.0, 0.0]]), rollout, AdvantageConfig("prefix_tree"), OFF)
    assert tree.tolist() == [[0, 0.5], [0, 0]]


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7])
@pytest.mark.parametrize("name", ["group_zscore", "group_mean", "leave_one_out"])
def test_equal_rewards_give_exactly_zero(name, value):
    # seven times 0.1 does not have 0.1 as its float32 mean
    keys = {"epsilon": 1e-8} if name == "group_zscore" else {}
    assert per_row(name, [[value] * 7], **keys) == [0.0] * 7
    assert degenerate_groups(torch.tensor([[value] * 7, [value] * 6 + [0.0]])).tolist() == [True, False]


def test_advantages_stop_at_the_end_of_a_completion():
    rollout = make_rollout([[A, B, C], [A]])
    advantages = token_advantages(torch.tensor([[1.0, 0.0]]), rollout, AdvantageConfig("group_mean"), ON)
    assert advantages.tolist() == [[0.5, 0.5, 0.5], [-0.5, 0, 0]]


def test_prefix_tree_worked_example():
    """ALGORITHMS.md section 4: a b c, a b d, a e with rewards 1, 0, 0."""
    rollout = make_rollout([[A, B, C], [A, B, D], [A, E]])
    advantages = token_advantages(torch.tensor([[1.0, 0.0, 0.0]]), rollout, AdvantageConfig("prefix_tree"), ON)
    # a|root 0; b|a 1/2 - 1/3; c|ab 1 - 1/2; d|ab 0 - 1/2; e|a 0 - 1/3. Shared transitions stand in the first row only.
    expected = torch.tensor([[0, 1 / 6, 1 / 2], [0, 0, -1 / 2], [0, -1 / 3, 0]])
    torch.testing.assert_close(advantages, expected)


def test_a_branch_whose_sides_are_worth_the_same_is_exactly_zero():
    # under `a` the two continuations both have mean (0.1 + 0.3) / 2; in floats 0.1 + 0.3 and 0.3 + 0.1 agree,
    # but the mean of the four, 0.8 / 4, need not equal 0.4 / 2
    rollout = make_rollout([[A, B, C], [A, B, D], [A, E, C], [A, E, D]])
    advantages = token_advantages(torch.tensor([[0.1, 0.3, 0.3, 0.1]]), rollout, AdvantageConfig("prefix_tree"), ON)
    assert advantages[0, 1] == 0
    assert advantages[2, 1] == 0
    assert advantages[0, 2] < 0 < advantages[1, 2]


def brute_force(completions, rewards):
    """A(v|p) = V(pv) - V(p) for every distinct transition, V by scanning all completions for each prefix."""

    def value(prefix):
        through = [Fraction(r) for c, r in zip(completions, rewards, strict=True) if tuple(c[: len(prefix)]) == prefix]
        return sum(through) / len(through)

    transitions = {tuple(c[: t + 1]) for c in completions for t in range(len(c))}
    return {p: float(value(p) - value(p[:-1])) for p in transitions}


@pytest.mark.parametrize("seed", range(30))
def test_prefix_tree_against_brute_force(seed):
    rng = random.Random(seed)
    prompts, group = rng.randint(1, 3), rng.randint(2, 7)
    completions = [[rng.randint(1, 3) for _ in range(rng.randint(1, 6))] for _ in range(prompts * group)]
    rewards = [[rng.choice([0.0, 1.0, 0.1, -0.5]) for _ in range(group)] for _ in range(prompts)]
    got = token_advantages(
        torch.tensor(rewards, dtype=torch.float64),
        make_rollout(completions, prompts),
        AdvantageConfig("prefix_tree"),
        ON,
    )
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

"""Which tokens enter the loss: budgets, frequencies, unbiasedness."""

import pytest
import torch

from rlsparse.components.token_sampler import TOKEN_SAMPLERS
from rlsparse.components.token_sampler.stochastic import inclusion_probability
from rlsparse.config.schema import BudgetConfig, RandomConfig, ReplayConfig, StochasticConfig, TokenSamplerConfig
from tests.conftest import make_rollout

NO_REPLAY = ReplayConfig(0, 0)


def select(config, rollout, seed=0, advantages=None):
    advantages = torch.ones(rollout.completion_ids.shape) if advantages is None else advantages
    return TOKEN_SAMPLERS[config.name](advantages, rollout, config, torch.Generator().manual_seed(seed))


def rows(n, length):
    return make_rollout([[1] * length] * n)


def test_inclusion_probability_by_hand():
    # alpha 2, P 1/2, k 3: one coin may come up. t = 2: 1/2; t = 3: 1/2 x (first coin tails: 1/2); t = 4: 1/2 x 1/4
    config = StochasticConfig("stochastic", NO_REPLAY, always_first=2, probability=0.5, budget=3, reweight=False)
    assert inclusion_probability(5, config).tolist() == pytest.approx([1, 1, 1 / 2, 1 / 4, 1 / 8])


def test_stochastic_frequencies_match_the_closed_form():
    config = StochasticConfig("stochastic", NO_REPLAY, always_first=3, probability=0.4, budget=6, reweight=False)
    n = 40_000
    chosen = select(config, rows(n, 14)).weights
    expected = inclusion_probability(14, config)
    error = (expected * (1 - expected) / n).sqrt().clamp(min=1e-9)
    assert ((chosen.mean(dim=0) - expected).abs() <= 4.5 * error).all()
    assert int(chosen.sum(dim=1).max()) == 6
    assert (chosen[:, :3] == 1).all()


def test_stochastic_with_certainty_and_room_keeps_everything():
    config = StochasticConfig("stochastic", NO_REPLAY, always_first=0, probability=1.0, budget=9, reweight=False)
    rollout = make_rollout([[1] * 9, [1] * 4])
    full = select(TokenSamplerConfig("full", NO_REPLAY), rollout)
    got = select(config, rollout)
    assert torch.equal(got.weights, full.weights)
    assert torch.equal(got.counts, full.counts)


@pytest.mark.parametrize(
    "config",
    [
        StochasticConfig("stochastic", NO_REPLAY, always_first=2, probability=0.3, budget=5, reweight=True),
        RandomConfig("random", NO_REPLAY, budget=4, reweight=True),
    ],
)
def test_reweighted_sum_is_an_unbiased_estimate_of_the_full_one(config):
    # a term that grows with position, so that dropping late tokens without a weight would show
    n, length = 60_000, 10
    terms = torch.arange(1.0, length + 1)
    selection = select(config, rows(n, length))
    sums = (selection.weights * terms).sum(dim=1)
    error = sums.std() / n**0.5
    assert abs(float(sums.mean()) - 55.0) < 4.5 * float(error)
    assert (selection.counts == length).all()  # a mean is over the whole completion


def test_controls_take_exactly_the_budget_inside_the_completion():
    rollout = make_rollout([[1] * 6, [1] * 2])
    for config in (
        RandomConfig("random", NO_REPLAY, 4, False),
        BudgetConfig("first", NO_REPLAY, 4),
        BudgetConfig("high_entropy", NO_REPLAY, 4),
    ):
        weights = select(config, rollout).weights
        assert weights.sum(dim=1).tolist() == [4, 2]
        assert (weights[1, 2:] == 0).all()
    assert select(BudgetConfig("first", NO_REPLAY, 4), rollout).weights[0].tolist() == [1, 1, 1, 1, 0, 0]


def test_random_control_is_uniform():
    n = 30_000
    share = select(RandomConfig("random", NO_REPLAY, 3, False), rows(n, 10)).weights.mean(dim=0)
    assert (share - 0.3).abs().max() < 4.5 * (0.3 * 0.7 / n) ** 0.5


def test_high_entropy_takes_the_highest():
    rollout = make_rollout([[1] * 5])
    rollout.entropy[0] = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3])
    assert select(BudgetConfig("high_entropy", NO_REPLAY, 2), rollout).weights[0].tolist() == [0, 1, 0, 1, 0]


def test_prefix_tree_takes_the_transitions_with_an_advantage():
    rollout = make_rollout([[1, 2, 3], [1, 2, 4]])
    advantages = torch.tensor([[0, 0, 0.5], [0, 0, -0.5]])
    selection = select(TokenSamplerConfig("prefix_tree", NO_REPLAY), rollout, advantages=advantages)
    assert selection.weights.tolist() == [[0, 0, 1], [0, 0, 1]]
    assert selection.counts.tolist() == [1, 1]


def test_a_new_draw_each_step():
    config = StochasticConfig("stochastic", NO_REPLAY, always_first=0, probability=0.5, budget=10, reweight=False)
    generator = torch.Generator().manual_seed(0)
    rollout = rows(4, 10)
    first, second = (TOKEN_SAMPLERS["stochastic"](None, rollout, config, generator).weights for _ in range(2))
    assert not torch.equal(first, second)

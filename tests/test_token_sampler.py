"""Which tokens enter the loss: budgets, frequencies, unbiasedness."""

import pytest
import torch

from rlsparse.components.token_sampler.budget import First, HighEntropy, Random
from rlsparse.components.token_sampler.full import Full
from rlsparse.components.token_sampler.prefix_tree import BranchPoints
from rlsparse.components.token_sampler.stochastic import Stochastic
from tests.conftest import make_rollout


def select(sampler, rollout, seed=0, advantages=None):
    advantages = torch.ones(rollout.completion_ids.shape) if advantages is None else advantages
    return sampler(advantages, rollout, torch.Generator().manual_seed(seed))


def rows(n, length):
    return make_rollout([[1] * length] * n)


def test_inclusion_probability_matches_values_computed_by_hand():
    # alpha 2, P 1/2, k 3: one coin may come up. t = 2: 1/2; t = 3: 1/2 x (first coin tails: 1/2); t = 4: 1/2 x 1/4
    sampler = Stochastic(always_first=2, probability=0.5, budget=3, reweight=False)
    assert sampler.inclusion_probability(5).tolist() == pytest.approx([1, 1, 1 / 2, 1 / 4, 1 / 8])


def test_stochastic_over_many_rows_has_the_frequencies_of_the_closed_form():
    sampler = Stochastic(always_first=3, probability=0.4, budget=6, reweight=False)
    n = 40_000
    chosen = select(sampler, rows(n, 14)).weights
    expected = sampler.inclusion_probability(14)
    error = (expected * (1 - expected) / n).sqrt().clamp(min=1e-9)
    assert ((chosen.mean(dim=0) - expected).abs() <= 4.5 * error).all()
    assert int(chosen.sum(dim=1).max()) == 6
    assert (chosen[:, :3] == 1).all()


def test_stochastic_with_probability_1_and_a_large_budget_keeps_every_token():
    sampler = Stochastic(always_first=0, probability=1.0, budget=9, reweight=False)
    rollout = make_rollout([[1] * 9, [1] * 4])
    full = select(Full(), rollout)
    got = select(sampler, rollout)
    assert full.weights.tolist() == [[1] * 9, [1] * 4 + [0] * 5]
    assert full.counts.tolist() == [9, 4]
    assert torch.equal(got.weights, full.weights)
    assert torch.equal(got.counts, full.counts)


@pytest.mark.parametrize(
    "sampler",
    [
        Stochastic(always_first=2, probability=0.3, budget=5, reweight=True),
        Random(budget=4, reweight=True),
    ],
    ids=lambda one: one.label,
)
def test_sampler_with_reweight_is_unbiased(sampler):
    # a term that grows with position, so that dropping late tokens without a weight would show
    n, length = 60_000, 10
    terms = torch.arange(1.0, length + 1)
    selection = select(sampler, rows(n, length))
    sums = (selection.weights * terms).sum(dim=1)
    error = sums.std() / n**0.5
    assert abs(float(sums.mean()) - 55.0) < 4.5 * float(error)
    assert (selection.counts == length).all()  # a mean is over the whole completion


@pytest.mark.parametrize(
    "sampler", [Random(budget=4, reweight=False), First(budget=4), HighEntropy(budget=4)], ids=lambda one: one.label
)
def test_control_takes_exactly_its_budget_inside_the_completion(sampler):
    weights = select(sampler, make_rollout([[1] * 6, [1] * 2])).weights
    assert weights.sum(dim=1).tolist() == [4, 2]
    assert (weights[1, 2:] == 0).all()


def test_first_takes_the_first_tokens():
    assert select(First(budget=4), make_rollout([[1] * 6, [1] * 2])).weights[0].tolist() == [1, 1, 1, 1, 0, 0]


def test_random_over_many_rows_is_uniform():
    n = 30_000
    share = select(Random(budget=3, reweight=False), rows(n, 10)).weights.mean(dim=0)
    assert (share - 0.3).abs().max() < 4.5 * (0.3 * 0.7 / n) ** 0.5


def test_high_entropy_takes_the_tokens_of_highest_entropy():
    rollout = make_rollout([[1] * 5])
    rollout.entropy[0] = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3])
    assert select(HighEntropy(budget=2), rollout).weights[0].tolist() == [0, 1, 0, 1, 0]


def test_branch_points_are_the_transitions_with_an_advantage():
    rollout = make_rollout([[1, 2, 3], [1, 2, 4]])
    advantages = torch.tensor([[0, 0, 0.5], [0, 0, -0.5]])
    selection = select(BranchPoints(), rollout, advantages=advantages)
    assert selection.weights.tolist() == [[0, 0, 1], [0, 0, 1]]
    assert selection.counts.tolist() == [1, 1]


def test_stochastic_draws_anew_each_step():
    sampler = Stochastic(always_first=0, probability=0.5, budget=10, reweight=False)
    generator = torch.Generator().manual_seed(0)
    rollout = rows(4, 10)
    first, second = (sampler(torch.ones(4, 10), rollout, generator).weights for _ in range(2))
    assert not torch.equal(first, second)


def test_trait_per_transition_holds_for_the_sampler_that_reads_advantages():
    rollout, none = make_rollout([[1, 2, 3]]), torch.zeros(1, 3)
    samplers = [
        Full(),
        Stochastic(always_first=1, probability=0.5, budget=2, reweight=False),
        Random(budget=2, reweight=False),
        First(budget=2),
        HighEntropy(budget=2),
        BranchPoints(),
    ]
    for sampler in samplers:
        nothing_to_credit = select(sampler, rollout, advantages=none)
        assert (nothing_to_credit.weights.sum() == 0) == sampler.per_transition, sampler.label
    assert [sampler.label for sampler in samplers if sampler.per_transition] == ["branch_points"]

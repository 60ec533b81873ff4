"""Which tokens enter the loss: budgets and shares, frequencies, exact unbiasedness."""

import ast
import itertools
from dataclasses import replace
from importlib.util import find_spec
from math import comb
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate import Accelerator

from rlsparse.batch import Rollout, Selection
from rlsparse.components.component import build, describe
from rlsparse.components.objective.aggregation import SequenceMean
from rlsparse.components.token_sampler import TokenSampler, largest
from rlsparse.components.token_sampler.budget import LARGEST_QUANTILE, First, HighEntropy, Random, highest_share
from rlsparse.components.token_sampler.covariance import Covariance
from rlsparse.components.token_sampler.full import Full
from rlsparse.components.token_sampler.low_probability import LowProbability, LowProbabilityFirst
from rlsparse.components.token_sampler.prefix_cut import PrefixCut
from rlsparse.components.token_sampler.prefix_tree import BranchPoints
from rlsparse.components.token_sampler.stochastic import Stochastic
from rlsparse.config.schema import ConfigError
from tests.conftest import ROOT, make_rollout

CONF = ROOT / "conf" / "token_sampler"


def select(sampler, rollout, seed=0, advantages=None):
    advantages = torch.ones(rollout.completion_ids.shape) if advantages is None else advantages
    return sampler(advantages, rollout, torch.Generator().manual_seed(seed))


def rows(n, length):
    return make_rollout([[1] * length] * n)


def of_lengths(*lengths):
    return make_rollout([[1] * length for length in lengths])


def with_probabilities(probabilities):
    """A rollout of one completion whose tokens were sampled with these probabilities."""
    return replace(rows(1, len(probabilities)), log_probs=torch.tensor([probabilities]).log())


def with_entropy(entropy):
    """A rollout of completions of the same length, with these entropies, (B, T)."""
    entropy = torch.as_tensor(entropy)
    return replace(rows(len(entropy), entropy.shape[1]), entropy=entropy)


def random(budget=None, share=None, reweight=False):
    return Random(budget=budget, share=share, reweight=reweight)


def first(budget=None, share=None):
    return First(budget=budget, share=share)


def high_entropy(budget=None, share=None, scope="completion"):
    return HighEntropy(budget=budget, share=share, scope=scope)


def stochastic(always_first, probability, budget=None, share=None, reweight=False):
    return Stochastic(always_first=always_first, probability=probability, budget=budget, share=share, reweight=reweight)


def test_inclusion_probability_matches_values_computed_by_hand():
    # alpha 2, P 1/2, k 3: one coin may come up. t = 2: 1/2; t = 3: 1/2 x (first coin tails: 1/2); t = 4: 1/2 x 1/4
    sampler = stochastic(2, 0.5, budget=3)
    assert sampler.inclusion_probability(5, torch.tensor([5])).tolist() == [pytest.approx([1, 1, 1 / 2, 1 / 4, 1 / 8])]


def test_stochastic_over_many_rows_has_the_frequencies_of_the_closed_form():
    sampler = stochastic(3, 0.4, budget=6)
    n = 40_000
    chosen = select(sampler, rows(n, 14)).weights
    expected = sampler.inclusion_probability(14, torch.tensor([14]))[0]
    error = (expected * (1 - expected) / n).sqrt().clamp(min=1e-9)
    assert ((chosen.mean(dim=0) - expected).abs() <= 4.5 * error).all()
    assert int(chosen.sum(dim=1).max()) == 6
    assert (chosen[:, :3] == 1).all()


def test_stochastic_with_probability_1_and_a_large_budget_keeps_every_token():
    rollout = of_lengths(9, 4)
    full, got = select(Full(), rollout), select(stochastic(0, 1.0, budget=9), rollout)
    assert full.weights.tolist() == [[1] * 9, [1] * 4 + [0] * 5]
    assert full.counts.tolist() == [9, 4]
    assert torch.equal(got.weights, full.weights)
    assert torch.equal(got.counts, full.counts)


@pytest.mark.parametrize(
    "sampler", [random(budget=4), first(budget=4), high_entropy(budget=4)], ids=lambda one: one.label
)
def test_control_takes_exactly_its_budget_inside_the_completion(sampler):
    weights = select(sampler, of_lengths(6, 2)).weights
    assert weights.sum(dim=1).tolist() == [4, 2]
    assert (weights[1, 2:] == 0).all()


def test_first_takes_the_first_tokens():
    assert select(first(budget=4), of_lengths(6, 2)).weights[0].tolist() == [1, 1, 1, 1, 0, 0]


def test_random_over_many_rows_is_uniform():
    n = 30_000
    share = select(random(budget=3), rows(n, 10)).weights.mean(dim=0)
    assert (share - 0.3).abs().max() < 4.5 * (0.3 * 0.7 / n) ** 0.5


def test_high_entropy_takes_the_tokens_of_highest_entropy():
    selection = select(high_entropy(budget=2), with_entropy([[0.1, 0.9, 0.2, 0.8, 0.3]]))
    assert selection.weights.tolist() == [[0, 1, 0, 1, 0]]
    assert selection.counts.tolist() == [2]


def test_branch_points_are_the_transitions_with_an_advantage():
    rollout = make_rollout([[1, 2, 3], [1, 2, 4]])
    advantages = torch.tensor([[0, 0, 0.5], [0, 0, -0.5]])
    selection = select(BranchPoints(), rollout, advantages=advantages)
    assert selection.weights.tolist() == [[0, 0, 1], [0, 0, 1]]
    assert selection.counts.tolist() == [1, 1]


@pytest.mark.parametrize("sampler", [stochastic(0, 0.5, budget=10), PrefixCut(min_tokens=1, reweight=True)])
def test_sampler_that_draws_draws_anew_each_step(sampler):
    generator = torch.Generator().manual_seed(0)
    one, other = (sampler(torch.ones(4, 10), rows(4, 10), generator).weights for _ in range(2))
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("share", "lengths", "sizes"),
    [
        (0.5, [6, 5, 2, 1], [3, 3, 1, 1]),  # 2.5 and 0.5 are rounded up
        (0.07, [100], [7]),  # in float64 the product is 7.000000000000001
        (0.3, [10, 11], [3, 4]),
        (1e-9, [1, 7], [1, 1]),  # at least one
        (1.0, [1, 7], [1, 7]),
    ],
)
def test_share_is_rounded_up_to_whole_tokens_of_each_completion(share, lengths, sizes):
    assert first(share=share).sizes(torch.tensor(lengths)).tolist() == sizes
    assert select(first(share=share), of_lengths(*lengths)).counts.tolist() == sizes


@pytest.mark.parametrize(
    "sampler", [random(share=0.5), first(share=0.5), high_entropy(share=0.5)], ids=lambda one: one.label
)
def test_control_takes_exactly_its_share_of_each_completion(sampler):
    selection = select(sampler, of_lengths(6, 3, 1))
    assert selection.weights.sum(dim=1).tolist() == [3, 2, 1]  # 3, 1.5 and 0.5, rounded up
    assert selection.counts.tolist() == [3, 2, 1]
    assert (selection.weights * ~of_lengths(6, 3, 1).mask == 0).all()


def test_first_with_a_share_takes_the_start_of_each_completion():
    assert select(first(share=0.5), of_lengths(5, 2)).weights.tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]


def test_high_entropy_with_a_share_takes_the_highest_of_each_completion():
    selection = select(high_entropy(share=0.4), with_entropy([[0.1, 0.9, 0.2, 0.8, 0.3], [0.5, 0.1, 0.1, 0.6, 0.0]]))
    assert selection.weights.tolist() == [[0, 1, 0, 1, 0], [1, 0, 0, 1, 0]]


def test_random_with_a_share_and_reweight_has_the_inverse_of_the_own_share_of_each_row():
    selection = select(random(share=0.5, reweight=True), of_lengths(6, 3, 1))
    # length / k: 6/3, 3/2, 1/1
    assert [sorted(set(row) - {0.0}) for row in selection.weights.tolist()] == [[2.0], [1.5], [1.0]]
    assert selection.counts.tolist() == [6, 3, 1]


def test_stochastic_with_a_share_spends_the_own_budget_of_each_row():
    sampler = stochastic(1, 0.5, share=0.5)
    coins = torch.ones(3, 8, dtype=torch.bool)
    selection = sampler.of_coins(coins, torch.tensor([8, 3, 1]))
    assert selection.weights.tolist() == [[1] * 4 + [0] * 4, [1, 1] + [0] * 6, [1] + [0] * 7]  # k = 4, 2, 1
    assert selection.counts.tolist() == [4, 2, 1]


def test_stochastic_with_a_share_below_its_first_tokens_keeps_these():
    sampler = stochastic(3, 0.5, share=0.1)  # k = 1
    selection = sampler.of_coins(torch.ones(1, 6, dtype=torch.bool), torch.tensor([6]))
    assert selection.weights.tolist() == [[1, 1, 1, 0, 0, 0]]


def test_inclusion_probability_of_a_share_is_that_of_the_budget_it_amounts_to():
    lengths = torch.tensor([10, 4, 1, 10])
    found = stochastic(2, 0.3, share=0.5).inclusion_probability(10, lengths)
    for row, budget in zip(found, (5, 2, 1, 5), strict=True):
        of_budget = stochastic(2, 0.3, budget=budget).inclusion_probability(10, lengths)
        assert torch.equal(row, of_budget[0])


def test_largest_with_a_budget_for_each_row_takes_as_many_of_each():
    scores = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    selection = largest(scores, torch.ones(2, 3, dtype=torch.bool), torch.tensor([1, 2]))
    assert selection.weights.tolist() == [[1, 0, 0], [1, 0, 1]]


@pytest.mark.parametrize(
    ("option", "given", "message"),
    [
        ("random", {"share": 0.5}, "share=0.5: token_sampler.budget=8, but exactly one .* token_sampler.budget=null"),
        ("first", {"budget": None}, "share=null: token_sampler.budget=null, but exactly one of both"),
        ("stochastic", {"share": 0.5}, "share=0.5: token_sampler.budget=16, .* token_sampler.budget=null"),
        ("high_entropy", {"share": 0.5}, "share=0.5: token_sampler.budget=8, .* token_sampler.budget=null"),
        (
            "high_entropy",
            {"scope": "batch"},
            "budget=8: token_sampler.scope=batch takes a share .* token_sampler.share=0.2",
        ),
        ("high_entropy", {"scope": "row"}, "scope=row: must be one of completion, batch"),
        ("random", {"share": 0, "budget": None}, r"share=0.0: must be in \(0, 1\]"),
        ("first", {"share": 1.5, "budget": None}, r"share=1.5: must be in \(0, 1\]"),
        ("first", {"budget": 0}, "budget=0: must be at least 1"),
        ("first", {"budget": 2.5}, "budget=2.5: must be a whole number or null"),
        ("stochastic", {"budget": 3}, "budget=3: the first token_sampler.always_first=4 tokens count too"),
        ("prefix_cut", {"min_tokens": 0}, "min_tokens=0: must be at least 1"),
        ("low_probability", {"alpha": 1.5}, r"alpha=1.5: must be in \[0, 1\]"),
        ("low_probability_first", {"threshold": 0.0}, r"threshold=0.0: must be in \(0, 1\]"),
        ("covariance", {"share": 0.0}, r"share=0.0: must be in \(0, 1\]"),
        ("covariance", {"low": 6.0}, "low=6: must be at most token_sampler.high=5"),
    ],
)
def test_wrong_value_is_refused_in_one_line_with_key_value_and_remedy(option, given, message):
    with pytest.raises(ConfigError, match=rf"^token_sampler\.{message}") as error:
        build("token_sampler", {**yaml.safe_load((CONF / f"{option}.yaml").read_text()), **given}, TokenSampler)
    assert len(str(error.value).splitlines()) == 1


def test_share_with_a_budget_of_null_is_accepted():
    node = {**yaml.safe_load((CONF / "random.yaml").read_text()), "share": 0.25, "budget": None}
    assert build("token_sampler", node, TokenSampler) == random(share=0.25)


@pytest.mark.parametrize(
    ("sampler", "described"),
    [
        (random(budget=8), {"class": "Random", "budget": 8, "reweight": False}),
        (first(budget=8), {"class": "First", "budget": 8}),
        (high_entropy(budget=8), {"class": "HighEntropy", "budget": 8}),
        (
            stochastic(4, 0.3, budget=16),
            {"class": "Stochastic", "always_first": 4, "probability": 0.3, "budget": 16, "reweight": False},
        ),
        (random(share=0.5), {"class": "Random", "budget": None, "share": 0.5, "reweight": False}),
        (
            high_entropy(share=0.2, scope="batch"),
            {"class": "HighEntropy", "budget": None, "share": 0.2, "scope": "batch"},
        ),
    ],
)
def test_new_keys_at_their_neutral_values_are_not_in_the_run_id(sampler, described):
    assert describe(sampler, str) == described


def test_high_entropy_of_the_batch_takes_the_tokens_above_the_quantile():
    # ten tokens: the 0.8-quantile lies at place 0.8 x 9 = 7.2 from 0, so it is 0.8 + 0.2 x 0.1 = 0.82
    rollout = with_entropy([[0.1, 1.0, 0.3, 0.9, 0.5], [0.6, 0.7, 0.8, 0.4, 0.2]])
    selection = select(high_entropy(share=0.2, scope="batch"), rollout)
    assert selection.weights.tolist() == [[0, 1, 0, 1, 0], [0, 0, 0, 0, 0]]
    assert selection.counts.tolist() == [5, 5]  # a mean is over all tokens, as in TRL


def test_high_entropy_of_the_batch_takes_all_of_equal_entropies_and_ignores_padding():
    # three tokens: the 0.5-quantile of 1, 1, 0 is 1; the padding has an entropy of 0 and would make it 0.5
    rollout = replace(of_lengths(2, 1), entropy=torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    selection = select(high_entropy(share=0.5, scope="batch"), rollout)
    assert selection.weights.tolist() == [[1, 0], [1, 0]]
    assert selection.counts.tolist() == [2, 1]


def test_high_entropy_of_the_batch_with_share_1_takes_every_token():
    rollout = replace(of_lengths(4, 2), entropy=torch.rand(2, 4))
    assert torch.equal(select(high_entropy(share=1.0, scope="batch"), rollout).weights, rollout.mask.float())


def trl_high_entropy_mask():
    """The method of TRL's trainer, from its source: an import of the trainer takes ten seconds."""
    trl = find_spec("trl")
    if trl is None:
        pytest.skip("trl is in the test extra")
    source = (Path(trl.origin).parent / "trainer" / "grpo_trainer.py").read_text()
    (method,) = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name == "get_high_entropy_mask"
    ]
    found = {"torch": torch}
    exec(compile(ast.Module([method], []), "grpo_trainer.py", "exec"), found)
    return found["get_high_entropy_mask"]


def test_high_entropy_of_the_batch_equals_the_mask_of_trl():
    theirs, trainer = trl_high_entropy_mask(), SimpleNamespace(accelerator=Accelerator(cpu=True))
    generator = torch.Generator().manual_seed(0)
    for case in range(60):
        n, width = 1 + case % 7, 1 + case
        lengths = torch.randint(1, width + 1, (n,), generator=generator)
        entropy = torch.rand(n, width, generator=generator)
        entropy = (entropy * 10).round() if case % 3 == 0 else entropy  # with ties, and with entropies of 0
        rollout = replace(rows(n, width), lengths=lengths, entropy=entropy)
        for share in (0.05, 0.1, 0.2, 0.5, 0.7, 0.9):  # TRL makes no mask at 1
            expected = theirs(trainer, entropy, rollout.mask.long(), 1 - share)
            ours = select(high_entropy(share=share, scope="batch"), rollout)
            assert torch.equal(ours.weights, expected.float())
            assert torch.equal(ours.counts, rollout.mask.sum(dim=1).float())


def test_highest_share_of_more_numbers_than_older_torch_takes_is_the_same_share():
    scores = torch.arange(LARGEST_QUANTILE + 1).float()[None]  # whole numbers, all exact in float32
    # the 0.75-quantile of 0, ..., 2^24 is 3 x 2^22, and 2^22 + 1 numbers are at least that
    chosen = highest_share(scores, torch.ones_like(scores, dtype=torch.bool), 0.25)
    assert chosen.sum() == 2**22 + 1
    assert bool(chosen[0, 3 * 2**22])


def random_outcomes(sampler, length, width):
    """Every set of k tokens, each with probability 1 / C(length, k)."""
    lengths = torch.tensor([length])
    k = min(length, int(torch.as_tensor(sampler.sizes(lengths))))
    chosen = torch.zeros(comb(length, k), width)
    for row, subset in zip(chosen, itertools.combinations(range(length), k), strict=True):
        row[list(subset)] = 1
    selection = Selection(chosen, chosen.sum(dim=1))
    probabilities = torch.full((len(chosen),), 1 / len(chosen), dtype=torch.float64)
    return sampler.reweighted(selection, lengths.expand(len(chosen))), probabilities


def stochastic_outcomes(sampler, length, width):
    """Every sequence of coins, with its probability."""
    coins = torch.tensor(list(itertools.product([False, True], repeat=length)))
    heads, P = coins.sum(dim=1).double(), sampler.probability
    padded = torch.nn.functional.pad(coins, (0, width - length))
    selection = sampler.of_coins(padded, torch.full((len(coins),), length))
    return selection, P**heads * (1 - P) ** (length - heads)


def prefix_outcomes(sampler, length, width):
    """Every L from the smallest to the length, all with the same probability."""
    kept = torch.arange(min(sampler.min_tokens, length), length + 1)
    selection = sampler.of_kept(kept, torch.full((len(kept),), length), width)
    return selection, torch.full((len(kept),), 1 / len(kept), dtype=torch.float64)


def mean_gradient(selection, probabilities, length):
    """The gradient of the loss of REINFORCE for a small policy, in the mean over the outcomes of a selection.

    The policy is a softmax over 7 tokens, a linear function of a fixed hidden state at each token.
    """
    generator = torch.Generator().manual_seed(length)
    theta, hidden = (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((4, 7), (length, 4)))
    tokens = torch.randint(7, (length,), generator=generator)
    advantages = torch.randn(length, generator=generator, dtype=torch.float64)
    theta.requires_grad_(True)
    log_probs = (hidden @ theta).log_softmax(dim=1)[torch.arange(length), tokens]  # (length,)
    n = len(probabilities)
    scales = SequenceMean(l2=0.0)(selection, torch.zeros(1, dtype=torch.long), length).double()  # (n, width), 1/n each
    assert (scales[:, length:] == 0).all()
    loss = -(probabilities[:, None] * n * scales[:, :length] * advantages * log_probs).sum()
    (gradient,) = torch.autograd.grad(loss, theta)
    return gradient


@pytest.mark.parametrize(
    ("outcomes", "sampler"),
    [
        (random_outcomes, random(budget=2, reweight=True)),
        (random_outcomes, random(budget=9, reweight=True)),
        (random_outcomes, random(share=0.3, reweight=True)),
        (stochastic_outcomes, stochastic(1, 0.4, budget=3, reweight=True)),
        (stochastic_outcomes, stochastic(0, 0.7, budget=2, reweight=True)),
        (stochastic_outcomes, stochastic(1, 0.4, share=0.7, reweight=True)),
        (prefix_outcomes, PrefixCut(min_tokens=1, reweight=True)),
        (prefix_outcomes, PrefixCut(min_tokens=3, reweight=True)),
        (prefix_outcomes, PrefixCut(min_tokens=99, reweight=True)),
    ],
)
@pytest.mark.parametrize("length", [1, 2, 6])
def test_mean_gradient_over_all_outcomes_is_the_full_gradient(outcomes, sampler, length):
    selection, probabilities = outcomes(sampler, length, length + 2)
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-12)
    full = Selection(torch.ones(1, length), torch.tensor([float(length)]))
    expected = mean_gradient(full, torch.ones(1, dtype=torch.float64), length)
    assert expected.abs().max() > 0.01
    assert torch.allclose(mean_gradient(selection, probabilities, length), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("outcomes", "sampler"),
    [
        (stochastic_outcomes, stochastic(1, 0.4, budget=3)),
        (prefix_outcomes, PrefixCut(min_tokens=1, reweight=False)),
    ],
)
def test_mean_gradient_without_reweighting_is_another(outcomes, sampler):
    selection, probabilities = outcomes(sampler, 6, 6)
    full = Selection(torch.ones(1, 6), torch.tensor([6.0]))
    expected = mean_gradient(full, torch.ones(1, dtype=torch.float64), 6)
    assert (mean_gradient(selection, probabilities, 6) - expected).abs().max() > 0.01


@pytest.mark.parametrize(
    ("outcomes", "sampler"),
    [
        (random_outcomes, random(budget=2, reweight=True)),
        (random_outcomes, random(share=0.6, reweight=True)),
        (stochastic_outcomes, stochastic(1, 0.4, budget=3, reweight=True)),
        (prefix_outcomes, PrefixCut(min_tokens=2, reweight=True)),
    ],
)
def test_draws_have_the_probabilities_of_the_outcomes(outcomes, sampler):
    n, length = 6000, 5
    drawn = select(sampler, rows(n, length)).weights != 0  # (n, length)
    selection, probabilities = outcomes(sampler, length, length)
    code = 2 ** torch.arange(length)
    expected = torch.zeros(2**length, dtype=torch.float64)
    expected.index_add_(0, ((selection.weights != 0) * code).sum(dim=1), probabilities)
    found = (drawn * code).sum(dim=1).bincount(minlength=2**length) / n
    error = (expected * (1 - expected) / n).sqrt()
    assert ((found - expected).abs() <= 5 * error).all()


def test_weights_of_a_prefix_are_the_values_computed_by_hand():
    # length 4, L in 2, 3, 4: tokens 1 and 2 are always kept, token 3 in two cases of three, token 4 in one
    sampler = PrefixCut(min_tokens=2, reweight=True)
    selection = sampler.of_kept(torch.tensor([2, 3, 4]), torch.tensor([4, 4, 4]), 5)
    assert selection.weights.tolist() == [[1, 1, 0, 0, 0], [1, 1, 1.5, 0, 0], [1, 1, 1.5, 3, 0]]
    assert selection.counts.tolist() == [4, 4, 4]


def test_prefix_without_reweighting_has_weights_of_1_and_counts_what_it_keeps():
    selection = PrefixCut(min_tokens=1, reweight=False).of_kept(torch.tensor([1, 3]), torch.tensor([3, 3]), 3)
    assert selection.weights.tolist() == [[1, 0, 0], [1, 1, 1]]
    assert selection.counts.tolist() == [1, 3]


def test_prefix_of_rows_of_all_lengths_is_uniform_from_the_smallest_to_the_length():
    n = 3000
    lengths = torch.arange(1, 6).repeat(n)
    rollout = replace(rows(5 * n, 5), lengths=lengths)
    kept = (select(PrefixCut(min_tokens=2, reweight=True), rollout).weights != 0).sum(dim=1)
    for length in range(1, 6):
        found = kept[lengths == length].bincount(minlength=6) / n
        values = range(min(2, length), length + 1)
        expected = torch.tensor([1 / len(values) if L in values else 0.0 for L in range(6)])
        assert ((found - expected).abs() <= 5 * (expected * (1 - expected) / n).sqrt()).all()


def test_only_the_prefix_cutter_has_the_trait():
    options = [build("token_sampler", yaml.safe_load(file.read_text()), TokenSampler) for file in CONF.glob("*.yaml")]
    assert [one.label for one in options if one.cuts_completions] == ["prefix_cut"]


def test_low_probability_weights_are_linear_in_the_probability():
    # 0.3 x 0.5 + 0.7 = 0.85; 0.3 x 0.1 + 0.7 = 0.73; 0.3 x 1 + 0.7 = 1
    rollout = with_probabilities([0.5, 0.1, 1.0])
    selection = select(LowProbability(alpha=0.3), rollout)
    assert selection.weights.tolist() == [pytest.approx([0.85, 0.73, 1.0])]
    assert selection.counts.tolist() == [3]
    assert select(LowProbability(alpha=0.0), rollout).weights.tolist() == [[1, 1, 1]]
    assert select(LowProbability(alpha=1.0), rollout).weights.tolist() == [pytest.approx([0.5, 0.1, 1.0])]


def test_low_probability_weighs_no_padding():
    assert select(LowProbability(alpha=0.3), of_lengths(3, 1)).weights.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_low_probability_first_puts_tokens_below_the_threshold_into_the_first_pass():
    sampler = LowProbabilityFirst(threshold=0.5, alpha=0.0)
    selection = select(sampler, with_probabilities([0.5, 0.49, 0.9, 0.01]))  # the threshold itself is not below it
    assert selection.passes.tolist() == [[1, 0, 1, 0]]
    assert selection.weights.tolist() == [[1, 1, 1, 1]]
    assert selection.counts.tolist() == [4]  # both passes have the divisor of the whole batch


@pytest.mark.parametrize("probabilities", [[0.9, 0.8], [0.1, 0.2]])
def test_low_probability_first_with_tokens_of_one_kind_makes_one_pass(probabilities):
    selection = select(LowProbabilityFirst(threshold=0.5, alpha=0.0), with_probabilities(probabilities))
    assert selection.passes.tolist() == [[0, 0]]


def test_low_probability_first_with_alpha_also_reweights():
    rollout = with_probabilities([0.6, 0.2])
    selection = select(LowProbabilityFirst(threshold=0.5, alpha=0.3), rollout)
    assert torch.equal(selection.weights, select(LowProbability(alpha=0.3), rollout).weights)
    assert selection.passes.tolist() == [[1, 0]]


# advantages 1, 1, -1, -1 (mean 0), log-probs -1, -3, -2, -6 (mean -3): covariances 1 x 2 = 2, 1 x 0 = 0, -1 x 1 = -1
# and -1 x -3 = 3
FOUR = replace(rows(2, 2), log_probs=torch.tensor([[-1.0, -3.0], [-2.0, -6.0]]))
SIGNS = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])


@pytest.mark.parametrize(
    ("share", "low", "high", "weights"),
    [
        (0.5, 1.0, 5.0, [[0, 1], [1, 0]]),  # two of four may leave, and there are two candidates
        (1.0, 1.0, 5.0, [[0, 1], [1, 0]]),  # no more than the candidates
        (0.5, 1.0, 2.5, [[0, 1], [1, 1]]),
        (0.5, 2.0, 2.0, [[0, 1], [1, 1]]),  # the bounds belong to the interval
        (0.5, -1.0, -1.0, [[1, 1], [0, 1]]),
        (0.5, 4.0, 5.0, [[1, 1], [1, 1]]),  # no candidate
    ],
)
def test_covariance_leaves_out_candidates_between_the_bounds(share, low, high, weights):
    selection = select(Covariance(share=share, low=low, high=high), FOUR, advantages=SIGNS)
    assert selection.weights.tolist() == weights
    assert selection.counts.tolist() == [2, 2]  # those left out count in the divisor


def test_covariance_means_are_over_completion_tokens_alone():
    padded = replace(
        make_rollout([[1, 1, 0, 0], [1, 1]]), lengths=torch.tensor([2, 2]), log_probs=torch.full((2, 4), -50.0)
    )
    padded.log_probs[:, :2] = FOUR.log_probs
    advantages = torch.full((2, 4), 9.0)
    advantages[:, :2] = SIGNS
    selection = select(Covariance(share=0.5, low=1.0, high=5.0), padded, advantages=advantages)
    assert selection.weights.tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize(
    ("share", "tokens", "most"), [(2e-4, 100, 1), (2e-4, 10_000, 2), (2e-4, 14_999, 2), (0.29, 100, 29), (1.0, 7, 7)]
)
def test_covariance_leaves_out_at_most_its_share_of_the_batch_and_at_least_one(share, tokens, most):
    assert Covariance(share=share, low=1.0, high=5.0).most(tokens) == most


def test_covariance_draws_uniformly_among_the_candidates():
    sampler, generator, n = Covariance(share=0.25, low=0.0, high=5.0), torch.Generator().manual_seed(0), 1500
    # three candidates, of which one leaves each time
    left_out = sum(1 - sampler(SIGNS, FOUR, generator).weights for _ in range(n)) / n
    assert float(left_out[1, 0]) == 0
    assert float(left_out.sum()) == pytest.approx(1)
    assert (left_out.flatten()[[0, 1, 3]] - 1 / 3).abs().max() < 5 * (1 / 3 * 2 / 3 / n) ** 0.5


EVERY = [
    Full(),
    BranchPoints(),
    *(make(**size) for make in (random, first, high_entropy) for size in ({"budget": 2}, {"share": 0.3})),
    *(random(**size, reweight=True) for size in ({"budget": 2}, {"share": 0.3})),
    high_entropy(share=0.2, scope="batch"),
    *(
        stochastic(1, 0.5, **size, reweight=reweight)
        for size in ({"budget": 2}, {"share": 0.3})
        for reweight in (False, True)
    ),
    *(PrefixCut(min_tokens=1, reweight=reweight) for reweight in (False, True)),
    LowProbability(alpha=0.3),
    LowProbabilityFirst(threshold=0.5, alpha=0.3),
    Covariance(share=0.3, low=-1.0, high=5.0),
]


def test_every_option_is_among_those_tested_below():
    targets = {yaml.safe_load(file.read_text())["_target_"].rpartition(".")[2] for file in CONF.glob("*.yaml")}
    assert targets == {type(sampler).__name__ for sampler in EVERY}


@pytest.mark.parametrize("sampler", EVERY, ids=str)
@pytest.mark.parametrize("width", [0, 3])
def test_sampler_of_no_rows_selects_nothing(sampler, width):
    one = rows(1, 3)
    values = {name: value if value is None else value[:0] for name, value in vars(one).items()}
    empty = Rollout(**values | {name: values[name][:, :width] for name in ("completion_ids", "log_probs", "entropy")})
    selection = select(sampler, empty)
    assert selection.weights.shape == (0, width)
    assert selection.counts.shape == (0,)
    assert selection.passes is None or selection.passes.shape == (0, width)


@pytest.mark.parametrize("sampler", EVERY, ids=str)
def test_sampler_of_rows_of_different_lengths_stays_inside_them(sampler):
    lengths = torch.tensor([7, 1, 3, 1, 5])
    generator = torch.Generator().manual_seed(3)
    base = of_lengths(*lengths.tolist())
    rollout = replace(
        base,
        log_probs=-torch.rand(5, 7, generator=generator) * 3 * base.mask,
        entropy=torch.rand(5, 7, generator=generator) * base.mask,
    )
    advantages = torch.randn(5, 7, generator=generator) * base.mask
    selection = select(sampler, rollout, advantages=advantages)
    assert selection.weights.dtype == selection.counts.dtype == torch.float32
    assert torch.isfinite(selection.weights).all()
    assert (selection.weights[~base.mask] == 0).all()
    assert (selection.weights >= 0).all()
    assert (selection.weights > 0).any()
    assert (selection.counts <= lengths).all()
    assert (selection.counts >= (selection.weights != 0).any(dim=1)).all()
    if selection.passes is not None:
        assert selection.passes.unique().tolist() == [0, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_sampler_on_a_gpu_selects_what_it_selects_on_the_cpu():
    rollout = replace(of_lengths(7, 1, 3), log_probs=-torch.rand(3, 7), entropy=torch.rand(3, 7))
    moved = Rollout(**{name: value if value is None else value.cuda() for name, value in vars(rollout).items()})
    advantages = torch.randn(3, 7)
    for sampler in EVERY:
        here = select(sampler, rollout, advantages=advantages)
        there = select(sampler, moved, advantages=advantages.cuda())
        assert there.weights.is_cuda, sampler
        assert torch.allclose(there.weights.cpu(), here.weights), sampler
        assert torch.equal(there.counts.cpu(), here.counts), sampler


def test_trait_per_transition_holds_for_the_sampler_that_reads_only_credited_tokens():
    for sampler in EVERY:
        nothing_to_credit = select(sampler, rows(1, 3), advantages=torch.zeros(1, 3))
        assert (nothing_to_credit.weights.sum() == 0) == sampler.per_transition, sampler.label
    assert [sampler.label for sampler in EVERY if sampler.per_transition] == ["branch_points"]

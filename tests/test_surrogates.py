"""Surrogates: each by hand, and what holds for every option of conf/clipping."""

import math
from pathlib import Path

import pytest
import torch
import yaml

from rlsparse.batch import Selection
from rlsparse.components.component import build
from rlsparse.components.objective import RowSurrogate, ScoredTokens, Surrogate, TokenObjective
from rlsparse.components.objective.aggregation import SequenceMean
from rlsparse.components.objective.cispo import Cispo
from rlsparse.components.objective.dppo import Dppo
from rlsparse.components.objective.dual_clip import DualClip
from rlsparse.components.objective.gmpo import Gmpo
from rlsparse.components.objective.gspo import Gspo
from rlsparse.components.objective.kl import SampledKL
from rlsparse.components.objective.sapo import Sapo
from rlsparse.components.objective.surrogate import ClippedRatio, Ratio, finite_exp
from rlsparse.config.schema import ConfigError

OPTIONS = sorted(file.stem for file in (Path(__file__).parent.parent / "conf" / "clipping").glob("*.yaml"))
NO_KL = SampledKL(beta=0.0, estimator="k3", place="loss", reference="base", reference_every=1, reference_share=1.0)
TV, KL = Dppo(divergence="tv", delta=0.15), Dppo(divergence="kl", delta=0.05)


def node_of(option):
    return yaml.safe_load((Path(__file__).parent.parent / "conf" / "clipping" / f"{option}.yaml").read_text())


def surrogate_of(option, **values) -> Surrogate:
    """Return the surrogate of an option of the config group, with other values of some keys."""
    return build("clipping", {**node_of(option), **values}, Surrogate)


@pytest.fixture(params=OPTIONS)
def surrogate(request) -> Surrogate:
    return surrogate_of(request.param)


def gradient_of(surrogate, log_probs, old, advantages):
    """Return the gradient of the summed terms in log pi, (b, T)."""
    log_probs = log_probs.clone().requires_grad_()
    surrogate(log_probs, old, advantages).sum().backward()
    return log_probs.grad


def of_probs(surrogate, probs, old, advantage):
    """Return terms, gradients in log pi and clipped tokens of one completion, each a list."""
    log_probs, old_log_probs = torch.tensor([probs]).double().log(), torch.tensor([old]).double().log()
    advantages = torch.full_like(log_probs, advantage)
    terms = surrogate(log_probs, old_log_probs, advantages)
    gradient = gradient_of(surrogate, log_probs, old_log_probs, advantages)
    clipped = surrogate.clipped(log_probs, old_log_probs, advantages)
    return terms[0].tolist(), gradient[0].tolist(), clipped[0].tolist()


def assert_terms(surrogate, ratios, advantage, terms, gradient, clipped):
    """Check one completion whose tokens had the probability 0.1 in the rollout."""
    found = of_probs(surrogate, [0.1 * ratio for ratio in ratios], [0.1] * len(ratios), advantage)
    assert found[0] == pytest.approx(terms)
    assert found[1] == pytest.approx(gradient)
    assert found[2] == clipped


def random_tokens(rows=8, width=6, spread=0.5, seed=0):
    """Return log-probs, those of the rollout and advantages, (rows, width) float64."""
    generator = torch.Generator().manual_seed(seed)
    old = (0.05 + 0.6 * torch.rand(rows, width, generator=generator, dtype=torch.float64)).log()
    log_probs = old + spread * torch.randn(rows, width, generator=generator, dtype=torch.float64)
    advantages = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return log_probs.clamp(max=-0.01), old, advantages


# --- every option of conf/clipping ----------------------------------------------------------------------------------


def test_gradient_at_ratio_1_is_a_grad_log_pi_exactly_where_the_trait_says_so(surrogate):
    _, old, advantages = random_tokens()
    gradient = gradient_of(surrogate, old, old, advantages)
    assert torch.allclose(gradient, advantages, rtol=1e-12) == surrogate.same_gradient_at_ratio_1


def test_clipped_tokens_are_those_with_an_advantage_and_without_gradient(surrogate):
    log_probs, old, advantages = random_tokens()
    clipped = surrogate.clipped(log_probs, old, advantages)
    assert torch.equal(clipped, gradient_of(surrogate, log_probs, old, advantages) == 0)
    assert surrogate.bounds_ratio or not bool(clipped.any())


def test_trait_bounds_ratio_says_whether_a_far_token_has_less_gradient_than_its_ratio(surrogate):
    # rows of one token; 0.005 to 0.9 with A = 1 and 0.9 to 0.005 with A = -1 are far in the direction of A
    old = torch.tensor([[0.005], [0.9]]).double().log()
    advantages = torch.tensor([[1.0], [-1.0]]).double()
    gradient = gradient_of(surrogate, old.flip(0), old, advantages).abs()
    of_ratio = gradient_of(Ratio(), old.flip(0), old, advantages).abs()
    if surrogate.bounds_ratio:
        assert float(gradient[0]) < 0.1 * float(of_ratio[0])
    elif surrogate.uses_old_policy:
        torch.testing.assert_close(gradient, of_ratio)


def test_trait_uses_old_policy_says_whether_a_term_depends_on_it(surrogate):
    log_probs, old, advantages = random_tokens(spread=0.05)
    same = torch.equal(surrogate(log_probs, old, advantages), surrogate(log_probs, old - 0.03, advantages))
    assert same != surrogate.uses_old_policy


def test_trait_needs_whole_rows_says_whether_a_term_depends_on_other_tokens(surrogate):
    log_probs, old, advantages = random_tokens(spread=1e-5)
    moved = log_probs.clone()
    moved[:, 1:] += 1e-5
    first, second = (surrogate(one, old, advantages)[:, 0] for one in (log_probs, moved))
    assert torch.equal(first, second) != surrogate.needs_whole_rows
    assert isinstance(surrogate, RowSurrogate) == surrogate.needs_whole_rows


def test_token_without_advantage_has_neither_term_nor_gradient(surrogate):
    log_probs, old, advantages = random_tokens()
    advantages[:, ::2] = 0.0
    terms, gradient = surrogate(log_probs, old, advantages), gradient_of(surrogate, log_probs, old, advantages)
    assert bool((terms[:, ::2] == 0).all())
    assert bool((gradient[:, ::2] == 0).all())
    assert not bool(surrogate.clipped(log_probs, old, advantages)[:, ::2].any())


@pytest.mark.parametrize(("dtype", "far"), [(torch.float32, 300.0), (torch.float64, 3000.0)])
def test_terms_and_gradients_are_finite_where_the_ratio_overflows(surrogate, dtype, far):
    near = torch.tensor(-1e-3, dtype=dtype)
    old = torch.stack([near - far, near, near - far, near])[:, None].expand(4, 3)
    log_probs = torch.stack([near, near - far, near, near - far])[:, None].expand(4, 3)
    advantages = torch.tensor([[1.0, 0.0, -1.0]], dtype=dtype).expand(4, 3)
    for row in (slice(None, 2), slice(2, 4)):
        terms = surrogate(log_probs[row], old[row], advantages[row])
        assert terms.dtype == dtype
        assert bool(torch.isfinite(terms).all())
        assert bool(torch.isfinite(gradient_of(surrogate, log_probs[row], old[row], advantages[row])).all())


def test_row_of_one_token_has_the_term_of_that_token_in_a_batch(surrogate):
    log_probs, old, advantages = random_tokens(rows=5, width=1)
    together = surrogate(log_probs, old, advantages)
    alone = [surrogate(log_probs[i : i + 1], old[i : i + 1], advantages[i : i + 1]) for i in range(5)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("option", OPTIONS)
def test_padding_and_tokens_outside_the_selection_change_nothing(option):
    """Two completions of 4 and 6 tokens together, with numbers in the padding that overflow, against each alone."""
    surrogate = surrogate_of(option)
    objective = TokenObjective(surrogate, NO_KL)
    log_probs, old, advantages = random_tokens(rows=2, spread=1e-3)
    mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    scales = torch.rand(2, 6, generator=torch.Generator().manual_seed(1)).double() * mask
    scales[:, 2] = 0.0  # not chosen, but part of the completions
    log_probs, old = torch.where(mask, log_probs, 500.0), torch.where(mask, old, -500.0)

    def loss_and_gradient(row, width):
        part = log_probs[row, :width].clone().requires_grad_()
        whole = mask[row, :width] if surrogate.needs_whole_rows else None
        found = objective(
            ScoredTokens(part, old[row, :width], advantages[row, :width], scales[row, :width], mask=whole)
        )
        found.loss.backward()
        return float(found.loss.detach()), part.grad

    loss, gradient = loss_and_gradient(slice(0, 2), 6)
    (one, of_one), (two, of_two) = loss_and_gradient(slice(0, 1), 4), loss_and_gradient(slice(1, 2), 6)
    assert loss == pytest.approx(one + two, rel=1e-12)
    torch.testing.assert_close(gradient[:1, :4], of_one, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient[1:], of_two, rtol=1e-12, atol=0)
    assert bool((gradient[scales == 0] == 0).all())
    assert bool((gradient != 0).any())


@pytest.mark.parametrize("option", [one for one in OPTIONS if surrogate_of(one).needs_whole_rows])
def test_row_without_tokens_has_finite_terms_without_gradient(option):
    log_ratio = torch.zeros(1, 3, requires_grad=True)
    no_token = torch.zeros(1, 3, dtype=torch.bool)
    terms = surrogate_of(option).of_rows(log_ratio, torch.ones(1, 3), no_token)
    assert bool(torch.isfinite(terms).all())
    assert not bool(surrogate_of(option).clipped_in_rows(log_ratio.detach(), torch.ones(1, 3), no_token).any())


# --- each surrogate by hand -----------------------------------------------------------------------------------------


def test_clip_higher_is_the_clipped_ratio_with_a_bound_of_1_28():
    assert surrogate_of("clip_higher") == ClippedRatio(epsilon_low=0.2, epsilon_high=0.28)
    # A = 2: 1.25 is inside, 1.5 gives 1.28 x 2
    assert_terms(surrogate_of("clip_higher"), [1.25, 1.5], 2.0, [2.5, 2.56], [2.5, 0.0], [False, True])


def test_finite_exp_below_its_limit_is_exp_to_the_bit():
    log_ratio = 20 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    log_ratio = log_ratio.clamp(-100, 44)
    assert torch.equal(finite_exp(log_ratio), log_ratio.exp())
    # at the limit, log(3.4e38) / 2 = 44.36, the value stays and the gradient is the value
    far = torch.tensor([100.0, 1e4], requires_grad=True)
    finite_exp(far).sum().backward()
    assert far.grad.tolist() == pytest.approx([math.sqrt(torch.finfo(torch.float32).max)] * 2, rel=1e-4)


def test_dual_clip_with_a_negative_advantage_is_bounded_at_delta():
    surrogate = DualClip(epsilon_low=0.2, epsilon_high=0.2, delta=3.0)
    # A = -2: 0.5 -> 0.8 x -2, 2 -> 2 x -2, 4 -> max(4 x -2, 3 x -2)
    assert_terms(surrogate, [0.5, 2.0, 4.0], -2.0, [-1.6, -4.0, -6.0], [0.0, -4.0, 0.0], [True, False, True])
    # A = 2 knows no delta: 0.5 x 2, 1.2 x 2, 1.2 x 2
    assert_terms(surrogate, [0.5, 2.0, 4.0], 2.0, [1.0, 2.4, 2.4], [1.0, 0.0, 0.0], [False, True, True])


def test_dual_clip_with_delta_below_the_upper_bound_is_that_of_the_paper():
    # A = -1, rho = 1.4: min(-1.4, -1.2) = -1.4, and not below -1.1
    surrogate = DualClip(epsilon_low=0.2, epsilon_high=0.2, delta=1.1)
    assert_terms(surrogate, [1.4, 1.05], -1.0, [-1.1, -1.05], [0.0, -1.05], [True, False])


def test_cispo_with_a_large_ratio_keeps_its_gradient():
    # weights min(6, 5), 2, 0.5 and A = 2: weight x 2 x log pi, with pi = 0.6, 0.2, 0.05
    terms = [10 * math.log(0.6), 4 * math.log(0.2), math.log(0.05)]
    assert_terms(Cispo(epsilon_high=4.0), [6.0, 2.0, 0.5], 2.0, terms, [10.0, 4.0, 1.0], [False] * 3)
    # A = -1: the bound holds for both signs
    terms = [-5 * math.log(0.6), -2 * math.log(0.2), -0.5 * math.log(0.05)]
    assert_terms(Cispo(epsilon_high=4.0), [6.0, 2.0, 0.5], -1.0, terms, [-5.0, -2.0, -0.5], [False] * 3)


def test_gspo_clips_a_completion_by_the_geometric_mean_of_its_ratios():
    surrogate = Gspo(epsilon_low=0.1, epsilon_high=0.2)
    # s = sqrt(1.21 x 1) = 1.1 is inside: 1.1 x 2 at both tokens, in value and in gradient
    assert_terms(surrogate, [1.21, 1.0], 2.0, [2.2, 2.2], [2.2, 2.2], [False, False])
    # s = sqrt(2 x 1.125) = 1.5: 1.2 x 2 without gradient; with A = -2 nothing is clipped
    assert_terms(surrogate, [2.0, 1.125], 2.0, [2.4, 2.4], [0.0, 0.0], [True, True])
    assert_terms(surrogate, [2.0, 1.125], -2.0, [-3.0, -3.0], [-3.0, -3.0], [False, False])
    # s = sqrt(0.64 x 1) = 0.8: 0.9 x -1 without gradient
    assert_terms(surrogate, [0.64, 1.0], -1.0, [-0.9, -0.9], [0.0, 0.0], [True, True])
    # the mean is 1, however far the tokens are from it
    assert_terms(surrogate, [4.0, 0.25], 1.0, [1.0, 1.0], [1.0, 1.0], [False, False])


def test_gmpo_clips_each_token_on_the_side_that_the_advantage_pushes_to():
    surrogate = Gmpo(epsilon_low=0.4, epsilon_high=0.4)
    ratios = [math.e, math.exp(-0.2)]
    # A = 2: c = 0.4 and -0.2, g = exp(0.1); the first token has no gradient, the second 2 exp(0.1)
    g = math.exp(0.1)
    assert_terms(surrogate, ratios, 2.0, [2 * g, 2 * g], [0.0, 2 * g], [True, False])
    # A = -1: no bound upwards, c = 1 and -0.2, g = exp(0.4)
    g = math.exp(0.4)
    assert_terms(surrogate, ratios, -1.0, [-g, -g], [-g, -g], [False, False])
    # A = -1, ratios exp(-1) and exp(0.2): c = -0.4 and 0.2, g = exp(-0.1)
    g = math.exp(-0.1)
    assert_terms(surrogate, [1 / ratio for ratio in ratios], -1.0, [-g, -g], [0.0, -g], [True, False])


def test_gmpo_with_advantages_that_differ_between_tokens_clips_each_on_its_own_side():
    # A = 1, -1, 0 and log-ratios 1, 1, 1: c = 0.4, 1, 0, g = exp(1.4 / 3)
    advantages, g = torch.tensor([[1.0, -1.0, 0.0]]), math.exp(1.4 / 3)
    terms = Gmpo(epsilon_low=0.4, epsilon_high=0.4)(torch.zeros(1, 3), torch.full((1, 3), -1.0), advantages)
    assert terms[0].tolist() == pytest.approx([g, -g, 0.0])


def test_sapo_at_three_quarters_of_its_gate_has_three_quarters_of_the_gradient():
    surrogate = Sapo(tau_pos=1.0, tau_neg=2.0)
    # sigmoid(log 3) = 3/4. tau = 1, rho = 1 + log 3, A = 2: 3/4 x 4 x 2 = 6; 4 x 3/4 x 1/4 = 3/4, x rho x 2
    rho = 1 + math.log(3)
    assert_terms(surrogate, [rho], 2.0, [6.0], [0.75 * rho * 2], [False])
    # tau = 2, rho = 1 + log 3 / 2, A = -1: 3/4 x 4/2 x -1 = -1.5
    rho = 1 + math.log(3) / 2
    assert_terms(surrogate, [rho], -1.0, [-1.5], [-0.75 * rho], [False])
    # sigmoid(-log 3) = 1/4: the gate is symmetric around rho = 1
    rho = 1 - math.log(3) / 2
    assert_terms(surrogate, [rho], -1.0, [-0.5], [-0.75 * rho], [False])


def test_dppo_masks_by_the_change_of_probability_and_not_by_its_ratio():
    # 0.5 -> 0.7 moves by 0.2 > 0.15 in the direction of A = 1; against A = -1 it is kept: rho A = -1.4
    assert of_probs(TV, [0.7], [0.5], 1.0) == ([0.0], [0.0], [True])
    terms, gradient, clipped = of_probs(TV, [0.7], [0.5], -1.0)
    assert (terms, gradient, clipped) == (pytest.approx([-1.4]), pytest.approx([-1.4]), [False])
    # 0.001 -> 0.1 has ratio 100 and moves by 0.099: kept
    terms, gradient, clipped = of_probs(TV, [0.1], [0.001], 1.0)
    assert (terms, gradient, clipped) == (pytest.approx([100.0]), pytest.approx([100.0]), [False])
    # 0.99 -> 0.8 has ratio 0.81, which PPO does not clip, and moves by 0.19: masked for A = -1
    assert of_probs(TV, [0.8], [0.99], -1.0) == ([0.0], [0.0], [True])
    assert of_probs(ClippedRatio(epsilon_low=0.2, epsilon_high=0.2), [0.8], [0.99], -1.0)[2] == [False]


def test_dppo_with_kl_compares_the_token_with_all_others():
    # 0.5 -> 0.7: 0.5 log(5/7) + 0.5 log(5/3) = 0.087177; 0.5 -> 0.6: 0.5 log(5/6) + 0.5 log(5/4) = 0.020411
    assert of_probs(KL, [0.7], [0.5], 1.0)[2] == [True]
    assert of_probs(KL, [0.6], [0.5], 1.0)[2] == [False]
    assert of_probs(Dppo(divergence="kl", delta=0.0872), [0.7], [0.5], 1.0)[2] == [False]
    assert of_probs(Dppo(divergence="kl", delta=0.0871), [0.7], [0.5], 1.0)[2] == [True]
    # the direction is that of the rollout: 0.2 -> 0.5 is 0.2 log(2/5) + 0.8 log(8/5) = 0.192745
    assert of_probs(Dppo(divergence="kl", delta=0.1928), [0.5], [0.2], 1.0)[2] == [False]
    assert of_probs(Dppo(divergence="kl", delta=0.1927), [0.5], [0.2], 1.0)[2] == [True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dppo_with_kl_at_a_probability_of_one_is_finite_or_infinitely_far(dtype):
    one, half = torch.zeros(1, 1, dtype=dtype), torch.full((1, 1), math.log(0.5), dtype=dtype)
    plus, minus = torch.ones(1, 1, dtype=dtype), -torch.ones(1, 1, dtype=dtype)
    assert KL.clipped(one, half, plus).tolist() == [[True]]  # to 1: the others have lost all of their 0.5
    assert KL.clipped(half, one, minus).tolist() == [[True]]  # from 1: log 2 = 0.69 > 0.05
    assert KL.clipped(one, one, plus).tolist() == [[False]]
    assert bool(torch.isfinite(KL(one, half, plus)).all())


# --- the objectives of completions, by brute force ------------------------------------------------------------------


def ragged():
    """Return log-probs, those of the rollout, an advantage for each of four completions of 5, 1, 3, 4 tokens, mask."""
    log_probs, old, advantages = random_tokens(rows=4, width=5, spread=0.3, seed=3)
    mask = torch.arange(5) < torch.tensor([5, 1, 3, 4])[:, None]
    return torch.where(mask, log_probs, 0.0), torch.where(mask, old, 0.0), advantages[:, 0], mask


def sequence_mean_of(surrogate, log_probs, old, advantage, mask):
    """Return the loss of whole completions with objective=sequence_mean and the gradient in log pi."""
    part = log_probs.clone().requires_grad_()
    selection = Selection(mask.double(), mask.sum(dim=1).double())
    scales = SequenceMean(l2=0.0)(selection, torch.arange(2), 5)
    tokens = ScoredTokens(part, old, advantage[:, None] * mask, scales, mask=mask)
    found = TokenObjective(surrogate, NO_KL)(tokens)
    found.loss.backward()
    return found.loss.detach(), part.grad


def brute_force(objective_of_row, log_probs, old, advantage, mask):
    """Return minus the mean of an objective of completions, each from a plain loop, and its gradient in log pi."""
    part = log_probs.clone().requires_grad_()
    rows = [
        objective_of_row([part[i, t] - old[i, t] for t in range(5) if mask[i, t]], float(advantage[i]))
        for i in range(len(part))
    ]
    loss = -sum(rows) / len(rows)
    loss.backward()
    return loss.detach(), part.grad


@pytest.mark.parametrize(("low", "high", "clipped_rows"), [(0.97, 1.1, 2), (0.0, 100.0, 0)])
def test_gspo_with_sequence_mean_is_the_objective_of_whole_completions(low, high, clipped_rows):
    def objective(log_ratios, advantage):
        s = torch.exp(sum(log_ratios) / len(log_ratios))
        return torch.minimum(s * advantage, s.clamp(low, high) * advantage)

    tokens = ragged()
    loss, gradient = sequence_mean_of(Gspo(epsilon_low=1 - low, epsilon_high=high - 1), *tokens)
    expected, of_rows = brute_force(objective, *tokens)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, of_rows, rtol=1e-10, atol=1e-15)
    assert int((gradient == 0).all(dim=1).sum()) == clipped_rows


def test_gmpo_with_sequence_mean_is_the_objective_of_whole_completions():
    def objective(log_ratios, advantage):
        sign = 1.0 if advantage > 0 else -1.0  # the paper: min(rho^sign, clip(rho)^sign)^sign, then the geometric mean
        bounded = [sign * torch.minimum(sign * one, sign * one.clamp(-0.2, 0.3)) for one in log_ratios]
        return torch.exp(sum(bounded) / len(bounded)) * advantage

    tokens = ragged()
    loss, gradient = sequence_mean_of(Gmpo(epsilon_low=0.2, epsilon_high=0.3), *tokens)
    expected, of_rows = brute_force(objective, *tokens)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, of_rows, rtol=1e-10, atol=1e-15)
    assert 0 < int((gradient[tokens[3]] == 0).sum()) < 13


def test_row_surrogate_with_chosen_tokens_takes_its_ratio_from_the_whole_completion():
    # tokens with ratios 1.21 and 1 of which the second is chosen: s = 1.1, so its term is 1.1 and not 1
    log_probs = torch.tensor([[math.log(0.121), math.log(0.1)]], requires_grad=True)
    old, ones, scales = torch.full((1, 2), math.log(0.1)), torch.ones(1, 2), torch.tensor([[0.0, 1.0]])
    tokens = ScoredTokens(log_probs, old, ones, scales, mask=torch.ones(1, 2, dtype=torch.bool))
    part = TokenObjective(Gspo(epsilon_low=0.2, epsilon_high=0.2), NO_KL)(tokens)
    part.loss.backward()
    assert float(part.loss.detach()) == pytest.approx(-1.1)
    assert log_probs.grad[0].tolist() == pytest.approx([0.0, -1.1])


# --- values that are refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "values", "message"),
    [
        ("dual_clip", {"delta": 1.0}, "clipping.delta=1.0: must be above 1"),
        ("cispo", {"epsilon_high": -0.1}, "clipping.epsilon_high=-0.1: must be at least 0"),
        ("gspo", {"epsilon_low": 1.5}, "clipping.epsilon_low=1.5: must be in [0, 1]"),
        ("gmpo", {"epsilon_low": -0.4}, "clipping.epsilon_low=-0.4: must be at least 0"),
        ("sapo", {"tau_neg": 0}, "clipping.tau_neg=0.0: must be above 0"),
        ("dppo", {"divergence": "js"}, "clipping.divergence=js: must be one of tv, kl"),
        ("dppo", {"delta": -1}, "clipping.delta=-1.0: must be at least 0"),
    ],
)
def test_value_out_of_range_is_refused_in_one_line(option, values, message):
    with pytest.raises(ConfigError) as error:
        surrogate_of(option, **values)
    assert str(error.value) == message

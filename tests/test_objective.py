"""Surrogates, KL and aggregation: by hand, as equivalences, and against TRL on the same tensors."""

import copy
import math

import pytest
import torch

from rlsparse.algorithm import Algorithm
from rlsparse.batch import Problem, ScoredBatch, Selection
from rlsparse.components.advantage.prefix_tree import PrefixTree
from rlsparse.components.objective import ScoredTokens, TokenObjective
from rlsparse.components.objective.aggregation import Constant, PromptMean, SequenceMean, SequenceSum, TokenMean
from rlsparse.components.objective.surrogate import ClippedRatio, LogProb, Prob, Ratio, SelfRatio
from rlsparse.components.token_sampler.prefix_tree import BranchPoints
from rlsparse.model.policy import PLAIN, Policy, encode_prompt
from rlsparse.rollout import Request
from rlsparse.runtime.distributed import ALONE
from rlsparse.runtime.oom import MemoryLimits
from rlsparse.runtime.rng import stream, stream_seed
from rlsparse.training.microbatch import FitMicrobatches
from rlsparse.training.update import Updater, learning_rate
from tests.conftest import built, composed, k3_penalty, make_rollout

CLIP = ClippedRatio(epsilon_low=0.2, epsilon_high=0.2)
SURROGATES = [CLIP, Ratio(), SelfRatio(), LogProb(), Prob()]
NO_KL = k3_penalty(beta=0.0)
every_surrogate = pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda one: one.label)


def loss_of(ratio, advantage, surrogate):
    """Return the loss of one token with pi_old = 0.5, its gradient in log pi, and how many tokens were clipped."""
    log_prob = torch.tensor([[math.log(0.5 * ratio)]], requires_grad=True)
    old = torch.tensor([[math.log(0.5)]])
    objective = TokenObjective(surrogate, NO_KL)
    part = objective(ScoredTokens(log_prob, old, torch.tensor([[advantage]]), torch.ones(1, 1)))
    part.loss.backward()
    return float(part.loss.detach()), float(log_prob.grad), part.clipped


def test_surrogates_match_values_computed_by_hand():
    # ratio 1.5, A = 2: unclipped -3, clipped at 1.2 -> -2.4, and no gradient
    assert loss_of(1.5, 2.0, Ratio())[:2] == pytest.approx((-3.0, -3.0))
    assert loss_of(1.5, 2.0, CLIP) == pytest.approx((-2.4, 0.0, 1))
    # ratio 0.5, A = -1: min(-0.5, -0.8) = -0.8, clipped; with A = +1 the low side is not clipped
    assert loss_of(0.5, -1.0, CLIP) == pytest.approx((0.8, 0.0, 1))
    assert loss_of(0.5, 1.0, CLIP) == pytest.approx((-0.5, -0.5, 0))
    # A log pi and A pi, pi = 0.75
    assert loss_of(1.5, 2.0, LogProb())[:2] == pytest.approx((-2 * math.log(0.75), -2.0))
    assert loss_of(1.5, 2.0, Prob())[:2] == pytest.approx((-1.5, -1.5))
    # A pi / stop_gradient(pi): A in value and in gradient, whatever the ratio
    assert loss_of(1.5, 2.0, SelfRatio()) == pytest.approx((-2.0, -2.0, 0))
    assert loss_of(0.5, -1.0, SelfRatio()) == pytest.approx((1.0, 1.0, 0))
    assert loss_of(1.0, 0.5, SelfRatio()) == pytest.approx((-0.5, -0.5, 0))


def gradient_of(surrogate, log_probs, old, advantages):
    """Return the gradient of the summed terms in log pi, (b, T)."""
    log_probs = log_probs.clone().requires_grad_()
    surrogate(log_probs, old, advantages).sum().backward()
    return log_probs.grad


def test_clipped_ratio_with_unequal_bounds_clips_each_side_at_its_own():
    surrogate = ClippedRatio(epsilon_low=0.5, epsilon_high=0.1)
    ratios = torch.tensor([[0.45, 0.6, 1.05, 1.2]])
    log_probs, old, ones = ratios.log(), torch.zeros(1, 4), torch.ones(1, 4)
    # min(rho A, clip(rho) A) with A = 1 is bounded above at 1.1, with A = -1 below at 0.5
    torch.testing.assert_close(surrogate(log_probs, old, ones), torch.tensor([[0.45, 0.6, 1.05, 1.1]]))
    torch.testing.assert_close(surrogate(log_probs, old, -ones), -torch.tensor([[0.5, 0.6, 1.05, 1.2]]))
    assert surrogate.clipped(log_probs, old, ones).tolist() == [[False, False, False, True]]
    assert surrogate.clipped(log_probs, old, -ones).tolist() == [[True, False, False, False]]


def test_self_ratio_at_every_update_is_a_in_value_and_a_grad_log_pi_in_gradient():
    """Three tokens with probabilities 0.5, 0.3, 0.2; the second was sampled, A = -1.5."""
    logits = torch.tensor([0.5, 0.3, 0.2]).log().requires_grad_()
    old = torch.tensor([[math.log(0.3)]])  # of the sampled token before the first update
    for update in range(4):
        probs = logits.detach().softmax(dim=0)
        term = SelfRatio()(logits.log_softmax(dim=0)[1].view(1, 1), old, torch.tensor([[-1.5]]))
        (gradient,) = torch.autograd.grad(term.sum(), logits)
        assert float(term.detach()) == pytest.approx(-1.5)
        # d log pi(y) / d logits = e_y - pi; at the first update A (e_y - pi) = (0.75, -1.05, 0.3)
        torch.testing.assert_close(gradient, -1.5 * (torch.tensor([0.0, 1.0, 0.0]) - probs))
        if update == 0:
            torch.testing.assert_close(gradient, torch.tensor([0.75, -1.05, 0.3]))
        logits = (logits.detach() + 0.5 * gradient).requires_grad_()
    assert float(logits.detach().softmax(dim=0)[1]) < 0.2  # the ratio is no longer 1


def test_self_ratio_has_the_gradient_of_log_prob_everywhere_and_of_ratio_at_pi_old_alone():
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(4, 6, generator=generator)
    log_probs = old + 0.5 * torch.randn(4, 6, generator=generator)
    advantages = torch.randn(4, 6, generator=generator)
    of_log_prob = gradient_of(LogProb(), log_probs, old, advantages)
    torch.testing.assert_close(gradient_of(SelfRatio(), log_probs, old, advantages), of_log_prob)
    torch.testing.assert_close(
        gradient_of(SelfRatio(), old, old, advantages), gradient_of(Ratio(), old, old, advantages)
    )
    # away from pi_old the gradient of the ratio is rho A instead of A
    of_ratio = gradient_of(Ratio(), log_probs, old, advantages)
    torch.testing.assert_close(of_ratio, (log_probs - old).exp() * advantages)
    assert float((of_ratio - of_log_prob).norm() / of_log_prob.norm()) > 0.1


@every_surrogate
def test_trait_same_gradient_at_ratio_1_says_whether_the_gradient_there_is_a_grad_log_pi(surrogate):
    log_probs = torch.tensor([[0.5, 0.25, 0.9]]).log()
    advantages = torch.tensor([[2.0, -1.0, 0.5]])
    gradient = gradient_of(surrogate, log_probs, log_probs, advantages)
    assert torch.allclose(gradient, advantages) == surrogate.same_gradient_at_ratio_1


def test_prob_at_ratio_1_has_the_gradient_a_pi_grad_log_pi():
    probs, advantages = torch.tensor([[0.5, 0.25, 0.9]]), torch.tensor([[2.0, -1.0, 0.5]])
    gradient = gradient_of(Prob(), probs.log(), probs.log(), advantages)
    torch.testing.assert_close(gradient, torch.tensor([[1.0, -0.25, 0.45]]))


@every_surrogate
def test_trait_bounds_ratio_says_whether_a_token_can_be_clipped(surrogate):
    log_probs, old = torch.tensor([[5.0, -5.0]]), torch.zeros(1, 2)
    advantages = torch.tensor([[1.0, -1.0]])
    assert surrogate.clipped(log_probs, old, advantages).tolist() == [[surrogate.bounds_ratio] * 2]
    without_gradient = gradient_of(surrogate, log_probs, old, advantages) == 0
    assert without_gradient.tolist() == [[surrogate.bounds_ratio] * 2]


def test_kl_matches_values_computed_by_hand():
    # d = log(0.2 / 0.5); k3 = 0.4 - log(0.4) - 1
    log_prob, reference = torch.tensor([[math.log(0.5)]]), torch.tensor([[math.log(0.2)]])
    k3 = 0.4 - math.log(0.4) - 1
    assert float(k3_penalty(beta=2.0)(log_prob, reference)) == pytest.approx(k3)  # without its weight
    objective = TokenObjective(CLIP, k3_penalty(beta=2.0))
    part = objective(ScoredTokens(log_prob, log_prob, torch.zeros(1, 1), torch.ones(1, 1), reference))
    assert float(part.loss) == pytest.approx(2.0 * k3)
    assert part.kl == pytest.approx(k3)


def selection():
    """Return tokens selected in two completions each of two prompts: 2, 1 | 3, 0 of them."""
    weights = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 0]])
    return Selection(weights, weights.sum(dim=1))


def test_aggregations_match_values_computed_by_hand():
    def scales(aggregation):
        return aggregation(selection(), torch.arange(2), max_new_tokens=10)

    # rows / 4, and within a row / selected tokens
    assert scales(SequenceMean(l2=0.0)).tolist() == [
        [1 / 8, 0, 1 / 8],
        [0, 1 / 4, 0],
        pytest.approx([1 / 12] * 3),
        [0, 0, 0],
    ]
    assert scales(TokenMean(l2=0.0)).sum() == pytest.approx(1.0)
    assert scales(TokenMean(l2=0.0))[0, 0] == pytest.approx(1 / 6)
    # a sum over the selected tokens of a row, then / 4 rows: each of them weighs 1/4, whatever the length
    assert scales(SequenceSum(l2=0.0)).tolist() == (selection().weights / 4).tolist()
    # prompt 0 has 3 selected tokens, prompt 1 has 3; two prompts
    assert scales(PromptMean(l2=0.0))[1, 1] == pytest.approx(1 / 3 / 2)
    # B = 4 rows of at most 10 new tokens
    assert scales(Constant(l2=0.0))[2, 1] == pytest.approx(1 / 40)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("sequence_mean", 1 / 12),
        ("token_mean", 1 / 6),
        ("prompt_mean", 1 / 6),
        ("constant", 1 / 40),
        ("sequence_sum", 1 / 4),
    ],
)
def test_token_scales_of_an_algorithm_are_those_of_its_aggregation(option, expected):
    algorithm = built(f"objective={option}", "rollout.max_new_tokens=10")
    scales = algorithm.token_scales(selection(), torch.ones(4, 3), range(2))
    assert scales[2].tolist() == pytest.approx([expected] * 3)
    assert torch.equal(scales != 0, selection().weights != 0)


def test_token_scales_where_a_token_cannot_change_the_policy_are_zero():
    """Without KL that is a token without an advantage; with KL, a token of a group without any advantage."""
    advantages = torch.tensor([[1.0, 0, 0], [0, -1, 0], [0, 0, 0], [0, 0, 0]])
    without, with_kl = (built(f"kl={kl}").token_scales(selection(), advantages, range(2)) for kl in ("off", "on"))
    assert (without != 0).nonzero().tolist() == [[0, 0], [1, 1]]
    assert (with_kl != 0).nonzero().tolist() == [[0, 0], [0, 2], [1, 1]]


def test_learning_rate_matches_values_computed_by_hand():
    train = composed("train.steps=10", "train.lr=1", "train.warmup_steps=2", "train.schedule=linear").train
    # warm-up 1/3, 2/3; then 8 steps from 1 down by 1/8
    assert [learning_rate(s, train) for s in (1, 2, 3, 4, 10)] == pytest.approx([1 / 3, 2 / 3, 1, 7 / 8, 1 / 8])
    train = composed("train.steps=4", "train.lr=2", "train.schedule=cosine").train
    assert [learning_rate(s, train) for s in (1, 3)] == pytest.approx([2.0, 1.0])
    train = composed("train.steps=4", "train.lr=2").train
    assert [learning_rate(s, train) for s in (1, 4)] == [2.0, 2.0]


# --- whole updates on the embedded model ---------------------------------------------------------------------------


def batch_for(policy: Policy, algorithm: Algorithm, seed=0) -> ScoredBatch:
    """Return a rollout with random rewards, and everything up to the loss, as train.py makes it."""
    prompts = [encode_prompt(policy, Problem(q, "", ""), q) for q in ("57*4=", "12*3=", "98*7=")]
    request = Request(prompts, group_size=4, keep_states=True)
    rollout = algorithm.rollout.generate(policy, request, stream(seed, "rollout"))
    rewards = torch.randint(0, 2, (3, 4), generator=stream(seed, "rewards")).float()
    rewards[1] = 1.0  # a group of equal rewards
    advantages = algorithm.token_advantages(rewards, rollout)
    chosen = algorithm.token_sampler(advantages, rollout, stream(0, "t"))
    return ScoredBatch(rollout, advantages, algorithm.token_scales(chosen, advantages, range(3)))


def updater(policy: Policy, adapter, *overrides: str, lr: float = 0.0, path=PLAIN) -> Updater:
    """Return the updater of a composed config for a policy."""
    config = composed(*overrides)
    algorithm = Algorithm.build(config)
    fit = FitMicrobatches(config.train, MemoryLimits.of(algorithm.rollout.max_rows, config.train))
    return Updater(policy, path, adapter.optimizer(lr, 0.0), algorithm, config.train, fit, ALONE, policy.reference)


def gradient(adapter) -> torch.Tensor:
    """Return the gradients of all trained parameters in one vector."""
    return torch.cat([p.grad.flatten() for p in adapter.parameters()])


def updated(tiny: Policy, *overrides: str, lr: float = 1e-2, path=PLAIN):
    """Return the gradient of the last update of a random adapter, its parameters after it, and the metrics."""
    overrides = ("train.max_grad_norm=0", "rollout.max_new_tokens=16", *overrides)
    algorithm = built(*overrides)
    policy = copy.deepcopy(tiny)
    adapter = algorithm.adapter.attach(policy, 4, stream_seed(0, "adapter"))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    update = updater(policy, adapter, *overrides, lr=lr, path=path)
    metrics = update([batch_for(policy, algorithm)])
    return gradient(adapter), torch.cat([p.detach().flatten() for p in adapter.parameters()]), metrics


def assert_same(a, b, relative=1e-5):
    assert float((a - b).norm() / b.norm()) < relative


KEEP_ALL = ("token_sampler.probability=1.0", "token_sampler.budget=99")
TWO_UPDATES = "train.updates_per_rollout=2"


def test_sgrpo_that_keeps_all_tokens_is_grpo_at_one_update(tiny):
    assert_same(updated(tiny, "algorithm=sgrpo", *KEEP_ALL)[0], updated(tiny, "algorithm=grpo")[0])


def test_sgrpo_that_keeps_all_tokens_is_rgra_at_two_updates_and_not_grpo(tiny):
    sgrpo, rgra = updated(tiny, "algorithm=sgrpo", *KEEP_ALL, TWO_UPDATES), updated(tiny, "algorithm=rgra", TWO_UPDATES)
    assert_same(sgrpo[0], rgra[0])
    grpo = updated(tiny, "algorithm=grpo", TWO_UPDATES)
    assert float((grpo[0] - sgrpo[0]).norm() / sgrpo[0].norm()) > 0.01


def test_grpo_is_rgra_at_one_update_and_not_at_two(tiny):
    grpo, rgra = updated(tiny, "algorithm=grpo"), updated(tiny, "algorithm=rgra")
    assert_same(grpo[0], rgra[0])
    grpo, rgra = updated(tiny, "algorithm=grpo", TWO_UPDATES), updated(tiny, "algorithm=rgra", TWO_UPDATES)
    assert float((grpo[0] - rgra[0]).norm() / rgra[0].norm()) > 0.01
    assert grpo[2].updates == 2


@pytest.mark.parametrize("algorithm", ["grpo", "rgra", "sgrpo", "tspmo", "reinforce", "dr_grpo", "rloo"])
@pytest.mark.parametrize("kl", ["off", "on"])
def test_gradient_in_small_microbatches_equals_that_of_one(tiny, algorithm, kl):
    whole = updated(tiny, f"algorithm={algorithm}", f"kl={kl}", "train.microbatch=64")
    split = updated(tiny, f"algorithm={algorithm}", f"kl={kl}", "train.microbatch=3")
    assert_same(split[0], whole[0])
    assert split[2].loss == pytest.approx(whole[2].loss, rel=1e-5, abs=1e-7)


def test_kl_with_a_huge_weight_draws_the_policy_back_to_the_base_model(tiny):
    """With a huge beta the rewards hardly count, so that repeated updates lead back to the base model."""
    near, far = (updated(tiny, "kl=on", "kl.beta=1e4", f"train.updates_per_rollout={n}", lr=1e-3)[2] for n in (60, 1))
    assert far.kl > 1e-3
    assert near.kl < 0.7 * far.kl  # a mean over the 60 updates


def test_tspmo_on_the_worked_example_has_loss_and_gradient_computed_by_hand():
    """The objective is (1/|U|) sum of pi A over U, with A = b|a 1/6, e|a -1/3, c|ab 1/2, d|ab -1/2."""
    algorithm = built("algorithm=tspmo")
    assert (algorithm.advantage, algorithm.token_sampler) == (PrefixTree(), BranchPoints())
    rollout = make_rollout([[5, 6, 7], [5, 6, 8], [5, 9]])
    advantages = algorithm.token_advantages(torch.tensor([[1.0, 0.0, 0.0]]), rollout)
    chosen = algorithm.token_sampler(advantages, rollout, torch.Generator())
    scale = algorithm.token_scales(chosen, advantages, range(1))
    probs = torch.tensor([[0.9, 0.6, 0.7], [0.9, 0.6, 0.2], [0.9, 0.3, 1.0]])  # shared transitions agree
    log_probs = probs.log().requires_grad_()
    part = algorithm.token_objective(ScoredTokens(log_probs, log_probs.detach(), advantages, scale))
    part.loss.backward()
    expected = (0.6 / 6 - 0.3 / 3 + 0.7 / 2 - 0.2 / 2) / 4
    assert float(part.loss.detach()) == pytest.approx(-expected)
    # d(pi A)/d log pi = pi A, for each transition once
    by_hand = torch.tensor([[0, -0.6 / 6, -0.7 / 2], [0, 0, 0.2 / 2], [0, 0.3 / 3, 0]]) / 4
    torch.testing.assert_close(log_probs.grad, by_hand)
    assert part.tokens == 4


def test_l2_adds_twice_the_weights_to_the_gradient(tiny):
    plain, l2 = updated(tiny, "objective.l2=0"), updated(tiny, "objective.l2=0.5")
    # the gradient of 0.5 x sum of squares is the weight itself, as it is before the step
    torch.testing.assert_close(l2[0] - plain[0], weights_before(tiny), atol=1e-5, rtol=1e-4)


def weights_before(tiny):
    """Return the parameters that ``updated`` starts from, in one vector."""
    adapter = built().adapter.attach(copy.deepcopy(tiny), 4, stream_seed(0, "adapter"))
    generator = torch.Generator().manual_seed(7)
    return torch.cat(
        [(p + 0.05 * torch.randn(p.shape, generator=generator)).detach().flatten() for p in adapter.parameters()]
    )


@every_surrogate
def test_token_outside_the_selection_changes_neither_loss_nor_gradient(surrogate):
    # outside, the ratio overflows (exp(200)) and so does k3 (exp(300)); 0 x inf would be NaN
    log_probs = torch.tensor([[-1.0, 100.0]], requires_grad=True)
    old, reference, scale = torch.tensor([[-1.0, -100.0]]), torch.tensor([[-1.0, 400.0]]), torch.tensor([[1.0, 0.0]])
    objective = TokenObjective(surrogate, k3_penalty(beta=0.1))
    part = objective(ScoredTokens(log_probs, old, torch.ones(1, 2), scale, reference))
    part.loss.backward()
    inside = objective(ScoredTokens(log_probs[:, :1], old[:, :1], torch.ones(1, 1), scale[:, :1], reference[:, :1]))
    assert float(part.loss.detach()) == float(inside.loss.detach())
    assert part.kl == 0
    assert math.isfinite(float(log_probs.grad[0, 0]))
    assert float(log_probs.grad[0, 1]) == 0

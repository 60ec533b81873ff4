"""The KL term: values by hand, and the mean gradient of each estimator in each place, enumerated over a vocabulary."""

import math
from dataclasses import dataclass

import pytest
import torch

from rlsparse.components.component import build, describe
from rlsparse.components.objective import KLPenalty, ScoredTokens, TokenObjective
from rlsparse.components.objective.kl import ReferenceUpdate, SampledKL
from rlsparse.components.objective.surrogate import LogProb, Ratio
from rlsparse.config.schema import ConfigError
from tests.conftest import composed

KEYS = {"estimator": "k3", "place": "loss", "reference": "base", "reference_every": 10, "reference_share": 0.6}


def penalty(beta=1.0, **keys):
    """Return a penalty without the check of its keys."""
    return SampledKL(beta=beta, **{**KEYS, **keys})


def column(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype)[:, None]


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", 0.916291),  # -log 0.4
        ("k2", 0.419794),  # (log 0.4)^2 / 2
        ("k3", 0.316291),  # 0.4 - log 0.4 - 1
        ("k3_ratio", 0.316291),  # the same: the ratio is multiplied in the objective
    ],
)
def test_estimate_matches_the_value_computed_by_hand(estimator, expected):
    # d = log(0.2 / 0.5) = log 0.4
    got = penalty(estimator=estimator)(column(0.5).log(), column(0.2).log())
    assert float(got) == pytest.approx(expected, abs=1e-6)


def test_k3_ratio_in_the_loss_is_the_ratio_times_k3_by_hand():
    # rho = 0.5 / 0.25 = 2; k3 = 0.4 - log 0.4 - 1 = 0.316291; times beta = 3
    tokens = ScoredTokens(column(0.5).log(), column(0.25).log(), column(0.0), column(1.0), column(0.2).log())
    part = TokenObjective(LogProb(), penalty(beta=3.0, estimator="k3_ratio"))(tokens)
    assert float(part.loss) == pytest.approx(3 * 2 * 0.316291, abs=1e-5)
    assert part.kl == pytest.approx(2 * 0.316291, abs=1e-5)


def test_k1_in_the_reward_is_taken_off_the_advantage_by_hand():
    # k1 at rollout time = log(0.4 / 0.2) = 0.693147; advantage 1 - 2 * 0.693147 = -0.386294; ratio 0.5 / 0.4 = 1.25
    tokens = ScoredTokens(column(0.5).log(), column(0.4).log(), column(1.0), column(1.0), column(0.2).log())
    part = TokenObjective(Ratio(), penalty(beta=2.0, estimator="k1", place="reward"))(tokens)
    assert float(part.loss) == pytest.approx(1.25 * 0.386294, abs=1e-5)
    assert part.kl == pytest.approx(0.693147, abs=1e-6)


class Vocabulary:
    """Three softmax policies over six tokens, in float64: π, π_old, which samples, and π_ref."""

    def __init__(self, seed=0, spread=0.0):
        """Draw the logits.

        Args:
            spread: how far the logits of π_old are from those of π.
        """
        generator = torch.Generator().manual_seed(seed)
        draw = lambda: torch.randn(6, generator=generator, dtype=torch.float64)  # noqa: E731
        self.logits, self.reference = draw(), draw().log_softmax(0)
        self.old = (self.logits + spread * draw()).log_softmax(0)

    def gradient(self, estimator, place, surrogate):
        """Return the exact mean over tokens of π_old of the gradient of the term, in the logits of π."""
        logits = self.logits.clone().requires_grad_()
        log_probs = logits.log_softmax(0)[:, None]  # (6, 1): a row for each token, weighted by its probability
        nothing = torch.zeros_like(log_probs)
        tokens = ScoredTokens(
            log_probs, self.old[:, None], nothing, self.old.exp()[:, None], reference=self.reference[:, None]
        )
        TokenObjective(surrogate, penalty(2.0, estimator=estimator, place=place))(tokens).loss.backward()
        return logits.grad / 2.0  # without beta

    def gradient_of(self, divergence):
        """Return the gradient of a function of (log π, log π_ref) by autograd."""
        logits = self.logits.clone().requires_grad_()
        divergence(logits.log_softmax(0), self.reference).backward()
        return logits.grad


def kl(p, q):
    return (p.exp() * (p - q)).sum()


REVERSE = kl  # KL(pi || pi_ref)
PULLS = {
    ("k1", "loss"): lambda p, q: 0 * p.sum(),
    ("k2", "loss"): REVERSE,
    ("k3", "loss"): lambda p, q: kl(q, p),
    ("k3_ratio", "loss"): REVERSE,
    ("k1", "reward"): REVERSE,
    ("k2", "reward"): lambda p, q: (p.exp() * (q - p).square() / 2).sum() - kl(p, q),
    ("k3", "reward"): lambda p, q: kl(p, q) - kl(q, p),
}


@pytest.mark.parametrize("surrogate", [LogProb(), Ratio()], ids=repr)
@pytest.mark.parametrize(("estimator", "place"), PULLS)
def test_mean_gradient_on_policy_is_that_of_the_documented_divergence(estimator, place, surrogate):
    for seed in range(5):
        model = Vocabulary(seed)
        got = model.gradient(estimator, place, surrogate)
        torch.testing.assert_close(got, model.gradient_of(PULLS[estimator, place]), rtol=0, atol=1e-12)


def test_documented_divergences_have_different_gradients():
    # otherwise the test above could not tell a wrong estimator from a right one
    model = Vocabulary()
    gradients = [model.gradient_of(pull) for pull in dict.fromkeys(PULLS.values())]
    assert len(gradients) == 5
    for i, one in enumerate(gradients):
        assert all(float((one - other).norm()) > 0.05 for other in gradients[:i])


def test_mean_gradient_off_policy_is_that_of_the_reverse_kl_for_k3_ratio_alone():
    for seed in range(5):
        model = Vocabulary(seed, spread=0.5)
        true = model.gradient_of(REVERSE)
        error = {
            setting: float((model.gradient(*setting, Ratio()) - true).norm() / true.norm())
            for setting, pull in PULLS.items()
            if pull is REVERSE
        }
        assert error.pop(("k3_ratio", "loss")) < 1e-12
        assert all(one > 0.01 for one in error.values()), error


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_gradient_in_the_reward_near_the_reference_is_small_beside_that_of_the_reverse_kl(estimator):
    model = Vocabulary()
    direction = torch.linspace(-1, 2, 6, dtype=torch.float64).sin()
    shares = []
    for step in (1e-1, 1e-2, 1e-3):
        model.reference = (model.logits + step * direction).log_softmax(0)
        of_term = model.gradient(estimator, "reward", LogProb())
        shares.append(float(of_term.norm() / model.gradient_of(REVERSE).norm()))
    # the gradient of the KL is of first order in the distance, that of the difference of two divergences of second
    assert shares[0] < 0.2
    assert shares[1] / shares[0] == pytest.approx(0.1, rel=0.3)
    assert shares[2] / shares[1] == pytest.approx(0.1, rel=0.3)


def test_mean_of_k1_k3_and_k3_ratio_is_the_kl():
    model = Vocabulary()
    p, q = model.logits.log_softmax(0), model.reference
    for estimator in ("k1", "k3"):
        mean = float((p.exp() * penalty(estimator=estimator)(p, q)).sum())
        assert mean == pytest.approx(float(kl(p, q)), abs=1e-12)
    off_policy = Vocabulary(spread=0.5)
    p, old, q = off_policy.logits.log_softmax(0), off_policy.old, off_policy.reference
    tokens = ScoredTokens(p[:, None], old[:, None], 0 * p[:, None], old.exp()[:, None], q[:, None])
    part = TokenObjective(LogProb(), penalty(estimator="k3_ratio"))(tokens)
    assert part.kl == pytest.approx(float(kl(p, q)), abs=1e-12)


def value_and_gradient(estimator, d, dtype):
    """Return the estimate and its gradient in log π, at log π_ref = 0."""
    log_probs = (-torch.tensor(d, dtype=dtype))[None].requires_grad_()
    value = penalty(estimator=estimator)(log_probs, torch.zeros_like(log_probs))
    value.sum().backward()
    return value.detach()[0], log_probs.grad[0]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_estimate_in_float32_up_to_50_nats_is_that_in_float64(estimator):
    d = [-50.0, -10.0, -1.0, -0.5, 0.0, 0.5, 1.0, 10.0, 50.0]
    for got, exact in zip(
        value_and_gradient(estimator, d, torch.float32), value_and_gradient(estimator, d, torch.float64), strict=True
    ):
        # exp(50) = 5e21 has 50 times the rounding error of its exponent
        torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_estimate_of_finite_log_probs_has_a_finite_gradient(estimator):
    value, gradient = value_and_gradient(estimator, [-1e4, 79.0, 81.0, 100.0, 1000.0], torch.float32)
    assert bool(torch.isfinite(value).all())
    assert bool(torch.isfinite(gradient).all())
    if estimator == "k3":
        assert bool((value[1:].diff() > 0).all())
        assert bool((gradient[1:] < 0).all())  # a descent still raises log pi, towards pi_ref
        assert float(gradient[4]) == pytest.approx(-math.exp(80), rel=1e-5)


def test_k3_up_to_80_nats_is_bit_for_bit_that_of_earlier_versions():
    d = (30 * torch.randn(1000, generator=torch.Generator().manual_seed(0))).clamp(max=80).tolist()
    log_probs = (-torch.tensor(d))[None].requires_grad_()
    ratio = torch.zeros_like(log_probs) - log_probs
    value = torch.exp(ratio) - ratio - 1
    value.sum().backward()
    got, gradient = value_and_gradient("k3", d, torch.float32)
    assert torch.equal(got, value.detach()[0])
    assert torch.equal(gradient, log_probs.grad[0])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"estimator": "k1"}, "kl.estimator=k1: its gradient in the loss has mean 0"),
        ({"estimator": "k3_ratio", "place": "reward"}, "kl.place=reward: kl.estimator=k3_ratio acts through"),
        ({"estimator": "k4"}, "kl.estimator=k4: must be one of k1, k2, k3, k3_ratio"),
        ({"place": "advantage"}, "kl.place=advantage: must be one of loss, reward"),
        ({"reference": "old"}, "kl.reference=old: must be one of base, sync, ema"),
        ({"reference_every": 0}, "kl.reference_every=0: must be at least 1"),
        ({"reference_share": 0.0}, "kl.reference_share=0.0: must be in (0, 1]"),
        ({"beta": -1.0}, "kl.beta=-1.0: must be at least 0"),
    ],
    ids=repr,
)
def test_key_that_makes_no_penalty_is_refused_in_one_line(keys, message):
    with pytest.raises(ConfigError) as refused:
        SampledKL.of("kl", {"beta": 1.0, **KEYS, **keys})
    text = str(refused.value)
    assert text.startswith(message)
    assert "\n" not in text
    assert "take " in text or "must be" in text


def test_k1_in_the_loss_of_a_run_is_refused_with_its_remedy():
    with pytest.raises(ConfigError, match=r"mean 0 .* take kl.estimator=k3_ratio or k2, or kl.place=reward"):
        build("kl", composed("kl=on", "kl.estimator=k1").kl, KLPenalty)


def test_penalty_of_weight_0_refuses_nothing_and_moves_no_reference():
    for keys in ({"estimator": "k1"}, {"estimator": "k3_ratio", "place": "reward"}, {"reference": "sync"}):
        found = SampledKL.of("kl", {"beta": 0.0, **KEYS, **keys})
        assert found.reference_update is None
        assert describe(found, str) == {"class": "K3", "beta": 0.0}


def test_objective_with_weight_0_needs_no_reference_in_any_place():
    for keys in ({}, {"estimator": "k1", "place": "reward"}, {"estimator": "k3_ratio"}):
        tokens = ScoredTokens(column(0.5).log(), column(0.5).log(), column(2.0), column(1.0))
        part = TokenObjective(LogProb(), penalty(0.0, **keys))(tokens)
        assert (float(part.loss), part.kl) == (pytest.approx(-2 * math.log(0.5)), 0.0)


def test_shipped_options_have_the_penalty_and_the_identity_of_earlier_versions():
    on, off = (build("kl", composed(f"kl={name}").kl, KLPenalty) for name in ("on", "off"))
    assert (on.estimator, on.in_reward, on.times_ratio, on.reference_update) == ("k3", False, False, None)
    assert describe(on, str) == {"class": "K3", "beta": 0.04}
    assert describe(off, str) == {"class": "K3", "beta": 0.0}


def test_key_without_effect_changes_no_identity():
    same = [penalty(), penalty(reference_every=3), penalty(reference_share=0.1)]
    assert all(describe(one, str) == {"class": "K3", "beta": 1.0} for one in same)
    sync = describe(penalty(reference="sync"), str)
    assert sync == describe(penalty(reference="sync", reference_share=0.1), str)
    assert sync == describe(penalty(reference="ema", reference_share=1.0), str)
    assert sync != describe(penalty(reference="sync", reference_every=3), str)


def test_key_with_an_effect_changes_the_identity():
    some = [
        penalty(),
        penalty(beta=2.0),
        penalty(estimator="k2"),
        penalty(estimator="k3_ratio"),
        penalty(place="reward"),
        penalty(estimator="k1", place="reward"),
        penalty(reference="sync"),
        penalty(reference="ema"),
        penalty(reference="ema", reference_every=3),
        penalty(reference="ema", reference_share=0.1),
    ]
    assert len({repr(sorted(describe(one, str).items(), key=repr)) for one in some}) == len(some)
    assert describe(some[2], str) == {"class": "SampledKL", "beta": 1.0, "estimator": "k2"}


def test_reference_update_has_the_period_and_share_of_the_keys():
    assert penalty().reference_update is None
    assert penalty(reference="sync").reference_update == ReferenceUpdate(every=10, share=1.0)
    assert penalty(reference="ema", reference_every=3).reference_update == ReferenceUpdate(every=3, share=0.6)


def test_properties_follow_estimator_and_place():
    assert [penalty(place=place).in_reward for place in ("loss", "reward")] == [False, True]
    assert [penalty(estimator=one).times_ratio for one in ("k1", "k2", "k3", "k3_ratio")] == [False] * 3 + [True]


@dataclass(frozen=True)
class Absolute(KLPenalty):
    """|d|: a user's own penalty, with no key but β."""

    def __call__(self, log_probs, reference_log_probs):
        return (reference_log_probs - log_probs).abs()


@dataclass(frozen=True)
class Own(SampledKL):
    """A user's own class on top of the package's."""


def test_penalty_of_a_user_with_beta_and_a_formula_alone_enters_the_loss():
    own = Absolute.of("kl", {"beta": 2.0})
    assert (own.in_reward, own.times_ratio, own.reference_update) == (False, False, None)
    tokens = ScoredTokens(column(0.5).log(), column(0.5).log(), column(0.0), column(1.0), column(0.25).log())
    part = TokenObjective(LogProb(), own)(tokens)
    assert float(part.loss) == pytest.approx(2 * math.log(2))


def test_subclass_of_a_user_keeps_its_own_name_in_the_identity():
    assert describe(Own(beta=1.0, **KEYS), str)["class"] == "Own"

"""Off-policy corrections: by hand, on an enumerable policy, and what the docs say of their bias."""

import itertools
import math
from functools import cache

import pytest
import torch

from rlsparse.components.component import build
from rlsparse.components.objective import ScoredTokens, TokenObjective
from rlsparse.components.objective.surrogate import LogProb
from rlsparse.components.off_policy import Mismatch, OffPolicyWeight
from rlsparse.components.off_policy.weights import Importance, Masked, NoCorrection, Retrace, Truncated
from rlsparse.config.schema import ConfigError
from tests.conftest import ROOT, composed, k3_penalty

LEVELS = {
    "importance, sequence": ("importance", "sequence"),
    "none": ("none", None),
    "importance, token": ("importance", "token"),
    "truncated, token": ("truncated", "token"),
    "truncated, sequence": ("truncated", "sequence"),
    "retrace": ("retrace", None),
}


@cache
def shipped(name, level=None):
    """Return the correction of an option with its default values."""
    keys = [] if level is None else [f"off_policy.level={level}"]
    return build("off_policy", composed(f"off_policy={name}", *keys).off_policy, OffPolicyWeight)


def weights(old, behaviour, mask, correction):
    return correction(correction.ratio(old, behaviour, mask))


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        (NoCorrection(), [[1, 1], [1, 1]]),
        (Importance(level="token"), [[2, 0.25], [3, 1]]),
        (Importance(level="sequence"), [[0.5, 0.5], [3, 3]]),  # 2 x 1/4
        (Truncated(level="token", cap=2.5), [[2, 0.25], [2.5, 1]]),
        (Truncated(level="sequence", cap=2.5), [[0.5, 0.5], [2.5, 2.5]]),
        (Retrace(trace=0.8), [[0.8, 0.2], [0.8, 0.8]]),  # 0.8 x min(1, ratio)
        (Importance(level="geometric"), [[0.5**0.5, 0.5**0.5], [3, 3]]),  # sqrt(2 x 1/4); one token
        (Truncated(level="geometric", cap=2.5), [[0.5**0.5, 0.5**0.5], [2.5, 2.5]]),
        (Masked(level="token", low=0.5, high=2.5), [[2, 0], [0, 1]]),  # 1/4 and 3 lie outside
        (Masked(level="token", low=0.0, high=5.0), [[2, 0.25], [3, 1]]),
        (Masked(level="sequence", low=0.6, high=5.0), [[0, 0], [3, 3]]),  # 1/2 lies outside
        (Masked(level="sequence", low=0.0, high=2.5), [[0.5, 0.5], [0, 0]]),
        (Masked(level="geometric", low=0.6, high=2.5), [[0.5**0.5, 0.5**0.5], [0, 0]]),
    ],
    ids=repr,
)
def test_weights_match_values_computed_by_hand(correction, expected):
    # ratios pi_old / mu: 2 and 1/4 in the first completion, 3 in the second, whose second token is padding
    old = torch.log(torch.tensor([[0.6, 0.1], [0.9, 1.0]]))
    behaviour = torch.log(torch.tensor([[0.3, 0.4], [0.3, 1.0]]))
    mask = torch.tensor([[True, True], [True, False]])
    got = weights(old, behaviour, mask, correction)
    assert torch.allclose(got, torch.tensor(expected, dtype=torch.float32))
    # the trait: whether weights differ from 1
    assert correction.corrects == bool((got != 1).any())


def test_weights_of_old_log_probs_with_gradient_have_none():
    old = torch.zeros(1, 2, requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert not weights(old, torch.ones(1, 2), mask, Importance(level="sequence")).requires_grad


def of_level(level):
    """Return each correction that has a level, at this one."""
    return [Importance(level=level), Truncated(level=level, cap=2.0), Masked(level=level, low=0.5, high=2.0)]


def test_corrections_of_whole_completions_need_whole_rows():
    assert all(one.needs_whole_rows for level in ("sequence", "geometric") for one in of_level(level))
    assert not any(one.needs_whole_rows for one in [NoCorrection(), Retrace(trace=1.0), *of_level("token")])


def test_geometric_ratio_of_a_completion_of_one_token_is_that_of_the_token():
    generator = torch.Generator().manual_seed(0)
    old, behaviour = torch.randn(2, 50, 1, generator=generator)
    mask = torch.ones(50, 1, dtype=torch.bool)
    for one, of_token in zip(of_level("geometric"), of_level("token"), strict=True):
        assert torch.equal(weights(old, behaviour, mask, one), weights(old, behaviour, mask, of_token))


def test_ratio_of_a_completion_does_not_depend_on_its_padding():
    old, behaviour = torch.tensor([[-1.0, -2.0, 50.0]]), torch.tensor([[-1.5, -1.0, -50.0]])
    mask = torch.tensor([[True, True, False]])
    for level in ("sequence", "geometric"):
        for one in of_level(level):
            alone = weights(old[:, :2], behaviour[:, :2], mask[:, :2], one)
            assert torch.equal(weights(old, behaviour, mask, one)[:, :2], alone)


def test_completion_without_tokens_has_the_ratio_1():
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    for one in (*of_level("token"), *of_level("sequence"), *of_level("geometric")):
        assert one.ratio(torch.ones(1, 2), torch.zeros(1, 2), nothing).tolist() == [[1, 1]]


def test_product_that_overflows_is_masked_or_truncated_but_stays_infinite_without_a_bound():
    # 1000 tokens with the log ratio 1: the product is exp(1000), more than a float32 holds; the geometric mean is e
    old, behaviour, mask = torch.ones(1, 1000), torch.zeros(1, 1000), torch.ones(1, 1000, dtype=torch.bool)
    importance, truncated, masked = (weights(old, behaviour, mask, one) for one in of_level("sequence"))
    assert bool((importance == math.inf).all())
    assert bool((truncated == 2).all())
    assert bool((masked == 0).all())
    geometric = weights(old, behaviour, mask, Masked(level="geometric", low=0.5, high=5.0))
    torch.testing.assert_close(geometric, torch.full((1, 1000), math.e))


def test_product_that_underflows_is_masked():
    old, behaviour, mask = -torch.ones(1, 1000), torch.zeros(1, 1000), torch.ones(1, 1000, dtype=torch.bool)
    masked = Masked(level="sequence", low=0.5, high=2.0)
    assert bool((weights(old, behaviour, mask, masked) == 0).all())
    assert bool(masked.cut(masked.ratio(old, behaviour, mask)).all())


def test_masked_keeps_a_ratio_that_equals_a_bound():
    ratio = torch.tensor([0.25, 0.5, 1.0, 2.0, 4.0, math.inf])
    masked = Masked(level="token", low=0.5, high=2.0)
    assert masked(ratio).tolist() == [0, 0.5, 1, 2, 0, 0]
    assert masked.cut(ratio).tolist() == [True, False, False, False, True, True]


def test_shipped_masks_have_the_bounds_of_icepop_and_trl():
    assert shipped("masked") == Masked(level="token", low=0.5, high=5.0)
    assert shipped("sequence_mask") == Masked(level="sequence", low=0.0, high=3.0)
    assert shipped("geometric") == Truncated(level="geometric", cap=2.0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"low": 1.5}, "off_policy.low=1.5: must be in [0, 1]"),
        ({"low": -0.5}, "off_policy.low=-0.5: must be in [0, 1]"),
        ({"high": 0.5}, "off_policy.high=0.5: must be at least 1"),
        ({"level": "row"}, "off_policy.level=row: must be one of token, sequence, geometric"),
    ],
    ids=repr,
)
def test_bound_of_a_mask_that_excludes_the_ratio_1_is_refused(keys, message):
    with pytest.raises(ConfigError) as refused:
        Masked.of("off_policy", {"level": "token", "low": 0.5, "high": 5.0, **keys})
    assert str(refused.value) == message


def test_ceiling_is_the_ratio_from_which_weights_no_longer_grow():
    ratio = torch.linspace(0.01, 9, 900)
    for correction in (Importance(level="token"), Truncated(level="token", cap=2.0), Retrace(trace=0.7)):
        got, ceiling = correction(ratio), correction.ceiling
        assert bool((got.diff()[ratio[1:] < ceiling] > 0).all())
        assert bool((got[ratio > ceiling] == got.max()).all())
    assert (Importance(level="token").ceiling, NoCorrection().ceiling) == (math.inf, math.inf)
    assert (Truncated(level="token", cap=2.0).ceiling, Retrace(trace=0.7).ceiling) == (2.0, 1.0)


def test_measures_of_mismatch_match_values_computed_by_hand():
    ratio = torch.tensor([2.0, 0.5, 4.0])
    correction = Truncated(level="token", cap=3.0)
    mismatch = Mismatch()
    for piece in (slice(0, 2), slice(2, 3), slice(3, 3)):
        part = ratio[piece]
        mismatch.add(part.log(), correction(part), correction.cut(part))
    got = mismatch.metrics()
    # (2 - 1 - log 2) + (0.5 - 1 - log 0.5) + (4 - 1 - log 4), over 3
    assert got["off_policy/kl"] == pytest.approx((1 - math.log(2) - 0.5 + math.log(2) + 3 - math.log(4)) / 3)
    assert got["off_policy/effective_sample_size"] == pytest.approx((2 + 0.5 + 3) ** 2 / (3 * (4 + 0.25 + 9)))
    assert got["off_policy/weight_mean"] == pytest.approx((2 + 0.5 + 3) / 3)
    assert got["off_policy/weight_max"] == 3
    assert got["off_policy/frac_truncated"] == pytest.approx(1 / 3)
    assert Mismatch().metrics() == {}


def test_measures_of_mismatch_count_the_tokens_that_a_mask_takes_out_at_both_ends():
    ratio = torch.tensor([0.2, 1.0, 2.0, 9.0])
    masked = Masked(level="token", low=0.5, high=5.0)
    mismatch = Mismatch()
    mismatch.add(ratio.log(), masked(ratio), masked.cut(ratio))
    got = mismatch.metrics()
    assert got["off_policy/frac_truncated"] == 0.5  # 0.2 and 9
    assert got["off_policy/weight_mean"] == pytest.approx((1 + 2) / 4)
    assert got["off_policy/weight_max"] == 2
    assert got["off_policy/effective_sample_size"] == pytest.approx((1 + 2) ** 2 / (4 * (1 + 4)))


def test_measures_of_mismatch_of_tokens_that_are_all_masked_are_finite():
    masked = Masked(level="token", low=0.5, high=5.0)
    ratio, mismatch = torch.tensor([9.0, 10.0]), Mismatch()
    mismatch.add(ratio.log(), masked(ratio), masked.cut(ratio))
    got = mismatch.metrics()
    assert (got["off_policy/frac_truncated"], got["off_policy/effective_sample_size"]) == (1, 0)
    assert all(math.isfinite(value) for value in got.values())


class Enumerated:
    """Two models over three tokens and completions of length 3, each a table of logits by prefix; fixed advantages."""

    def __init__(self, seed=0, length=3, spread=0.5):
        generator = torch.Generator().manual_seed(seed)
        self.completions = torch.tensor(list(itertools.product(range(3), repeat=length)))  # (27, 3)
        prefixes = sum(3**t for t in range(length))
        self.policy = torch.randn(prefixes, 3, generator=generator, dtype=torch.float64)
        self.behaviour = self.policy + spread * torch.randn(prefixes, 3, generator=generator, dtype=torch.float64)
        self.reference = torch.randn(prefixes, 3, generator=generator, dtype=torch.float64)
        self.advantages = torch.randn(len(self.completions), 1, generator=generator, dtype=torch.float64)

    def log_probs(self, logits):
        """Return the log-probability of each token of each completion, (27, 3)."""
        table = logits.log_softmax(dim=1)
        columns = []
        prefix = torch.zeros(len(self.completions), dtype=torch.long)  # its number among those of its length
        first = 0
        for t in range(self.completions.shape[1]):
            token = self.completions[:, t]
            columns.append(table[first + prefix, token])
            prefix, first = prefix * 3 + token, first + 3**t
        return torch.stack(columns, dim=1)

    def gradient(self, sampler, correction, beta=0.0):
        """Return the exact expectation of the gradient of the loss over completions of a sampler."""
        logits = self.policy.clone().requires_grad_()
        log_probs, behaviour = self.log_probs(logits), self.log_probs(sampler)
        chance = behaviour.sum(dim=1, keepdim=True).exp()
        assert float(chance.sum()) == pytest.approx(1)
        mask = torch.ones_like(behaviour, dtype=torch.bool)
        scales = chance * weights(log_probs, behaviour, mask, correction)
        objective = TokenObjective(LogProb(), k3_penalty(beta))
        advantages = self.advantages.expand_as(behaviour)
        reference = self.log_probs(self.reference)
        objective(ScoredTokens(log_probs, log_probs.detach(), advantages, scales, reference)).loss.backward()
        return logits.grad


@cache
def biases(seed=0):
    """Return the relative distance of the expected gradient from the on-policy one, by correction."""
    model = Enumerated(seed)
    true = model.gradient(model.policy, NoCorrection())
    return {
        label: float((model.gradient(model.behaviour, shipped(*setting)) - true).norm() / true.norm())
        for label, setting in LEVELS.items()
    }


def test_gradient_with_the_ratio_of_the_whole_completion_alone_is_unbiased():
    found = dict(biases())
    assert found.pop("importance, sequence") < 1e-6
    assert all(bias > 0.01 for bias in found.values()), found


def test_kl_term_with_the_ratio_of_the_whole_completion_is_unbiased():
    model = Enumerated()
    true = model.gradient(model.policy, NoCorrection(), beta=0.5)
    without = model.gradient(model.policy, NoCorrection())
    got = model.gradient(model.behaviour, Importance(level="sequence"), beta=0.5)
    assert float((got - true).norm() / true.norm()) < 1e-6
    assert float((without - true).norm() / true.norm()) > 0.1


def test_docs_state_the_bias_of_each_correction():
    text = (ROOT / "docs" / "methods" / "nested_reft.md").read_text()
    many = [biases(seed) for seed in range(100)]
    for label, (name, level) in LEVELS.items():
        bias = sum(one[label] for one in many) / len(many)
        setting = f"`{name}`" if level is None else f"`{name}`, `level={level}`"
        assert f"| {setting} | {100 * bias:.0f} % |" in text, (label, bias)


def test_corrections_without_mismatch_are_unbiased():
    model = Enumerated(spread=0.0)
    true = model.gradient(model.policy, NoCorrection())
    for setting in (*LEVELS.values(), ("masked", None), ("sequence_mask", None), ("geometric", None)):
        assert torch.allclose(model.gradient(model.behaviour, shipped(*setting)), true, atol=1e-12)

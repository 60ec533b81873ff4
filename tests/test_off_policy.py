"""Corrections for tokens that another model wrote: by hand, on an enumerable policy, and through the optimizer step."""

import itertools
import math
from functools import cache

import pytest
import torch

from rlsparse.components.objective import token_loss
from rlsparse.components.off_policy import OFF_POLICY, Mismatch, correction_ratio
from rlsparse.config.schema import ClippingConfig, KLConfig
from tests.conftest import ROOT, composed

LEVELS = {
    "importance, sequence": ("importance", "sequence"),
    "none": ("none", None),
    "importance, token": ("importance", "token"),
    "truncated, token": ("truncated", "token"),
    "truncated, sequence": ("truncated", "sequence"),
    "retrace": ("retrace", None),
}


@cache
def off_policy(name, level=None, **more):
    keys = [f"off_policy.{key}={value}" for key, value in {"level": level, **more}.items() if value is not None]
    return composed(f"off_policy={name}", *keys).off_policy


def weights(old, behaviour, mask, config):
    return OFF_POLICY[config.name](correction_ratio(old, behaviour, mask, config), config)


def test_weights_by_hand():
    # ratios pi_old / mu: 2 and 1/4 in the first completion, 3 in the second, whose second token is padding
    old = torch.log(torch.tensor([[0.6, 0.1], [0.9, 1.0]]))
    behaviour = torch.log(torch.tensor([[0.3, 0.4], [0.3, 1.0]]))
    mask = torch.tensor([[True, True], [True, False]])
    expected = {
        ("none", None): [[1, 1], [1, 1]],
        ("importance", "token"): [[2, 0.25], [3, 1]],
        ("importance", "sequence"): [[0.5, 0.5], [3, 3]],  # 2 x 1/4
        ("truncated", "token"): [[2, 0.25], [2.5, 1]],
        ("truncated", "sequence"): [[0.5, 0.5], [2.5, 2.5]],
        ("retrace", None): [[0.8, 0.2], [0.8, 0.8]],  # 0.8 x min(1, ratio)
    }
    for (name, level), want in expected.items():
        more = {"truncated": {"cap": 2.5}, "retrace": {"trace": 0.8}}.get(name, {})
        got = weights(old, behaviour, mask, off_policy(name, level, **more))
        assert torch.allclose(got, torch.tensor(want, dtype=torch.float32)), (name, level)


def test_weights_carry_no_gradient():
    old = torch.zeros(1, 2, requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert not weights(old, torch.ones(1, 2), mask, off_policy("importance", "sequence")).requires_grad


def test_the_measures_of_mismatch_by_hand():
    ratio = torch.tensor([2.0, 0.5, 4.0])
    config = off_policy("truncated", "token", cap=3)
    mismatch = Mismatch()
    for piece in (slice(0, 2), slice(2, 3), slice(3, 3)):
        part = ratio[piece]
        mismatch.add(part.log(), part, OFF_POLICY["truncated"](part, config), config)
    got = mismatch.metrics()
    # (2 - 1 - log 2) + (0.5 - 1 - log 0.5) + (4 - 1 - log 4), over 3
    assert got["off_policy/kl"] == pytest.approx((1 - math.log(2) - 0.5 + math.log(2) + 3 - math.log(4)) / 3)
    assert got["off_policy/effective_sample_size"] == pytest.approx((2 + 0.5 + 3) ** 2 / (3 * (4 + 0.25 + 9)))
    assert got["off_policy/weight_mean"] == pytest.approx((2 + 0.5 + 3) / 3)
    assert got["off_policy/weight_max"] == 3
    assert got["off_policy/frac_truncated"] == pytest.approx(1 / 3)
    assert Mismatch().metrics() == {}


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
        """(27, 3): of each token of each completion."""
        table = logits.log_softmax(dim=1)
        columns = []
        prefix = torch.zeros(len(self.completions), dtype=torch.long)  # its number among those of its length
        first = 0
        for t in range(self.completions.shape[1]):
            token = self.completions[:, t]
            columns.append(table[first + prefix, token])
            prefix, first = prefix * 3 + token, first + 3**t
        return torch.stack(columns, dim=1)

    def gradient(self, sampler, config, beta=0.0):
        """The exact expectation, over completions that ``sampler`` writes, of our loss's gradient with these weights."""
        logits = self.policy.clone().requires_grad_()
        log_probs, wrote = self.log_probs(logits), self.log_probs(sampler)
        chance = wrote.sum(dim=1, keepdim=True).exp()
        assert float(chance.sum()) == pytest.approx(1)
        mask = torch.ones_like(wrote, dtype=torch.bool)
        scales = chance * weights(log_probs, wrote, mask, config)
        token_loss(
            log_probs,
            log_probs.detach(),
            self.log_probs(self.reference),
            self.advantages.expand_as(wrote),
            scales,
            ClippingConfig("log_prob"),
            KLConfig(beta),
        ).loss.backward()
        return logits.grad


@cache
def biases(seed=0):
    """Relative distance of the expected gradient from the on-policy one, by correction."""
    model = Enumerated(seed)
    true = model.gradient(model.policy, off_policy("none"))
    return {
        label: float((model.gradient(model.behaviour, off_policy(*setting)) - true).norm() / true.norm())
        for label, setting in LEVELS.items()
    }


def test_only_the_ratio_of_the_whole_completion_is_unbiased():
    found = dict(biases())
    assert found.pop("importance, sequence") < 1e-6
    assert all(bias > 0.01 for bias in found.values()), found


def test_the_ratio_of_the_whole_completion_corrects_the_penalty_too():
    model = Enumerated()
    true = model.gradient(model.policy, off_policy("none"), beta=0.5)
    without = model.gradient(model.policy, off_policy("none"))
    got = model.gradient(model.behaviour, off_policy("importance", "sequence"), beta=0.5)
    assert float((got - true).norm() / true.norm()) < 1e-6
    assert float((without - true).norm() / true.norm()) > 0.1


def test_the_docs_say_how_biased_the_others_are():
    text = (ROOT / "docs" / "methods" / "nested_reft.md").read_text()
    many = [biases(seed) for seed in range(100)]
    for label, (name, level) in LEVELS.items():
        bias = sum(one[label] for one in many) / len(many)
        setting = f"`{name}`" if level is None else f"`{name}`, `level={level}`"
        assert f"| {setting} | {100 * bias:.0f} % |" in text, (label, bias)


def test_without_mismatch_nothing_is_biased():
    model = Enumerated(spread=0.0)
    true = model.gradient(model.policy, off_policy("none"))
    for setting in LEVELS.values():
        assert torch.allclose(model.gradient(model.behaviour, off_policy(*setting)), true, atol=1e-12)

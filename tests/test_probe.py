"""Whether a fast path is trusted with a model: rounding alone must not refuse it, a wrong number must."""

import pytest
import torch

from rlsparse.model import self_check as probe
from rlsparse.model.attention import attending_by
from rlsparse.model.packing import can_pack
from rlsparse.model.policy import token_log_probs
from rlsparse.model.self_check import differs_from_plain
from rlsparse.rollout import ENGINES, engine
from rlsparse.runtime.rng import stream
from tests.conftest import composed
from tests.test_packed import family
from tests.test_rollout import prompts


def loud(tiny, name, **settings):
    """A family in bfloat16 with weights so large that rounding moves log-probabilities by tenths of a nat."""
    policy = family(tiny, name, **settings)
    for p in policy.model.parameters():
        p.data.normal_(0, 1.0, generator=torch.Generator().manual_seed(p.numel()))
    policy.model.bfloat16()
    return policy


def test_rounding_in_bfloat16_is_no_reason_to_leave_the_fast_paths(tiny):
    policy = loud(tiny, "Llama")
    rollout = ENGINES["plain"](policy, prompts(tiny), composed("rollout.max_new_tokens=8").rollout, 2, stream(0, "x"))
    rows = torch.arange(10)
    with torch.no_grad():
        sdpa = token_log_probs(policy, rollout, rows, rollout.mask, 1.0)
        with attending_by(policy.model, "eager"):
            eager = token_log_probs(policy, rollout, rows, rollout.mask, 1.0)
    assert (sdpa - eager).abs().max() > 0.1  # what transformers' two attentions differ by; 0.45 where this was written
    said = []
    assert engine(policy, composed().rollout, said.append) is ENGINES["fast"]
    assert can_pack(policy) is None
    assert said == []


@pytest.mark.parametrize("scaling", [1.0, 0.7, 1.5])
def test_a_wrong_number_is_found_in_bfloat16_too(tiny, scaling):
    """Granite divides its logits after the head, which the packed path does not see."""
    obstacle = can_pack(loud(tiny, "Granite", logits_scaling=scaling))
    assert obstacle == (None if scaling == 1 else "packed, it gives other log-probabilities")


def test_a_broken_eager_attention_refuses_nothing(tiny, monkeypatch):
    rollout = ENGINES["plain"](tiny, prompts(tiny), composed("rollout.max_new_tokens=8").rollout, 2, stream(0, "x"))
    right = rollout.log_probs * rollout.mask
    plain, scored = probe._plain, []

    def broken(*args):  # the first call is transformers' own attention, the second eager
        scored.append(plain(*args))
        return scored[0] if len(scored) == 1 else scored[0] * float("nan")

    monkeypatch.setattr(probe, "_plain", broken)
    assert differs_from_plain(tiny, lambda: (rollout, right)) is None
    assert len(scored) == 2


@pytest.mark.parametrize("wrong", [0.01, float("nan"), float("inf")])
def test_what_is_allowed_is_rounding_only(tiny, wrong):
    rollout = ENGINES["plain"](tiny, prompts(tiny), composed("rollout.max_new_tokens=8").rollout, 2, stream(0, "x"))
    right = rollout.log_probs * rollout.mask
    assert differs_from_plain(tiny, lambda: (rollout, right)) is None
    assert differs_from_plain(tiny, lambda: (rollout, right + wrong)) == "it gives other log-probabilities"


def test_what_raises_is_named(tiny):
    assert differs_from_plain(tiny, lambda: 1 // 0).startswith("it raises ZeroDivisionError: ")
    assert differs_from_plain(tiny, lambda: next(iter(()))) == "it raises StopIteration: "

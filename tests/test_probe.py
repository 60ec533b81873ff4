"""The self check of a fast path: rounding alone must not refuse a model, a wrong number must."""

import pytest
import torch

from rlsparse.model import self_check
from rlsparse.model.attention import use_attention
from rlsparse.model.packing import can_pack
from rlsparse.model.policy import token_log_probs
from rlsparse.model.self_check import differs_from_plain
from rlsparse.rollout import Request
from rlsparse.runtime.rng import stream
from tests.test_packed import family
from tests.test_rollout import engine, prompts


def loud(tiny, name, **settings):
    """Return a model in bfloat16 with weights so large that rounding moves log-probabilities by tenths of a nat."""
    policy = family(tiny, name, **settings)
    for p in policy.model.parameters():
        p.data.normal_(0, 1.0, generator=torch.Generator().manual_seed(p.numel()))
    policy.model.bfloat16()
    return policy


def short_rollout(policy, tiny):
    """Return completions of at most 8 tokens, two of each prompt, from the plain engine."""
    plain = engine("plain", "rollout.max_new_tokens=8")
    return plain.generate(policy, Request(prompts(tiny), 2), stream(0, "x"))


def test_model_whose_log_probs_differ_by_rounding_alone_keeps_the_fast_paths(tiny, logged):
    policy = loud(tiny, "Llama")
    rollout = short_rollout(policy, tiny)
    rows = torch.arange(10)
    with torch.no_grad():
        sdpa = token_log_probs(policy, rollout, rows, rollout.mask, 1.0)
        with use_attention(policy.model, "eager"):
            eager = token_log_probs(policy, rollout, rows, rollout.mask, 1.0)
    assert (sdpa - eager).abs().max() > 0.1  # between the two attentions of transformers; 0.45 on one machine
    fast = engine("fast")
    assert fast.fitting(policy) is fast
    assert can_pack(policy) is None
    assert logged == []


@pytest.mark.parametrize("scaling", [1.0, 0.7, 1.5])
def test_model_with_wrong_packed_log_probs_is_found_in_bfloat16_too(tiny, scaling):
    """Granite divides its logits after the head, which the packed path does not see."""
    obstacle = can_pack(loud(tiny, "Granite", logits_scaling=scaling))
    assert obstacle == (None if scaling == 1 else "packed, it gives other log-probabilities")


def test_model_with_a_broken_eager_attention_is_not_refused(tiny, monkeypatch):
    rollout = short_rollout(tiny, tiny)
    right = rollout.log_probs * rollout.mask
    plain, scored = self_check._plain, []

    def broken(*args):  # the first call is with the attention of the model, the second with eager attention
        scored.append(plain(*args))
        return scored[0] if len(scored) == 1 else scored[0] * float("nan")

    monkeypatch.setattr(self_check, "_plain", broken)
    assert differs_from_plain(tiny, lambda: (rollout, right)) is None
    assert len(scored) == 2


@pytest.mark.parametrize("wrong", [0.01, float("nan"), float("inf")])
def test_log_probs_that_differ_by_more_than_rounding_are_refused(tiny, wrong):
    rollout = short_rollout(tiny, tiny)
    right = rollout.log_probs * rollout.mask
    assert differs_from_plain(tiny, lambda: (rollout, right)) is None
    assert differs_from_plain(tiny, lambda: (rollout, right + wrong)) == "it gives other log-probabilities"


def test_trial_that_raises_is_refused_with_the_error(tiny):
    assert differs_from_plain(tiny, lambda: 1 // 0).startswith("it raises ZeroDivisionError: ")
    assert differs_from_plain(tiny, lambda: next(iter(()))) == "it raises StopIteration: "

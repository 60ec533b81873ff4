"""Weights in the layout of the matrix library: they give the same products, and are removed afterwards."""

import dataclasses

import pytest
import torch
from torch import nn

from rlsparse.model.policy import token_log_probs
from rlsparse.rollout import Request
from rlsparse.rollout import prepacked as module
from rlsparse.rollout.prepacked import can_prepack, prepacked
from rlsparse.runtime.rng import stream
from tests.test_packed import with_adapter
from tests.test_rollout import engine, prompts

needs_onednn = pytest.mark.skipif(not can_prepack(), reason="this processor or torch has no bfloat16 linear of oneDNN")


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
def test_product_of_prepacked_weights_is_the_same_to_rounding(bias):
    torch.manual_seed(0)
    linear = nn.Linear(48, 80, bias=bias).bfloat16()
    x = torch.randn(3, 5, 48).bfloat16()
    exact = x.double() @ linear.weight.double().T + (linear.bias.double() if bias else 0)
    with torch.no_grad(), prepacked(linear):
        assert "forward" in vars(linear)
        got = linear(x)
    assert got.dtype == torch.bfloat16
    # at most two roundings to bfloat16, of the product and of its sum with the bias: half a unit in the last place each
    torch.testing.assert_close(got.double(), exact, atol=2**-9, rtol=2**-7)
    assert "forward" not in vars(linear)


@needs_onednn
def test_prepacked_model_has_changed_bfloat16_linear_modules_alone_and_restores_all(tiny):
    tiny.model.bfloat16()
    with_adapter(tiny)  # its matrices are float32
    with prepacked(tiny.causal_lm):
        changed = {name.rsplit(".", 1)[-1] for name, m in tiny.causal_lm.named_modules() if "forward" in vars(m)}
    assert "base_layer" in changed
    assert not changed & {"default", "embed_tokens", "norm"}
    with pytest.raises(KeyError), prepacked(tiny.causal_lm):
        raise KeyError
    assert not any("forward" in vars(m) for m in tiny.causal_lm.modules())


def test_prepacked_float32_model_is_unchanged(tiny):
    with prepacked(tiny.causal_lm):
        assert not any("forward" in vars(m) for m in tiny.causal_lm.modules())


@needs_onednn
@pytest.mark.parametrize("merged", ["true", "false"])
def test_engine_with_prepacked_weights_uses_them_at_every_step_and_keeps_its_log_probs(tiny, merged, monkeypatch):
    tiny.model.bfloat16()
    with_adapter(tiny)
    policy = dataclasses.replace(tiny, eos_ids=())
    calls = []
    monkeypatch.setattr(module, "_linear", counted(calls, module._linear))

    def rolled(on):
        setting = (
            "rollout.max_new_tokens=6",
            f"rollout.merge_adapter={merged}",
            f"rollout.prepack_weights={on}",
            "rollout.fuse=false",
        )
        return engine("fast", *setting).generate(policy, Request(prompts(tiny), 4), stream(0, "x"))

    rolled("false")
    assert calls == []
    rollout = rolled("true")
    linears = sum(type(m) is nn.Linear and m.weight.dtype == torch.bfloat16 for m in policy.causal_lm.modules())
    assert len(calls) == 6 * linears + 1  # the prompts and five steps; and one product of the trial
    rows = torch.arange(len(rollout.lengths))
    with torch.no_grad():
        plain = token_log_probs(policy, rollout, rows, rollout.mask, 1.0)
    assert (rollout.log_probs - plain).abs().mean() < 0.05  # nats: bfloat16


def counted(calls, function):
    def call(*args):
        calls.append(1)
        return function(*args)

    return call

"""Weights in the matrix library's layout: the same products, gone afterwards."""

import dataclasses

import pytest
import torch
from torch import nn

from rlsparse.rollout import ENGINES
from rlsparse.rollout.prepacked import can_prepack, prepacked
from rlsparse.streams import stream
from tests.conftest import composed
from tests.test_packed import with_adapter
from tests.test_rollout import prompts

needs_onednn = pytest.mark.skipif(not can_prepack(), reason="this processor or torch has no bfloat16 linear of oneDNN")


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_the_same_to_rounding(bias):
    torch.manual_seed(0)
    linear = nn.Linear(48, 80, bias=bias).bfloat16()
    x = torch.randn(3, 5, 48).bfloat16()
    exact = x.double() @ linear.weight.double().T + (linear.bias.double() if bias else 0)
    with torch.no_grad(), prepacked(linear):
        assert "forward" in vars(linear)
        got = linear(x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), exact, atol=0, rtol=2**-8)  # half a unit in the last place, twice
    assert "forward" not in vars(linear)


@needs_onednn
def test_only_bfloat16_linear_modules_change_and_all_come_back(tiny):
    tiny.model.bfloat16()
    with_adapter(tiny)  # its matrices are float32
    with prepacked(tiny.causal_lm):
        changed = {name.rsplit(".", 1)[-1] for name, m in tiny.causal_lm.named_modules() if "forward" in vars(m)}
    assert "base_layer" in changed
    assert not changed & {"default", "embed_tokens", "norm"}
    with pytest.raises(KeyError), prepacked(tiny.causal_lm):
        raise KeyError
    assert not any("forward" in vars(m) for m in tiny.causal_lm.modules())


def test_float32_is_left_alone(tiny):
    with prepacked(tiny.causal_lm):
        assert not any("forward" in vars(m) for m in tiny.causal_lm.modules())


@needs_onednn
def test_the_engine_gives_the_log_probabilities_it_gives_without(tiny):
    tiny.model.bfloat16()
    with_adapter(tiny)
    policy = dataclasses.replace(tiny, eos_ids=())
    with_, without = (
        ENGINES["fast"](
            policy,
            prompts(tiny),
            composed("rollout.max_new_tokens=1", f"rollout.prepack_weights={on}").rollout,
            4,
            stream(0, "x"),
        )
        for on in ("true", "false")
    )
    same = with_.completion_ids == without.completion_ids
    assert same.float().mean() > 0.8  # a token on the edge of its interval may fall to either side
    assert (with_.log_probs - without.log_probs)[same].abs().max() < 0.1

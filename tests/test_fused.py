"""The fused forward pass against the modules of transformers, in every family that it serves."""

import dataclasses

import pytest
import torch

from rlsparse.model.frozen_layers import Capture
from rlsparse.model.policy import token_log_probs
from rlsparse.rollout import Request
from rlsparse.rollout.fast import Fast
from rlsparse.rollout.fused import FAMILY, fused
from rlsparse.rollout.layer_skip import without_layers
from rlsparse.rollout.prepacked import can_prepack
from rlsparse.runtime.rng import stream
from tests.conftest import built
from tests.test_packed import family, with_adapter
from tests.test_rollout import prompts

SERVED = ["Llama", "Mistral", "Qwen2", "Qwen3"]
MORE = {  # variants of a family that change what a layer computes
    "Llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "Llama with scaled positions": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    ),
    "Qwen3 with another width of its heads": ("Qwen3", {"head_dim": 12}),
    "Llama without shared heads": ("Llama", {"num_key_value_heads": 4}),
}


def engine(**keys):
    return dataclasses.replace(built("rollout=fast", "rollout.max_new_tokens=12").rollout, **keys)


def randomised(policy):
    """Give norms and biases values of their own: 1 and 0 would hide a forgotten one."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for one in policy.model.parameters():
            if one.ndim == 1:
                one.add_(0.3 * torch.randn(one.shape, generator=generator))
    return policy


def of(policy, name):
    base, more = MORE.get(name, (name, {}))
    return randomised(family(policy, base, **more))


@pytest.mark.parametrize("name", [*SERVED, *MORE])
@pytest.mark.parametrize("copies", [True, False])
def test_fused_rollout_equals_that_of_the_modules(tiny, name, copies):
    policy = of(tiny, name)
    with_adapter(policy)
    policy = dataclasses.replace(policy, eos_ids=())
    request = Request(prompts(tiny), 4)
    assert fused_now(policy, copies) is not None
    rollouts = [
        engine(fuse=fuse, prepack_weights=copies).generate(policy, request, stream(0, "x")) for fuse in (True, False)
    ]
    assert torch.equal(rollouts[0].completion_ids, rollouts[1].completion_ids)
    torch.testing.assert_close(rollouts[0].log_probs, rollouts[1].log_probs, atol=2e-5, rtol=0)
    rows = torch.arange(len(rollouts[0].lengths))
    with torch.no_grad():
        plain = token_log_probs(policy, rollouts[0], rows, rollouts[0].mask, 1.0)
    torch.testing.assert_close(rollouts[0].log_probs, plain, atol=2e-5, rtol=0)


def fused_now(policy, copies=True):
    with policy.merged():
        return fused(policy, copies)


@pytest.mark.parametrize("name", SERVED)
def test_states_of_frozen_layers_equal_those_of_the_modules(tiny, name):
    policy = of(tiny, name)
    with_adapter(policy, "adapter.layers=last_third")
    assert policy.first_adapted > 0
    policy = dataclasses.replace(policy, eos_ids=())
    request = Request(prompts(tiny), 3, keep_states=True)
    one, other = (engine(fuse=fuse).generate(policy, request, stream(0, "x")).frozen_states for fuse in (True, False))
    inside = torch.arange(one.prompt.shape[1], 0, -1) <= torch.tensor([len(p.ids) for p in prompts(tiny)])[:, None]
    torch.testing.assert_close(one.prompt[inside], other.prompt[inside], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(one.completion, other.completion, atol=2e-5, rtol=1e-4)


def test_skipped_layers_take_no_part(tiny):
    policy = dataclasses.replace(of(tiny, "Llama"), eos_ids=())
    request = Request(prompts(tiny), 3)
    whole = engine().generate(policy, request, stream(0, "x"))
    with without_layers(policy, [1]):
        ours, theirs = (engine(fuse=fuse).generate(policy, request, stream(0, "x")) for fuse in (True, False))
    assert torch.equal(ours.completion_ids, theirs.completion_ids)
    assert not torch.equal(ours.completion_ids, whole.completion_ids)


def test_adapter_beside_the_weights_and_other_families_are_left_to_the_modules(tiny):
    policy = of(tiny, "Llama")
    with_adapter(policy)
    assert fused(policy, True) is None  # the adapter is not merged
    assert fused_now(policy) is not None
    gemma = family(tiny, "Gemma")
    assert gemma.causal_lm.config.model_type not in FAMILY
    assert fused(gemma, True) is None


def test_layer_that_computes_something_else_is_found_and_left_to_the_modules(tiny):
    """A residual that is scaled, as in Granite, under the name of a family that is served."""
    policy = of(tiny, "Llama")
    layer = policy.causal_lm.get_decoder().layers[0]
    forward = layer.forward
    layer.forward = lambda hidden, *args, **keys: 0.5 * forward(hidden, *args, **keys)
    fitting = engine().fitting(policy)
    assert isinstance(fitting, Fast)
    assert not fitting.fuse
    assert engine().fitting(of(tiny, "Llama")).fuse


@pytest.mark.skipif(not can_prepack(), reason="torch or the processor has no product on prepacked bfloat16 weights")
@pytest.mark.parametrize("name", ["Llama with biases", "Qwen3"])
def test_bfloat16_products_with_prepacked_weights_are_right_up_to_rounding(tiny, name):
    policy = of(tiny, name)
    policy.model.bfloat16()
    policy = dataclasses.replace(policy, eos_ids=())
    rollout = engine().generate(policy, Request(prompts(tiny), 4), stream(0, "x"))
    rows = torch.arange(len(rollout.lengths))
    with torch.no_grad():
        rounded = token_log_probs(policy, rollout, rows, rollout.mask, 1.0)
        policy.model.float()
        exact = token_log_probs(policy, rollout, rows, rollout.mask, 1.0)
    ours, theirs = ((one - exact).abs().mean() for one in (rollout.log_probs, rounded))
    assert 0 < ours < 1.5 * theirs


def test_capture_gets_the_input_of_the_first_adapted_layer(tiny):
    from rlsparse.rollout.cache import GroupCache

    policy = dataclasses.replace(of(tiny, "Llama"), first_adapted=1)
    capture = Capture()
    decoder = fused(policy, True, capture)
    ids = torch.tensor([[5, 6, 7]])
    cache = GroupCache(torch.ones(1, 3, dtype=torch.bool), 1, 4, torch.float32)
    cache.read(slice(1), torch.ones(1, 3, dtype=torch.bool))
    with torch.no_grad():
        logits = decoder(ids, torch.arange(3)[None], cache)
        reply = policy.model(ids, output_hidden_states=True)
    torch.testing.assert_close(capture.hidden, reply.hidden_states[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits, reply.logits[:, -1], atol=1e-4, rtol=1e-4)

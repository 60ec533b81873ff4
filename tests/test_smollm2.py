"""A real pretrained model on the fast paths: what random weights and the embedded model would not show."""

import pytest
import torch
from peft import PeftModel

from rlsparse.components.adapter import L1ra, Lora
from rlsparse.components.task import load_task
from rlsparse.model.packing import can_pack, packed_log_probs
from rlsparse.model.policy import Policy, load_policy, token_log_probs
from rlsparse.rollout import ENGINES, engine
from rlsparse.rollout.layer_skip import choose_layers, without_layers
from rlsparse.runtime.rng import stream
from rlsparse.training.data import encode_task
from tests.conftest import composed
from tests.test_layer_skip import shallower

pytestmark = pytest.mark.slow


@pytest.fixture
def load(smollm2):
    def loaded(dtype: str, *overrides: str) -> tuple[Policy, list, object]:
        torch.set_num_threads(2)
        config = composed("model=smollm2", f"model.path={smollm2}", "task=word_problems", *overrides)
        policy = load_policy(config.model, torch.device("cpu"), dtype)
        data = encode_task(policy, load_task(config.task), config.task, config.rollout, config.eval)
        return policy, data.train[:3], config

    yield loaded
    torch.set_num_threads(1)


def test_it_is_sampled_and_trained_on_the_fast_paths_in_its_own_dtype(load):
    """Its rounding in bfloat16 moves single tokens by half a nat."""
    policy, _, config = load("auto", "adapter.layers=last_third")
    assert policy.causal_lm.dtype == torch.bfloat16
    Lora(policy, config.adapter, 4, 0)
    said = []
    assert engine(policy, config.rollout, said.append) is ENGINES["fast"]
    assert can_pack(policy) is None
    assert said == []


def test_in_float32_greedy_rollouts_equal_generate_and_packed_log_probs_the_plain_ones(load):
    policy, prompts, config = load("float32", "rollout.max_new_tokens=24")
    with torch.no_grad():
        rollout = ENGINES["fast"](policy, prompts, config.rollout, 1, stream(0, "x"), greedy=True)
        for row, prompt in enumerate(prompts):
            ids = torch.tensor([prompt.ids])
            expected = policy.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False
            )[0, len(prompt.ids) :]
            assert rollout.completion_ids[row, : int(rollout.lengths[row])].tolist() == expected.tolist()
        drawn = ENGINES["fast"](policy, prompts, config.rollout, 3, stream(1, "x"))
        rows = torch.arange(9)
        plain = token_log_probs(policy, drawn, rows, drawn.mask, 1.0)
        torch.testing.assert_close(drawn.log_probs, plain, atol=1e-4, rtol=1e-5)
        packed = packed_log_probs(policy, drawn, rows, drawn.mask, 1.0)
        torch.testing.assert_close(packed, plain, atol=1e-4, rtol=1e-5)


def test_a_rollout_without_some_layers_is_that_of_a_model_without_them(load):
    policy, prompts, config = load("float32", "rollout.max_new_tokens=16", "layer_skip=r10")
    left_out = choose_layers(config.layer_skip, policy.depth, stream(0, "layer_skip"))
    assert len(left_out) == 3  # of 30
    with without_layers(policy, left_out):
        rollout = ENGINES["fast"](policy, prompts, config.rollout, 3, stream(1, "x"))
    with torch.no_grad():
        rows = torch.arange(9)
        # row by row: padded together, the plain path is 3e-4 from itself on some processors
        part = shallower(policy, left_out)
        plain = torch.cat([token_log_probs(part, rollout, row, rollout.mask[row], 1.0) for row in rows.split(1)])
        whole = token_log_probs(policy, rollout, rows, rollout.mask, 1.0)
    torch.testing.assert_close(rollout.log_probs, plain, atol=1e-4, rtol=1e-5)
    assert float((rollout.log_probs - whole).abs().max()) > 0.1


def test_a_rank_update_keeps_the_function_and_the_export_is_the_same_model(load, tmp_path):
    policy, prompts, config = load("float32", "adapter=l1ra")
    adapter = L1ra(policy, config.adapter, 4, 0)
    optimizer = adapter.optimizer(1e-3, 0.0)
    ids = torch.tensor([prompts[0].ids])
    for _ in range(2):
        optimizer.zero_grad()
        policy.model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        before_closing = policy.model(input_ids=ids).logits
        for c in optimizer.param_groups[1]["params"]:
            c[torch.rand(4, generator=generator) < 0.3] = 0.0
        before = policy.model(input_ids=ids).logits
        adapter.move_ranks(generator)
        after = policy.model(input_ids=ids).logits
    assert float((before - before_closing).abs().max()) > 1e-2  # the closed gates had carried something
    assert float((after - before).norm() / before.norm()) < 1e-5
    torch.testing.assert_close(after, before, atol=1e-3, rtol=0)  # float32, of logits up to 30
    assert len(set(adapter.ranks().values())) > 2
    assert sum(adapter.ranks().values()) == adapter.budget == 4 * 210
    adapter.export(tmp_path)
    plain = load("float32")[0].model
    with torch.no_grad():
        exported = PeftModel.from_pretrained(plain, tmp_path)(input_ids=ids).logits
    torch.testing.assert_close(exported, after, atol=1e-5, rtol=0)

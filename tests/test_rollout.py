"""Rollout engines against generate, a plain forward and each other; their sampling against the softmax."""

from dataclasses import replace

import pytest
import torch
from scipy import stats

from rlsparse.batch import Problem
from rlsparse.model.packing import can_pack, packed_log_probs
from rlsparse.model.policy import decode, encode_prompt, token_log_probs
from rlsparse.rollout import Request
from rlsparse.rollout.fast import Fast
from rlsparse.rollout.plain import Plain
from rlsparse.rollout.sampling import draw, sample, truncate
from rlsparse.runtime.rng import stream
from tests.conftest import built
from tests.test_packed import FAMILIES, family, with_adapter

engines = pytest.mark.parametrize("name", ["plain", "fast"])
QUESTIONS = ["57*4=", "12*3=", "98*7=", "30*2="]


def engine(name, *overrides):
    return built(f"rollout={name}", *overrides).rollout


def prompts(policy, questions=QUESTIONS):
    return [encode_prompt(policy, Problem(q, "", ""), q) for q in [*questions, "Tom has 2 boxes with 31 pens each."]]


@engines
def test_greedy_rollout_equals_generate_token_for_token(tiny, name):
    request = Request(prompts(tiny), 1, greedy=True)
    rollout = engine(name, "rollout.max_new_tokens=24").generate(tiny, request, stream(0, "x"))
    for row, prompt in enumerate(prompts(tiny)):
        expected = tiny.model.generate(
            torch.tensor([prompt.ids]), max_new_tokens=24, do_sample=False, pad_token_id=tiny.pad_id
        )[0, len(prompt.ids) :]
        got = rollout.completion_ids[row, : int(rollout.lengths[row])]
        assert got.tolist() == expected.tolist()


@engines
def test_log_probs_and_entropy_of_a_rollout_equal_those_of_a_plain_forward(tiny, name):
    """Prompts and completions are of uneven length, some cut off; EOS = PAD; the temperature is not 1."""
    assert tiny.pad_id in tiny.eos_ids
    tempered = engine(name, "rollout.max_new_tokens=16", "rollout.temperature=0.7")
    rollout = tempered.generate(tiny, Request(prompts(tiny), 6), stream(3, "x"))
    assert len(set(rollout.lengths.tolist())) > 3
    assert rollout.ended.any()
    assert not rollout.ended.all()
    for row in range(30):
        prompt, length = prompts(tiny)[row // 6].ids, int(rollout.lengths[row])
        completion = rollout.completion_ids[row, :length]
        ids = torch.cat([torch.tensor(prompt), completion])[None]
        with torch.no_grad():
            logits = tiny.model(ids).logits[0, len(prompt) - 1 : -1].double() / 0.7
        log_p = torch.log_softmax(logits, dim=1)
        expected = log_p.gather(1, completion[:, None]).squeeze(1).float()
        torch.testing.assert_close(rollout.log_probs[row, :length], expected, atol=2e-5, rtol=1e-5)
        entropy = -(log_p.exp() * log_p).sum(dim=1).float()
        torch.testing.assert_close(rollout.entropy[row, :length], entropy, atol=2e-5, rtol=1e-4)
        assert (rollout.log_probs[row, length:] == 0).all()


@engines
def test_log_probs_in_training_equal_those_of_the_rollout(tiny, name):
    rollout = engine(name, "rollout.max_new_tokens=20").generate(tiny, Request(prompts(tiny), 4), stream(5, "x"))
    rows = torch.tensor([0, 3, 7, 12, 19])
    mask = rollout.mask[rows]
    with torch.no_grad():
        got = token_log_probs(tiny, rollout, rows, mask, 1.0)
    torch.testing.assert_close(got[mask], rollout.log_probs[rows][mask], atol=2e-5, rtol=1e-5)


@engines
def test_completion_ends_with_eos_or_at_the_limit(tiny, name):
    rollout = engine(name, "rollout.max_new_tokens=15").generate(tiny, Request(prompts(tiny), 8), stream(1, "x"))
    for row in range(40):
        ids = rollout.completion_ids[row, : int(rollout.lengths[row])].tolist()
        is_eos = [i in tiny.eos_ids for i in ids]
        assert not any(is_eos[:-1])
        assert is_eos[-1] == bool(rollout.ended[row])
        assert rollout.ended[row] or len(ids) == 15
    assert tiny.tokenizer.eos_token in tiny.tokenizer.decode(rollout.completion_ids[rollout.ended][0])
    assert all(tiny.tokenizer.eos_token not in text for text in decode(tiny, rollout, prompts(tiny)))


@engines
def test_row_of_a_batch_does_not_depend_on_the_others(tiny, name):
    """Rows that finish early leave the batch; the rest must stay the same."""
    together = engine(name, "rollout.max_new_tokens=20").generate(tiny, Request(prompts(tiny), 1), stream(2, "x"))
    uniforms = torch.rand(5, 20, generator=stream(2, "x"))
    for row, prompt in enumerate(prompts(tiny)):
        ids = list(prompt.ids)
        for t in range(20):
            with torch.no_grad():
                probs = tiny.model(torch.tensor([ids])).logits[:, -1].softmax(dim=1)
            token = int(draw(probs, uniforms[row, t : t + 1]))
            ids.append(token)
            if token in tiny.eos_ids:
                break
        assert together.completion_ids[row, : int(together.lengths[row])].tolist() == ids[len(prompt.ids) :]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_softmax(temperature):
    n = 40_000
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5]).expand(n, 5)
    settings = engine("fast", f"rollout.temperature={temperature}")
    tokens, log_probs, _ = sample(logits, torch.rand(n, generator=stream(0, "x")), settings, greedy=False)
    expected = (logits[0] / temperature).softmax(dim=0)
    observed = torch.bincount(tokens, minlength=5)
    assert stats.chisquare(observed.numpy(), (expected.double() / expected.double().sum() * n).numpy()).pvalue > 1e-4
    torch.testing.assert_close(log_probs, expected.log()[tokens])


def test_top_k_and_top_p_match_values_computed_by_hand():
    probs = torch.tensor([[0.4, 0.1, 0.3, 0.2]])
    assert truncate(probs, 2, 1.0).tolist() == [pytest.approx([0.4, 0, 0.3, 0])]
    assert truncate(probs, 0, 0.5).tolist() == [pytest.approx([0.4, 0, 0.3, 0])]  # 0.4 < 0.5 <= 0.4 + 0.3
    assert truncate(probs, 0, 0.39).tolist() == [pytest.approx([0.4, 0, 0, 0])]
    # among the two likeliest 0.4 is 4/7 of the whole, which reaches 0.55
    assert truncate(probs, 2, 0.55).tolist() == [pytest.approx([0.4, 0, 0, 0])]


def test_inverse_cdf_draws_no_token_of_probability_zero():
    probs = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]]).repeat(3, 1)
    uniform = torch.tensor([0.0, 0.3, 1.0 - 2**-24])
    assert draw(probs, uniform).tolist() == [1, 3, 3]


def test_inverse_cdf_with_rounding_between_blocks_draws_no_token_of_probability_zero():
    """The block sums are a = 1 + 3·2⁻²³ and 1: their float32 sum is rounded up, and a target of a leaves −2⁻²³ in block 2."""
    probs = torch.zeros(1, 512)
    probs[0, 100], probs[0, 300] = 1 + 3 * 2**-23, 1.0
    for uniform in torch.linspace(0.4999, 0.5001, 400):
        assert int(draw(probs, uniform[None])) in (100, 300)


def test_inverse_cdf_of_a_large_vocabulary_equals_one_running_sum():
    """Blocks of 256, of 8 and of 1 token are compared with one running sum in float64."""
    generator = torch.Generator().manual_seed(0)
    for V in (1024, 1000, 999):
        probs = torch.rand(200, V, generator=generator) ** 8
        probs[:, ::3] = 0.0
        uniform = torch.rand(200, generator=generator)
        running = probs.double().cumsum(dim=1)
        expected = torch.searchsorted(running, uniform.double()[:, None] * running[:, -1:], right=True).squeeze(1)
        assert torch.equal(draw(probs, uniform), expected)


def test_states_of_frozen_layers_in_parts_and_as_rows_end_belong_to_their_rows(tiny):
    """The adapter is on the last layer, groups are cut in parts, rows end early: training from the states stays exact."""
    with_adapter(tiny, "adapter.layers=[2]")
    rows = torch.arange(30)
    request = Request(prompts(tiny), 6, keep_states=True)
    for max_rows in (512, 7, 4):
        fast = engine("fast", "rollout.max_new_tokens=20", f"rollout.max_rows={max_rows}")
        rollout = fast.generate(tiny, request, stream(4, "x"))
        assert len(set(rollout.lengths.tolist())) > 3
        assert rollout.frozen_states is not None
        with torch.no_grad():
            packed = packed_log_probs(tiny, rollout, rows, rollout.mask, 1.0)
            plain = token_log_probs(tiny, rollout, rows, rollout.mask, 1.0)
        torch.testing.assert_close(packed, plain, atol=2e-5, rtol=1e-5)
    without = replace(request, keep_states=False)
    assert fast.generate(tiny, without, stream(4, "x")).frozen_states is None


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_rollout_of_every_family_equals_generate(tiny, name):
    policy = family(tiny, name)
    with_adapter(policy)
    request = Request(prompts(tiny), 1, greedy=True)
    rollout = engine("fast", "rollout.max_new_tokens=20").generate(policy, request, stream(0, "x"))
    for row, prompt in enumerate(prompts(tiny)):
        ids = torch.tensor([prompt.ids])
        expected = policy.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False
        )
        assert (
            rollout.completion_ids[row, : int(rollout.lengths[row])].tolist() == expected[0, len(prompt.ids) :].tolist()
        )


def test_large_batch_in_parts_is_the_same_rollout(tiny):
    fast, request = engine("fast", "rollout.max_new_tokens=20"), Request(prompts(tiny), 6)
    whole = fast.generate(tiny, request, stream(4, "x"))
    for max_rows in (13, 6, 4, 1):  # two groups, one, a group in parts of 4 and 2, single rows
        parts = replace(fast, max_rows=max_rows).generate(tiny, request, stream(4, "x"))
        assert torch.equal(parts.completion_ids, whole.completion_ids)
        assert torch.equal(parts.lengths, whole.lengths)
        torch.testing.assert_close(parts.log_probs, whole.log_probs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_engines_with_the_same_random_numbers_draw_the_same_in_every_family(tiny, name):
    """Top-k and top-p are on; the adapter is merged in one engine and beside the weights in the other."""
    policy = family(tiny, name)
    with_adapter(policy)
    setting = ("rollout.max_new_tokens=40", "rollout.top_k=200", "rollout.top_p=0.95", "rollout.temperature=1.2")
    request = Request(prompts(tiny), 3)
    plain, fast = (engine(one, *setting).generate(policy, request, stream(6, "x")) for one in ("plain", "fast"))
    assert torch.equal(plain.completion_ids, fast.completion_ids)
    torch.testing.assert_close(fast.log_probs, plain.log_probs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast.entropy, plain.entropy, atol=1e-4, rtol=1e-4)


def test_merged_weights_afterwards_are_restored_bit_for_bit(tiny):
    tiny.model.bfloat16()
    weight = tiny.model.model.layers[0].mlp.up_proj.weight  # becomes the base weight inside the peft layer
    before, storage = weight.detach().clone(), weight.data_ptr()
    with_adapter(tiny)
    layer = tiny.causal_lm.model.layers[0].mlp.up_proj
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        beside = tiny.model(ids).logits
        with tiny.merged():
            delta = layer.get_delta_weight("default")
            assert torch.equal(layer.base_layer.weight, (before.float() + delta).bfloat16())
            torch.testing.assert_close(tiny.model(ids).logits, beside, atol=0.2, rtol=0.05)
        with pytest.raises(KeyError), tiny.merged():
            raise KeyError
        assert torch.equal(layer.base_layer.weight, before)
        assert layer.base_layer.weight.data_ptr() == storage
        assert torch.equal(tiny.model(ids).logits, beside)


def test_model_with_other_attention_gets_the_plain_engine_and_a_message(tiny, logged):
    fast = engine("fast", "rollout.max_rows=7", "rollout.top_k=3")
    assert fast.fitting(family(tiny, "Qwen2")) is fast
    assert logged == []
    windows = family(tiny, "Mistral", sliding_window=4)
    plain = engine("plain", "rollout.max_rows=7", "rollout.top_k=3")
    assert fast.fitting(windows) == plain  # with the same settings
    assert logged == ["rollout: plain for this model: it has layers that do not attend to all earlier tokens"]
    assert plain.fitting(windows) is plain
    assert len(logged) == 1


def refusal(name, keyword):
    return f"{name}_attention() missing 1 required keyword-only argument: '{keyword}'"


UNKNOWN = {  # families without a promise of support: only a wrong number must not happen
    "GPTNeoX": {},
    "Phi": {},
    "Olmo2": {},
    "Falcon": {"new_decoder_architecture": True},
    "StableLm": {},
    "Cohere": {},
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_family_is_right_on_the_fast_paths_or_kept_off_them(tiny, name, logged):
    policy = family(tiny, name, **UNKNOWN[name])
    for p in policy.model.parameters():
        p.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(p.numel()))
    fitting = engine("fast", "rollout.max_new_tokens=9").fitting(policy)
    rollout = fitting.generate(policy, Request(prompts(tiny), 2), stream(0, "x"))
    rows = torch.arange(10)
    with torch.no_grad():
        expected = token_log_probs(policy, rollout, rows, rollout.mask, 1.0)
        torch.testing.assert_close(rollout.log_probs, expected, atol=1e-4, rtol=1e-4)
        obstacle = can_pack(policy)
        if obstacle is None:
            packed = packed_log_probs(policy, rollout, rows, rollout.mask, 1.0)
            torch.testing.assert_close(packed, expected, atol=1e-4, rtol=1e-4)
    assert isinstance(fitting, Plain if logged else Fast)
    assert (logged, obstacle) == {
        "Falcon": (["rollout: plain for this model: with our cache, it gives other log-probabilities"],
                   "packed, it gives other log-probabilities"),
        "StableLm": (["rollout: plain for this model: with our cache, it raises TypeError: " + refusal("cached", "cache")], "packed, it raises TypeError: " + refusal("packed", "layout")),
        "Cohere": ([], "packed, it gives other log-probabilities"),  # scales its logits after the head
    }.get(name, ([], None))  # fmt: skip

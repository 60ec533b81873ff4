"""The packed path against the plain one: same log-probs, same gradients, for every family it accepts."""

import copy

import pytest
import torch
import transformers

from rlsparse.adapter import Lora
from rlsparse.batch import ScoredBatch
from rlsparse.microbatch import microbatches
from rlsparse.packed import can_pack, packed_log_probs
from rlsparse.policy import token_log_probs, wrap_policy
from tests.conftest import composed, make_rollout
from tests.test_objective import updated

SIZE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "vocab_size": 320,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "bos_token_id": None,
}
FAMILIES = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Mistral": {"sliding_window": None},
    "Gemma": {"head_dim": 8},
}


def family(policy, name, **more):
    """A random model of another family, float32, with the embedded tokenizer."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZE, **FAMILIES.get(name, {}), **more})
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    return wrap_policy(model, policy.tokenizer, chat_template=False)


def with_adapter(policy):
    adapter = Lora(policy, composed().adapter, 4, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return adapter


def ragged():
    """Three prompts of 5, 2 and 7 tokens, four completions each of 1 to 9 tokens."""
    generator = torch.Generator().manual_seed(2)
    completions = [
        torch.randint(1, 300, (n,), generator=generator).tolist() for n in (3, 9, 1, 5, 2, 2, 7, 4, 9, 9, 1, 6)
    ]
    rollout = make_rollout(completions, prompts=3, prompt=torch.randint(1, 300, (7,), generator=generator).tolist())
    rollout.prompt_lengths.copy_(torch.tensor([5, 2, 7]))
    return rollout


@pytest.mark.parametrize("name", FAMILIES)
def test_log_probs_and_gradients_equal_the_plain_path(tiny, name):
    policy = family(tiny, name)
    adapter = with_adapter(policy)
    assert can_pack(policy) is None
    rollout = ragged()
    # rows 0, 2, 3 of prompt 0 and 0, 1, 2 of prompts 1 and 2; the loss looks at some tokens only
    rows = torch.tensor([0, 2, 3, 4, 5, 6, 8, 9, 10])
    needed = rollout.mask[rows] & (torch.rand(9, 9, generator=torch.Generator().manual_seed(3)) < 0.7)
    weights = torch.randn(9, 9, generator=torch.Generator().manual_seed(4))
    results = []
    for path in (token_log_probs, packed_log_probs):
        policy.model.zero_grad()
        log_probs = path(policy, rollout, rows, needed, 0.7)
        (log_probs * weights).sum().backward()
        results.append((log_probs.detach(), torch.cat([p.grad.flatten() for p in adapter.parameters()])))
    (plain, gradient), (packed, packed_gradient) = results
    assert int(needed.sum()) > 20
    assert (plain[needed] < 0).all()
    torch.testing.assert_close(packed, plain, atol=1e-5, rtol=1e-5)
    assert float((packed_gradient - gradient).norm() / gradient.norm()) < 1e-5


@pytest.mark.parametrize("algorithm", ["grpo", "rgra", "sgrpo", "tspmo", "reinforce", "dr_grpo", "rloo"])
@pytest.mark.parametrize("kl", ["off", "on"])
def test_every_algorithms_gradient_equals_the_plain_paths(tiny, algorithm, kl):
    packed = updated(tiny, f"algorithm={algorithm}", f"kl={kl}", path=packed_log_probs)
    plain = updated(tiny, f"algorithm={algorithm}", f"kl={kl}", path=token_log_probs)
    assert float((packed[0] - plain[0]).norm() / plain[0].norm()) < 1e-5
    cut = ("train.microbatch=3", "train.max_tokens_per_microbatch=40")
    split = updated(tiny, f"algorithm={algorithm}", f"kl={kl}", *cut, path=packed_log_probs)
    assert float((split[0] - plain[0]).norm() / plain[0].norm()) < 1e-5


def test_the_models_own_attention_is_back_afterwards(tiny):
    before = tiny.model.config._attn_implementation
    rollout = ragged()
    rows = torch.arange(4)
    with torch.no_grad():
        packed_log_probs(tiny, rollout, rows, rollout.mask[rows], 1.0)
        assert tiny.model.config._attn_implementation == before
        with pytest.raises(IndexError):
            packed_log_probs(copy.copy(tiny), rollout, torch.arange(400, 404), rollout.mask[rows], 1.0)
    assert tiny.model.config._attn_implementation == before


def test_models_it_cannot_pack_are_named(tiny):
    assert can_pack(family(tiny, "Qwen2")) is None
    windows = ["sliding_attention", "full_attention", "full_attention"]
    assert "do not attend to all earlier tokens" in can_pack(family(tiny, "Qwen2", layer_types=windows))
    assert "do not attend to all earlier tokens" in can_pack(family(tiny, "Mistral", sliding_window=4))
    assert can_pack(family(tiny, "Gemma2", layer_types=["full_attention"] * 3)) is not None  # caps attention scores


def scored(table, rollout):
    return ScoredBatch(rollout, table, table)


def test_microbatches_hold_the_rows_that_teach_and_the_tokens_they_need():
    rollout = ragged()
    table = torch.zeros(12, 9)
    table[1, 6] = table[3, 4] = table[4, 0] = table[9, 8] = table[11, 2] = 1
    train = composed("train.microbatch=4").train
    pieces = microbatches(scored(table, rollout), train)
    # one row of prompt 1; two rows each of prompts 0 and 2, together
    assert [p.rows.tolist() for p in pieces] == [[4], [1, 3, 9, 11]]
    assert [p.needed.shape[1] for p in pieces] == [1, 9]
    assert sum(int(p.needed.sum()) for p in pieces) == 5
    assert microbatches(scored(torch.zeros(12, 9), rollout), train) == []


def test_microbatches_stay_within_their_bounds_and_lose_nothing():
    rollout = ragged()
    table = rollout.mask.float()
    for rows, tokens in ((64, 8192), (3, 8192), (64, 40), (64, 20), (2, 12), (1, 1)):
        train = composed(f"train.microbatch={rows}", f"train.max_tokens_per_microbatch={tokens}").train
        pieces = microbatches(scored(table, rollout), train)
        assert sorted(r for p in pieces for r in p.rows.tolist()) == list(range(12))
        for piece in pieces:
            prompts, counts = (piece.rows // 4).unique_consecutive(return_counts=True)
            assert len(set(counts.tolist())) == 1
            assert len(prompts.unique()) == len(prompts)
            assert len(piece.rows) <= rows
            size = len(prompts) * (int(rollout.prompt_lengths[prompts].max()) + int(counts[0]) * piece.needed.shape[1])
            assert size <= tokens or len(piece.rows) == 1

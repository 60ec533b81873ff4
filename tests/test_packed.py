"""The packed path against the plain one: same log-probs, same gradients, for every family it accepts."""

import copy
import dataclasses

import pytest
import torch
import transformers

from rlsparse.batch import Problem, Prompt, ScoredBatch
from rlsparse.model import packing
from rlsparse.model.loading import wrap_policy
from rlsparse.model.packing import PACKED, can_pack, packed_log_probs
from rlsparse.model.packing.layout import PackedRow, cut_short, pack
from rlsparse.model.packing.ragged import RaggedRow, ragged_row
from rlsparse.model.policy import PLAIN, encode_prompt, token_log_probs
from rlsparse.rollout import Request
from rlsparse.runtime.rng import stream
from rlsparse.training.microbatch import microbatches
from tests.conftest import built, composed, make_rollout
from tests.test_objective import assert_same, batch_for, gradient, updated

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
    """Return a random model of another family, in float32, with the embedded tokenizer."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZE, **FAMILIES.get(name, {}), **more})
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    return wrap_policy(model, policy.tokenizer, chat_template=False)


def with_adapter(policy, *overrides):
    """Put an adapter of rank 4 with random matrices into the model of a policy and return it."""
    adapter = built(*overrides).adapter.attach(policy, 4, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return adapter


def ragged():
    """Return three prompts of 5, 2 and 7 tokens with four completions each of 1 to 9 tokens."""
    generator = torch.Generator().manual_seed(2)
    completions = [
        torch.randint(1, 300, (n,), generator=generator).tolist() for n in (3, 9, 1, 5, 2, 2, 7, 4, 9, 9, 1, 6)
    ]
    rollout = make_rollout(completions, prompts=3, prompt=torch.randint(1, 300, (7,), generator=generator).tolist())
    rollout.prompt_lengths.copy_(torch.tensor([5, 2, 7]))
    return rollout


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_log_probs_and_gradient_equal_those_of_the_plain_path(tiny, name):
    policy = family(tiny, name)
    adapter = with_adapter(policy)
    assert can_pack(policy) is None
    rollout = ragged()
    # three rows of prompt 0, one of prompt 1, all of prompt 2 first; the loss looks at some tokens only
    rows = torch.tensor([8, 9, 10, 11, 0, 2, 3, 5])
    needed = rollout.mask[rows] & (torch.rand(8, 9, generator=torch.Generator().manual_seed(3)) < 0.7)
    weights = torch.randn(8, 9, generator=torch.Generator().manual_seed(4))
    results = []
    for path in (token_log_probs, packed_log_probs):
        policy.model.zero_grad()
        log_probs = path(policy, rollout, rows, needed, 0.7)
        (log_probs * weights).sum().backward()
        results.append((log_probs.detach(), gradient(adapter)))
    (plain, plain_gradient), (packed, packed_gradient) = results
    assert int(needed.sum()) > 20
    assert (plain[needed] < 0).all()
    torch.testing.assert_close(packed, plain, atol=1e-5, rtol=1e-5)
    assert_same(packed_gradient, plain_gradient)


@pytest.mark.parametrize("algorithm", ["grpo", "rgra", "sgrpo", "tspmo", "reinforce", "dr_grpo", "rloo"])
@pytest.mark.parametrize("kl", ["off", "on"])
@pytest.mark.parametrize("layers", ["all", "last_third"])  # with the latter, states of frozen layers are reused
def test_packed_gradient_of_every_algorithm_equals_that_of_the_plain_path(tiny, algorithm, kl, layers):
    setting = (f"algorithm={algorithm}", f"kl={kl}", f"adapter.layers={layers}")
    packed = updated(tiny, *setting, path=PACKED)
    plain = updated(tiny, *setting, path=PLAIN)
    assert_same(packed[0], plain[0])
    cut = ("train.microbatch=3", "train.max_tokens_per_microbatch=40")
    split = updated(tiny, *setting, *cut, path=PACKED)
    assert_same(split[0], plain[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_frozen_layers_whose_states_were_kept_do_not_run_again_in_training(tiny, name):
    """Adapters are on layer 2 of 0, 1, 2: the first two layers do not run again, in any family."""
    policy = family(tiny, name)
    adapter = with_adapter(policy, "adapter.layers=[2]")
    engine = built("rollout.max_new_tokens=12").rollout
    prompts = [Prompt(Problem("", "", ""), tuple(range(5, 5 + n))) for n in (3, 7, 4)]
    rollout = engine.generate(policy, Request(prompts, 4, keep_states=True), stream(0, "x"))
    assert rollout.frozen_states is not None
    rows, weights = torch.arange(12), torch.randn(12, 12, generator=torch.Generator().manual_seed(4))
    needed = rollout.mask & (weights[:, : rollout.mask.shape[1]] > -0.5)
    runs = []
    handles = [layer.register_forward_hook(lambda *_: runs.append(1)) for layer in decoder_layers(policy)[:2]]
    results = []
    for path in (token_log_probs, packed_log_probs):
        policy.model.zero_grad()
        log_probs = path(policy, rollout, rows, needed, 1.0)
        (log_probs * weights[:, : needed.shape[1]]).sum().backward()
        results.append((log_probs.detach(), gradient(adapter)))
    for handle in handles:
        handle.remove()
    assert len(runs) == 2  # those of the plain path
    assert len(decoder_layers(policy)) == 3
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-5, rtol=1e-5)
    assert_same(results[1][1], results[0][1])


def decoder_layers(policy):
    return policy.causal_lm.get_decoder().layers


def test_layers_below_the_first_adapted_one_keep_no_graph(tiny):
    policy = family(tiny, "Llama")
    with_adapter(policy, "adapter.layers=[2]")
    outputs = []
    for layer in decoder_layers(policy):
        layer.register_forward_hook(lambda m, a, out: outputs.append(out.requires_grad))
    rollout = ragged()
    packed_log_probs(policy, rollout, torch.arange(4), rollout.mask[:4], 1.0)
    assert outputs == [False, False, True]


def long_rollout():
    """Return three prompts of 5, 2 and 7 tokens with four completions each of 24 to 30 tokens."""
    generator = torch.Generator().manual_seed(5)
    completions = [
        torch.randint(1, 300, (n,), generator=generator).tolist()
        for n in (30, 24, 28, 30, 26, 29, 25, 30, 24, 27, 30, 28)
    ]
    rollout = make_rollout(completions, prompts=3, prompt=torch.randint(1, 300, (7,), generator=generator).tolist())
    rollout.prompt_lengths.copy_(torch.tensor([5, 2, 7]))
    return rollout


def first_tokens(*widths):
    """Return which tokens are needed where row i needs its first ``widths[i]`` tokens, (b, T) bool."""
    return torch.arange(max(widths)) < torch.tensor(widths)[:, None]


def assert_paths_equal(policy, adapter, rollout, rows, needed):
    """Compare log-probabilities, entropies and their gradients by the packed path with those by the plain path."""
    generator = torch.Generator().manual_seed(4)
    of_log_probs, of_entropy = torch.randn(2, *needed.shape, generator=generator)
    results = []
    for path in (PLAIN, PACKED):
        policy.model.zero_grad()
        log_probs, entropy = path.log_probs_and_entropy(policy, rollout, rows, needed, 0.7)
        (log_probs * of_log_probs + entropy * of_entropy).sum().backward()
        with torch.no_grad():
            assert torch.equal(log_probs, path.log_probs(policy, rollout, rows, needed, 0.7))
        results.append((log_probs.detach(), entropy.detach(), gradient(adapter)))
    plain, packed = results
    assert (plain[0][needed] < 0).all()
    assert (plain[1][needed] > 0).all()
    assert not torch.stack(plain[:2])[:, ~needed].any()
    torch.testing.assert_close(packed[:2], plain[:2], atol=1e-5, rtol=1e-5)
    assert_same(packed[2], plain[2])


@pytest.mark.parametrize("name", ["Llama", "Qwen3"])
def test_log_probs_and_entropies_of_completions_cut_at_different_lengths_equal_those_of_the_plain_path(tiny, name):
    """One prompt has all its rows, one a single row, and the order of the prompts is not that of the rollout."""
    policy = family(tiny, name)
    adapter = with_adapter(policy)
    rollout, rows, needed = long_rollout(), torch.tensor([8, 9, 10, 11, 0, 2, 5]), first_tokens(1, 24, 7, 2, 30, 4, 12)
    assert isinstance(pack(rollout, rows, needed, torch.float32), RaggedRow)
    assert_paths_equal(policy, adapter, rollout, rows, needed)


@pytest.mark.parametrize(
    "widths",
    [(1, 1, 1, 1), (17, 17, 17, 17), (0, 3, 20, 1), (24, 24, 25, 30)],
    ids=["width_1", "equal", "one_row_needs_nothing", "whole"],
)
def test_ragged_row_of_any_widths_equals_the_plain_path(tiny, widths, monkeypatch):
    policy = family(tiny, "Llama")
    adapter = with_adapter(policy)
    needed = first_tokens(*widths)
    if widths[0] > 17:  # also tokens between the needed ones that only go through the model
        needed &= torch.rand(needed.shape, generator=torch.Generator().manual_seed(3)) < 0.7
    monkeypatch.setattr(packing, "pack", ragged_row)
    assert_paths_equal(policy, adapter, long_rollout(), torch.tensor([4, 6, 1, 3]), needed)


def test_ragged_row_holds_each_token_up_to_the_last_predictor_once():
    """Completions a b c, d e f, g h of which 3, 1 and 2 tokens are needed; c, d and h need not go through the model."""
    a, b, c, d, e, f, g, h = range(10, 18)
    rollout = make_rollout([[a, b, c], [d, e, f], [g, h], [a, b]], prompts=2, prompt=(0, 1, 2))
    rollout.prompt_lengths.copy_(torch.tensor([2, 3]))
    packed = ragged_row(rollout, torch.tensor([0, 1, 2]), first_tokens(3, 1, 2), torch.float32)
    # the prompts, then the completions from short to long: g, and a b
    assert packed.gather(rollout.prompt_ids, rollout.completion_ids).tolist() == [[1, 2, 0, 1, 2, g, a, b]]
    assert packed.positions(rollout).tolist() == [[0, 1, 0, 1, 2, 3, 2, 3]]
    # a and d are predicted at the end of prompt 0, g at that of prompt 1, b at a, c at b, h at g
    assert packed.predictors.tolist() == [1, 6, 7, 1, 4, 5]
    assert packed.tokens() == 8


def test_completions_are_packed_as_a_ragged_row_only_where_cuts_leave_out_a_quarter():
    lengths = [40, 40, 20, 40]
    # 16 + 4 + 8 + 12 = 40 of 4 · 16 tokens up to the widest row
    assert cut_short([16, 4, 8, 12], [16, 4, 8, 12], lengths)
    assert not cut_short([15, 4, 8, 12], [15, 4, 8, 12], lengths)  # the widest row is narrower than 16
    assert not cut_short([16, 4, 8, 11], [16, 4, 8, 12], lengths)  # the last row has a gap
    # 20 + 20 + 10 + 10 = 60 of 80, and one token more
    assert cut_short([20, 20, 10, 10], [20, 20, 10, 10], lengths)
    assert not cut_short([20, 20, 10, 11], [20, 20, 10, 11], lengths)
    # whole completions and the first 30 tokens of each leave out nothing but padding
    assert not cut_short([40, 2, 3, 1], [40, 2, 3, 1], [40, 2, 3, 1])
    assert not cut_short([30, 2, 3, 1], [30, 2, 3, 1], [40, 2, 3, 1])


def test_frozen_layers_do_not_run_again_for_cut_completions(tiny):
    policy = family(tiny, "Llama")
    adapter = with_adapter(policy, "adapter.layers=[2]")
    prompts = [Prompt(Problem("", "", ""), tuple(range(5, 5 + n))) for n in (3, 7)]
    request = Request(prompts, 4, keep_states=True)
    rollout = built("rollout.max_new_tokens=24").rollout.generate(policy, request, stream(0, "x"))
    widths = torch.tensor([20, 3, 5, 1, 9, 16, 2, 4]).minimum(rollout.lengths)
    rows, needed = torch.arange(8), first_tokens(*widths.tolist())
    assert rollout.frozen_states is not None
    assert isinstance(pack(rollout, rows, needed, torch.float32), RaggedRow)
    runs = []
    handle = decoder_layers(policy)[0].register_forward_hook(lambda *_: runs.append(1))
    assert_paths_equal(policy, adapter, rollout, rows, needed)
    handle.remove()
    assert len(runs) == 2  # those of the plain path


def test_completions_that_share_their_beginnings_are_packed_as_a_tree():
    """Completions a b c, a b d, a e c; of the first the second and third token are needed, then d and e."""
    a, b, c, d, e = range(10, 15)
    rollout = make_rollout([[a, b, c], [a, b, d], [a, e, c]], prompt=(1, 2))
    needed = torch.tensor([[0, 1, 1], [0, 0, 1], [0, 1, 0]]).bool()
    packed = pack(rollout, torch.arange(3), needed, torch.float32)
    # b|a, e|a, c|ab, d|ab are predicted at a and at ab: two nodes, against nine tokens side by side
    assert packed.gather(rollout.prompt_ids, rollout.completion_ids).tolist() == [[1, 2, a, b]]
    assert packed.positions(rollout).tolist() == [[0, 1, 2, 3]]
    assert packed.predictors.tolist() == [2, 3, 3, 2]
    inf = float("inf")
    assert packed.layout.completion_bias.flatten(0, 3)[0].tolist() == [[0, 0, 0, -inf], [0, 0, 0, 0]]
    # with everything needed a tree saves too little: side by side
    full = pack(rollout, torch.arange(3), torch.ones(3, 3).bool(), torch.float32)
    assert full.gather(rollout.prompt_ids, rollout.completion_ids).shape == (1, 11)


def test_tspmo_forwards_the_nodes_of_the_tree_alone(tiny):
    """One token is forwarded for each node above the deepest branch; they are counted in the completions."""
    overrides = ("algorithm=tspmo", "rollout.max_new_tokens=16")
    batch = batch_for(copy.deepcopy(tiny), built(*overrides))
    forwarded = side_by_side = 0
    for piece in microbatches(batch, composed(*overrides).train):
        packed = pack(batch.rollout, piece.rows, piece.needed, torch.float32)
        nodes = {int(p): set() for p in packed.prompts}
        for row, needed in zip(piece.rows.tolist(), piece.needed.tolist(), strict=True):
            ids = batch.rollout.completion_ids[row].tolist()
            last = max(t for t, n in enumerate(needed) if n)
            nodes[row // 4] |= {tuple(ids[: t + 1]) for t in range(last)}
        assert packed.rows.shape == (len(nodes), max(1, *map(len, nodes.values())))
        forwarded += packed.rows.numel()
        side_by_side += piece.needed.numel()
    assert 0 < forwarded < 0.5 * side_by_side


def test_adapter_in_a_bfloat16_model_is_multiplied_in_bfloat16_with_a_gradient_near_that_in_float32(tiny):
    """Two correct bfloat16 paths differ by some percent; parameters and gradients of the adapter stay float32."""
    adapter = with_adapter(tiny)
    engine = built("rollout=plain", "rollout.max_new_tokens=16").rollout
    rollout = engine.generate(tiny, Request(encoded(tiny), 4), stream(0, "x"))
    rows = torch.arange(8)

    def gradient_by(path):
        tiny.model.zero_grad()
        path(tiny, rollout, rows, rollout.mask[rows], 1.0).sum().backward()
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in adapter.parameters())
        return gradient(adapter)

    exact = gradient_by(token_log_probs)
    for p in tiny.model.parameters():
        p.data = p.data if p.requires_grad else p.data.bfloat16()
    inputs = []
    layer = decoder_layers(tiny)[1].mlp.up_proj.lora_A["default"]
    layer.register_forward_hook(lambda _, args, out: inputs.append((args[0].dtype, out.dtype)))
    packed = gradient_by(packed_log_probs)
    assert inputs == [(torch.bfloat16, torch.bfloat16)]
    errors = [float((g - exact).norm() / exact.norm()) for g in (packed, gradient_by(token_log_probs))]
    assert 1e-4 < errors[0] < 0.1
    assert errors[0] < 2 * errors[1]


def encoded(policy):
    return [encode_prompt(policy, Problem(q, "", ""), q) for q in ("57*4=", "12*3=")]


def test_attention_of_the_model_after_packing_is_its_own_again(tiny):
    before = tiny.model.config._attn_implementation
    rollout = ragged()
    rows = torch.arange(4)
    with torch.no_grad():
        packed_log_probs(tiny, rollout, rows, rollout.mask[rows], 1.0)
        assert tiny.model.config._attn_implementation == before
        with pytest.raises(IndexError):
            packed_log_probs(copy.copy(tiny), rollout, torch.arange(400, 404), rollout.mask[rows], 1.0)
    assert tiny.model.config._attn_implementation == before


def test_can_pack_of_a_model_that_cannot_be_packed_says_why(tiny):
    assert can_pack(family(tiny, "Qwen2")) is None
    windows = ["sliding_attention", "full_attention", "full_attention"]
    assert "do not attend to all earlier tokens" in can_pack(family(tiny, "Qwen2", layer_types=windows))
    assert "do not attend to all earlier tokens" in can_pack(family(tiny, "Mistral", sliding_window=4))
    assert can_pack(family(tiny, "Gemma2", layer_types=["full_attention"] * 3)) is not None  # caps attention scores
    # scales its logits after the head: found by trying
    assert can_pack(family(tiny, "Granite", logits_scaling=2.0)) == "packed, it gives other log-probabilities"
    assert can_pack(family(tiny, "Granite", logits_scaling=1.0)) is None


def scored(table, rollout):
    return ScoredBatch(rollout, table, table)


def test_microbatches_hold_the_rows_with_a_scale_and_the_tokens_they_need():
    rollout = ragged()  # prompts of 5, 2, 7 tokens
    table = torch.zeros(12, 9)
    table[1, 6] = table[3, 4] = table[4, 0] = table[9, 8] = table[11, 2] = 1
    train = composed("train.microbatch=4").train
    pieces = microbatches(scored(table, rollout), train)
    # prompt 1: one row of 1 column, 2 + 1 tokens; prompt 0: two rows of 7, 5 + 14; prompt 2: two rows of 9, 7 + 18.
    # prompts 1 and 0 together would be padded to 2 · (5 + 2 · 7) = 38 > 1.5 · (3 + 19); 0 and 2 to 50 <= 1.5 · (19 + 25)
    assert [p.rows.tolist() for p in pieces] == [[4], [1, 3, 9, 11]]
    assert [p.needed.shape[1] for p in pieces] == [1, 9]
    assert sum(int(p.needed.sum()) for p in pieces) == 5
    assert microbatches(scored(torch.zeros(12, 9), rollout), train) == []


def test_microbatch_holds_the_rows_of_a_prompt_side_by_side():
    """Long rows go alone; the short ones of two prompts could otherwise interleave as rows 0, 4, 1."""
    widths = [1, 3, 100, 100, 2, 100, 100, 100]
    rollout = make_rollout([[7] * w for w in widths], prompts=2, prompt=(1, 2, 3, 4, 5))
    table = torch.zeros(8, 100)
    table[torch.arange(8), torch.tensor(widths) - 1] = 1
    pieces = microbatches(scored(table, rollout), composed("train.max_tokens_per_microbatch=106").train)
    assert [p.rows.tolist() for p in pieces][:2] == [[0, 4], [1]]
    for piece in pieces:
        assert len((piece.rows // 4).unique()) == len((piece.rows // 4).unique_consecutive())
        packed = pack(rollout, piece.rows, piece.needed, torch.float32)
        assert packed.tokens() <= 106


def test_microbatch_of_cut_completions_counts_no_padding():
    """Rows of 30, 2, 4, 4 tokens after 5: 45 tokens without padding, 125 with it."""
    rollout = long_rollout()
    table = torch.zeros(12, 30)
    table[:4] = first_tokens(30, 2, 4, 4)
    table[4:8, :24] = first_tokens(2, 24, 1, 1)  # 2 + 28 = 30 tokens without padding
    train = dataclasses.replace(composed().train, max_tokens_per_microbatch=75)
    batch = scored(table, rollout)
    # sorted by width, 30 + 45 tokens are just the limit
    assert [p.rows.tolist() for p in microbatches(batch, train)] == [[4, 5, 6, 7, 0, 1, 2, 3]]
    less = microbatches(batch, dataclasses.replace(train, max_tokens_per_microbatch=44))
    assert [p.rows.tolist() for p in less] == [[3], [0, 1, 2], [4, 5, 6, 7]]
    # with padding a part of two rows has 5 + 2 · 30 tokens, or 2 + 2 · 24
    off = microbatches(batch, dataclasses.replace(train, packing="off"))
    assert [p.rows.tolist() for p in off] == [[6, 7], [2, 3], [4, 5], [0, 1]]


@pytest.mark.parametrize("sampler", ["full", "first", "random", "high_entropy", "stochastic"])
def test_microbatches_and_layout_of_other_token_samplers_are_those_with_padding(sampler):
    generator = torch.Generator().manual_seed(6)
    lengths = torch.randint(1, 60, (32,), generator=generator).tolist()
    rollout = make_rollout([[7] * n for n in lengths], prompts=4, prompt=(1, 2, 3))
    rollout.entropy.copy_(torch.rand(rollout.entropy.shape, generator=generator))
    chosen = built(f"token_sampler={sampler}").token_sampler(torch.ones(32, max(lengths)), rollout, generator)
    batch = scored(chosen.weights * rollout.mask, rollout)
    train = dataclasses.replace(composed().train, max_tokens_per_microbatch=200)
    pieces, padded = microbatches(batch, train), microbatches(batch, dataclasses.replace(train, packing="off"))
    assert len(pieces) > 1
    for one, other in zip(pieces, padded, strict=True):
        assert torch.equal(one.rows, other.rows)
        assert isinstance(pack(rollout, one.rows, one.needed, torch.float32), PackedRow)


def test_microbatches_of_cut_completions_stay_within_their_bounds_and_hold_every_row():
    generator, rollout, default = torch.Generator().manual_seed(0), long_rollout(), composed().train
    rows_of: dict[type, int] = {PackedRow: 0, RaggedRow: 0}
    for rows, tokens in ((64, 8192), (3, 8192), (64, 120), (64, 60), (2, 40), (1, 1)):
        train = dataclasses.replace(default, microbatch=rows, max_tokens_per_microbatch=tokens)
        needed = torch.arange(30) < (torch.rand(12, 1, generator=generator) * rollout.lengths[:, None]).ceil()
        pieces = microbatches(scored(needed.float(), rollout), train)
        assert sorted(r for p in pieces for r in p.rows.tolist()) == list(range(12))
        for piece in pieces:
            packed = pack(rollout, piece.rows, piece.needed, torch.float32)
            rows_of[type(packed)] += 1
            assert len(piece.rows) <= rows
            assert packed.tokens() <= tokens or len(piece.rows) == 1
    assert min(rows_of.values()) > 2  # both layouts occur


def test_microbatches_stay_within_their_bounds_and_hold_every_row():
    rollout = ragged()
    table = rollout.mask.float()
    for rows, tokens in ((64, 8192), (3, 8192), (64, 40), (64, 20), (2, 12), (1, 1)):
        train = composed(f"train.microbatch={rows}", f"train.max_tokens_per_microbatch={tokens}").train
        pieces = microbatches(scored(table, rollout), train)
        assert sorted(r for p in pieces for r in p.rows.tolist()) == list(range(12))
        for piece in pieces:
            prompts, counts = (piece.rows // 4).unique_consecutive(return_counts=True)
            assert len(prompts.unique()) == len(prompts)
            assert len(piece.rows) <= rows
            width = int(counts.max()) * piece.needed.shape[1]
            size = len(prompts) * (int(rollout.prompt_lengths[prompts].max()) + width)
            assert size <= tokens or len(piece.rows) == 1

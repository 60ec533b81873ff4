"""Rollouts by a real vLLM server: what comes back is what our engines give."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event

import pytest
import torch
from torch import Generator

from rlsparse.batch import NonFiniteError, Problem, Prompt
from rlsparse.components.component import build
from rlsparse.config.compose import compose
from rlsparse.config.schema import ConfigError
from rlsparse.model.policy import token_log_probs_and_entropy
from rlsparse.rollout import Request, RolloutEngine
from tests.vllm.conftest import Connected

PROMPTS = [Prompt(Problem("", "", ""), ids) for ids in ((3, 4, 5, 6), (7, 8), (9, 10, 11))]


def plain(connected, **keys):
    engine = build("rollout", compose(["rollout=plain"]).rollout, RolloutEngine)
    return replace(engine, max_new_tokens=connected.engine.max_new_tokens, **keys)


def test_log_probs_and_entropies_equal_those_of_the_policy(tiny_server):
    request = Request(PROMPTS, group_size=4, needs_entropy=True)
    rollout = tiny_server.engine.generate(tiny_server.policy, request, Generator().manual_seed(0))
    assert rollout.completion_ids.shape[0] == 12
    assert len({tuple(row) for row in rollout.completion_ids.tolist()}) > 6  # the seeds of a group differ
    rows = torch.arange(12)
    with torch.no_grad():
        expected, entropy = token_log_probs_and_entropy(tiny_server.policy, rollout, rows, rollout.mask, 1.0)
    torch.testing.assert_close(rollout.log_probs, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(rollout.entropy, entropy, atol=1e-6, rtol=0)


def test_greedy_completions_equal_those_of_the_plain_engine(tiny_server):
    request = Request(PROMPTS, group_size=2, greedy=True)
    ours = plain(tiny_server).generate(tiny_server.policy, request, Generator())
    theirs = tiny_server.engine.generate(tiny_server.policy, request, Generator())
    assert torch.equal(ours.completion_ids, theirs.completion_ids)
    assert torch.equal(ours.lengths, theirs.lengths)
    assert torch.equal(ours.ended, theirs.ended)
    torch.testing.assert_close(ours.log_probs, theirs.log_probs, atol=1e-4, rtol=0)


def test_the_same_random_stream_gives_the_same_completions_in_parts_too(tiny_server):
    request = Request(PROMPTS, group_size=4)

    def once(engine):
        return engine.generate(tiny_server.policy, request, Generator().manual_seed(5)).completion_ids

    whole = once(tiny_server.engine)
    assert torch.equal(whole, once(tiny_server.engine))
    assert torch.equal(whole, once(replace(tiny_server.engine, max_rows=3)))  # less than a group
    assert not torch.equal(
        whole, tiny_server.engine.generate(tiny_server.policy, request, Generator().manual_seed(6)).completion_ids
    )


def test_completions_end_at_each_end_token_and_at_their_limit(tiny_server):
    engine = replace(tiny_server.engine, max_new_tokens=6)
    free = engine.generate(replace(tiny_server.policy, eos_ids=()), Request(PROMPTS, 8), Generator().manual_seed(0))
    assert free.lengths.eq(6).all()
    assert not free.ended.any()
    third = int(free.completion_ids[0, 2])  # the third token of the first completion now ends completions
    ids = (*tiny_server.policy.eos_ids, third)
    stopped = engine.generate(replace(tiny_server.policy, eos_ids=ids), Request(PROMPTS, 8), Generator().manual_seed(0))
    for row in range(24):
        tokens = stopped.completion_ids[row, : stopped.lengths[row]].tolist()
        assert not set(ids) & set(tokens[:-1])
        assert bool(stopped.ended[row]) == (tokens[-1] in ids)
        assert stopped.ended[row] or len(tokens) == 6
    assert stopped.ended.any()


def test_a_stop_text_ends_completions_as_in_the_plain_engine(tiny_server):
    policy = replace(tiny_server.policy, stop_text="=")
    request = Request(PROMPTS, group_size=1, greedy=True)
    ours = plain(tiny_server).generate(policy, request, Generator())
    theirs = tiny_server.engine.generate(policy, request, Generator())
    assert torch.equal(ours.lengths, theirs.lengths)
    assert torch.equal(ours.ended, theirs.ended)


def test_what_a_replayed_prompt_holds_counts_towards_its_limit(tiny_server):
    engine = replace(tiny_server.engine, max_new_tokens=8)
    begun = [replace(PROMPTS[0], begun=3), PROMPTS[1]]
    policy = replace(tiny_server.policy, eos_ids=())
    rollout = engine.generate(policy, Request(begun, group_size=2), Generator().manual_seed(0))
    assert rollout.lengths.tolist() == [5, 5, 8, 8]


def test_more_prompts_than_the_server_reads_together(tiny_server):
    """90 prompts of 40 tokens: vLLM reads 2048 tokens together by default, and on a CPU it must not divide a prompt."""
    prompts = [Prompt(Problem("", "", ""), tuple(3 + (i + j) % 90 for j in range(40))) for i in range(90)]
    rollout = tiny_server.engine.generate(tiny_server.policy, Request(prompts, 1), Generator().manual_seed(0))
    assert rollout.lengths.min() > 0


def test_another_adapter_is_sent_when_the_weights_change(tiny_server):
    request = Request(PROMPTS, group_size=4)
    rows = torch.arange(12)
    with torch.no_grad():
        for one in tiny_server.adapter.parameters():
            one.mul_(1.5)
        rollout = tiny_server.engine.generate(tiny_server.policy, request, Generator().manual_seed(0))
        expected, _ = token_log_probs_and_entropy(tiny_server.policy, rollout, rows, rollout.mask, 1.0)
        for one in tiny_server.adapter.parameters():
            one.div_(1.5)
    torch.testing.assert_close(rollout.log_probs, expected, atol=1e-4, rtol=0)


def test_policy_that_overflows_has_diverged_and_the_server_is_not_blamed(tiny_server):
    trained = list(tiny_server.adapter.parameters())
    kept = [one.detach().clone() for one in trained]
    request = Request(PROMPTS, group_size=4)
    with torch.no_grad():
        for one in trained:
            one.copy_(torch.full_like(one, 1e30))  # finite, but the product of A and B is not
        with pytest.raises(NonFiniteError, match="not finite"):
            tiny_server.engine.generate(tiny_server.policy, request, Generator().manual_seed(0)).require_finite()
        for one, value in zip(trained, kept, strict=True):
            one.copy_(value)
    tiny_server.engine.generate(tiny_server.policy, request, Generator().manual_seed(0)).require_finite()


def test_log_probs_of_a_tempered_policy_are_those_at_its_temperature(tiny_server):
    engine = replace(tiny_server.engine, temperature=0.6)
    rollout = engine.generate(tiny_server.policy, Request(PROMPTS, 4), Generator().manual_seed(0))
    with torch.no_grad():
        expected, _ = token_log_probs_and_entropy(tiny_server.policy, rollout, torch.arange(12), rollout.mask, 0.6)
    torch.testing.assert_close(rollout.log_probs, expected, atol=1e-4, rtol=0)


def test_the_server_of_another_model_is_refused(tiny_server, keys, tmp_path):
    from shutil import copytree

    from safetensors.torch import load_file, save_file

    from rlsparse.model.source import EMBEDDED

    folder = copytree(EMBEDDED["tiny"], tmp_path / "other")
    weights = load_file(folder / "model.safetensors")
    save_file({name: one * 0.5 for name, one in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    client = tiny_server.engine.connection.servers.clients()[0]
    key = client._http.headers["Authorization"].removeprefix("Bearer ")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLSPARSE_TEST_KEY", key)
        given = [f"rollout.server={client.url}", "rollout.api_key=RLSPARSE_TEST_KEY", f"rollout.exchange={tmp_path}"]
        with pytest.raises(ConfigError, match="serves another model"):
            Connected(f"model.path={folder}", *keys, *given)
        same = Connected("model=tiny", *keys, *given)  # the right model, as a server with an address
        rollout = same.engine.generate(same.policy, Request(PROMPTS, 2), Generator().manual_seed(0))
        same.engine.close()
    assert rollout.lengths.min() > 0
    assert not list(tmp_path.glob("rlsparse-*"))


def test_a_run_starts_while_others_sample(tiny_server, keys):
    """All places for adapters are taken, so that vLLM would apply one of them to requests of the base model."""
    trained, stop = list(tiny_server.adapter.parameters()), Event()
    kept = [one.detach().clone() for one in trained]
    request = Request(PROMPTS, group_size=8)

    def sample_until_stopped():
        generator = Generator().manual_seed(0)
        while not stop.is_set():
            with torch.no_grad():
                trained[0].mul_(1.01)  # a new adapter
            tiny_server.engine.generate(tiny_server.policy, request, generator)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(sample_until_stopped)
        try:
            for _ in range(5):
                Connected("model=tiny", *keys).engine.close()
        finally:
            stop.set()
        other.result()
    with torch.no_grad():
        for one, value in zip(trained, kept, strict=True):
            one.copy_(value)


def test_a_wrong_key_and_a_rank_above_the_largest_are_refused(tiny_server, keys, tmp_path, monkeypatch):
    client = tiny_server.engine.connection.servers.clients()[0]
    given = [f"rollout.server={client.url}", "rollout.api_key=RLSPARSE_TEST_KEY", f"rollout.exchange={tmp_path}"]
    monkeypatch.setenv("RLSPARSE_TEST_KEY", "wrong")
    engine = build("rollout", compose([*keys, *given]).rollout, RolloutEngine)
    with pytest.raises(ConfigError, match=r"refuses the key; rollout\.api_key"):
        engine.check(quantized=False)
    with pytest.raises(ConfigError, match="rank 32 is greater than max_lora_rank"):
        Connected("model=tiny", *keys, "lora_rank=32")


def test_a_real_model_in_bfloat16_gives_nearly_the_log_probs_of_its_policy(smollm2, keys):
    """The server is about as far from the float32 policy as the bfloat16 policy itself; both round alike."""
    connected = Connected("model=smollm2", f"model.path={smollm2}", *keys, "rollout.max_new_tokens=32")
    request = Request([Prompt(Problem("", "", ""), tuple(range(50, 70)))], group_size=8)
    rollout = connected.engine.generate(connected.policy, request, Generator().manual_seed(0))
    connected.engine.close()

    def log_probs():
        with torch.no_grad():
            return token_log_probs_and_entropy(connected.policy, rollout, torch.arange(8), rollout.mask, 1.0)[0]

    rounded = log_probs()
    connected.policy.model.float()
    exact = log_probs()

    def distance(of):
        return float((of - exact)[rollout.mask].abs().mean())

    assert 0 < distance(rollout.log_probs) < 1.5 * distance(rounded)

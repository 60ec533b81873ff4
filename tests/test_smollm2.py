"""A real pretrained model on the fast paths, which random weights and the embedded model cannot replace."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlsparse.algorithm import Algorithm
from rlsparse.batch import Problem
from rlsparse.model.loading import load_policy
from rlsparse.model.packing import can_pack, packed_log_probs
from rlsparse.model.policy import Policy, decode, encode_prompt, token_log_probs
from rlsparse.rollout import Request
from rlsparse.rollout.fast import Fast
from rlsparse.rollout.layer_skip import without_layers
from rlsparse.runtime.rng import stream
from rlsparse.training.data import encode_task
from tests.conftest import composed
from tests.test_layer_skip import shallower

pytestmark = pytest.mark.slow


@pytest.fixture
def load(smollm2):
    def loaded(dtype: str, *overrides: str) -> tuple[Policy, list, Algorithm]:
        torch.set_num_threads(2)
        config = composed("model=smollm2", f"model.path={smollm2}", "task=word_problems", *overrides)
        algorithm = Algorithm.build(config)
        policy = load_policy(config.model, torch.device("cpu"), dtype)
        data = encode_task(policy, algorithm.task, algorithm.rollout.max_new_tokens, config.eval.max_rows)
        return policy, data.train[:3], algorithm

    yield loaded
    torch.set_num_threads(1)


def test_smollm2_in_its_own_dtype_is_sampled_and_trained_on_the_fast_paths(load, logged):
    """Rounding in bfloat16 moves log-probabilities of single tokens by half a nat."""
    policy, _, algorithm = load("auto", "adapter.layers=last_third")
    assert policy.causal_lm.dtype == torch.bfloat16
    algorithm.adapter.attach(policy, 4, 0)
    assert algorithm.rollout.fitting(policy) is algorithm.rollout
    assert isinstance(algorithm.rollout, Fast)
    assert can_pack(policy) is None
    assert logged == []


def test_smollm2_in_float32_has_greedy_rollouts_of_generate_and_packed_log_probs_of_the_plain_path(load):
    policy, prompts, algorithm = load("float32", "rollout.max_new_tokens=24")
    with torch.no_grad():
        rollout = algorithm.rollout.generate(policy, Request(prompts, 1, greedy=True), stream(0, "x"))
        for row, prompt in enumerate(prompts):
            ids = torch.tensor([prompt.ids])
            expected = policy.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False
            )[0, len(prompt.ids) :]
            assert rollout.completion_ids[row, : int(rollout.lengths[row])].tolist() == expected.tolist()
        drawn = algorithm.rollout.generate(policy, Request(prompts, 3), stream(1, "x"))
        rows = torch.arange(9)
        plain = token_log_probs(policy, drawn, rows, drawn.mask, 1.0)
        torch.testing.assert_close(drawn.log_probs, plain, atol=1e-4, rtol=1e-5)
        packed = packed_log_probs(policy, drawn, rows, drawn.mask, 1.0)
        torch.testing.assert_close(packed, plain, atol=1e-4, rtol=1e-5)


def test_smollm2_without_some_layers_samples_as_a_model_that_never_had_them(load):
    policy, prompts, algorithm = load("float32", "rollout.max_new_tokens=16", "layer_skip=r10")
    left_out = algorithm.layer_skip.choose(policy.depth, stream(0, "layer_skip"))
    assert len(left_out) == 3  # of 30
    with without_layers(policy, left_out):
        rollout = algorithm.rollout.generate(policy, Request(prompts, 3), stream(1, "x"))
    with torch.no_grad():
        rows = torch.arange(9)
        # row by row: with padding, the plain path differs from itself by 3e-4 on some processors; so may fused products
        part = shallower(policy, left_out)
        plain = torch.cat([token_log_probs(part, rollout, row, rollout.mask[row], 1.0) for row in rows.split(1)])
        whole = token_log_probs(policy, rollout, rows, rollout.mask, 1.0)
    torch.testing.assert_close(rollout.log_probs, plain, atol=3e-4, rtol=1e-5)
    assert float((rollout.log_probs - whole).abs().max()) > 0.1


@pytest.mark.full
def test_smollm2_after_a_rank_update_computes_the_same_and_exports_it(load, tmp_path):
    policy, prompts, algorithm = load("float32", "adapter=l1ra")
    adapter = algorithm.adapter.attach(policy, 4, 0)
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
    assert float((before - before_closing).abs().max()) > 1e-2  # the closed gates had an effect
    assert float((after - before).norm() / before.norm()) < 1e-5
    torch.testing.assert_close(after, before, atol=1e-3, rtol=0)  # float32, of logits up to 30
    assert len(set(adapter.ranks().values())) > 2
    assert sum(adapter.ranks().values()) == adapter.budget == 4 * 210
    adapter.export(tmp_path)
    plain = load("float32")[0].model
    with torch.no_grad():
        exported = PeftModel.from_pretrained(plain, tmp_path)(input_ids=ids).logits
    torch.testing.assert_close(exported, after, atol=1e-5, rtol=0)


QWEN2 = (  # the chat template of Qwen2-1.5B, with the system message as an argument
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n' + system + '<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def write_variant(source: Path, folder: Path, name: str) -> Path:
    """Write a copy of the model as somebody else would have saved it, and return its folder."""
    model = AutoModelForCausalLM.from_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    if name == "end of text as EOS":  # as in Qwen2 base models: the template still ends turns with <|im_end|>
        tokenizer.eos_token = "<|endoftext|>"
        model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    if name.startswith("template"):
        system = SMOLLM2_SYSTEM if name.endswith("with its own system message") else "You are a helpful assistant"
        tokenizer.chat_template = QWEN2.replace("system +", f"'{system}' +")
    if name == "float16":
        model.half()
    if name == "float32":
        model.float()
    if name == "an added token":
        tokenizer.add_tokens(["<think>"])
        model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder, max_shard_size="50MB" if name == "sharded" else "5GB")
    tokenizer.save_pretrained(folder)
    return folder


VARIANTS = (
    "end of text as EOS",
    "template of Qwen2 with its own system message",
    "sharded",
    "float32",
    "an added token",
)


QUESTIONS = ("What is the capital of France?", "Repeat: cat", "What is 2+2?", "Hi")  # the answers are short


@pytest.mark.full
def test_smollm2_saved_in_another_way_writes_the_same_completions(smollm2, tmp_path):
    def completions(folder: Path) -> list[str]:
        config = composed(f"model.path={folder}", "rollout.max_new_tokens=16")
        policy = load_policy(config.model, torch.device("cpu"), "float32")
        prompts = [encode_prompt(policy, Problem(text, "", ""), text) for text in QUESTIONS]
        engine = Algorithm.build(config).rollout
        rollout = engine.generate(policy, Request(prompts, 1, greedy=True), stream(0, "x"))
        assert rollout.ended.all()
        return decode(policy, rollout, prompts)

    expected = completions(smollm2)
    assert expected[0] == "The capital of France is Paris."
    for number, name in enumerate(VARIANTS):
        assert completions(write_variant(smollm2, tmp_path / str(number), name)) == expected, name

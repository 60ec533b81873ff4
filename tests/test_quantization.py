"""Quantized base weights, with the real bitsandbytes on the CPU: weights, products, gradients, rollouts, whole runs."""

import copy
import json
import logging
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from rlsparse.algorithm import Algorithm
from rlsparse.components.task import load_task
from rlsparse.config.schema import ConfigError
from rlsparse.execution.evaluate_model import evaluate
from rlsparse.execution.preflight import identity_of, preflight
from rlsparse.execution.run_once import Process
from rlsparse.model import quantization
from rlsparse.model.cache import ModelCache
from rlsparse.model.loading import load_policy
from rlsparse.model.packing import can_pack, packed_log_probs
from rlsparse.model.policy import Policy, encode_prompt, token_log_probs
from rlsparse.model.quantization import dequantized, is_quantized
from rlsparse.model.source import EMBEDDED
from rlsparse.rollout import Request
from rlsparse.rollout import prepacked as prepacking
from rlsparse.rollout.fast import Fast
from rlsparse.run import run
from rlsparse.runtime.rng import stream
from rlsparse.storage.run_folder import RunFolder
from tests.conftest import built, composed
from tests.test_evaluate import composed_evaluation
from tests.test_rollout import prompts

pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: make test-quantization")
CPU = torch.device("cpu")
KINDS = ("nf4", "int8")
SHORT = (
    *("train.steps=2", "train.prompts_per_step=4", "train.group_size=4", "train.checkpoint_every=1"),
    *("eval.max_rows=8", "eval.samples=1", "tracker=none"),
)
# the 16 values of NF4: appendix E of Dettmers et al. 2023 (2305.14314)
CODE = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)


def load(kind: str, dtype: str, *overrides: str) -> Policy:
    return load_policy(composed(f"model.quantization={kind}", *overrides).model, CPU, dtype)


once = cache(load)
algorithm = cache(built)


def loaded(kind: str, dtype: str = "float32") -> Policy:
    """A fresh copy of the embedded policy with quantized weights."""
    return copy.deepcopy(once(kind, dtype))


def with_adapter(policy: Policy, *overrides: str):
    """Put an adapter of rank 4 with random matrices into the model of a policy and return it."""
    adapter = algorithm(*overrides).adapter.attach(policy, 4, 0)
    generator = stream(1, "adapter")
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return adapter


def quantized_modules(model: nn.Module) -> dict[str, nn.Module]:
    kinds = ("Linear4bit", "Linear8bitLt")
    return {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__ in kinds and "peft" not in type(module).__module__
    }


def decoded(linear) -> Tensor:
    """The weight of a quantized module in float32, by the formulas of the papers."""
    if type(linear).__name__ == "Linear8bitLt":
        scale = linear.weight.SCB if linear.weight.SCB is not None else linear.state.SCB  # (out,)
        return linear.weight.data.float() * scale[:, None] / 127
    state = linear.weight.quant_state
    # double quantization: 8-bit scales of 256 blocks share a scale of their own, and all share an offset
    second = state.state2.absmax.repeat_interleave(256)[: state.absmax.numel()]
    scale = state.state2.code[state.absmax.long()] * second + state.offset  # (blocks,)
    bytes_ = linear.weight.data.flatten().long()
    values = CODE[torch.stack([bytes_ >> 4, bytes_ & 15], dim=1).flatten()]  # the high half of a byte comes first
    return (values * scale.repeat_interleave(64)).view(linear.out_features, linear.in_features)


def float_copy(policy: Policy) -> Policy:
    """The same policy with the decoded weights in ordinary modules."""
    plain = loaded("off", str(policy.causal_lm.dtype).removeprefix("torch."))
    for name, module in quantized_modules(policy.causal_lm).items():
        plain.model.get_submodule(name).weight.data = decoded(module).to(policy.causal_lm.dtype)
    return plain


def rollout_of(policy: Policy, *overrides: str):
    engine = algorithm("rollout.max_new_tokens=12", *overrides).rollout
    return engine.generate(policy, Request(prompts(policy), 4, keep_states=True), stream(0, "x"))


def gradient_of(policy: Policy, adapter, rollout, path=token_log_probs) -> Tensor:
    """The gradient of a weighted sum of all log-probabilities, in one vector."""
    rows = torch.arange(len(rollout.lengths))
    weights = torch.randn(rollout.mask.shape, generator=stream(0, "weights"))
    for p in adapter.parameters():
        p.grad = None
    (path(policy, rollout, rows, rollout.mask, 1.0) * weights).sum().backward()
    return torch.cat([p.grad.flatten() for p in adapter.parameters()])


def assert_close_gradients(got: Tensor, expected: Tensor):
    torch.testing.assert_close(got, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_linear_modules_of_the_layers_are_quantized_and_nothing_else(kind):
    policy, plain = loaded(kind, "auto"), loaded("off")
    changed = quantized_modules(policy.model)
    assert len(changed) == 3 * 7
    assert all(".layers." in name for name in changed)
    rest = {name for name, p in policy.model.named_parameters() if p.is_floating_point()}
    assert rest == {name for name, _ in plain.model.named_parameters()} - {f"{name}.weight" for name in changed}
    assert {p.dtype for p in policy.model.parameters() if p.is_floating_point()} == {torch.bfloat16}
    assert policy.causal_lm.dtype == torch.bfloat16  # the stored weights are float32
    assert policy.model.num_parameters() == plain.model.num_parameters()
    for name, module in changed.items():
        weight = plain.model.get_submodule(name).weight.detach()
        # half of NF4's largest step, 1 - 0.696, of the largest weight of a block; half of int8's, of a row
        bound = {"nf4": 0.153, "int8": 0.5 / 127}[kind] * float(weight.abs().max())
        assert float((decoded(module) - weight).abs().max()) < bound + 2**-8 * float(weight.abs().max())


@pytest.mark.parametrize(("kind", "adapter"), [("nf4", "lora"), ("nf4", "l1ra"), ("int8", "lora")])
def test_log_probs_and_gradient_on_all_paths_equal_those_of_the_decoded_weights(kind, adapter, logged):
    policy = loaded(kind)
    reference = float_copy(policy)
    trained, expected = (with_adapter(one, f"adapter={adapter}") for one in (policy, reference))
    assert can_pack(policy) is None
    assert isinstance(algorithm().rollout.fitting(policy), Fast)
    assert len(logged) == 1
    assert "rollout.merge_adapter: off for this model" in logged[0]
    # the rollout comes first: its products without a gradient must not change what has one
    rollout = rollout_of(policy)
    assert {p.dtype for p in trained.parameters()} == {torch.float32}
    for path in (token_log_probs, packed_log_probs):
        got, there = gradient_of(policy, trained, rollout, path), gradient_of(reference, expected, rollout)
        assert_close_gradients(got, there)
    rows = torch.arange(len(rollout.lengths))
    with torch.no_grad():
        plain = token_log_probs(reference, rollout, rows, rollout.mask, 1.0)
        packed = packed_log_probs(policy, rollout, rows, rollout.mask, 1.0)
        alone = token_log_probs(policy, rollout, rows, rollout.mask, 1.0)
    for got in (rollout.log_probs, packed, alone):
        torch.testing.assert_close(got, plain, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "dtype"), [("nf4", "bfloat16"), ("nf4", "float16"), ("int8", "bfloat16")])
def test_low_precision_stays_on_the_fast_paths_and_near_the_decoded_weights(kind, dtype):
    policy = loaded(kind, dtype)
    reference = float_copy(loaded(kind))
    with_adapter(policy)
    with_adapter(reference)
    assert can_pack(policy) is None
    assert isinstance(algorithm().rollout.fitting(policy), Fast)
    rollout = rollout_of(policy)
    rows = torch.arange(len(rollout.lengths))
    with torch.no_grad():
        expected = token_log_probs(reference, rollout, rows, rollout.mask, 1.0)
    # rounding: 0.01 to 0.1 nats per token in bfloat16, see self_check.py
    assert float((rollout.log_probs - expected).abs().mean()) < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_rollout_from_dequantized_weights_equals_one_with_the_adapter_merged_into_them(kind):
    policy = loaded(kind)
    reference = float_copy(policy)
    for one in (policy, reference):
        with_adapter(one)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    modules = list(policy.model.modules())
    got = rollout_of(policy, "rollout.dequantize=true")
    merged, beside = rollout_of(reference), rollout_of(policy, "rollout.dequantize=true", "rollout.merge_adapter=false")
    for other in (merged, beside):
        assert got.completion_ids.tolist() == other.completion_ids.tolist()
        torch.testing.assert_close(got.log_probs, other.log_probs, atol=5e-5, rtol=1e-5)
    assert modules == list(policy.model.modules())
    assert all(torch.equal(p, before[name]) for name, p in policy.model.named_parameters())


def test_dequantized_weights_hold_the_adapter_and_afterwards_the_model_is_as_before_also_after_an_error():
    policy = loaded("nf4")
    adapter = with_adapter(policy)
    layer = adapter.layers["model.layers.1.self_attn.q_proj"]
    kept = layer.base_layer
    matrices = [layer.lora_B["default"].weight, layer.lora_A["default"].weight]
    expected = decoded(kept) + 2 * matrices[0] @ matrices[1]  # scale is 2

    def interrupted():
        with dequantized(policy, 0, merge=True):
            torch.testing.assert_close(layer.base_layer.weight.data, expected, atol=1e-6, rtol=1e-5)
            assert type(layer.base_layer) is nn.Linear
            assert not quantized_modules(policy.model)
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert layer.base_layer is kept
    assert not layer.merged
    assert len(quantized_modules(policy.model)) == 21


def test_kept_outputs_of_frozen_layers_come_from_the_quantized_weights_also_where_the_rollout_is_dequantized():
    policy = loaded("nf4", "bfloat16")
    with_adapter(policy, "adapter.layers=last_third")
    assert policy.first_adapted == 2
    states = [rollout_of(policy, f"rollout.dequantize={value}").frozen_states.prompt for value in ("false", "true")]
    assert torch.equal(*states)
    with dequantized(policy, 2, merge=True):
        assert {name.split(".")[4] for name in quantized_modules(policy.model)} == {"0", "1"}


@pytest.mark.skipif(not prepacking.can_prepack(), reason="no bfloat16 linear of oneDNN here")
def test_dequantized_weights_in_bfloat16_are_prepacked():
    policy = loaded("nf4", "bfloat16")
    with_adapter(policy)
    with dequantized(policy, 0, merge=True), prepacking.prepacked(policy.causal_lm):
        assert sum("forward" in vars(module) for module in policy.model.modules()) == 21 + 1  # and the output head
    with prepacking.prepacked(policy.causal_lm):
        assert sum("forward" in vars(module) for module in policy.model.modules()) == 1


@pytest.mark.parametrize("adapter", ["lora", "l1ra"])
def test_removed_adapter_leaves_the_quantized_model_as_it_was(adapter):
    policy = loaded("nf4")
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        before = policy.model(ids).logits
        model = policy.model
        trained = with_adapter(policy, f"adapter={adapter}")
        assert not torch.equal(policy.model(ids).logits, before)
        with policy.reference():
            assert torch.equal(policy.model(ids).logits, before)
        trained.remove()
        assert torch.equal(model(ids).logits, before)
    assert not any("peft" in type(module).__module__ for module in model.modules())


def test_weight_that_is_not_finite_is_refused_by_name(tmp_path):
    folder = shutil.copytree(EMBEDDED["tiny"], tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 7] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for kind in KINDS:
        with pytest.raises(ConfigError, match=r"not finite numbers: model\.layers\.1\.mlp\.up_proj"):
            load(kind, "auto", f"model.path={folder}")


def of_width(folder: Path, width: int) -> Path:
    """Write a model with random weights and this hidden size, with the tokenizer of the embedded one."""
    shutil.copytree(EMBEDDED["tiny"], folder)
    config = AutoModelForCausalLM.from_pretrained(folder).config
    config.hidden_size, config.intermediate_size, config.head_dim = width, 2 * width, width // 4
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_width_that_is_no_multiple_of_a_block_is_read_rightly_or_refused(tmp_path):
    """The AVX512 kernel of bitsandbytes 0.50.2 takes wrong scales where a row ends inside a block of 64."""
    folder = of_width(tmp_path / "model", 96)
    if not quantization._reads_back(96, torch.float32, CPU):
        with pytest.raises(
            ConfigError, match=f"model.path={folder}: bitsandbytes .* 4-bit weights of 96 columns wrong"
        ):
            load("nf4", "float32", f"model.path={folder}")
        return
    policy = load("nf4", "float32", f"model.path={folder}")
    for module in quantized_modules(policy.model).values():
        torch.testing.assert_close(quantization.dequantized_weight(module), decoded(module), atol=1e-6, rtol=1e-5)


def test_kernel_that_reads_the_scales_of_other_blocks_is_noticed(monkeypatch):
    real = quantization.bnb.functional.dequantize_4bit

    def shifted(packed, state):
        moved = copy.copy(state)
        moved.absmax = state.absmax.roll(1)
        return real(packed, moved)

    monkeypatch.setattr(quantization.bnb.functional, "dequantize_4bit", shifted)
    with pytest.raises(ConfigError, match="4-bit weights of 128 columns wrongly"):
        load("nf4", "auto")


def test_folder_that_is_quantized_already_is_read_as_it_is(tmp_path):
    policy = loaded("nf4", "auto")
    policy.model.save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    words = (f"model.path={tmp_path}", "tracker=none")
    preflight([composed(*words)])
    preflight([composed(*words, "rollout.dequantize=true")])
    again = load_policy(composed(*words).model, CPU, "auto")
    assert is_quantized(again.model)
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        assert torch.equal(again.model(ids).logits, policy.model(ids).logits)
    # here, too, a product without a gradient must not take it from later ones
    trained = with_adapter(again)
    rollout = rollout_of(again)
    assert float(gradient_of(again, trained, rollout).reshape(-1).abs().max()) > 0
    expected = with_adapter(policy)
    torch.testing.assert_close(
        gradient_of(again, trained, rollout), gradient_of(policy, expected, rollout), atol=0, rtol=0
    )
    with pytest.raises(
        ConfigError, match=f"model.quantization=nf4: model.path={tmp_path} holds weights that are quant"
    ):
        preflight([composed(*words, "model.quantization=nf4")])


def folder_of(config) -> RunFolder:
    (identity,) = preflight([config]).identities
    return RunFolder(Path(config.runs_dir) / config.experiment.name / identity.id)


def test_run_on_quantized_weights_resumes_byte_for_byte_and_shares_the_model_with_the_next(tmp_path, interrupt_after):
    words = ("model.quantization=nf4", *SHORT, "algorithm=tspmo", "kl=on")
    whole, cut = (composed(*words, f"runs_dir={tmp_path / name}") for name in ("whole", "cut"))
    process = Process(ModelCache())
    run(whole, process=process)
    interrupt_after(1, lambda: run(cut, process=process))
    run(cut, process=process)
    files = [(folder_of(c).adapter / "adapter_model.safetensors").read_bytes() for c in (whole, cut)]
    assert files[0] == files[1]
    assert folder_of(whole).answers.read_bytes() == folder_of(cut).answers.read_bytes()


def with_peft_alone(kind: str, adapter: Path) -> PeftModel:
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    bits = BitsAndBytesConfig(**(four if kind == "nf4" else {"load_in_8bit": True}), bnb_4bit_compute_dtype="float32")
    base = AutoModelForCausalLM.from_pretrained(EMBEDDED["tiny"], quantization_config=bits, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter).eval()
    for module in quantized_modules(model).values():  # on this device, bitsandbytes rounds more in evaluation mode
        module.training = True
    return model


@pytest.mark.parametrize(("kind", "dequantize"), [("nf4", "false"), ("int8", "true")])
def test_exported_adapter_with_peft_alone_on_the_same_base_gives_the_answers_of_the_run(
    kind, dequantize, tmp_path, tiny
):
    words = (f"model.quantization={kind}", f"rollout.dequantize={dequantize}", "dtype=float32")
    benchmarks = ("eval.benchmarks=[word_problems]", "eval.benchmark_rows=6", "eval.samples=1")
    config = composed(*SHORT, *words, *benchmarks, "train.lr=1e-2", f"runs_dir={tmp_path}")
    summary = run(config)
    folder = folder_of(config)
    about = json.loads((folder.adapter / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == str(EMBEDDED["tiny"])
    model, task = with_peft_alone(kind, folder.adapter), algorithm().task
    rows = [json.loads(line) for line in folder.answers.read_text().splitlines()]
    last = [row for row in rows if (row["step"], row["benchmark"]) == (2, "held_out")]
    answers = {row["gold"]: row["greedy_answer"] or "" for row in last}
    assert len(answers) == 8
    for problem in load_task(task).test[:8]:
        ids = torch.tensor([encode_prompt(tiny, problem, task.prompt_text(problem.question)).ids])
        out = model.generate(input_ids=ids, max_new_tokens=config.rollout["max_new_tokens"], do_sample=False)
        text = tiny.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert text.split("=")[-1].strip() == answers[problem.answer]
    evaluated = evaluate(
        composed_evaluation(*words, *benchmarks, f"adapter_path={folder.adapter}", f"runs_dir={tmp_path}")
    )
    for key in ("accuracy_greedy", "accuracy_sampled"):
        found = evaluated["benchmarks"]["word_problems"]["final"][key]
        assert found == summary["benchmarks"]["word_problems"]["final"][key]


def test_id_of_a_run_counts_quantization_and_dequantized_rollouts_only_where_they_are_on():
    def identity(*overrides: str) -> str:
        config = composed(*overrides)
        return identity_of(config, Algorithm.build(config), "cpu").id

    assert "dequantize" not in algorithm().rollout.identity(lambda _: "")
    assert algorithm("rollout.dequantize=true").rollout.identity(lambda _: "")["dequantize"] is True
    words = ("model.quantization=off", "model.quantization=nf4", "model.quantization=int8")
    ids = [identity(word) for word in words] + [identity("model.quantization=nf4", "rollout.dequantize=true")]
    assert ids[0] == identity()
    assert len(set(ids)) == 4


def test_bad_input_is_refused_before_weights_are_loaded(tmp_path, monkeypatch):
    def refusal(*overrides: str) -> str:
        with pytest.raises(ConfigError) as raised:
            preflight([composed("tracker=none", *overrides)])
        return str(raised.value)

    policy = loaded("off")
    with_adapter(policy).export(tmp_path)
    adapter = refusal("model.quantization=nf4", f"model.path={tmp_path}")
    assert adapter.startswith(
        f"model.quantization=nf4: model.path={tmp_path} is an adapter, which would be merged into"
    )
    assert f"give its base model, {EMBEDDED['tiny']}" in adapter
    assert refusal("model.quantization=nf4", "adapter=full").startswith("model.quantization=nf4: adapter=full")
    assert refusal("model.quantization=nf4", "model=scratch").startswith("model=scratch")
    assert refusal("model.quantization=fp4").startswith("model.quantization=fp4")
    assert refusal("rollout.dequantize=true").startswith("rollout.dequantize=true: the weights of this model are not")
    monkeypatch.setattr(quantization, "bnb", None)  # as if it were not installed
    for kind in KINDS:
        expected = f'model.quantization={kind}: bitsandbytes is not installed; pip install "rlsparse[quantization]"'
        assert refusal(f"model.quantization={kind}") == expected
    preflight([composed("tracker=none")])


def test_messages_of_bitsandbytes_that_concern_nobody_are_silent_and_others_are_not():
    for name, noise in (
        ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward from kernels-community: %s."),
        ("bitsandbytes.autograd._functions", "MatMul8bitLt: inputs will be cast from %s to float16"),
    ):
        logger = logging.getLogger(name)
        assert not logger.filter(logger.makeRecord(name, logging.WARNING, "", 0, noise, ("x",), None))
        assert logger.filter(logger.makeRecord(name, logging.WARNING, "", 0, "bitsandbytes is broken", (), None))

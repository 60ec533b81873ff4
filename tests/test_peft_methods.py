"""The adapters of peft: its keys and refusals, equal paths, export, resume, and the methods with a training of their own."""

import copy
import json
import re
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlsparse.algorithm import Algorithm
from rlsparse.batch import Problem
from rlsparse.components.adapter import Adapter
from rlsparse.components.adapter.adalora import AdaLora, Triplets
from rlsparse.components.adapter.peft_method import PeftMethod
from rlsparse.components.adapter.peft_settings import METHODS, linear_methods
from rlsparse.components.component import build
from rlsparse.components.task import load_task
from rlsparse.config.compose import config_dir, times
from rlsparse.config.schema import Config, ConfigError
from rlsparse.execution.preflight import preflight
from rlsparse.execution.run_once import Process
from rlsparse.model.cache import ModelCache
from rlsparse.model.integrity import probe
from rlsparse.model.loading import outline
from rlsparse.model.packing import can_pack, packed_log_probs
from rlsparse.model.policy import Policy, encode_prompt, token_log_probs
from rlsparse.model.source import EMBEDDED
from rlsparse.rollout import Request
from rlsparse.run import run
from rlsparse.runtime.rng import stream
from rlsparse.storage.run_folder import RunFolder
from tests.conftest import built, composed
from tests.test_objective import assert_same, gradient

PEFT = sorted(
    file.stem
    for file in Path(config_dir(), "adapter").glob("*.yaml")
    if "peft_method.PeftMethod" in file.read_text() and file.stem != "peft"
)
NAMED = [*PEFT, "adalora", "lora_plus"]
IDS = torch.tensor([[5, 6, 7, 8, 9], [11, 3, 12, 4, 13]])
# every completion is wrong at first, which has an advantage here
FEW = ("algorithm=reinforce", "reward=signed", "train.prompts_per_step=2", "train.group_size=2", "task.train_rows=16")
SHORT = (*FEW, "rollout.max_new_tokens=12", "eval.max_rows=4", "eval.samples=1", "tracker=none")


@cache
def node(option: str) -> dict[str, Any]:
    """Return the keys of a yaml file at rank 4, without Hydra, which takes longer than most tests."""
    known = {"lora_rank": 4, "model": {"lr": 1e-3}, "adapter": OmegaConf.load(f"{config_dir()}/adapter/{option}.yaml")}
    if option == "peft":
        known["adapter"]["method"] = "LORA"
    whole: Any = OmegaConf.to_container(OmegaConf.create(known), resolve=True)
    return whole["adapter"]


def component(option: str, settings: dict[str, Any] | None = None, **changes: Any) -> Any:
    """Return an adapter with other values of some keys."""
    values = copy.deepcopy(node(option))
    if settings is not None:
        values["settings"] |= settings
    return build("adapter", {**values, **changes}, Adapter)


def attached(policy: Policy, option: str, settings: dict[str, Any] | None = None, seed: int = 0, **changes: Any) -> Any:
    return component(option, settings, **changes).attach(policy, 4, seed)


@torch.no_grad()
def move(adapter: Any, share: float = 0.5) -> None:
    """Move all parameters, by less than the noise of the self-checks, so that the adapter changes the model."""
    start = [one.detach().clone() for one in adapter.parameters()]
    with adapter.perturbed():
        noisy = [one.detach().clone() for one in adapter.parameters()]
    generator = torch.Generator().manual_seed(7)
    for one, first, second in zip(adapter.parameters(), start, noisy, strict=True):
        if torch.equal(first, second):  # LoRA needs no self-checks
            second = first + 0.1 * torch.randn(first.shape, generator=generator)
        one.copy_(first.lerp(second, share))


@cache
def rollout() -> Any:
    return built().rollout


@cache
def short(*overrides: str) -> Config:
    return composed(*SHORT, *overrides)


def config_of(option: str, folder: Path, *overrides: str, **changes: Any) -> Config:
    config = copy.deepcopy(short(*overrides))
    config.runs_dir, config.adapter = str(folder), {**node(option), **changes}
    return config


def ran(config: Config) -> RunFolder:
    run(config)
    (folder,) = (Path(config.runs_dir) / config.experiment.name).glob("*-s0-*")
    return RunFolder(folder)


# --- every named option --------------------------------------------------------------------------------------------


RELATED = {"rslora", "rank1", "olora", "loha", "lokr", "hra", "randlora", "tinylora"}  # others cover their code paths
every_option = pytest.mark.parametrize("option", [one for one in NAMED if one not in RELATED])


@every_option
def test_rollout_packed_path_and_frozen_layers_of_a_moved_adapter_equal_the_plain_path(tiny, option):
    """On the last of three layers: completions are sampled merged, and scored from the kept states of the other two."""
    adapter = attached(tiny, option, layers="last_third")
    start = probe(tiny.model)
    move(adapter)
    assert float((probe(tiny.model) - start).abs().mean()) > 0.01 * float(start.std())  # it changes the model
    assert can_pack(tiny) is None
    engine = replace(rollout(), max_new_tokens=8)
    assert engine.fitting(tiny) is engine
    assert tiny.first_adapted == 2
    prompts = [encode_prompt(tiny, Problem(q, "", ""), q) for q in ("57*4=", "12*3=")]
    sampled = engine.generate(tiny, Request(prompts, 3, keep_states=True), stream(0, "x"))
    assert sampled.frozen_states is not None
    rows, weights = torch.arange(6), torch.randn(6, 8, generator=torch.Generator().manual_seed(4))
    results = []
    for path in (token_log_probs, packed_log_probs):
        tiny.model.zero_grad()
        log_probs = path(tiny, sampled, rows, sampled.mask, 1.0)  # (6, T)
        (log_probs * weights[:, : log_probs.shape[1]]).sum().backward()
        results.append((log_probs.detach(), gradient(adapter)))
    (plain, plain_gradient), (packed, packed_gradient) = results
    torch.testing.assert_close(sampled.log_probs, plain, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(packed, plain, atol=2e-5, rtol=1e-5)
    assert_same(packed_gradient, plain_gradient)


@every_option
def test_adapter_starts_as_the_base_model_and_can_be_switched_off_merged_exported_and_removed(tiny, option, tmp_path):
    base, before = tiny.model, probe(tiny.model)
    weights = {name: one.clone() for name, one in base.named_parameters()}
    adapter = attached(tiny, option)
    assert all(one.dtype == torch.float32 for one in adapter.parameters())
    torch.testing.assert_close(probe(tiny.model), before, atol=1e-4, rtol=1e-4)
    move(adapter)
    trained = [name for name, one in tiny.model.named_parameters() if one.requires_grad]
    with tiny.reference():
        assert torch.equal(probe(tiny.model), before)
    assert [name for name, one in tiny.model.named_parameters() if one.requires_grad] == trained
    beside = probe(tiny.model)
    with tiny.merged():
        torch.testing.assert_close(probe(tiny.model), beside, atol=1e-4, rtol=1e-4)
    assert torch.equal(probe(tiny.model), beside)
    adapter.export(tmp_path)
    alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(EMBEDDED["tiny"]), tmp_path).eval()
    torch.testing.assert_close(probe(alone), beside, atol=1e-4, rtol=1e-4)
    adapter.remove()
    assert torch.equal(probe(base), before)
    assert {name: one for name, one in base.named_parameters() if not torch.equal(one, weights[name])} == {}
    assert not hasattr(base, "peft_config")


@pytest.mark.parametrize("option", ["dora", "pissa", "adalora"])
def test_run_exports_an_adapter_that_peft_alone_loads_onto_the_base_with_the_same_greedy_answers(
    option, tmp_path, tiny
):
    # with two steps, AdaLoRA has one before its mask is final
    shares = {"warmup": 0.0, "final": 0.0} if option == "adalora" else {}
    config = config_of(
        option, tmp_path, "train.steps=2", "train.lr=3e-4" if option == "lora_plus" else "train.lr=3e-3", **shares
    )
    folder = ran(config)
    summary = json.loads(folder.summary.read_text())
    assert (summary["status"], summary["adapter"]["name"]) == ("finished", option)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(EMBEDDED["tiny"]), folder.adapter).eval()
    assert float((probe(model) - probe(tiny.model)).abs().max()) > 1e-4
    rows = [json.loads(line) for line in folder.answers.read_text().splitlines()]
    answers = {row["gold"]: row["greedy_answer"] for row in rows if row["step"] == 2}
    tokenizer, task = AutoTokenizer.from_pretrained(EMBEDDED["tiny"]), Algorithm.build(config).task
    for problem in load_task(task).test[:4]:
        ids = torch.tensor([encode_prompt(tiny, problem, task.prompt_text(problem.question)).ids])
        out = model.generate(input_ids=ids, max_new_tokens=12, do_sample=False, pad_token_id=tiny.pad_id)
        text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert (re.findall(r"\d+", text) or [None])[-1] == answers[problem.answer]


@pytest.mark.parametrize(
    ("option", "dtype"),
    [
        *((option, torch.float32) for option in ("dora", "pissa", "olora", "vera", "tinylora", "oft", "lora_plus")),
        *((option, torch.bfloat16) for option in ("pissa", "adalora", "randlora")),
    ],
)
def test_state_of_another_start_is_taken_over_bit_for_bit(tiny, option, dtype):
    """Weight decompositions may differ between machines, so that the state holds what was made from them."""
    tiny.model.to(dtype)
    other = copy.deepcopy(tiny)
    adapter = attached(tiny, option, seed=1)
    move(adapter)
    # places of parameters that derive from the seed are no tensors
    second = attached(other, option, seed=1 if option == "fourierft" else 2)
    second.load_state(adapter.state())
    assert torch.equal(probe(other.model), probe(tiny.model))
    assert adapter.state().keys() == second.state().keys()
    assert all(torch.equal(one, second.state()[name]) for name, one in adapter.state().items())


@pytest.mark.parametrize("option", ["pissa", "adalora"])
def test_interrupted_run_resumes_byte_for_byte(option, tmp_path, interrupt_after):
    words = ("train.steps=3", "train.checkpoint_every=1", "objective.l2=0.01", "train.lr=3e-3")
    whole, cut = (config_of(option, tmp_path / name, *words) for name in ("whole", "cut"))
    interrupt_after(2, lambda: run(cut))
    folders = [ran(whole), ran(cut)]
    files = [(folder.adapter / "adapter_model.safetensors").read_bytes() for folder in folders]
    assert files[0] == files[1]
    assert folders[0].answers.read_bytes() == folders[1].answers.read_bytes()


def test_run_after_pissa_in_the_same_process_starts_from_the_base_again(tmp_path):
    process = Process(ModelCache())
    first, second = (config_of(option, tmp_path, "train.steps=1") for option in ("pissa", "lora"))
    assert run(first, process=process)["base"] == run(second, process=process)["base"]


# --- against peft ------------------------------------------------------------------------------------------------


def steps_on(policy: Policy, adapter, lr: float, count: int = 3) -> None:
    optimizer = adapter.optimizer(lr, 0.0)
    for _ in range(count):
        optimizer.zero_grad()
        policy.model(input_ids=IDS).logits.log_softmax(dim=2)[..., 7].mean().backward()
        optimizer.step()


def test_lora_as_a_method_of_peft_is_adapter_lora_bit_for_bit(tiny):
    """Scale 2 and rank 4 are alpha 8."""
    states = []
    for option, settings in (("lora", None), ("peft", {"r": 4, "lora_alpha": 8})):
        policy = copy.deepcopy(tiny)
        adapter = attached(policy, option, settings, seed=3)
        steps_on(policy, adapter, 1e-2)
        states.append(adapter.state())
    ours, theirs = states
    for name, value in ours.items():
        key = f"base_model.model.{name[:-2]}.lora_{name[-1]}.default.weight"
        assert torch.equal(value, theirs[key]), name


@pytest.mark.parametrize("option", ["pissa", "olora"])
def test_start_from_the_weights_trains_as_in_peft_which_subtracts_it_from_the_weights(tiny, option):
    reference = copy.deepcopy(tiny)
    adapter = attached(tiny, option)
    config = component(option).peft_config(reference.model, 0)
    torch.manual_seed(0)
    model = get_peft_model(reference.model, config).eval()
    weight = "model.layers.0.self_attn.q_proj"
    theirs = model.get_base_model().get_submodule(weight).base_layer.weight
    ours = tiny.causal_lm.get_submodule(weight).base_layer.weight
    assert float((theirs - ours).abs().max()) > 1e-2  # a part of it is gone there
    reference.model = model
    trained = [one for one in model.parameters() if one.requires_grad]
    steps_on(tiny, adapter, 1e-3)
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    steps_on(reference, type("", (), {"optimizer": lambda self, *_: optimizer})(), 1e-3)
    for one, other in zip(adapter.parameters(), trained, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(probe(tiny.model), probe(model), atol=1e-3, rtol=1e-3)


def test_export_of_pissa_is_a_lora_of_twice_the_rank_with_the_scale_of_each_module(tiny, tmp_path):
    """rsLoRA scales by alpha / sqrt(r): 8 / sqrt(4) = 4 and, with the pattern, 6 / sqrt(2) = 4.24."""
    patterns = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 6}}
    adapter = attached(tiny, "pissa", {"lora_alpha": 8, "use_rslora": True, **patterns})
    move(adapter)
    adapter.export(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["init_lora_weights"], config["r"], config["rank_pattern"]) == (True, 8, {"q_proj": 4})
    assert config["lora_alpha"] / 8**0.5 == pytest.approx(4)
    assert config["alpha_pattern"]["q_proj"] / 4**0.5 == pytest.approx(6 / 2**0.5)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(EMBEDDED["tiny"]), tmp_path).eval()
    torch.testing.assert_close(probe(model), probe(tiny.model), atol=1e-4, rtol=1e-4)
    assert adapter.ranks()["model.layers.0.self_attn.q_proj"] == 2
    assert tiny.model.peft_config["default"].r == 4


def test_l2_draws_towards_the_start_and_not_to_zero(tiny):
    """d/dθ of 0.5 Σ(θ − θ₀)² is θ − θ₀: 0 before the first step, and 0.25 where every scale of IA3 was moved by it."""
    adapter = attached(tiny, "ia3")
    adapter.keep_start()
    assert adapter.penalty(0.5) == 0
    count = sum(one.numel() for one in adapter.parameters())
    with torch.no_grad():
        for one in adapter.parameters():
            assert torch.equal(one, torch.ones_like(one))
            one.add_(0.25).grad = None
    assert adapter.penalty(0.5) == pytest.approx(0.5 * count * 0.25**2)
    assert all(torch.equal(one.grad, torch.full_like(one, 0.25)) for one in adapter.parameters())
    assert [group["l2"] for group in adapter.optimizer(1.0, 0.0).param_groups] == [False]


def test_perturbed_changes_the_model_and_restores_it_bit_for_bit(tiny):
    adapter = attached(tiny, "dora")
    before, state = probe(tiny.model), adapter.state()
    with adapter.perturbed():
        assert float((probe(tiny.model) - before).abs().mean()) > 0.2 * float(before.std())
    assert torch.equal(probe(tiny.model), before)
    assert all(torch.equal(one, state[name]) for name, one in adapter.state().items())


def test_seeds_of_peft_derive_from_the_seed_of_the_run_unless_given(tiny):
    def key(seed: int, **settings: int) -> int:
        return component("vera", settings).peft_config(tiny.model, seed).projection_prng_key

    assert key(3) == 3
    assert key(2**63 + 5) == 5
    assert key(3, projection_prng_key=9) == 9


def test_adapter_that_cannot_be_merged_stays_beside_the_weights_and_says_so(tiny, logged):
    adapter = attached(tiny, "peft", method="BEFT")
    assert tiny.merged is nullcontext
    assert any(line.startswith("rollout: not merged into the weights for adapter=beft: ") for line in logged)
    move(adapter)
    with adapter.perturbed():
        engine = rollout()
        assert engine.fitting(tiny) is engine


def test_adapter_that_does_not_start_as_the_base_model_is_warned_of(tiny, logged):
    attached(tiny, "fourierft", {"init_weights": False})
    assert any("adapter=fourierft: with these settings the adapter changes the model before" in line for line in logged)


def test_method_with_which_tokens_depend_on_each_other_is_refused(tiny):
    """The router of Lily reads the mean over all tokens of a batch."""
    adapter = PeftMethod(name=None, method="LILY", settings={}, lr=1.0, target_modules="all-linear", layers="all")
    with pytest.raises(ConfigError, match=r"adapter.method=LILY: predictions depend on later tokens or other rows"):
        adapter.attach(tiny, 4, 0)


def test_parameters_are_counted_without_weights(tiny):
    skeleton = outline(composed().model)
    for option in ("pissa", "adalora", "ia3"):
        adapter = component(option)
        count = sum(one.numel() for one in adapter.attach(copy.deepcopy(tiny), 4, 0).parameters())
        assert adapter.count(skeleton, 4) == count
    assert not any(type(module).__module__.startswith("peft") for module in skeleton.model.modules())


# --- LoRA+ -------------------------------------------------------------------------------------------------------


def test_lora_plus_steps_as_the_optimizer_of_peft(tiny):
    from peft.optimizers import create_loraplus_optimizer

    states = []
    for theirs in (False, True):
        policy = copy.deepcopy(tiny)
        adapter = attached(policy, "lora_plus", lr_ratio=5.0)
        optimizer = adapter.optimizer(1e-3, 0.0)
        assert [(group["lr"], group["initial_lr"]) for group in optimizer.param_groups] == [(1e-3, 1e-3), (5e-3, 5e-3)]
        if theirs:
            options = {"lr": 1e-3, "loraplus_lr_ratio": 5, "weight_decay": 0.0}
            optimizer = create_loraplus_optimizer(policy.model, torch.optim.AdamW, **options)
        steps_on(policy, type("", (), {"optimizer": lambda self, *_, one=optimizer: one})(), 1e-3)
        states.append(adapter.state())
    assert all(torch.equal(one, states[1][name]) for name, one in states[0].items())


# --- AdaLoRA -----------------------------------------------------------------------------------------------------

STEPS = 10


def adalora(policy: Policy) -> tuple[AdaLora, Triplets]:
    """Return AdaLoRA that masks at the steps 4 and 6 of 10, and for the last time at step 7."""
    found = component("adalora", {"deltaT": 2}, warmup=0.2, final=0.3)
    adapter = found.attach(policy, 4, 0)
    assert isinstance(found, AdaLora)
    assert isinstance(adapter, Triplets)
    return found, adapter


def test_adalora_follows_the_training_loop_of_peft(tiny):
    """There the penalty is part of the loss of its forward pass, and ``update_and_allocate`` comes after each step."""
    reference = copy.deepcopy(tiny)
    found, adapter = adalora(tiny)
    config = found.peft_config(reference.model, 0)
    config.total_step, config.tinit, config.tfinal = STEPS, 2, 3
    torch.manual_seed(0)
    model = get_peft_model(reference.model, config).eval()
    theirs = [one for one in model.parameters() if one.requires_grad]
    ours = adapter.parameters()
    optimizers = [adapter.optimizer(1e-2, 0.0), torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.0)]
    moved = []
    for step in range(1, STEPS + 1):
        for one in optimizers:
            one.zero_grad()
        loss = tiny.causal_lm(input_ids=IDS, labels=IDS).loss
        loss.backward()
        total = loss.item() + adapter.penalty(0.0)
        expected = model.base_model(input_ids=IDS, labels=IDS).loss
        expected.backward()
        assert total == pytest.approx(expected.item(), rel=1e-5)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4)
            one.grad.copy_(other.grad)  # Adam would enlarge the rounding
        for one in optimizers:
            one.step()
        moved.append(adapter.after_step(step, STEPS))
        model.base_model.update_and_allocate(step)
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, other)
    assert [step for step, row in enumerate(moved, 1) if "adapter/pruned" in row] == [4, 6, 7]
    totals = [int(row["adapter/rank_total"]) for row in moved]
    # 21 modules, 6 triplets each at first and 4 at the end: 126 − 84 = 42 leave, by the cube of the rest of the way
    assert totals == [126] * 3 + [int(42 * 0.6**3 + 84)] * 2 + [84 + int(42 * 0.2**3)] + [84] * 4
    assert adapter.budget == 126
    left = sum(row.get("adapter/pruned", 0) - row.get("adapter/reassigned", 0) for row in moved)
    assert left == 126 - 84
    assert sum(int((layer.lora_E["default"] != 0).sum()) for layer in adapter.layers.values()) == 84


def learn(policy: Policy, adapter: Triplets, steps: range, idle: tuple[int, ...] = ()) -> None:
    optimizer = adapter.optimizer(1e-2, 0.0)
    for step in steps:
        if step not in idle:
            optimizer.zero_grad()
            policy.causal_lm(input_ids=IDS, labels=IDS).loss.backward()
            adapter.penalty(0.0)
            optimizer.step()
        adapter.after_step(step, STEPS)


def test_step_without_an_update_leaves_the_importance_as_it_was(tiny):
    other = copy.deepcopy(tiny)
    _, adapter = adalora(tiny)
    learn(tiny, adapter, range(1, 3))
    before = adapter.state()
    adapter.after_step(3, STEPS)  # the gradients of step 2 are still there
    assert all(torch.equal(one, before[name]) for name, one in adapter.state().items())
    _, still = adalora(other)
    learn(other, still, range(1, 5), idle=(1, 2, 3, 4))
    assert set(still.ranks().values()) == {6}  # a mask needs an importance


def test_importance_and_mask_are_in_the_state(tiny):
    other = copy.deepcopy(tiny)
    _, adapter = adalora(tiny)
    learn(tiny, adapter, range(1, 6))
    _, second = adalora(other)
    second.load_state(adapter.state())
    assert second.ranks() == adapter.ranks()
    assert sum(second.ranks().values()) < 126
    for policy, one in ((tiny, adapter), (other, second)):
        learn(policy, one, range(6, STEPS + 1))
    assert all(torch.equal(value, second.state()[name]) for name, value in adapter.state().items())
    learned = adapter.state()
    assert not any(name.startswith("sensitivity") for name in learned)  # of no use after the last mask
    assert sum(int(one.sum()) for name, one in learned.items() if name.startswith("mask.")) == 84


@pytest.mark.parametrize("last", [1, 5, STEPS])
def test_exported_triplets_load_with_peft_alone_with_the_rank_of_each_module(tiny, tmp_path, last):
    _, adapter = adalora(tiny)
    learn(tiny, adapter, range(1, last + 1))
    adapter.export(tmp_path)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(EMBEDDED["tiny"]), tmp_path).eval()
    torch.testing.assert_close(probe(model), probe(tiny.model), atol=1e-4, rtol=1e-4)  # fewer columns in a product
    layers = {name: model.get_base_model().get_submodule(name) for name in adapter.layers}
    kept = {name: int((layer.lora_E["default"] != 0).sum()) for name, layer in adapter.layers.items()}
    assert {name: len(layer.lora_E["default"]) for name, layer in layers.items()} == kept
    adapter.export(tmp_path / "again")
    assert (tmp_path / "again" / "adapter_config.json").read_text() == (tmp_path / "adapter_config.json").read_text()


def test_constant_of_adalora_is_not_trained_in_bfloat16(tiny):
    tiny.model.bfloat16()
    _, adapter = adalora(tiny)
    assert not any("ranknum" in name for name, one in tiny.model.named_parameters() if one.requires_grad)
    assert sum(one.numel() for one in adapter.parameters()) == sum(
        rank * (layer.in_features + layer.out_features + 1)
        for rank, layer in zip(adapter.ranks().values(), adapter.layers.values(), strict=True)
    )


@pytest.fixture(scope="module")
def skeleton() -> Any:
    return outline(composed().model).model


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "settings", "message"),
    [
        ("dora", {"rr": 4}, r"adapter.settings.rr=4: LORA of peft has no such key \(did you mean r\?\); it has"),
        ("dora", {"r": 2.5}, "adapter.settings.r=2.5: must be a whole number"),
        ("dora", {"r": "x"}, "adapter.settings.r=x: must be a whole number"),
        ("dora", {"r": 0}, "adapter.settings.r=0: must be at least 1"),
        ("dora", {"r": 200}, "adapter.settings.r=200: .* at most rank 128; lower it"),
        ("dora", {"use_dora": 1}, "adapter.settings.use_dora=1: must be true or false"),
        ("dora", {"lora_dropout": 0.1}, "adapter.settings.lora_dropout=0.1: completions are sampled without"),
        ("dora", {"bias": "all"}, "adapter.settings.bias=all: biases of the base model would be trained"),
        ("dora", {"init_lora_weights": "eva"}, "init_lora_weights=eva: its start values need data or gradients"),
        ("dora", {"init_lora_weights": "loftq"}, "init_lora_weights=loftq: .* take model.quantization=nf4"),
        ("dora", {"init_lora_weights": "svd"}, "init_lora_weights=svd: must be true, or one of gaussian, "),
        ("dora", {"target_modules": ["q"]}, "adapter.settings.target_modules=.*: give adapter.target_modules=..."),
        ("dora", {"layers_to_transform": [1]}, "adapter.settings.layers_to_transform=.*: give adapter.layers=..."),
        ("pissa", {"use_dora": True}, "adapter.settings.init_lora_weights=pissa_niter_16: is for plain LoRA"),
        ("pissa", {"r": 100}, "adapter.settings.r=100: .* narrowest adapted module, 64; lower it"),
        ("oft", {"r": 4}, "adapter.settings.oft_block_size=32, r=4: peft refuses it: You can only specify either"),
        ("miss", {"r": 200}, r"adapter.settings.r=200: peft refuses it: `r` \(200\) must be less"),
        ("ia3", {"feedforward_modules": ["up_proj"]}, "feedforward_modules=.*: peft refuses it: .*subset"),
        ("adalora", {"tinit": 3}, "adapter.settings.tinit=3: give adapter.warmup instead"),
        ("adalora", {"beta1": 1.5}, r"adapter.settings.beta1=1.5: must be in \(0, 1\)"),
        ("adalora", {"orth_reg_weight": -1}, "adapter.settings.orth_reg_weight=-1.0: peft refuses it: "),
        ("adalora", {"init_r": 4}, "adapter.settings.init_r=4: must be above adapter.settings.target_r=4"),
        ("adalora", {"target_r": 100}, "adapter.settings.init_r=150: .* at most rank 128; lower it"),
    ],
)
def test_bad_setting_is_refused_in_one_line_without_weights(option, settings, message, skeleton):
    with pytest.raises(ConfigError, match=message) as found:
        component(option, settings).check(skeleton, 4, 40)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("option", "changes", "message"),
    [
        ("peft", {"method": "loha"}, r"adapter.method=loha: .* \(did you mean LOHA\?\); take one of ADALORA, "),
        ("peft", {"method": "POLY"}, "adapter.method=POLY: does not fit, since it needs the number of a task"),
        ("peft", {"method": "PREFIX_TUNING"}, "adapter.method=PREFIX_TUNING: puts no adapter on linear modules"),
        ("peft", {"method": "ADALORA"}, "adapter.method=ADALORA: .* take adapter=adalora"),
        ("peft", {"method": "C3A"}, "adapter.method=C3A: peft refuses it: The block size should be a factor"),
        ("adalora", {"method": "LORA"}, "adapter.method=LORA: must be ADALORA; take adapter=peft"),
        ("adalora", {"warmup": 0.5, "final": 0.5}, "adapter.warmup=0.5 adapter.final=0.5: of 40 steps they leave none"),
        ("vera", {"target_modules": ["qproj"]}, "adapter.target_modules=.* this model has no qproj; it has"),
        ("vera", {"layers": [7]}, "adapter.layers=.*this model has layers 0 to 2"),
        ("lora_plus", {"lr_ratio": 0}, "adapter.lr_ratio=0.0: must be above 0"),
    ],
)
def test_bad_key_is_refused_in_one_line_without_weights(option, changes, message, skeleton):
    with pytest.raises(ConfigError, match=message) as found:
        component(option, **changes).check(skeleton, 4, 40)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("adapter=peft adapter.method=nope", "adapter.method=nope: peft has no such method"),
        ("adapter=adalora train.steps=2", "adapter.warmup=0.1 adapter.final=0.3: of 2 steps they leave none"),
        ("adapter=adalora train.staleness=1", "train.staleness=1: .* the ranks of adapter=adalora move"),
        ("adapter=vera lora_rank=9 +adapter.settings.key=1", "adapter.settings.key=1: VERA of peft has no such key"),
    ],
)
def test_preflight_refuses_settings_of_peft(overrides, message):
    with pytest.raises(ConfigError, match=message):
        preflight([composed("tracker=none", *overrides.split())])


def test_check_of_every_option_leaves_the_model_without_weights_as_it_was(skeleton):
    before = [(name, type(module)) for name, module in skeleton.named_modules()]
    grads = [one.requires_grad for one in skeleton.parameters()]
    for option in NAMED:
        component(option).check(skeleton, 4, 100)
    assert [(name, type(module)) for name, module in skeleton.named_modules()] == before
    assert [one.requires_grad for one in skeleton.parameters()] == grads


def test_methods_that_are_left_out_are_those_of_peft_that_fit_no_linear_module_or_no_causal_model():
    from peft import PeftType

    assert set(METHODS) < set(PeftType.__members__)
    assert not set(METHODS) & set(linear_methods())
    assert {"LORA", "ADALORA", "MISS", "VERA", "LOHA", "LOKR", "OFT", "BOFT", "HRA", "IA3"} < set(linear_methods())


def test_identity_has_the_rank_in_the_settings_and_neither_label_nor_learning_rate():
    def identity(option: str, settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
        return component(option, settings, **changes).identity(lambda files: "")

    assert identity("dora", {"r": 4}, name="mine", lr=0.5) == identity("dora", {"r": 4}) != identity("dora", {"r": 8})
    assert component("vera").uses_lora_rank is component("dora").uses_lora_rank is False
    one, two = (composed("adapter=dora", f"lora_rank={rank}").adapter["settings"] for rank in (4, 8))
    assert [one["r"], one["lora_alpha"], two["r"], two["lora_alpha"]] == [4, 8, 8, 16]


def test_quantized_weights_are_for_methods_with_layers_for_them():
    fits = {option: component(option).quantization_obstacle for option in PEFT}
    assert [option for option, reason in fits.items() if reason is None] == [
        "dora",
        "randlora",
        "rank1",
        "rslora",
    ]
    assert fits["pissa"] == "adapter.settings.init_lora_weights=pissa_niter_16 takes start values from them"
    assert fits["vera"] == "peft has no layers of VERA for them"


def test_product_in_yaml_is_whole_where_it_can_be():
    assert [times(2, 4), times(1.5, 4), times(1.5, 3), times(10, 1e-3)] == [8, 6, 4.5, 0.01]
    assert [type(one) for one in (times(2, 4), times(1.5, 4))] == [int, int]

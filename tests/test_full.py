"""Full fine-tuning: gradients, the float32 values beside bfloat16 weights, base model, export and resume."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlsparse.algorithm import Algorithm
from rlsparse.batch import ScoredBatch
from rlsparse.components.adapter.full import FullWeights
from rlsparse.components.task import load_task
from rlsparse.config.schema import ConfigError
from rlsparse.execution.preflight import preflight
from rlsparse.execution.run_once import Process
from rlsparse.model.cache import ModelCache
from rlsparse.model.packing import PACKED, can_pack
from rlsparse.model.policy import PLAIN, Policy, encode_prompt, token_log_probs
from rlsparse.model.source import EMBEDDED
from rlsparse.run import run
from rlsparse.runtime.distributed import ALONE
from rlsparse.runtime.oom import MemoryLimits
from rlsparse.storage.run_folder import RunFolder
from rlsparse.training.microbatch import FitMicrobatches
from rlsparse.training.state import TrainState
from rlsparse.training.update import Updater
from tests.conftest import built, composed
from tests.test_objective import batch_for

SHORT = (
    "adapter=full",
    "train.steps=3",
    "eval.max_rows=8",
    "eval.samples=1",
    "tracker=none",
    "train.checkpoint_every=1",
)
PARTS = (
    [],
    ["adapter.target_modules=all-linear"],
    ["adapter.target_modules=[q_proj,v_proj]", "adapter.layers=last_third"],
    ["adapter.layers=[1,2]"],
)


def attached(policy: Policy, *overrides: str) -> FullWeights:
    adapter = built("adapter=full", *overrides).adapter.attach(policy, 1, 0)
    assert isinstance(adapter, FullWeights)
    return adapter


def in_dtype(tiny: Policy, dtype: torch.dtype) -> Policy:
    policy = copy.deepcopy(tiny)
    policy.model.to(dtype)
    return policy


def updater(policy: Policy, adapter: FullWeights, lr: float, path=PLAIN, *overrides: str) -> Updater:
    config = composed("adapter=full", "train.max_grad_norm=0", *overrides)
    fit = FitMicrobatches(config.train, MemoryLimits.of(64, config.train))
    optimizer = adapter.optimizer(lr, 0.0)
    return Updater(
        policy, path, optimizer, Algorithm.build(config), config.train, fit, ALONE, policy.reference, adapter.penalty
    )


def rollout_of(policy: Policy, *overrides: str) -> ScoredBatch:
    return batch_for(policy, built("adapter=full", "rollout.max_new_tokens=12", *overrides))


def loss_by_autograd(policy: Policy, batch: ScoredBatch) -> Tensor:
    """Return GRPO's loss at the first update, -sum of scale x A x pi / stop_gradient(pi), from a plain forward pass."""
    rollout, total = batch.rollout, torch.tensor(0.0)
    for row in range(len(rollout.lengths)):
        n, s = int(rollout.lengths[row]), int(rollout.prompt_lengths[row // rollout.group_size])
        ids = torch.cat([rollout.prompt_ids[row // rollout.group_size, -s:], rollout.completion_ids[row, :n]])
        logits = policy.model(input_ids=ids[None]).logits[0, s - 1 : -1].log_softmax(dim=1)  # (n, V)
        log_probs = logits.gather(1, ids[s:, None]).squeeze(1)  # (n,)
        terms = batch.scales[row, :n] * batch.advantages[row, :n] * (log_probs - log_probs.detach()).exp()
        total = total - terms.sum()
    return total


@pytest.mark.parametrize("part", PARTS, ids=["all", "all-linear", "q and v of the last layer", "two layers"])
def test_gradient_on_both_paths_equals_autograd_on_a_plain_forward_pass(tiny, part):
    policy = copy.deepcopy(tiny)
    adapter = attached(policy, *part)
    batch = rollout_of(policy)
    weights = [weight for weight in policy.model.parameters() if weight.requires_grad]
    expected = torch.autograd.grad(loss_by_autograd(policy, batch), weights)
    assert can_pack(policy) is None
    for path in (PLAIN, PACKED):
        updater(policy, adapter, 0.0, path)([batch])
        for weight, grad in zip(weights, expected, strict=True):
            torch.testing.assert_close(weight.grad, grad, atol=1e-5 * float(grad.abs().max()) + 1e-8, rtol=1e-4)


@pytest.mark.parametrize("part", PARTS[1:])
def test_step_changes_the_chosen_weights_and_no_others(tiny, part):
    policy = copy.deepcopy(tiny)
    before = {name: weight.detach().clone() for name, weight in policy.model.named_parameters()}
    adapter = attached(policy, *part)
    updater(policy, adapter, 1e-3)([rollout_of(policy)])
    changed = {name for name, weight in policy.model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == set(adapter.state())


def test_targets_choose_the_weights_that_are_trained(tiny):
    count = {
        part: len(attached(copy.deepcopy(tiny), *part.split()).parameters())
        for part in (
            "adapter.target_modules=all",
            "adapter.target_modules=all-linear",
            "adapter.target_modules=[v_proj]",  # with its bias
            "adapter.layers=[1]",
        )
    }
    # Qwen2 in 3 layers: 7 matrices, 3 biases of q, k, v and 2 norms each; embedding (tied to the head) and last norm
    assert list(count.values()) == [3 * 12 + 2, 3 * 10, 3 * 2, 12]
    policy = copy.deepcopy(tiny)
    attached(policy, "adapter.layers=last_third")
    assert policy.first_adapted == 2
    attached(policy)
    assert policy.first_adapted == 0  # the embedding changes the input of every layer


def test_small_steps_add_up_although_each_is_lost_in_the_rounding_of_bfloat16(tiny):
    """A weight of size 1 moves in bfloat16 by 2^-8 = 0.0039 at least: 8 steps of 1e-3 move it, one does not."""
    policy = in_dtype(tiny, torch.bfloat16)
    adapter = attached(policy)
    norms = [weight for name, weight in policy.model.named_parameters() if name.endswith("norm.weight")]
    at_one = [(weight.abs() > 1) & (weight.abs() < 2) for weight in norms]
    before = [weight.detach().clone() for weight in norms]
    optimizer = adapter.optimizer(1e-3, 0.0)
    moved = []
    for _ in range(8):
        for parameter in adapter.parameters():
            parameter.grad = torch.ones_like(parameter)  # Adam then moves each by the learning rate
        optimizer.step()
        moved.append(sum(int((w != b)[m].sum()) for w, b, m in zip(norms, before, at_one, strict=True)))
    assert sum(int(m.sum()) for m in at_one) > 0
    assert moved[0] == 0
    assert moved[-1] == sum(int(m.sum()) for m in at_one)
    for (name, value), weight in zip(adapter.state().items(), policy.model.parameters(), strict=True):
        assert value.dtype == torch.float32, name
        assert torch.equal(value.bfloat16(), weight)


def test_microbatches_in_bfloat16_are_summed_in_float32(tiny):
    """In bfloat16, 1 + 2^-9 is 1: the sum of 1 and four times 2^-9 would stay 1, and is 1.0078 in float32."""
    policy = in_dtype(tiny, torch.bfloat16)
    adapter = attached(policy)
    weight, precise = next(iter(policy.model.parameters())), adapter.parameters()[0]
    for size in (1.0, *[2.0**-9] * 4):
        (weight.sum() * size).backward()
    assert weight.grad is None
    assert float(precise.grad.flatten()[0]) == 1 + 4 * 2.0**-9


def test_reference_of_a_trained_model_is_the_base_model_bit_for_bit(tiny):
    policy = in_dtype(tiny, torch.bfloat16)
    adapter = attached(policy)
    batch = rollout_of(policy)
    rows = torch.arange(len(batch.rollout.lengths))
    arguments = (policy, batch.rollout, rows, batch.rollout.mask, 1.0)
    with torch.no_grad():
        before = token_log_probs(*arguments)
        adapter.keep_base()
        with torch.enable_grad():
            updater(policy, adapter, 1e-3)([batch])
        after = token_log_probs(*arguments)
        with policy.reference():
            assert torch.equal(token_log_probs(*arguments), before)
        assert torch.equal(token_log_probs(*arguments), after)
    assert float((after - before).abs().max()) > 1e-3


def test_base_that_was_not_kept_is_an_error(tiny):
    policy = copy.deepcopy(tiny)
    attached(policy)
    with pytest.raises(RuntimeError, match="keep_base"), policy.reference():
        pass


def test_l2_draws_towards_the_base_and_not_to_zero(tiny):
    """d/dθ of 0.5 Σ(θ − θ₀)² is θ − θ₀: 0 before the first step, and 0.01 where every weight was moved by 0.01."""
    policy = copy.deepcopy(tiny)
    adapter = attached(policy)
    adapter.keep_start()
    for parameter in adapter.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert adapter.penalty(0.5) == 0
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.01)
    count = sum(parameter.numel() for parameter in adapter.parameters())
    assert adapter.penalty(0.5) == pytest.approx(0.5 * count * 0.01**2, rel=1e-3)
    for parameter in adapter.parameters():
        torch.testing.assert_close(parameter.grad, torch.full_like(parameter, 0.01), atol=1e-6, rtol=0)


def folder_of(config) -> RunFolder:
    (identity,) = preflight([config]).identities
    return RunFolder(Path(config.runs_dir) / config.experiment.name / identity.id)


@pytest.mark.parametrize("algorithm", ["sgrpo", "tspmo"])
def test_exported_model_loads_with_transformers_alone_and_gives_the_same_greedy_answers(algorithm, tmp_path, tiny):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = composed(*SHORT, f"algorithm={algorithm}", f"runs_dir={tmp_path}", "train.lr=1e-3")
    summary = run(config)
    folder = folder_of(config)
    assert not folder.adapter.exists()
    assert not folder.checkpoints.exists()
    about = summary["adapter"]
    assert (about["name"], about["rank"], about["budget"]) == ("full", {}, None)
    model = AutoModelForCausalLM.from_pretrained(folder.model).eval()
    assert about["parameters"] == sum(weight.numel() for weight in model.parameters())
    base = load_file(EMBEDDED["tiny"] / "model.safetensors")
    assert not any(torch.equal(base[name], weight) for name, weight in model.named_parameters() if "layers" in name)
    tokenizer = AutoTokenizer.from_pretrained(folder.model)
    rows = [json.loads(line) for line in folder.answers.read_text().splitlines()]
    answers = {row["gold"]: row["greedy_answer"] for row in rows if row["step"] == 3}
    task = built().task
    for problem in load_task(task).test[:8]:
        ids = torch.tensor([encode_prompt(tiny, problem, task.prompt_text(problem.question)).ids])
        out = model.generate(ids, max_new_tokens=config.rollout["max_new_tokens"], do_sample=False)
        text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert text.split("=")[-1].strip() == answers[problem.answer]


@pytest.mark.parametrize(
    ("dtype", "more"),
    [("float32", ["kl=on"]), ("bfloat16", ["algorithm=tspmo", "train.staleness=1"])],
    ids=["float32, kl", "bfloat16, l2, stale"],
)
def test_interrupted_run_resumes_byte_for_byte(dtype, more, tmp_path, interrupt_after):
    overrides = (*SHORT, f"dtype={dtype}", "train.lr=1e-3", *more)
    whole, cut = (composed(*overrides, f"runs_dir={tmp_path / name}") for name in ("whole", "cut"))
    run(whole)
    interrupt_after(2, lambda: run(cut))
    run(cut)
    files = [(folder_of(c).model / "model.safetensors").read_bytes() for c in (whole, cut)]
    assert files[0] == files[1]
    assert folder_of(whole).answers.read_bytes() == folder_of(cut).answers.read_bytes()


def test_resumed_run_frees_the_tensors_of_its_checkpoint(tmp_path, interrupt_after, monkeypatch):
    config, begun = composed(*SHORT, f"runs_dir={tmp_path}"), []
    interrupt_after(1, lambda: run(config))
    start = TrainState.start.__func__
    monkeypatch.setattr(TrainState, "start", classmethod(lambda *words: begun.append(words[-1]) or start(*words)))
    run(config)
    (saved,) = begun
    assert (saved.step, saved.tensors) == (1, {})


def test_run_after_full_fine_tuning_starts_from_the_base_again(tmp_path):
    process = Process(ModelCache())
    full = composed(*SHORT, f"runs_dir={tmp_path}", "train.lr=1e-2")
    lora = composed(*SHORT, "adapter=lora", f"runs_dir={tmp_path}")
    before = run(full, process=process)["base"]
    assert run(lora, process=process)["base"] == before


def test_learning_rate_is_that_of_full_fine_tuning_unless_given():
    assert composed().train.lr == composed().model.lr
    assert composed("adapter=full").train.lr == composed().model.lr_full < composed().model.lr
    assert composed("adapter=full", "adapter.lr=0.5").train.lr == 0.5
    assert composed("adapter=full", "adapter.lr=0.5", "train.lr=0.25").train.lr == 0.25


def test_id_of_a_run_depends_neither_on_lora_rank_nor_on_the_way_the_rate_is_given():
    def identity(*overrides: str) -> str:
        return preflight([composed("tracker=none", "adapter=full", *overrides)]).identities[0].id

    assert identity("lora_rank=3") == identity()
    assert identity("adapter.lr=0.5") == identity("train.lr=0.5") != identity()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapter.target_modules=linear"], "adapter.target_modules=linear: give all, all-linear, or a list of names"),
        (["adapter.target_modules=[qproj]"], "adapter.target_modules=.* this model has no qproj; it has down_proj"),
        (["adapter.layers=[7]"], "adapter.layers=.*this model has layers 0 to 2"),
        (["adapter.layers=first"], "adapter.layers=first: give all, last_third"),
        (["model.quantization=nf4"], "model.quantization=nf4: adapter=full cannot be trained on quantized weights"),
        (["adapter=none"], "adapter=none: is for warm starts; take adapter=full"),
    ],
)
def test_bad_input_is_refused_before_weights_are_loaded(overrides, message):
    with pytest.raises(ConfigError, match=message):
        preflight([composed("tracker=none", "adapter=full", *overrides)])

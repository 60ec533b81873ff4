"""The supervised stage: it learns, writes a model that the RL stage takes, and refuses what cannot work."""

import copy
import json
import random
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from rlsparse.batch import Problem
from rlsparse.config.schema import ConfigError, NoiseConfig
from rlsparse.model.loading import load_policy
from rlsparse.model.source import ModelSource
from rlsparse.results.collect import collect
from rlsparse.run import run
from rlsparse.tracking.metrics import is_documented
from rlsparse.training.data import encode_task
from rlsparse.warm_start.noise import corrupt
from rlsparse.warm_start.run import Parts, preflight, warm_start
from rlsparse.warm_start.supervised import IGNORED, Example, collate, fit, held_out_loss
from tests.commands import run_command
from tests.conftest import composed, composed_warm_start

PROBLEM = Problem("57*4=", "228", "50*4+7*4=200+28=228")


@pytest.mark.slow
def test_model_trained_from_nothing_is_taken_by_rl(tmp_path):
    out = tmp_path / "model"
    report = warm_start(
        composed_warm_start(
            f"out={out}",
            "model=scratch",
            "task=multiplication",
            "task.train_rows=400",
            "warm_start=clean",
            "warm_start.epochs=3",
            "dtype=float32",
            "eval.max_rows=8",
        )
    )
    assert report["loss"][-1] < 0.8 * report["loss"][0]
    policy = load_policy(composed(f"model.path={out}").model, torch.device("cpu"), "auto")
    assert sum(p.numel() for p in policy.model.parameters()) < 1_000_000
    assert policy.tokenizer.decode(policy.tokenizer("57*4=228")["input_ids"]) == "57*4=228"
    summary = run(
        composed(
            f"model.path={out}",
            f"runs_dir={tmp_path}",
            "train.steps=1",
            "eval.every=1",
            "eval.max_rows=4",
            "tracker=none",
        )
    )
    assert summary["status"] == "finished"
    with pytest.raises(ConfigError, match=r"out=.*: holds a model already"):
        warm_start(composed_warm_start(f"out={out}", "model=scratch", "task=multiplication"))


def test_labels_of_padded_rows_cover_the_solution_and_eos_alone(tiny):
    noise = composed_warm_start("out=x", "model=scratch").warm_start.noise
    prompt = tuple(tiny.tokenizer("57*4=")["input_ids"])
    short = Problem("1", "2", "2")
    ids, mask, labels = collate(tiny, [Example(prompt, PROBLEM), Example(prompt[:1], short)], noise, random.Random(0))
    solution = tiny.tokenizer(PROBLEM.solution)["input_ids"] + [tiny.tokenizer.eos_token_id]
    assert labels[0].tolist() == [IGNORED] * 5 + solution
    assert ids[0].tolist() == [*prompt, *solution]
    # one prompt token, "2" and EOS, then padding that carries neither label nor attention
    assert labels[1, 1:3].tolist() == [*tiny.tokenizer("2")["input_ids"], tiny.tokenizer.eos_token_id]
    assert mask[1].tolist() == [1, 1, 1] + [0] * (len(solution) + 2)
    assert (labels[1, 3:] == IGNORED).all()


def test_noise_of_given_shares_spoils_these_shares():
    rng = random.Random(0)
    drawn = [corrupt(PROBLEM, NoiseConfig(direct=0.6, direct_wrong=0.8, slip=0.5), rng) for _ in range(4000)]
    direct = [text for text in drawn if "=" not in text]
    worked = [text for text in drawn if "=" in text]
    assert len(direct) / 4000 == pytest.approx(0.6, abs=0.03)
    assert sum(text != "228" for text in direct) / len(direct) == pytest.approx(0.8, abs=0.03)
    assert sum(text != PROBLEM.solution for text in worked) / len(worked) == pytest.approx(0.5, abs=0.05)
    assert corrupt(PROBLEM, NoiseConfig(0, 0, 0), rng) == PROBLEM.solution


SHORT = ("model=tiny", "task=multiplication", "task.train_rows=64", "warm_start.batch_size=8", "warm_start.epochs=2")
SMALL = ("eval.max_rows=8", "warm_start.loss_rows=16", "warm_start.lr=3e-3", "dtype=float32")
FIRES = ("adapter=l1ra", "adapter.gate_lr=0.4", "adapter.l1=0.8", "adapter.update_every=0.25")


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [("adapter=lora",), FIRES], ids=["lora", "l1ra"])
def test_adapter_is_trained_merged_and_exported(adapter, tmp_path):
    out = tmp_path / "model"
    summary = warm_start(composed_warm_start(f"out={out}", *SHORT, *SMALL, *adapter), ["adapter=x"])
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["final"]["loss"] < 0.9 * summary["base"]["loss"]
    assert summary["steps"] == 16  # 2 epochs x 64 / 8
    base = load_policy(composed().model, torch.device("cpu"), "float32").model
    merged = load_policy(composed(f"model.path={out}").model, torch.device("cpu"), "float32").model
    before, after = base.state_dict(), merged.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{module}.weight" for module in summary["adapter"]["rank"]}
    # the adapter alone, put on the base model by peft, is the same model
    ids = torch.tensor([[5, 6, 7, 8]])
    adapted = PeftModel.from_pretrained(base, out / "adapter")
    assert float((adapted(ids).logits - merged(ids).logits).abs().max()) < 1e-4
    metrics = rows(out)
    assert all(is_documented(name) for row in metrics for name in row if name not in ("kind", "step"))
    train = [row for row in metrics if row["kind"] == "train"]
    assert [row["step"] for row in train] == list(range(1, 17))
    assert sum(row["supervised/loss"] for row in train[8:]) / 8 == pytest.approx(summary["loss"][1])
    logged = [row for row in metrics if row["kind"] == "ranks"]
    assert [row["step"] for row in logged] == ([0, 4, 8, 12] if adapter == FIRES else [])
    if adapter == FIRES:
        assert len(set(summary["adapter"]["rank"].values())) > 1
        assert sum(summary["adapter"]["rank"].values()) <= summary["adapter"]["budget"] == 168
    # the tables read it as they read a run
    found = collect(tmp_path).runs
    assert found["final_loss"].tolist() == [summary["final"]["loss"]]
    assert found["time_step"].tolist() == [summary["time"]["train"] / 16]


PART = ("adapter=full", "adapter.target_modules=[q_proj,v_proj]", "adapter.layers=last_third")
OF_PART = {f"model.layers.2.self_attn.{name}_proj.{kind}" for name in "qv" for kind in ("weight", "bias")}


def in_bfloat16(tiny, folder):
    tiny.model.to(torch.bfloat16).save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    return f"model.path={folder}"


@pytest.mark.parametrize("adapter", [["adapter=none"], ["adapter=lora"], ["adapter=l1ra"], PART])
def test_bfloat16_model_is_evaluated_as_it_is_written(adapter, tmp_path, tiny):
    """A bfloat16 checkpoint: trained in more bits, cast, and the last evaluation is of the folder as it loads."""
    setting = (in_bfloat16(tiny, tmp_path / "bf16"), f"out={tmp_path / 'm'}", *adapter, "dtype=bfloat16")
    config = composed_warm_start(*SHORT, *SMALL, *setting)
    summary = warm_start(config)
    policy = load_policy(replace(config.model, path=str(tmp_path / "m")), torch.device("cpu"), "auto")
    assert policy.model.dtype == torch.bfloat16
    parts = Parts.build(config)
    data = encode_task(policy, parts.task, parts.rollout.max_new_tokens, 16)
    examples = [Example(prompt.ids, prompt.problem) for prompt in data.test]
    assert held_out_loss(policy, examples, config.warm_start.batch_size, "bfloat16") == summary["final"]["loss"]


def test_full_fine_tuning_of_all_weights_equals_a_warm_start_without_adapter(tmp_path):
    setting = (*SHORT, *SMALL, "warm_start.max_rows=16")
    found = {}
    for adapter in ("none", "full"):
        out = tmp_path / adapter
        summary = warm_start(composed_warm_start(f"out={out}", f"adapter={adapter}", *setting))
        found[adapter] = (summary["loss"], summary["final"], summary["adapter"]["parameters"])
        assert not (out / "adapter").exists()
    assert found["full"] == found["none"]
    assert (tmp_path / "full/model.safetensors").read_bytes() == (tmp_path / "none/model.safetensors").read_bytes()


def test_part_of_the_weights_is_trained_in_float32_and_the_others_stay_the_same_bits(tmp_path, tiny):
    out = tmp_path / "m"
    setting = (in_bfloat16(tiny, tmp_path / "bf16"), f"out={out}", *PART, "dtype=bfloat16", "warm_start.lr=1e-5")
    summary = warm_start(composed_warm_start(*SHORT, *SMALL, *setting))
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "bf16", out))
    assert {one.dtype for one in after.values()} == {torch.bfloat16}
    assert {name for name in before if not torch.equal(before[name], after[name])} == OF_PART
    # 16 steps of at most 1e-5: most weights are so large that not even the sum of all steps moves them in bfloat16, whose
    # numbers are 2^-8 of their size apart
    change = torch.cat([(after[name].float() - before[name].float()).abs().flatten() for name in OF_PART])
    assert 0 < float((change > 0).float().mean()) < 0.5
    assert summary["adapter"] == {"name": "full", "rank": {}, "budget": None, "parameters": change.numel()}
    assert not (out / "adapter").exists()


def test_training_a_part_of_the_weights_equals_training_with_the_others_frozen(tiny):
    config = composed_warm_start("out=x", *SHORT, *SMALL, *PART)
    examples = [Example(tuple(tiny.tokenizer("57*4=")["input_ids"]), PROBLEM)] * 16
    frozen = copy.deepcopy(tiny)
    for name, weight in frozen.model.named_parameters():
        weight.requires_grad_(name in OF_PART)
    expected = fit(frozen, examples, config, None, lambda *_: None)
    adapter = Parts.build(config).adapter.attach(tiny, 8, 0)
    assert fit(tiny, examples, config, adapter, lambda *_: None) == expected
    for one, other in zip(adapter.merge().parameters(), frozen.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_penalty_of_an_adapter_is_part_of_the_gradient_that_is_clipped(tiny, monkeypatch):
    config = composed_warm_start("out=x", *SHORT, *SMALL, "adapter=lora")
    adapter = Parts.build(config).adapter.attach(tiny, 8, 0)
    before, norms = adapter.state(), []

    def penalty(l2):
        assert l2 == 0  # objective.l2 belongs to RL
        for parameter in adapter.parameters():
            parameter.grad.zero_()

    monkeypatch.setattr(adapter, "penalty", penalty)
    examples = [Example(tuple(tiny.tokenizer("57*4=")["input_ids"]), PROBLEM)] * 16
    fit(tiny, examples, config, adapter, lambda _, metrics: norms.append(metrics["train/grad_norm"]))
    assert norms == [0.0] * 4
    assert all(torch.equal(value, before[name]) for name, value in adapter.state().items())


def test_gradients_after_a_rank_update_are_clipped_with_those_of_new_components(tiny, monkeypatch):
    config = composed_warm_start("out=x", *SHORT, *SMALL, *FIRES)
    adapter = Parts.build(config).adapter.attach(tiny, 8, 0)
    examples = [Example(tuple(tiny.tokenizer("57*4=")["input_ids"]), PROBLEM)] * 64
    clip, calls = torch.nn.utils.clip_grad_norm_, []

    def watched(parameters, *arguments):
        calls.append({id(p) for p in parameters} == {id(p) for p in adapter.parameters()})
        return clip(parameters, *arguments)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watched)
    fit(tiny, examples, config, adapter, lambda step, metrics: None)
    assert len(set(adapter.ranks().values())) > 1
    assert calls == [True] * 16


def test_warm_start_done_twice_writes_the_same_model(tmp_path):
    setting = (*SHORT, *SMALL, "warm_start.max_rows=8")
    for name in "ab":
        warm_start(composed_warm_start(f"out={tmp_path / name}", *setting))
    assert rows(tmp_path / "a") != rows(tmp_path / "b")  # they hold times
    first, second = (ModelSource("", str(tmp_path / name), None, tmp_path / name) for name in "ab")
    assert first.digest() == second.digest()


def test_warm_start_cut_off_while_it_saved_starts_again(tmp_path, monkeypatch):
    setting = (f"out={tmp_path / 'm'}", *SHORT, *SMALL, "warm_start.max_rows=8")
    with monkeypatch.context() as patched:
        patched.setattr("rlsparse.warm_start.run.write_summary", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            warm_start(composed_warm_start(*setting))
    assert (tmp_path / "m" / "config.json").exists()
    with pytest.raises(ConfigError, match="holds a model already"):
        warm_start(composed_warm_start(*setting, "seed=1"))
    summary = warm_start(composed_warm_start(*setting))
    assert len([row for row in rows(tmp_path / "m") if row["kind"] == "train"]) == summary["steps"] == 2


def test_finished_warm_start_is_skipped_and_another_into_its_folder_is_refused(tmp_path, capsys):
    setting = (f"out={tmp_path / 'm'}", *SHORT, *SMALL, "warm_start.max_rows=8")
    first = warm_start(composed_warm_start(*setting))
    assert first["steps"] == 2  # 2 epochs of one batch of 8
    assert warm_start(composed_warm_start(*setting)) == first
    assert "finished before, skipped" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="holds a model already"):
        warm_start(composed_warm_start(*setting, "seed=1"))


def test_held_out_loss_in_unequal_batches_equals_that_of_the_model(tiny):
    examples = [
        Example(tuple(tiny.tokenizer(question)["input_ids"]), Problem(question, "", solution))
        for question, solution in (("57*4=", "50*4+7*4=200+28=228"), ("3*4=", "12"), ("12*3=", "10*3+2*3=36"))
    ]
    noise = composed_warm_start("out=x", "model=scratch").warm_start.noise
    ids, mask, labels = collate(tiny, examples, noise, random.Random(0))
    with torch.no_grad():
        expected = float(tiny.model(input_ids=ids, attention_mask=mask, labels=labels).loss)
    assert held_out_loss(tiny, examples, 3, "float32") == pytest.approx(expected, rel=1e-5)
    assert held_out_loss(tiny, examples, 2, "float32") == pytest.approx(expected, rel=1e-5)  # in unequal batches too


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "adapter=l1ra adapter.update_every=1",
            r"adapter.update_every=1.0: .* after step 16 of 16, so there would be none",
        ),
        ("adapter=l1ra adapter.budget=20", "adapter.budget=20: the model gets 21 adapters"),
        ("adapter=lora adapter.layers=[9]", "this model has layers 0 to 2"),
        ("adapter=l1ra model=scratch", "adapter=l1ra: model=scratch has random weights"),
        ("adapter=l1ra adapter.l1=-1", "adapter.l1=-1.0: must be at least 0"),
        ("adapter=full adapter.layers=[9]", "this model has layers 0 to 2"),
        ("adapter=full adapter.layers=[0] model=scratch", "adapter=full: model=scratch has random weights"),
        ("adapter=lora model.quantization=nf4", "model.quantization=nf4: a warm start writes a whole model"),
    ],
)
def test_adapter_that_cannot_work_is_refused(overrides, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        warm_start(composed_warm_start(f"out={tmp_path / 'o'}", *SHORT, *overrides.split()))
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("warm_start.epochs=0", "warm_start.epochs=0: must be at least 1"),
        ("warm_start.noise.slip=2", r"warm_start.noise.slip=2.0: must be in \[0, 1\]"),
        ("model.path=/nowhere", "model.path=/nowhere: there is no such folder"),
    ],
)
def test_bad_value_is_refused_and_leaves_no_folder(override, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        warm_start(composed_warm_start(f"out={tmp_path / 'o'}", "task=multiplication", override))
    assert not (tmp_path / "o").exists()


def sweep(*overrides, cwd):
    return run_command("rlsparse.warm_start", "-m", *SHORT, *SMALL, "warm_start.max_rows=8", *overrides, cwd=cwd)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("adapter=l1ra,l1ra_short", "out=m/${adapter.scale}"),
            "error: out=m/2.0: 2 points of the sweep would write to this folder; put the swept keys into its name, such "
            "as 'out=models/rank${lora_rank}-seed${seed}' (in quotes)",
        ),
        (("adapter=l1ra", "adapter.l1=0.1,-1", "out=m/${adapter.l1}"), "error: adapter.l1=-1.0: must be at least 0"),
    ],
)
def test_sweep_with_a_bad_point_is_refused_before_its_first_point(overrides, message, tmp_path):
    done = sweep(*overrides, cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.startswith(message)
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_point_of_a_sweep_has_a_folder_of_its_own(tmp_path):
    done = sweep("adapter=none,lora", "out=m/${hydra:runtime.choices.adapter}-s${seed}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {folder.name for folder in (tmp_path / "m").iterdir()} == {"none-s0", "lora-s0"}
    assert collect(tmp_path / "m").runs["method"].tolist() == ["supervised adapter=lora", "supervised adapter=none"]


def test_lora_rank_without_adapter_does_not_change_the_identity():
    def identity(*overrides):
        return preflight(composed_warm_start("out=x", *SHORT, *overrides), "cpu").identity

    assert identity("lora_rank=8") == identity("lora_rank=4")
    assert identity("adapter=lora", "lora_rank=8") != identity("adapter=lora", "lora_rank=4")
    assert identity(*PART, "lora_rank=8") == identity(*PART, "lora_rank=4") != identity("adapter=full")

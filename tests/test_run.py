"""Whole runs on the embedded model: they learn, repeat, stop when broken, and leave what was promised."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from rlsparse.config.schema import ConfigError
from rlsparse.execution.preflight import preflight
from rlsparse.run import run
from rlsparse.tracking.metrics import is_documented
from tests.conftest import composed

SHORT = (
    "train.steps=3",
    "train.prompts_per_step=4",
    "train.group_size=4",
    "eval.every=2",
    "eval.max_rows=16",
    "tracker=none",
)


def rows(folder: Path, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def without_times(row):
    return {k: v for k, v in row.items() if not k.startswith("time/") and k != "rollout/tokens_per_second"}


def folder_of(config):
    (identity,) = preflight([config]).identities
    return Path(config.runs_dir) / config.experiment.name / identity.id


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm",
    [
        "grpo",
        "rgra",
        "sgrpo",
        "tspmo",
        *(pytest.param(one, marks=pytest.mark.full) for one in ("reinforce", "dr_grpo", "rloo")),
    ],
)
def test_algorithm_on_tiny_learns(algorithm, tmp_path):
    steps = ("train.steps=30", "eval.every=30")
    summary = run(composed(f"algorithm={algorithm}", "tracker=none", *steps, f"runs_dir={tmp_path}"))
    base, final = summary["base"]["accuracy_sampled"], summary["final"]["accuracy_sampled"]
    assert base < 0.3
    assert final > base + 0.2, f"{base} -> {final}"
    share = summary["tokens"]["frac_updated"]
    low, high = {"sgrpo": (0.3, 0.6), "tspmo": (0.001, 0.06)}.get(algorithm, (1.0, 1.0))
    assert low <= share <= high


def test_finished_run_leaves_its_summary_metrics_and_samples(tmp_path):
    config = composed(*SHORT, f"runs_dir={tmp_path}", "algorithm=sgrpo")
    summary = run(config)
    folder = folder_of(config)
    assert json.loads((folder / "summary.json").read_text()) == summary
    for key in (
        "status",
        "algorithm",
        "seed",
        "overrides",
        "config_hash",
        "base",
        "final",
        "curve_mean",
        "versions",
        "git",
    ):
        assert key in summary
    assert summary["status"] == "finished"
    for evaluation in (summary["base"], summary["final"]):
        assert {"accuracy_greedy", "accuracy_sampled", "mean_length"} <= set(evaluation)
    assert {"total", "rollout", "train", "eval"} <= set(summary["time"])
    assert summary["peak_memory_bytes"] > 2**20
    assert set(summary["adapter"]["rank"].values()) == {8}
    # 3 layers; in and out of each linear times r: q 256, k and v 128 + 64, o 256, gate and up 512, down 512
    assert summary["adapter"]["parameters"] == 3 * 8 * (256 + 192 + 192 + 256 + 512 + 512 + 512)
    metrics = rows(folder)
    assert [(row["kind"], row["step"]) for row in metrics] == [
        ("eval", 0),
        ("train", 1),
        ("train", 2),
        ("eval", 2),
        ("train", 3),
        ("eval", 3),
    ]
    names = {name for row in metrics for name in row if name not in ("kind", "step")}
    assert all(is_documented(name) for name in names)
    curve = [row["eval/accuracy_sampled"] for row in metrics if row["kind"] == "eval"][1:]
    assert summary["curve_mean"] == pytest.approx(sum(curve) / 2)
    assert summary["tokens"]["generated"] == sum(
        round(row["rollout/length_mean"] * 16) for row in metrics if row["kind"] == "train"
    )
    samples = rows(folder, "samples.jsonl")
    assert len(samples) == 3 * config.tracker.samples
    assert {"step", "question", "completion", "gold", "reward", "correct"} == set(samples[0])


def test_exported_adapter_loads_with_peft_alone(tmp_path, loaded_tiny):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from rlsparse.model.source import EMBEDDED

    config = composed(*SHORT, f"runs_dir={tmp_path}", "train.lr=0.01")
    run(config)
    base = AutoModelForCausalLM.from_pretrained(EMBEDDED["tiny"])
    ids = torch.tensor([[5, 6, 7]])
    before = base(ids).logits.detach().clone()
    adapted = PeftModel.from_pretrained(base, folder_of(config) / "adapter")
    assert float((adapted(ids).logits - before).abs().max()) > 1e-3


def test_config_run_twice_gives_the_same_numbers(tmp_path):
    one, two = (composed(*SHORT, f"runs_dir={tmp_path / name}", "algorithm=sgrpo", "kl=on") for name in "ab")
    run(one)
    run(two)
    assert [without_times(r) for r in rows(folder_of(one))] == [without_times(r) for r in rows(folder_of(two))]
    adapters = [(folder_of(c) / "adapter" / "adapter_model.safetensors").read_bytes() for c in (one, two)]
    assert adapters[0] == adapters[1]


def test_algorithms_with_the_same_seed_see_the_same_prompts(tmp_path):
    asked = []
    for algorithm in ("grpo", "tspmo", "sgrpo"):
        config = composed(*SHORT, f"runs_dir={tmp_path}", f"algorithm={algorithm}", "tracker.samples=16")
        run(config)
        asked.append([row["question"] for row in rows(folder_of(config), "samples.jsonl")])
    assert asked[0] == asked[1] == asked[2]


def test_finished_run_is_skipped_and_one_without_summary_is_set_aside(tmp_path, capsys):
    config = composed(*SHORT, f"runs_dir={tmp_path}")
    first = run(config)
    assert run(config) == first
    assert "finished before, skipped" in capsys.readouterr().err
    folder = folder_of(config)
    (folder / "summary.json").unlink()
    again = run(config)
    assert again["final"] == first["final"]
    assert (folder / "attempts" / "1" / "metrics.jsonl").is_file()


def test_diverged_run_ends_with_that_status_and_keeps_its_data(tmp_path):
    summary = run(composed(*SHORT, f"runs_dir={tmp_path}", "train.lr=1e30", "train.steps=40", "algorithm=reinforce"))
    assert summary["status"] == "diverged"
    assert "finite" in summary["error"] or "nan" in summary["error"]
    assert summary["base"]["accuracy_sampled"] >= 0
    assert summary["steps"] < 40


def test_failed_run_writes_its_summary_and_raises(tmp_path):
    with pytest.raises(
        ConfigError, match=r"rollout.max_new_tokens=255: no train prompt .* context of the model, 256 tokens"
    ):
        run(composed(*SHORT, f"runs_dir={tmp_path}", "rollout.max_new_tokens=255"))
    (failed,) = [json.loads(f.read_text()) for f in tmp_path.glob("default/*/summary.json")]
    assert failed["status"] == "failed"
    assert "max_new_tokens=255" in failed["error"]
    (trace,) = tmp_path.glob("default/*/error.txt")
    assert "Traceback" in trace.read_text()


def test_prompt_longer_than_the_context_is_counted_and_skipped(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    long = {"question_concat": "12*3=" * 100, "Equation": "1", "Answer": "36"}
    short = {"question_concat": "12*3=", "Equation": "1", "Answer": "36"}
    for name, content in (("train", [long, short, long]), ("test", [short, long])):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    summary = run(
        composed(
            *SHORT,
            "task=svamp",
            f"task.path={data}",
            "task.prompt='{question}'",
            "task.max_new_tokens=16",
            f"runs_dir={tmp_path}",
        )
    )
    assert summary["prompts_skipped"] == {"train": 2, "test": 1}


def test_step_with_equal_rewards_in_every_group_updates_nothing(tmp_path):
    # no completion of one token is right or wrong differently: all rewards are equal
    config = composed(*SHORT, f"runs_dir={tmp_path}", "reward.correct=0", "algorithm=grpo")
    run(config)
    steps = [row for row in rows(folder_of(config)) if row["kind"] == "train"]
    assert all(row["train/updates"] == 0 and row["tokens/frac_forward"] == 0 for row in steps)
    assert all(row["rollout/frac_degenerate_groups"] == 1 for row in steps)
    evaluations = [row["eval/accuracy_sampled"] for row in rows(folder_of(config)) if row["kind"] == "eval"]
    assert len(set(evaluations)) == 1


def test_group_of_equal_rewards_costs_no_forward_pass(tmp_path):
    config = composed(*SHORT, f"runs_dir={tmp_path}", "algorithm=grpo", "kl=on")
    run(config)
    for row in rows(folder_of(config)):
        if row["kind"] == "train":
            if row["rollout/frac_degenerate_groups"] > 0:
                assert row["tokens/frac_forward"] < 1
            assert math.isfinite(row["objective/loss"])


def test_run_without_negative_feedback_updates_on_a_part_of_the_tokens(tmp_path):
    config = composed(*SHORT, f"runs_dir={tmp_path}", "negative_feedback=off", "train.updates_per_rollout=3")
    run(config)
    steps = [row for row in rows(folder_of(config)) if row["kind"] == "train" and row["train/updates"]]
    assert steps
    assert all(row["train/updates"] == 3 for row in steps)
    assert all(row["tokens/frac_forward"] < 1 for row in steps)  # completions with A <= 0 take no part


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapter.target_modules=[q_proj,nope]"], "this model has no nope; it has down_proj, gate_proj"),
        (["adapter.layers=[1,7]"], "this model has layers 0 to 2"),
        (["model.path=/nowhere"], "model.path=/nowhere: there is no such folder"),
        (["model=scratch"], "model=scratch: has random weights"),
        (["model.name=rlsparse-no/such-model"], "model.name=rlsparse-no/such-model: cannot be loaded"),
        (["rollout.max_new_tokens=256"], "rollout.max_new_tokens=256: the model's context is 256 tokens"),
        (["lora_rank=129"], "lora_rank=129: the adapted modules of this model allow at most rank 128"),
        (["device=meta"], "device=meta: this device holds no numbers"),
        (["device=hpu"], "device=hpu: torch has no such device here"),
        (["device=cuda:99"], "device=cuda:99: torch has no such device here"),
    ],
)
def test_bad_model_or_target_is_refused_before_loading(overrides, message, tmp_path):
    with pytest.raises(ConfigError) as error:
        preflight([composed(f"runs_dir={tmp_path}", *overrides)])
    assert message in str(error.value)


def test_model_folder_without_safetensors_is_refused(tmp_path):
    from rlsparse.model.source import EMBEDDED

    shutil.copytree(EMBEDDED["tiny"], tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ConfigError, match=r"no model\.safetensors"):
        preflight([composed(f"runs_dir={tmp_path}", f"model.path={tmp_path / 'model'}")])


def test_adapter_on_chosen_layers_and_modules_is_on_these_alone(tmp_path):
    summary = run(
        composed(
            *SHORT,
            f"runs_dir={tmp_path}",
            "adapter.layers=last_third",
            "adapter.target_modules=[q_proj,v_proj]",
            "lora_rank=2",
        )
    )
    assert summary["adapter"]["rank"] == {f"model.layers.2.self_attn.{name}_proj": 2 for name in "qv"}


def test_bfloat16_model_trains_a_float32_adapter(tmp_path):
    config = composed(*SHORT, f"runs_dir={tmp_path}", "dtype=bfloat16")
    assert run(config)["status"] == "finished"
    from safetensors.torch import load_file

    weights = load_file(folder_of(config) / "adapter" / "adapter_model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float32}

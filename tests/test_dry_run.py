"""--dry-run: what it says of points, the arithmetic of its estimate, and that it leaves nothing behind."""

import copy
import json
from dataclasses import asdict

import pytest
import torch
from omegaconf import OmegaConf

from rlsparse.algorithm import Algorithm
from rlsparse.components.adapter.lora import Lora
from rlsparse.components.task import load_task
from rlsparse.execution.memory_estimate import MemoryEstimator, size
from rlsparse.execution.preflight import identity_of
from rlsparse.model.loading import outline
from rlsparse.model.policy import encode_prompt
from rlsparse.model.source import EMBEDDED
from rlsparse.rollout.engine import Part, Request
from rlsparse.sweep.cost_estimate import (
    FinishedRun,
    Workload,
    completion_tokens,
    estimate_time,
    finished_run,
    makespan,
    workload,
)
from rlsparse.sweep.dry_run import Parallelism, PlannedRun, describe, finished_runs, replace_flag
from rlsparse.training.history import PolicyHistory
from tests.conftest import composed
from tests.test_cli import call

SMALL = (
    "train.steps=10",
    "train.prompts_per_step=2",
    "train.group_size=4",
    "eval.every=4",
    "eval.max_rows=8",
    "eval.samples=2",
    "rollout.max_new_tokens=20",
    "tracker=none",
    "device=cpu",
)


def point(*overrides, runs):
    config = composed(*SMALL, f"runs_dir={runs}", *overrides)
    return PlannedRun(" ".join(overrides), config, identity_of(config, Algorithm.build(config), "cpu"))


def leave(one, status="finished", seconds=10.0, **more):
    """What a run leaves of its config and summary."""
    one.folder.mkdir(parents=True)
    (one.folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(asdict(one.config))))
    about = {"method_hash": one.identity.method_hash, "status": status, "device": "cpu", "time": {"total": seconds}}
    (one.folder / "summary.json").write_text(json.dumps({**about, "peak_memory_bytes": 2**30, **more}))


def without_memory(text):
    """The lines of a dry run, without the three about memory and disk space at their end."""
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith("memory")), len(lines))
    assert len(lines) - first in (0, 3)
    return lines[:first]


def times(*arguments):
    return without_memory(describe(*arguments))


def files(folder):
    return sorted((str(path), path.stat().st_size) for path in folder.rglob("*"))


def test_work_of_a_run_counts_completions_at_their_greatest_length():
    # 10 steps of 2 · 4; evaluations at 0, 4, 8 and 10 of 8 rows, greedy and two samples; 20 tokens each
    assert completion_tokens(asdict(composed(*SMALL))) == (10 * 2 * 4 + 4 * 8 * 3) * 20
    # after step 4: 6 steps, evaluations at 8 and 10
    assert completion_tokens(asdict(composed(*SMALL)), after=4) == (6 * 2 * 4 + 2 * 8 * 3) * 20
    assert completion_tokens(asdict(composed(*SMALL)), after=10) == 0
    # the last step is one that is evaluated anyway
    assert completion_tokens(asdict(composed(*SMALL, "eval.every=5"))) == (10 * 2 * 4 + 3 * 8 * 3) * 20
    # one completion in the right and one in the wrong are gone on with by 4 new ones each
    replay = ["replay.successes=1", "replay.failures=1", "algorithm=tspmo"]
    assert completion_tokens(asdict(composed(*SMALL, *replay))) == (10 * 2 * (1 + 2) * 4 + 4 * 8 * 3) * 20
    # the task has but 3 held-out rows
    assert completion_tokens(asdict(composed(*SMALL, "task.test_rows=3"))) == (10 * 2 * 4 + 4 * 3 * 3) * 20


def test_estimate_with_several_finished_runs_takes_the_most_similar():
    def done(method, model, work, seconds):
        return FinishedRun((method, model, model[0]), work, seconds, None)

    run = Workload(("a", "m, svamp", "m"), 100.0)
    same = [done("a", "m, svamp", 200.0, 30.0), done("a", "m, svamp", 200.0, 50.0)]
    alike = done("b", "m, svamp", 50.0, 10.0)
    other = done("c", "m, gsm8k", 400.0, 60.0)
    stranger = done("d", "n", 100.0, 1.0)
    found = estimate_time(run, [stranger, other, alike, *same])  # half the work of 30 and 50 s
    assert (found.seconds, found.fastest, found.slowest, found.level, found.basis) == (20, 15, 25, 0, tuple(same))
    found = estimate_time(run, [stranger, other, alike])  # twice the work of 10 s
    assert (found.seconds, found.fastest, found.slowest, found.level) == (20, 20, 20, 1)
    found = estimate_time(run, [stranger, other])  # a quarter of 60 s
    assert (found.seconds, found.level) == (15, 2)
    assert estimate_time(run, [stranger]) is None


@pytest.mark.parametrize(
    ("overrides", "levels"),
    [
        (["seed=1"], [True, True, True]),
        (["algorithm=sgrpo"], [False, True, True]),
        (["adapter.layers=last_third"], [False, False, True]),
        (["task=word_problems"], [False, False, True]),
        (["dtype=bfloat16"], [False, False, True]),
        (["model=smollm2"], [False, False, False]),
    ],
)
def test_runs_that_differ_by_an_override_are_similar_at_these_levels(overrides, levels):
    def like(config):
        method = identity_of(config, Algorithm.build(config), "cpu", digest=str).method_hash
        return workload(asdict(config), method, "cpu").keys

    pairs = zip(like(composed(*SMALL)), like(composed(*SMALL, *overrides)), strict=True)
    assert [a == b for a, b in pairs] == levels


def test_finished_run_on_another_kind_of_device_gives_no_estimate():
    config = asdict(composed(*SMALL))
    run = finished_run(config, {"method_hash": "a", "device": "cuda:1", "time": {"total": 1.0}})
    assert estimate_time(workload(config, "b", "cpu"), [run]) is None
    assert estimate_time(workload(config, "b", "cuda"), [run]) is not None


def test_runs_in_parallel_take_the_place_that_is_free_first():
    assert makespan([6.0] * 9, 2) == 30
    assert makespan([5.0, 1.0, 1.0, 1.0], 2) == 5
    assert makespan([6.0] * 3, 10) == 6


def test_points_in_several_states_are_listed_with_their_cost(tmp_path):
    first, second, third, fourth = (point(f"seed={seed}", runs=tmp_path) for seed in range(4))
    leave(first)
    leave(second, status="diverged", error="loss")
    leave(third)
    (third.folder / "summary.json").unlink()  # cut off, and saved after step 4
    (third.folder / "checkpoint" / "step-000004").mkdir(parents=True)
    left = 10 * (6 * 8 + 2 * 24) / (10 * 8 + 4 * 24)
    assert times([first, second, third, fourth], Parallelism("joblib", 2)) == [
        "finished: seed=0",
        "diverged: seed=1 (loss)",
        "cut off: seed=2 (no step done)",
        "missing: seed=3",
        "4 points: 1 finished, 1 diverged, 1 cut off, 1 missing; 2 to do",
        f"about {10 + left:.0f} s of compute, about 10 s with hydra/launcher=joblib, 2 at a time",
        "  2 points estimated from 1 finished run of the same method",
        "  peak memory of those runs: up to 1.00 GiB",
    ]


def test_points_without_a_finished_run_of_their_model_are_named_as_unknown(tmp_path):
    for seed, seconds in ((0, 8.0), (1, 12.0)):
        leave(point(f"seed={seed}", "experiment.name=other", runs=tmp_path), seconds=seconds)
    points = [point("seed=7", runs=tmp_path), point("algorithm=sgrpo", runs=tmp_path)]
    strange = point("algorithm=sgrpo", "seed=1", runs=tmp_path)
    strange.config.model.path = str(EMBEDDED["tiny_deep"])
    assert times([*points, strange], Parallelism("ray", None))[3:] == [
        "3 points: 3 missing; 3 to do",
        "about 20 s of compute for 2 points (16 s to 24 s); the number of runs at a time is not known for hydra/launcher=ray",
        "  1 point estimated from 2 finished runs of the same method",
        "  1 point estimated from 2 finished runs with the same model, task, device, dtype and adapter layers, scaled by the number of "
        "completions and their maximum length",
        "  peak memory of those runs: up to 1.00 GiB",
        f"time unknown for 1 of 3 points: no finished run of this model under {tmp_path}; run one first",
    ]


def test_failed_run_is_to_do_unless_retry_is_off(tmp_path):
    failed = point("seed=0", runs=tmp_path)
    leave(failed, status="failed", error="broke")
    assert times([failed])[:2] == ["failed: seed=0 (broke)", "1 point: 1 failed; 1 to do"]
    failed.config.sweep.retry_failed = False
    assert times([failed])[1:] == ["1 point: 1 failed; 0 to do"]


def test_damaged_run_is_left_out_of_the_estimate(tmp_path):
    whole = point("seed=0", runs=tmp_path)
    leave(whole)
    spoilt = [point(f"seed={seed}", runs=tmp_path) for seed in range(1, 9)]
    for one in spoilt:
        leave(one)
    (spoilt[0].folder / "config.yaml").write_text("a: [")
    (spoilt[1].folder / "config.yaml").write_text("seed: 1\n")
    (spoilt[2].folder / "summary.json").write_text('{"status": "finis')
    (spoilt[3].folder / "summary.json").write_text('{"status": "finished", "time": {"total": "1 s"}}')
    (spoilt[6].folder / "config.yaml").write_text("[" * 100_000)  # ends a process that reads it with libyaml
    (spoilt[7].folder / "config.yaml").write_text("{a: " * 2000)
    leave(point("seed=9", runs=tmp_path), seconds=float("nan"))
    (spoilt[4].folder / "config.yaml").unlink()
    (spoilt[5].folder / "config.yaml").write_bytes(b"\xff\x00")
    assert [run.seconds for run in finished_runs(tmp_path, {whole.identity.method_hash})] == [10.0]
    assert len(finished_runs(tmp_path, {"another"})) == 1
    assert finished_runs(tmp_path / "nowhere", {"another"}) == []


def test_dry_run_flag_becomes_an_override_beside_the_others():
    key = "hydra.sweeper.dry_run=true"
    assert replace_flag(["-m", "seed=0,1", "--dry-run"]) == ["-m", key, "seed=0,1"]
    assert replace_flag(["--dry-run", "--cfg", "job", "seed=0"]) == ["--cfg", "job", key, "seed=0"]
    assert replace_flag(["--dry-run"]) == [key]
    assert replace_flag(["seed=0"]) == ["seed=0"]


def bytes_of(tensors):
    """The size of some tensors, those with common memory counted once."""
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


def after_a_step(policy, config, dtype):
    """The adapter of a config in a model of this dtype, and the moments of AdamW, after an optimizer step."""
    policy.model.to(dtype)
    adapter = Algorithm.build(config).adapter.attach(policy, config.lora_rank, 0)
    optimizer = adapter.optimizer(1e-3, 0.0)
    for parameter in adapter.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return adapter, [one for state in optimizer.state.values() for one in state.values() if one.dim()]


@pytest.mark.parametrize(
    ("words", "dtype"),
    [
        (["adapter=lora"], "bfloat16"),
        (["adapter=l1ra"], "float32"),
        (["adapter=full"], "float32"),
        (["adapter=full"], "bfloat16"),
        (["adapter=full", "adapter.target_modules=[q_proj]"], "bfloat16"),
    ],
)
def test_estimate_of_weights_parameters_and_files_is_the_size_of_these_tensors(words, dtype, tiny, tmp_path):
    config = composed(*SMALL, *words, f"dtype={dtype}", "kl=on", "lora_rank=3")
    adapter, moments = after_a_step(tiny, config, getattr(torch, dtype))
    trained = adapter.parameters()
    gradients = [parameter.grad for parameter in trained]
    found = MemoryEstimator()(config, "cuda")
    (of_trained,) = [count for name, count in found.parts.items() if "trained parameters" in name]
    held = bytes_of([*tiny.model.parameters(), *trained, *gradients, *moments])
    assert found.parts["weights"] + of_trained == held
    adapter.keep_base()
    assert found.parts.get("weights before training", 0) == bytes_of(getattr(adapter, "_base", {}).values())
    assert found.checkpoints == 2 * (bytes_of(adapter.state().values()) + bytes_of(moments))
    adapter.export(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    assert 0 < file.stat().st_size - found.export < 10_000  # its header


def test_estimate_counts_the_earlier_policies_that_are_kept(tiny):
    config = composed(*SMALL, "train.staleness=2", "kl=on", "kl.reference=ema")
    adapter, moments = after_a_step(tiny, config, torch.float32)
    history = PolicyHistory.start(adapter, 2, Algorithm.build(config).kl.reference_update)
    for step in range(1, 5):
        history.after_step(step)
    kept = len(history.past) + 1
    assert kept == 2 + 1 + 1  # of this step and of two earlier ones, and the reference policy
    found = MemoryEstimator()(config, "cuda")
    one = bytes_of(adapter.parameters())
    assert found.checkpoints == 2 * (bytes_of(adapter.state().values()) + bytes_of(moments) + kept * one)
    # while a new mixture is made, the current policy and the mixture are two more
    assert found.parts["trained parameters of earlier steps"] == (kept + 2) * one


def test_estimate_of_keys_and_values_is_the_size_of_the_cache(tiny):
    words = ("rollout.max_new_tokens=32", "eval.max_rows=1", "eval.samples=1", "train.max_tokens_per_microbatch=1")
    config = composed(*SMALL, *words)
    algorithm = Algorithm.build(config)
    ids = torch.ones(2, 10, dtype=torch.long)  # two prompts of 10 tokens, with a group of 4 each
    with torch.no_grad(), algorithm.rollout.session(tiny, Request([], 4)) as session:
        session.prefill(Part(slice(0, 2), torch.arange(8), ids, ids.bool()))
        layers = [one for layer in session._cache._layers.values() for one in vars(layer).values()]
    found = MemoryEstimator()(config, "cuda", longest=10)
    # keys and values of 3 layers, 2 heads of 32 numbers each
    by_hand = (2 * 10 + 8 * 32) * 3 * 2 * 2 * 32 * 4
    assert found.parts["keys and values of 8 completions"] == bytes_of(layers) == by_hand
    plain = MemoryEstimator()(composed(*SMALL, *words, "rollout=plain"), "cuda", longest=10)
    assert plain.parts["keys and values of 8 completions"] == (8 * 10 + 8 * 32) * 3 * 2 * 2 * 32 * 4


def test_estimate_takes_the_stage_that_needs_most_and_the_largest_evaluation():
    def stages(*words, device="cuda"):
        one_token = "train.max_tokens_per_microbatch=1"
        return MemoryEstimator()(composed(*SMALL, one_token, *words), device, longest=10).parts

    small = ("eval.max_rows=1", "rollout.max_new_tokens=1")
    assert "workspace of AdamW" in stages("adapter=full", *small)
    assert "a checkpoint while it is saved" in stages("adapter=full", *small, device="cpu")
    assert stages("train.packing=off", "train.max_tokens_per_microbatch=9000")["logits of a microbatch"] == (
        9000 * 320 * 2 * (4 + 4)
    )
    # 100 rows are asked together, 33 of them with 3 samples at a time; 64 completions at most in the last case
    large = ("train.prompts_per_step=2", "eval.max_rows=200", "eval.batch_rows=100", "eval.samples=3")
    assert "keys and values of 100 completions" in stages(*large)
    assert "keys and values of 64 completions" in stages(*large, "rollout.max_rows=64")
    # a copy of the 21 adapted matrices of 3 layers: 4 of attention (128 x 128, k and v 64 x 128), 3 of 128 x 384
    adapted = 3 * (2 * 128 * 128 + 2 * 64 * 128 + 3 * 128 * 384) * 4
    assert stages()["copies of weights while sampling"] == adapted
    assert stages("adapter.layers=last_third")["copies of weights while sampling"] == adapted / 3
    assert "copies of weights while sampling" not in stages("rollout.merge_adapter=false")
    # outputs of two frozen layers: 2 prompts of 10 tokens and 8 completions of 20, 128 numbers each
    assert stages("adapter.layers=last_third")["states of frozen layers"] == (2 * 10 + 8 * 20) * 128 * 4
    assert "states of frozen layers" not in stages()


@pytest.mark.parametrize(("quantization", "share"), [("nf4", 0.5 + 1 / 64 + 4 / 64 / 256), ("int8", 1)])
def test_quantized_weights_need_less_and_are_not_copied_to_merge_an_adapter(quantization, share):
    pytest.importorskip("bitsandbytes")
    words = (*SMALL, f"model.quantization={quantization}", "train.max_tokens_per_microbatch=1")
    found = MemoryEstimator()(composed(*words), "cuda", longest=10).parts
    linear = 3 * (2 * 128 * 128 + 2 * 64 * 128 + 3 * 128 * 384)  # see the test above
    assert found["weights"] == pytest.approx(share * linear + 2 * (632_448 - linear), rel=1e-5)
    assert "copies of weights while sampling" not in found
    copied = MemoryEstimator()(composed(*words, "rollout.dequantize=true"), "cuda", longest=10).parts
    assert copied["copies of weights while sampling"] == 2 * linear


def test_longest_prompt_is_found_without_encoding_every_row():
    config = composed(*SMALL, "task=word_problems", "eval.max_rows=50")
    algorithm, policy = Algorithm.build(config), outline(config.model)
    rows = load_task(algorithm.task)
    asked = [*rows.train, *rows.test[:50]]
    longest = max(len(encode_prompt(policy, one, algorithm.task.prompt_text(one.question)).ids) for one in asked)
    estimator = MemoryEstimator()
    assert estimator(config, "cpu") == estimator(config, "cpu", longest)


@pytest.mark.parametrize("adapter", ["lora", "l1ra", "full"])
def test_counting_trained_parameters_leaves_the_model_without_weights_as_it_was(adapter):
    config = composed(*SMALL, f"adapter={adapter}")
    policy = outline(config.model)

    def state():
        modules = [(name, type(module)) for name, module in policy.model.named_modules()]
        return modules, [(name, one.requires_grad) for name, one in policy.model.named_parameters()], vars(policy)

    before = copy.copy(state())
    Algorithm.build(config).adapter.count(policy, 8)
    assert state() == before


def test_sweep_names_the_point_that_needs_most_memory_and_adds_up_the_files(tmp_path):
    points = [point(*words, runs=tmp_path) for words in (["seed=1"], ["adapter=full"], ["adapter=full", "seed=1"])]
    small, large = (MemoryEstimator()(one.config, "cpu") for one in points[:2])
    assert small.total < large.total
    memory, parts, disk = describe(points).splitlines()[-3:]
    assert memory == f"memory: about {size(large.total)} and activations for adapter=full, the most of 3 points"
    assert parts == f"  {large.listed()}"
    exports = size(small.export + 2 * large.export)
    assert disk == (
        f"disk: about {exports} for what 3 runs will export, and up to {size(large.checkpoints)} for the checkpoints of "
        "a run until it ends"
    )
    leave(points[1])
    leave(points[2])
    assert describe(points).splitlines()[-3] == f"memory: about {size(small.total)} and activations"
    leave(points[0])
    assert "memory" not in describe(points)


def test_adapter_that_reads_weights_has_no_estimate(tmp_path, monkeypatch):
    def count(*_):
        raise NotImplementedError("Cannot copy out of meta tensor")

    monkeypatch.setattr(Lora, "count", count)
    points = [point("seed=0", runs=tmp_path), point("adapter=full", runs=tmp_path)]
    assert describe(points[:1]).splitlines()[-1] == (
        "memory unknown: the adapter cannot be put on a model without weights"
    )
    *_, last = describe(points).splitlines()
    assert last == "memory unknown for 1 of 2 points: the adapter cannot be put on a model without weights"


@pytest.mark.slow
def test_dry_run_of_a_sweep_changes_no_file(tmp_path):
    leave(point("seed=0", runs=tmp_path / "runs"))  # runs_dir is no part of a run's id
    before = files(tmp_path)
    said = call("-m", "seed=0,1", "algorithm=grpo,nope", *SMALL, "--dry-run", cwd=tmp_path)
    assert "Could not find 'algorithm/nope'" in said.stderr
    said = call("-m", "seed=0,1,2", *SMALL, "--dry-run", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert without_memory(said.stdout) == [
        "finished: seed=0",
        "missing: seed=1",
        "missing: seed=2",
        "3 points: 1 finished, 2 missing; 2 to do",
        "about 20 s of compute, about 20 s with hydra/launcher=local, 1 at a time",
        "  2 points estimated from 1 finished run of the same method",
        "  peak memory of those runs: up to 1.00 GiB",
    ]
    assert said.stderr == ""
    assert files(tmp_path) == before


@pytest.mark.slow
def test_dry_run_of_a_single_run_leaves_no_file(tmp_path):
    said = call("seed=3", *SMALL, "runs_dir=new/runs", "--dry-run", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert without_memory(said.stdout)[1:] == [
        "1 point: 1 missing; 1 to do",
        "time unknown: no finished run of this model under new/runs; run one first",
    ]
    assert files(tmp_path) == []

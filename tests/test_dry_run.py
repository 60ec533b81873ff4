"""--dry-run: what it says of points, the arithmetic of its estimate, and that it leaves nothing behind."""

import json
from dataclasses import asdict

import pytest
from omegaconf import OmegaConf

from rlsparse.algorithm import Algorithm
from rlsparse.execution.preflight import identity_of
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
    assert describe([first, second, third, fourth], Parallelism("joblib", 2)).splitlines() == [
        "finished: seed=0",
        "diverged: seed=1 (loss)",
        "cut off: seed=2 (no step done)",
        "missing: seed=3",
        "4 points: 1 finished, 1 diverged, 1 cut off, 1 missing; 2 to do",
        f"about {10 + left:.0f} s of compute, about 10 s with hydra/launcher=joblib, 2 at a time",
        "  2 points estimated from 1 finished run of the same method",
        "  memory of a run: up to 1.00 GiB in those runs",
    ]


def test_points_without_a_finished_run_of_their_model_are_named_as_unknown(tmp_path):
    for seed, seconds in ((0, 8.0), (1, 12.0)):
        leave(point(f"seed={seed}", "experiment.name=other", runs=tmp_path), seconds=seconds)
    points = [point("seed=7", runs=tmp_path), point("algorithm=sgrpo", runs=tmp_path)]
    strange = point("algorithm=sgrpo", "seed=1", runs=tmp_path)
    strange.config.model.name = "another"
    assert describe([*points, strange], Parallelism("ray", None)).splitlines()[3:] == [
        "3 points: 3 missing; 3 to do",
        "about 20 s of compute for 2 points (16 s to 24 s); the number of runs at a time is not known for hydra/launcher=ray",
        "  1 point estimated from 2 finished runs of the same method",
        "  1 point estimated from 2 finished runs with the same model, task, device, dtype and adapter layers, scaled by the number of "
        "completions and their maximum length",
        "  memory of a run: up to 1.00 GiB in those runs",
        f"time unknown for 1 of 3 points: no finished run of this model under {tmp_path}; run one first",
    ]


def test_failed_run_is_to_do_unless_retry_is_off(tmp_path):
    failed = point("seed=0", runs=tmp_path)
    leave(failed, status="failed", error="broke")
    assert describe([failed]).splitlines()[:2] == ["failed: seed=0 (broke)", "1 point: 1 failed; 1 to do"]
    failed.config.sweep.retry_failed = False
    assert describe([failed]).splitlines()[1:] == ["1 point: 1 failed; 0 to do"]


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


@pytest.mark.slow
def test_dry_run_of_a_sweep_changes_no_file(tmp_path):
    leave(point("seed=0", runs=tmp_path / "runs"))  # runs_dir is no part of a run's id
    before = files(tmp_path)
    said = call("-m", "seed=0,1", "algorithm=grpo,nope", *SMALL, "--dry-run", cwd=tmp_path)
    assert "Could not find 'algorithm/nope'" in said.stderr
    said = call("-m", "seed=0,1,2", *SMALL, "--dry-run", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines() == [
        "finished: seed=0",
        "missing: seed=1",
        "missing: seed=2",
        "3 points: 1 finished, 2 missing; 2 to do",
        "about 20 s of compute, about 20 s with hydra/launcher=local, 1 at a time",
        "  2 points estimated from 1 finished run of the same method",
        "  memory of a run: up to 1.00 GiB in those runs",
    ]
    assert said.stderr == ""
    assert files(tmp_path) == before


@pytest.mark.slow
def test_dry_run_of_a_single_run_leaves_no_file(tmp_path):
    said = call("seed=3", *SMALL, "runs_dir=new/runs", "--dry-run", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines()[1:] == [
        "1 point: 1 missing; 1 to do",
        "time unknown: no finished run of this model under new/runs; run one first",
    ]
    assert files(tmp_path) == []

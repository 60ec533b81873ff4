"""--dry-run: what it says of points, the arithmetic of its estimate, and that it leaves nothing behind."""

import json
from dataclasses import asdict

import pytest
from omegaconf import OmegaConf

from rlsparse.config.run_id import identify
from rlsparse.model.policy import local_folder
from rlsparse.sweep.cost_estimate import Finished, Sized, estimate, finished, side_by_side, sized, work
from rlsparse.sweep.dry_run import Places, Point, as_override, describe, finished_runs
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
    return Point(" ".join(overrides), config, identify(config, local_folder(config.model), "cpu"))


def leave(one, status="finished", seconds=10.0, **more):
    """What a run leaves of its config and summary."""
    one.folder.mkdir(parents=True)
    (one.folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(asdict(one.config))))
    about = {"method_hash": one.identity.method_hash, "status": status, "device": "cpu", "time": {"total": seconds}}
    (one.folder / "summary.json").write_text(json.dumps({**about, "peak_memory_bytes": 2**30, **more}))


def files(folder):
    return sorted((str(path), path.stat().st_size) for path in folder.rglob("*"))


def test_work_counts_completions_by_their_greatest_length():
    # 10 steps of 2 · 4; evaluations at 0, 4, 8 and 10 of 8 rows, greedy and two samples; 20 tokens each
    assert work(asdict(composed(*SMALL))) == (10 * 2 * 4 + 4 * 8 * 3) * 20
    # after step 4: 6 steps, evaluations at 8 and 10
    assert work(asdict(composed(*SMALL)), after=4) == (6 * 2 * 4 + 2 * 8 * 3) * 20
    assert work(asdict(composed(*SMALL)), after=10) == 0
    # the last step is one that is evaluated anyway
    assert work(asdict(composed(*SMALL, "eval.every=5"))) == (10 * 2 * 4 + 3 * 8 * 3) * 20
    # one completion in the right and one in the wrong are gone on with by 4 new ones each
    replay = ["token_sampler.replay.successes=1", "token_sampler.replay.failures=1", "algorithm=tspmo"]
    assert work(asdict(composed(*SMALL, *replay))) == (10 * 2 * (1 + 2) * 4 + 4 * 8 * 3) * 20
    # the task has but 3 held-out rows
    assert work(asdict(composed(*SMALL, "task.test_rows=3"))) == (10 * 2 * 4 + 4 * 3 * 3) * 20


def test_an_estimate_goes_by_the_runs_most_like_it():
    def done(method, model, work, seconds):
        return Finished((method, model, model[0]), work, seconds, None)

    run = Sized(("a", "m, svamp", "m"), 100.0)
    same = [done("a", "m, svamp", 200.0, 30.0), done("a", "m, svamp", 200.0, 50.0)]
    alike = done("b", "m, svamp", 50.0, 10.0)
    other = done("c", "m, gsm8k", 400.0, 60.0)
    stranger = done("d", "n", 100.0, 1.0)
    found = estimate(run, [stranger, other, alike, *same])  # half the work of 30 and 50 s
    assert (found.seconds, found.least, found.most, found.level, found.basis) == (20, 15, 25, 0, tuple(same))
    found = estimate(run, [stranger, other, alike])  # twice the work of 10 s
    assert (found.seconds, found.least, found.most, found.level) == (20, 20, 20, 1)
    found = estimate(run, [stranger, other])  # a quarter of 60 s
    assert (found.seconds, found.level) == (15, 2)
    assert estimate(run, [stranger]) is None


@pytest.mark.parametrize(
    ("overrides", "levels"),
    [
        (["seed=1"], [True, True, True]),
        (["algorithm=sgrpo"], [False, True, True]),
        (["adapter.layers=last_third"], [False, False, True]),
        (["task=word_problems"], [False, False, True]),
        (["dtype=bfloat16"], [False, False, True]),
        (["model=smollm2", "model.path=DIR"], [False, False, False]),
    ],
)
def test_what_makes_runs_alike(overrides, levels):
    def like(config):
        method = identify(config, None, "cpu").method_hash
        return sized(asdict(config), method, "cpu").like

    pairs = zip(like(composed(*SMALL)), like(composed(*SMALL, *overrides)), strict=True)
    assert [a == b for a, b in pairs] == levels


def test_another_kind_of_device_is_no_basis():
    config = asdict(composed(*SMALL))
    run = finished(config, {"method_hash": "a", "device": "cuda:1", "time": {"total": 1.0}})
    assert estimate(sized(config, "b", "cpu"), [run]) is None
    assert estimate(sized(config, "b", "cuda"), [run]) is not None


def test_runs_side_by_side():
    assert side_by_side([6.0] * 9, 2) == 30
    assert side_by_side([5.0, 1.0, 1.0, 1.0], 2) == 5
    assert side_by_side([6.0] * 3, 10) == 6


def test_points_with_their_states_and_what_they_cost(tmp_path):
    first, second, third, fourth = (point(f"seed={seed}", runs=tmp_path) for seed in range(4))
    leave(first)
    leave(second, status="diverged", error="loss")
    leave(third)
    (third.folder / "summary.json").unlink()  # cut off, and saved after step 4
    (third.folder / "checkpoint" / "step-000004").mkdir(parents=True)
    left = 10 * (6 * 8 + 2 * 24) / (10 * 8 + 4 * 24)
    assert describe([first, second, third, fourth], Places("joblib", 2)).splitlines() == [
        "finished: seed=0",
        "diverged: seed=1 (loss)",
        "cut off: seed=2 (no step done)",
        "missing: seed=3",
        "4 points: 1 finished, 1 diverged, 1 cut off, 1 missing; 2 to do",
        f"about {10 + left:.0f} s of compute, about 10 s with hydra/launcher=joblib, 2 at a time",
        "  2 points by 1 finished run of the same method",
        "  memory of a run: up to 1.00 GiB, as theirs",
    ]


def test_a_spread_and_points_that_cannot_be_estimated(tmp_path):
    for seed, seconds in ((0, 8.0), (1, 12.0)):
        leave(point(f"seed={seed}", "experiment.name=other", runs=tmp_path), seconds=seconds)
    points = [point("seed=7", runs=tmp_path), point("algorithm=sgrpo", runs=tmp_path)]
    strange = point("algorithm=sgrpo", "seed=1", runs=tmp_path)
    strange.config.model.name = "another"
    assert describe([*points, strange], Places("ray", None)).splitlines()[3:] == [
        "3 points: 3 missing; 3 to do",
        "about 20 s of compute for 2 points (16 s to 24 s); how many at a time hydra/launcher=ray does is not known",
        "  1 point by 2 finished runs of the same method",
        "  1 point by 2 finished runs with the same model, task, device, dtype and adapter layers, scaled by "
        "completions and their greatest length",
        "  memory of a run: up to 1.00 GiB, as theirs",
        f"1 of 3 points: unknown: no finished run of this model under {tmp_path}; run one first",
    ]


def test_failed_runs_are_to_do_unless_they_are_to_be_kept(tmp_path):
    failed = point("seed=0", runs=tmp_path)
    leave(failed, status="failed", error="broke")
    assert describe([failed]).splitlines()[:2] == ["failed: seed=0 (broke)", "1 point: 1 failed; 1 to do"]
    failed.config.sweep.retry_failed = False
    assert describe([failed]).splitlines()[1:] == ["1 point: 1 failed; 0 to do"]


def test_damaged_runs_are_left_out(tmp_path):
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


def test_the_flag_becomes_an_override_beside_the_others():
    key = "hydra.sweeper.dry_run=true"
    assert as_override(["-m", "seed=0,1", "--dry-run"]) == ["-m", key, "seed=0,1"]
    assert as_override(["--dry-run", "--cfg", "job", "seed=0"]) == ["--cfg", "job", key, "seed=0"]
    assert as_override(["--dry-run"]) == [key]
    assert as_override(["seed=0"]) == ["seed=0"]


@pytest.mark.slow
def test_a_dry_sweep_leaves_everything_as_it_is(tmp_path):
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
        "  2 points by 1 finished run of the same method",
        "  memory of a run: up to 1.00 GiB, as theirs",
    ]
    assert said.stderr == ""
    assert files(tmp_path) == before


@pytest.mark.slow
def test_a_dry_run_leaves_nothing(tmp_path):
    said = call("seed=3", *SMALL, "runs_dir=new/runs", "--dry-run", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines()[1:] == [
        "1 point: 1 missing; 1 to do",
        "unknown: no finished run of this model under new/runs; run one first",
    ]
    assert files(tmp_path) == []

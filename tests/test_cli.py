"""The command line as a user types it, in processes of their own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import run_command

FAST = [
    "train.steps=2",
    "train.prompts_per_step=2",
    "train.group_size=4",
    "eval.every=2",
    "eval.max_rows=8",
]


def call(*arguments, cwd, module="rlsparse.run", **environment):
    return run_command(module, *arguments, cwd=cwd, **{"WANDB_MODE": "offline", **environment})


def call_anew(*arguments, cwd, module="rlsparse.run", **environment):
    """The same in a process that has imported nothing."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "WANDB_MODE": "offline", **environment},
        timeout=600,
    )


def summaries(folder: Path):
    return [json.loads(file.read_text()) for file in sorted(folder.glob("runs/*/*/summary.json"))]


@pytest.mark.slow
def test_sweep_over_algorithms_reaches_wandb_and_the_tables_and_is_skipped_when_repeated(tmp_path):
    done = call("-m", "algorithm=sgrpo,tspmo,grpo,rgra", *FAST, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(s["algorithm"] for s in summaries(tmp_path)) == ["grpo", "rgra", "sgrpo", "tspmo"]
    assert {s["status"] for s in summaries(tmp_path)} == {"finished"}
    assert "[4/4] rgra seed=0: sampled" in done.stderr
    assert "warning: clipping is swept (clipped_ratio, log_prob)" in done.stderr
    # W&B's offline files, read back by its own tool: the group is the experiment, the history has our names
    (offline,) = (tmp_path / "runs").glob("default/tspmo-*/wandb/offline-run-*/*.wandb")
    read = subprocess.run(
        [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", str(offline.parent)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert read.returncode == 0, read.stderr
    for word in ("task/reward_mean", "eval/accuracy_sampled", '"tspmo"', '"default"'):
        assert word in read.stdout
    # the tables
    done = call("--show", cwd=tmp_path, module="rlsparse.results")
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "runs" / "default" / "table.md").read_text()
    assert table in done.stdout
    assert [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][1:] == [
        "grpo",
        "rgra",
        "sgrpo",
        "tspmo",
    ]
    # the same command again skips everything
    again = call("-m", "algorithm=sgrpo,tspmo,grpo,rgra", *FAST, cwd=tmp_path)
    assert again.stderr.count("finished before, skipped") == 4


@pytest.mark.full
def test_runs_without_a_tracker_finish_without_importing_wandb(tmp_path):
    (tmp_path / "wandb.py").write_text("raise ImportError('tracker=none must not import wandb')\n")
    lines = [
        ["algorithm=grpo", "token_sampler=stochastic"],
        ["-m", "clipping=on,off"],
    ]
    for line in lines:
        done = call_anew(*line, *FAST, "tracker=none", cwd=tmp_path, PYTHONPATH=str(tmp_path))
        assert done.returncode == 0, done.stderr
    assert len(summaries(tmp_path)) == 3


@pytest.mark.slow
def test_sweep_with_a_diverged_run_finishes_the_others(tmp_path):
    done = call(
        "-m", "train.lr=1e30,1e-3", "algorithm=reinforce", *FAST, "train.steps=12", "tracker=none", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert sorted(s["status"] for s in summaries(tmp_path)) == ["diverged", "finished"]
    call(cwd=tmp_path, module="rlsparse.results")
    table = (tmp_path / "runs" / "default" / "table.md").read_text()
    assert "train.lr=1e+30" in table.split("Not counted:")[1]
    assert "diverged" in table.split("Not counted:")[1]


@pytest.mark.slow
def test_experiment_without_m_runs_its_grid_narrowed_by_the_command_line(tmp_path):
    axes = ["algorithm=tspmo,grpo", "seed=0,1", "train.lr=1e-3"]  # the grid of S-GRPO and the tuning fall away
    done = call("experiment=token_efficiency", *axes, *FAST, "tracker=none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {s["experiment"] for s in summaries(tmp_path)} == {"token_efficiency"}
    assert len(summaries(tmp_path)) == 4
    assert {s["algorithm"] for s in summaries(tmp_path)} == {"grpo", "tspmo"}
    assert "[4/4] tspmo seed=1: sampled" in done.stderr


def test_bad_input_ends_the_program_with_one_message_before_anything_starts(tmp_path):
    done = call("-m", "lora_rank=4,0", *FAST, cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.strip() == "error: lora_rank=0: must be at least 1 (point: lora_rank=0)"
    assert not summaries(tmp_path)
    (tmp_path / "file").write_text("")
    done = call("runs_dir=file/runs", cwd=tmp_path)
    assert done.stderr.startswith("error: runs_dir=file/runs: cannot be written (Not a directory)")
    assert "Traceback" not in done.stderr
    done = call("task=svamp", cwd=tmp_path, module="rlsparse.warm_start")
    assert "error: out: has no value; give out=..." in done.stderr
    done = call("-m", "algorithm=sgrpo,nope", cwd=tmp_path)
    assert done.stderr.count("Could not find 'algorithm/nope'") == 1
    done = call("algorithm=nope", cwd=tmp_path)
    assert done.stderr.startswith("error: algorithm=nope: Could not find 'algorithm/nope'; choose one of ")
    assert len(done.stderr.splitlines()) == 1
    assert "tspmo" in done.stderr


def test_help_lists_the_config_groups(tmp_path):
    done = call("--help", cwd=tmp_path)
    assert done.returncode == 0
    for group in ("algorithm", "token_sampler", "clipping", "negative_feedback", "model", "task", "tracker"):
        assert re.search(rf"^{group}: ", done.stdout, re.MULTILINE), group


@pytest.mark.parametrize(
    "arguments", [["layer_skip=0.25"], ["-m", "layer_skip=0.1,0.25"], ["layer_skip=r25,1e-1"], ["layer_skip=[2,5]"]]
)
def test_value_for_a_group_is_refused_with_one_message(arguments, tmp_path):
    done = call(*arguments, cwd=tmp_path)
    group, value = arguments[-1].split("=")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {group}={value}: {group} is a config group; choose one of o")
    assert "Traceback" not in done.stderr

"""Runs that are killed at random moments and started again end with the same results as undisturbed runs."""

import json
import os
import random
import signal
import time
from functools import partial

import pytest
import torch

from tests.faults.killing import SETTING, STEPS, only_run, outcome, until_steps, until_then

SETTINGS = {
    "GRPO": [
        "algorithm=grpo",
        "kl=on",
        "kl.reference=ema",
        "kl.reference_every=2",
        "batch_filter=refill",
        "train.staleness=1",
        "off_policy=truncated",
        "entropy=on",
    ],
    # the evaluations on a benchmark, and rewards that are drawn at random
    "S-GRPO": [
        "algorithm=sgrpo",
        "eval.benchmarks=[word_problems]",
        "eval.benchmark_rows=8",
        "eval.benchmarks_every=6",
        "reward=random",
    ],
    "T-SPMO with replay": ["algorithm=tspmo", "replay.successes=1"],
    # gates close and ranks move at 25, 50 and 75 % of the steps
    "L1RA": ["adapter=l1ra_short", "lora_rank=4", "adapter.update_every=0.25", "adapter.gate_lr=0.2"],
    "layer skipping": ["layer_skip=r25", "off_policy=truncated", "token_sampler=stochastic"],
    "several updates": [
        "train.updates_per_rollout=3",
        "train.minibatches=2",
        "token_sampler=prefix_cut",
        "train.schedule=cosine",
        "train.warmup_steps=3",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_run_killed_at_random_moments_and_started_again_ends_the_same(name, fork_server, tmp_path, full):
    if name == "S-GRPO" and not full:
        pytest.skip("at full length only (make test-faults)")
    overrides = [*SETTINGS[name], *SETTING]
    started = time.monotonic()
    assert fork_server.run([*overrides, f"runs_dir={tmp_path / 'whole'}"]) == 0
    whole_time = time.monotonic() - started
    whole = outcome(only_run(tmp_path / "whole"))
    assert len([row for row in whole["metrics"] if row["kind"] == "train"]) == STEPS
    if name == "L1RA":
        assert whole["summary"]["adapter"]["pruned"] > 0  # ranks moved, so the test resumes across a rank update
    chance = random.Random(name)
    kills, wanted, trial, resumable = 0, 20 if full else 2, 0, 0
    while kills < wanted:
        trial += 1
        runs = tmp_path / f"killed{trial}"
        again = [*overrides, f"runs_dir={runs}"]
        while True:
            moment, started, first_start = chance.uniform(0, whole_time), time.monotonic(), not runs.exists()
            # the first kill comes after a checkpoint, however slow the machine is
            wait = partial(until_steps, runs, 5) if kills == 0 else partial(until_then, moment, runs)
            status = fork_server.run(again, wait if kills < wanted else None)
            if status == 0:
                if first_start:  # the machine may have been busy during the undisturbed run
                    whole_time = min(whole_time, time.monotonic() - started)
                break
            assert status == signal.SIGKILL
            kills += 1
            resumable += any(runs.glob("default/*/checkpoint/step-*"))
        cut = outcome(only_run(runs))
        assert cut["metrics"] == whole["metrics"]
        assert cut["samples"] == whole["samples"]
        assert cut["answers"] == whole["answers"]
        assert cut["summary"] == whole["summary"]
        assert cut["adapter"] == whole["adapter"]
        assert not (only_run(runs) / "checkpoint").exists()
    assert resumable > 0
    print(f"{name}: {kills} kills, {resumable} with a checkpoint to resume from, {trial} runs")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GRPO", "T-SPMO with replay", "L1RA", "layer skipping"])
def test_real_model_killed_three_times_ends_the_same(name, fork_server, tmp_path, full, request):
    """SmolLM2-135M in bfloat16 on SVAMP, 8 steps."""
    if not full:
        pytest.skip("at full length only (make test-faults)")
    smollm2, shared_data = (request.getfixturevalue(fixture) for fixture in ("smollm2", "shared_data"))
    small = [f"model.path={smollm2}", "model=smollm2", "task=svamp", f"task.path={shared_data / 'svamp'}", "threads=1"]
    small += ["rollout.max_new_tokens=32", "train.prompts_per_step=2", "train.steps=8", "eval.max_rows=4"]
    # the model rarely answers in the format of the task, so most groups would have equal rewards
    overrides = [*SETTINGS[name], *SETTING, *small, "task.answer_format=last_number", "reward.format=0.5"]
    started = time.monotonic()
    assert fork_server.run([*overrides, f"runs_dir={tmp_path / 'whole'}"]) == 0
    whole_time = time.monotonic() - started
    whole = outcome(only_run(tmp_path / "whole"))
    assert sum(row.get("train/updates", 0) for row in whole["metrics"]) > 0
    chance, again = random.Random(name), [*overrides, f"runs_dir={tmp_path / 'killed'}"]
    fork_server.run(again, partial(until_steps, tmp_path / "killed", 3))
    for _ in range(2):
        fork_server.run(again, partial(until_then, chance.uniform(0, whole_time), tmp_path / "killed"))
    assert fork_server.run(again) == 0
    assert outcome(only_run(tmp_path / "killed")) == whole


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_run_with_a_signal_ends_after_its_step_with_a_checkpoint(number, fork_server, tmp_path):
    overrides = ["algorithm=sgrpo", *SETTING, "train.steps=2000", "train.checkpoint_every=2000", "eval.every=2000"]
    status = fork_server.run([*overrides, f"runs_dir={tmp_path}"], partial(until_steps, tmp_path, 3), number)
    assert os.waitstatus_to_exitcode(status) == 3  # run() raised Interrupted
    folder = only_run(tmp_path)
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (saved,) = (folder / "checkpoint").iterdir()
    assert saved.name == f"step-{steps[-1]:06d}"
    assert not (folder / "summary.json").exists()


def test_run_in_progress_keeps_its_last_two_checkpoints(fork_server, tmp_path):
    overrides = ["algorithm=sgrpo", *SETTING, "train.steps=2000", "eval.every=2000"]
    assert fork_server.run([*overrides, f"runs_dir={tmp_path}"], partial(until_steps, tmp_path, 7)) == signal.SIGKILL
    kept = sorted(path.name for path in (only_run(tmp_path) / "checkpoint").glob("step-*"))
    assert len(kept) == 2
    one, two = (int(name.removeprefix("step-")) for name in kept)
    assert (one % 2, two - one) == (0, 2)


def test_checkpoint_holds_only_tensors_and_json(fork_server, tmp_path):
    from safetensors.torch import load_file

    overrides = ["algorithm=sgrpo", *SETTING, "train.steps=2000", "eval.every=2000"]
    assert fork_server.run([*overrides, f"runs_dir={tmp_path}"], partial(until_steps, tmp_path, 7)) == signal.SIGKILL
    (newest, *_) = sorted((only_run(tmp_path) / "checkpoint").glob("step-*"), reverse=True)
    assert {file.name for file in newest.iterdir()} == {"tensors.safetensors", "state.json", "SHA256SUMS"}
    tensors = load_file(newest / "tensors.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"adapter", "optimizer", "stream"}
    streams = {name for name in tensors if name.startswith("stream.")}
    assert streams == {
        f"stream.{name}"
        for name in ("rollout", "token_sampler", "layer_skip", "replay", "reward", "minibatches", "prompts")
    }
    assert all(tensors[name].dtype == torch.uint8 for name in streams)

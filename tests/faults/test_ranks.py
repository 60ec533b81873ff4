"""Several ranks under torchrun train one run: same gradient, metrics and files as one process, and they end together."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlsparse.batch import ScoredBatch
from rlsparse.components.off_policy import Mismatch
from rlsparse.runtime.distributed import ALONE, World
from rlsparse.training.microbatch import share_of
from tests.conftest import ROOT, make_rollout
from tests.faults.killing import SETTING, ended, heed_interrupts, only_run, outcome_of, until_steps, without_times
from tests.faults.ranked import SETTINGS

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
FULL = "at full length only (make test-faults)"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}


def run_of(*overrides: str, setting: Sequence[str] = SETTING, ranks: bool = True) -> subprocess.Popen[str]:
    command = [*(TORCHRUN if ranks else [sys.executable]), "-m", "rlsparse.run", *overrides, *setting]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
        preexec_fn=heed_interrupts,
    )


def rank_processes(agent: int) -> list[int]:
    """Return the process ids of the ranks, rank 0 first: the children of torchrun that have a rank."""
    found = []
    for line in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = line.read_text().rsplit(")", 1)[1].split()
            environ = (line.parent / "environ").read_bytes()
        except OSError:
            continue
        rank = re.search(rb"(?:^|\0)RANK=(\d+)", environ)
        if int(fields[1]) == agent and rank:
            found.append((int(rank[1]), int(line.parent.name)))
    return [pid for _, pid in sorted(found)]


def test_bounds_of_ranks_are_even_and_cover_all_rows():
    for count in (0, 1, 5, 8):
        bounds = [World(rank, 3).bounds(count) for rank in range(3)]
        assert [row for start, end in bounds for row in range(start, end)] == list(range(count))
        assert max(end - start for start, end in bounds) - min(end - start for start, end in bounds) <= 1


def test_world_of_one_process_does_all_work_itself():
    assert ALONE.each(lambda a, b: a + b, [1, 2], [10, 20]) == [11, 22]
    assert ALONE.gathered([3]) == [3]
    assert ALONE.largest(4) == 4


def test_prompts_that_teach_are_assigned_to_ranks_in_turn():
    # groups of two; of five prompts the third has nothing to teach: 0, 3 to rank 0 and 1, 4 to rank 1
    scales = torch.tensor([[1.0], [0], [2], [2], [0], [0], [0], [3], [4], [4]])
    rollout = make_rollout([[5]] * 10, prompts=5)
    batch = ScoredBatch(rollout, torch.ones(10, 1), scales)
    parts = [share_of(batch, World(rank, 2)).scales.flatten().tolist() for rank in range(2)]
    assert parts == [[1, 0, 0, 0, 0, 0, 0, 3, 0, 0], [0, 0, 2, 2, 0, 0, 0, 0, 4, 4]]
    assert share_of(batch, ALONE) is batch


def test_mismatches_of_two_ranks_add_up():
    both = Mismatch(2, 0.5, 3.0, 5.0, 2.5, 1) + Mismatch(1, 0.25, 1.0, 1.0, 4.0, 0)
    assert both == Mismatch(3, 0.75, 4.0, 6.0, 4.0, 1)


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> Path:
    """Return the folder with what one process and two ranks wrote of each setting."""
    folder = tmp_path_factory.mktemp("ranked")
    script = ["-m", "tests.faults.ranked", str(folder)]
    for command in ([sys.executable, *script], [*TORCHRUN, *script]):
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_gradient_of_two_ranks_equals_that_of_one_process(name, seen):
    alone, first, second = (load_file(seen / f"{name}-{which}.safetensors") for which in ("0-of-1", "0-of-2", "1-of-2"))
    norm = torch.cat([grad.flatten() for grad in alone.values()]).norm()
    assert norm > 0
    for key, grad in alone.items():
        assert torch.equal(first[key], second[key])  # the same bits, so that the ranks never drift apart
        assert (first[key] - grad).norm() <= 1e-6 * norm


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_metrics_of_two_ranks_equal_those_of_one_process(name, seen):
    alone, first, second = (
        [without_times(row) for row in json.loads((seen / f"{name}-{which}.json").read_text())]
        for which in ("0-of-1", "0-of-2", "1-of-2")
    )
    assert len(alone) == (4 if "train.steps=2" in SETTINGS[name] else 3)  # two evaluations and the steps
    assert first == second
    # later rows come after steps whose gradients differ by rounding
    for row, expected in zip(first[:2], alone[:2], strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_sweep_under_torchrun_writes_once_and_is_skipped_the_second_time(tmp_path, full):
    if not full:
        pytest.skip(FULL)
    axes = ["-m", "algorithm=tspmo,grpo", f"runs_dir={tmp_path}", *(one for one in SETTING if one != "tracker=none")]
    code, text = ended(run_of(*axes, setting=()))
    assert code == 0, text
    summaries = [json.loads(file.read_text()) for file in tmp_path.glob("default/*/summary.json")]
    assert [(one["status"], one["ranks"]) for one in summaries] == [("finished", 2)] * 2
    assert text.count("[1/2] tspmo seed=0: sampled") == 1  # rank 0 alone logs
    assert len(list(tmp_path.glob("default/*/wandb/offline-run-*"))) == 2
    assert len(list((tmp_path / ".hydra").iterdir())) == 1
    code, text = ended(run_of(*axes, setting=()))
    assert (code, text.count("finished before, skipped")) == (0, 2), text


@pytest.mark.slow
def test_bad_input_under_torchrun_is_reported_once(tmp_path, full):
    if not full:
        pytest.skip(FULL)
    code, text = ended(run_of("train.steps=0", "tracker=none", f"runs_dir={tmp_path}", setting=()))
    assert code == 1
    assert text.count("train.steps=0") == 1, text


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    """Return the outcome of a run of two ranks that was not disturbed."""
    runs = tmp_path_factory.mktemp("whole")
    code, text = ended(run_of(f"runs_dir={runs}"))
    assert code == 0, text
    return outcome_of(only_run(runs))


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["rank 1", "rank 0", "Ctrl-C"])
def test_run_with_a_dead_rank_ends_and_resumes_to_the_same_outcome(victim, full, tmp_path, request):
    if not full:
        pytest.skip(FULL)
    whole = request.getfixturevalue("whole")
    process = run_of(f"runs_dir={tmp_path}")
    until_steps(tmp_path, 7)
    ranks = rank_processes(process.pid)
    assert len(ranks) == 2
    if victim == "Ctrl-C":  # a terminal sends it to all processes, and torchrun sends it to its ranks once more
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(ranks[int(victim[-1])], signal.SIGKILL)
    code, text = ended(process)
    assert code != 0
    assert ("stopped by SIGINT" in text) == (victim == "Ctrl-C"), text
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in ranks):
        assert time.monotonic() < deadline, "a rank still runs"
        time.sleep(0.1)
    folder = only_run(tmp_path)
    assert not (folder / "summary.json").exists()
    assert any((folder / "checkpoint").glob("step-*"))
    code, text = ended(run_of(f"runs_dir={tmp_path}"))
    assert code == 0, text
    assert "resumes after step" in text
    assert outcome_of(only_run(tmp_path)) == whole


@pytest.mark.slow
def test_run_of_two_ranks_resumes_with_one(tmp_path, full, request):
    if not full:
        pytest.skip(FULL)
    whole = request.getfixturevalue("whole")
    process = run_of(f"runs_dir={tmp_path}")
    until_steps(tmp_path, 7)
    process.send_signal(signal.SIGTERM)
    ended(process)
    code, text = ended(run_of(f"runs_dir={tmp_path}", ranks=False))
    assert code == 0, text
    rows = outcome_of(only_run(tmp_path))["metrics"]
    assert [row["step"] for row in rows] == [row["step"] for row in whole["metrics"]]
    assert rows[:8] == whole["metrics"][:8]

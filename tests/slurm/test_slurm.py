"""Sweeps on a real SLURM: preempted jobs are queued again, and runs of killed jobs are resumed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rlsparse.storage.locks import holder
from tests.faults.killing import SETTING, outcome
from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.slow
LAUNCHER = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2")
LENGTH = ("train.steps=60", "eval.every=20")
PATIENCE = 150  # seconds
FULL = "at full length only (make test-slurm ARGS=--full)"


class Sweep:
    """Runs the command of a sweep on a cluster."""

    def __init__(self, cluster: Cluster, runs: Path, *overrides: str) -> None:
        self.cluster, self.runs = cluster, runs
        self._before = set(cluster.tasks())
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rlsparse.run", "-m", *SETTING, *LENGTH, f"runs_dir={runs}", *LAUNCHER, *overrides],
            env=cluster.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ended(self) -> tuple[int, str]:
        """Wait for the command and return its exit code and output."""
        text, _ = self._process.communicate(timeout=PATIENCE)
        return self._process.returncode, text

    def until(self, ready: Callable[[], object]) -> None:
        """Wait until ``ready`` is true, while the command is running."""
        deadline = time.monotonic() + PATIENCE
        while not ready():
            assert self._process.poll() is None, self._process.communicate()[0]
            assert time.monotonic() < deadline, f"{self.cluster.tasks()}\n{self.printed()}"
            time.sleep(0.2)

    def steps(self, run: str) -> int:
        """Return the number of finished steps of the runs whose id begins with ``run``."""
        files = self.runs.glob(f"default/{run}-*/metrics.jsonl")
        return sum(file.read_text().count('"kind": "train"') for file in files)

    def until_steps(self, run: str, count: int = 8) -> None:
        self.until(lambda: self.steps(run) >= count)

    def task(self, number: int) -> str:
        """Return the job id of a point of the sweep, counted from 0."""
        ours = sorted(task for task in self.cluster.tasks() if task not in self._before)
        return next(task for task in ours if task.endswith(f"_{number}") or "_" not in task)

    def until_requeued(self, task: str) -> None:
        """Wait until a job is queued again, and release it: SLURM would hold it there for two minutes."""
        self.until(lambda: self.cluster.tasks().get(task) == "PENDING")
        self.cluster("scontrol", "update", f"JobId={task}", "StartTime=now")

    def printed(self, number: int | None = None) -> str:
        """Return what the jobs have printed, or the job of one point, in the folder that the config of the launcher names."""
        suffix = "" if number is None else f"_{number}"
        files = sorted(self.runs.glob(f".hydra/*/.submitit/*{suffix}/*_log.err"))
        return "".join(file.read_text() for file in files)


def restarts(cluster: Cluster, task: str) -> int:
    found = re.search(r"Restarts=(\d+)", cluster("scontrol", "show", "job", task))
    assert found is not None
    return int(found[1])


def outcomes(runs: Path) -> dict[str, dict]:
    """Return the outcome of each finished run by run id, without overrides: the SLURM launcher adds the device."""
    found = {folder.parent.name: outcome(folder.parent) for folder in runs.glob("default/*/adapter")}
    for one in found.values():
        del one["summary"]["overrides"]
    return found


@pytest.fixture(scope="session")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Return the outcomes of the same runs without SLURM."""
    runs = tmp_path_factory.mktemp("undisturbed")
    axes = ["algorithm=grpo,sgrpo", "seed=0,1"]
    command = [sys.executable, "-m", "rlsparse.run", "-m", *SETTING, *LENGTH, f"runs_dir={runs}", *axes]
    subprocess.run(command, env=cluster.env, check=True, capture_output=True)
    return outcomes(runs)


def test_job_with_a_signal_is_queued_again_and_resumes(cluster, undisturbed, tmp_path):
    axes = ["algorithm=grpo,sgrpo", "seed=0,1"]
    sweep = Sweep(cluster, tmp_path, *axes)
    sweep.until_steps("grpo-s1")
    task = sweep.task(1)
    shown = cluster("scontrol", "show", "job", task)
    assert "TimeLimit=04:00:00" in shown
    assert "mem=2G" in shown
    cluster("scancel", "--signal=USR2", task)
    sweep.until_requeued(task)
    assert restarts(cluster, task) == 1
    code, text = sweep.ended()
    assert code == 0, text
    assert outcomes(tmp_path) == undisturbed
    assert "stopped by SIGUSR2" in sweep.printed(1)
    assert re.search(r"seed=1: resumes after step [1-9]\d? ", sweep.printed(1))
    assert sweep.printed().count("step 0/60") == 4  # each run started once
    code, text = Sweep(cluster, tmp_path, *axes).ended()
    assert code == 0
    assert text.count("finished before, skipped") == 4
    assert not cluster.tasks()


def test_job_preempted_by_slurm_is_queued_again_and_resumes(cluster, undisturbed, tmp_path, full):
    """SLURM sends SIGTERM, as scancel does, and counts a job that ends on it as failed."""
    if not full:
        pytest.skip(FULL)
    sweep = Sweep(cluster, tmp_path, "algorithm=grpo", "seed=0")
    graces = [5, 0]  # seconds that the job has
    for times, grace in enumerate(graces, start=1):
        sweep.until_steps("grpo-s0", sweep.steps("grpo-s0") + 8)
        task = sweep.task(0)
        cluster("scontrol", "update", "PartitionName=low", f"GraceTime={grace}")
        cluster("sbatch", "--partition=high", "--cpus-per-task=8", "--mem=1G", "--output=/dev/null", "--wrap=true")
        sweep.until_requeued(task)
        assert restarts(cluster, task) == times
    code, text = sweep.ended()
    assert code == 0, text
    ((name, one),) = outcomes(tmp_path).items()
    assert one == undisturbed[name]
    assert sweep.printed().count(": resumes after step") == len(graces)


def test_run_that_ends_with_its_job_is_resumed_alone_and_is_reported_the_second_time(
    cluster, undisturbed, tmp_path, full
):
    """One job is killed, and one has used up its time limit: within ten minutes of it, any warning counts as that."""
    if not full:
        pytest.skip(FULL)
    few = ("hydra.launcher.timeout_min=10", "hydra.launcher.max_num_timeout=0")
    sweep = Sweep(cluster, tmp_path, "algorithm=grpo,sgrpo", "seed=0", *few)
    sweep.until_steps("grpo-s0")
    about = json.loads(next(tmp_path.glob("default/grpo-s0-*/holder.json")).read_text())
    os.kill(about["pid"], signal.SIGKILL)  # scancel --signal=KILL would begin with SIGTERM
    sweep.until_steps("sgrpo-s0")
    cluster("scancel", "--signal=USR2", sweep.task(1))
    held: set[int] = set()

    def again() -> bool:
        held.add(sum(holder(file.parent) is not None for file in tmp_path.glob("default/*/config.yaml")))
        return sweep.steps("sgrpo-s0") >= before + 8

    sweep.until(lambda: not cluster.tasks())
    before = sweep.steps("sgrpo-s0")
    sweep.until(again)
    cluster("scancel", "--signal=USR2", sweep.task(0))
    code, text = sweep.ended()
    assert code == 1
    assert held == {0, 1}
    assert "the launcher failed" in text
    assert "the runs in progress continue one at a time: 2" in text
    *_, failure, count = text.strip().splitlines()
    assert failure.startswith("failed: ")
    assert "algorithm=sgrpo" in failure
    assert "timed-out too many times" in failure
    assert count == "2 runs: 1 finished, 1 failed"
    assert list(tmp_path.glob("default/sgrpo-s0-*/checkpoint/*"))  # the same command can resume from it
    ((name, one),) = outcomes(tmp_path).items()
    assert one == undisturbed[name]
    assert sweep.printed().count(": resumes after step") == 2
    assert "another process" not in sweep.printed()

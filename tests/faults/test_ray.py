"""A sweep on a Ray cluster of two workers, one of which is killed: Ray starts its run again, with the same results."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlsparse.storage.locks import holder
from tests.faults.killing import SETTING, ended, outcome_of

AXES = ("algorithm=tspmo,grpo,sgrpo", "train.steps=12")
QUIET = {"RAY_DEDUP_LOGS": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}


def until_saved(runs: Path, algorithm: str) -> Path:
    """Wait until a run that is in progress has a checkpoint, and return its folder."""
    deadline = time.monotonic() + 200
    while True:
        for folder in runs.glob(f"default/{algorithm}-*"):
            if any((folder / "checkpoint").glob("step-*")) and holder(folder):
                return folder
        assert time.monotonic() < deadline, "no checkpoint within 200 seconds"
        time.sleep(0.05)


@pytest.mark.slow
def test_run_of_a_killed_worker_is_started_again_and_resumes(tmp_path, fork_server, full):
    pytest.importorskip("ray")
    if not full:
        pytest.skip("at full length only (make test-faults)")
    launcher = ("hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=2")
    process = subprocess.Popen(
        [sys.executable, "-m", "rlsparse.run", "-m", *SETTING, *AXES, *launcher, f"runs_dir={tmp_path / 'ray'}"],
        env={**os.environ, **QUIET},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    folder = until_saved(tmp_path / "ray", "grpo")
    about = holder(folder)
    assert about is not None
    os.kill(about["pid"], signal.SIGKILL)
    code, text = ended(process)
    assert code == 0, text
    assert "grpo seed=0: resumes after step" in text
    found = {path.parent.name.split("-")[0]: path.parent for path in tmp_path.glob("ray/default/*/summary.json")}
    assert sorted(found) == ["grpo", "sgrpo", "tspmo"]
    assert not list(tmp_path.glob("ray/default/*/attempts"))  # no run was started from its beginning twice
    assert fork_server.run([*SETTING, "train.steps=12", "algorithm=grpo", f"runs_dir={tmp_path / 'alone'}"]) == 0
    assert outcome_of(folder) == outcome_of(*tmp_path.glob("alone/default/*-*"))

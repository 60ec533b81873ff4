"""A user's own component on a SLURM: the folder of --config-dir is on the import path of the job."""

import json
import subprocess
import sys

import pytest

from tests.faults.killing import SETTING
from tests.slurm.cluster import Cluster
from tests.slurm.test_slurm import LAUNCHER, PATIENCE
from tests.test_extending import write_page

pytestmark = pytest.mark.slow


def test_own_reward_runs_as_a_slurm_job(cluster: Cluster, tmp_path):
    write_page(tmp_path)
    command = [sys.executable, "-m", "rlsparse.run", "--config-dir", "mine", "-m", *SETTING, *LAUNCHER]
    done = subprocess.run(
        [*command, "train.steps=2", "reward=brief", f"runs_dir={tmp_path / 'runs'}"],
        cwd=tmp_path,
        env=cluster.env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("runs/default/*/summary.json")
    assert json.loads(file.read_text())["status"] == "finished"

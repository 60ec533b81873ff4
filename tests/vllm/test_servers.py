"""The life of a server: shared by a sweep, replaced when it dies or hangs, and ended with its last user."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUN = ["rlsparse.run", "model=tiny", "tracker=none", "train.steps=3", "eval.max_rows=4", "eval.samples=1"]
START = 300  # seconds in which a server is ready, on two busy cores
END = 60  # seconds in which a server without users ends


def command(keys, runs, *overrides):
    return [sys.executable, "-m", *RUN, *keys, f"runs_dir={runs}", *overrides]


def environment(tmp_path):
    """A folder of servers of its own, so that the servers of other tests are not shared."""
    (tmp_path / "tmp").mkdir()
    return {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "OMP_NUM_THREADS": "1"}


def servers(tmp_path):
    """The files that describe the present servers."""
    return [json.loads(file.read_text()) for file in (tmp_path / "tmp").glob("rlsparse-*/*/server.json")]


class Processes:
    """The keeper of a folder of servers with its guard, and the session of each of its servers, whose engine is a process of it."""

    def __init__(self, tmp_path):
        self._folder, self._sessions = str(tmp_path / "tmp").encode(), set()

    def keepers(self):
        return [one for one, words in running() if any(b"keeper.py" in w for w in words) and self._folder in words[-1]]

    def keeper(self):
        """Return the keeper itself, the parent of the first process of a server."""
        (server,) = [one for one in self.servers() if one in self._sessions]
        return int(Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[1])

    def servers(self):
        """Return the processes of all servers that were seen; call it once while a server runs."""
        for one, words in running():
            if b"vllm.entrypoints.openai.api_server" in words and self._is_here(one):
                self._sessions.add(os.getsid(one))
        return [one for one, _ in running() if session(one) in self._sessions]

    def left(self):
        return self.keepers() + self.servers()

    def _is_here(self, process):
        try:
            return b"TMPDIR=" + self._folder in Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        except OSError:
            return False


def running():
    """Return the processes of this machine with the words of their commands."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().strip(b"\0").split(b"\0")
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.append((int(folder.name), words))
    return found


def session(process):
    try:
        return os.getsid(process)
    except OSError:
        return None


def wait_until(condition, seconds, what):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.5)


def statuses(runs):
    return [json.loads(file.read_text())["status"] for file in Path(runs).glob("*/*/summary.json")]


def test_four_runs_of_a_sweep_share_one_server_which_ends_after_them(keys, tmp_path):
    variables = environment(tmp_path)
    sweep = ["-m", "seed=0,1,2,3", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "off_policy=truncated"]
    all_of = Processes(tmp_path)
    run = subprocess.Popen(command(keys, tmp_path / "runs", *sweep), env=variables, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: servers(tmp_path), START, "no server")
        assert len(all_of.servers()) > 1
        _, errors = run.communicate(timeout=600)
    finally:
        run.kill()
    assert run.returncode == 0, errors[-3000:]
    assert statuses(tmp_path / "runs") == ["finished"] * 4
    logs = list((tmp_path / "tmp").glob("rlsparse-*/*/server.log"))
    assert len(logs) == 1  # one folder, so one plan
    assert logs[0].read_text().count("Application startup complete") == 1  # which was started once
    wait_until(lambda: not all_of.left(), END, "something still runs")
    assert not servers(tmp_path)
    assert not list((tmp_path / "tmp").glob("rlsparse-*/*/adapters/*"))
    rows = [
        json.loads(line)
        for file in (tmp_path / "runs").glob("*/*/metrics.jsonl")
        for line in file.read_text().splitlines()
    ]
    mismatch = [row["off_policy/kl"] for row in rows if "off_policy/kl" in row]
    assert mismatch
    assert max(mismatch) < 1e-6  # float32 on both sides


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_a_step_is_tried_again_on_a_fresh_server_after_one_died_or_hung_or_was_stopped(keys, tmp_path, way):
    variables, all_of = environment(tmp_path), Processes(tmp_path)
    more = ["train.steps=40", "rollout.timeout=15", "eval.every=40"]
    run = subprocess.Popen(command(keys, tmp_path / "runs", *more), env=variables, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: servers(tmp_path), START, "no server")
        first = servers(tmp_path)[0]["id"]
        metrics = lambda: [  # noqa: E731
            line for file in (tmp_path / "runs").glob("*/*/metrics.jsonl") for line in file.read_text().splitlines()
        ]
        wait_until(lambda: len(metrics()) > 4, START, "no step")
        for process in all_of.servers():
            os.kill(process, way)
        _, errors = run.communicate(timeout=400)
    finally:
        run.kill()
    assert run.returncode == 0, errors[-3000:]
    assert "it is tried again" in errors
    assert statuses(tmp_path / "runs") == ["finished"]
    log = next((tmp_path / "tmp").glob("rlsparse-*/*/server.log")).read_text()
    assert "Application startup complete" in log
    assert first not in [one["id"] for one in servers(tmp_path)]
    wait_until(lambda: not all_of.left(), END, "something still runs")


def test_the_server_ends_when_its_only_user_is_killed(keys, tmp_path):
    variables, all_of = environment(tmp_path), Processes(tmp_path)
    run = subprocess.Popen(
        command(keys, tmp_path / "runs", "train.steps=500"), env=variables, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: servers(tmp_path), START, "no server")
        assert len(all_of.servers()) > 1
    finally:
        run.kill()
        run.wait()
    wait_until(lambda: not all_of.left(), END, "something still runs")


def test_the_server_ends_when_its_keeper_is_killed(keys, tmp_path):
    variables, all_of = environment(tmp_path), Processes(tmp_path)
    run = subprocess.Popen(
        command(keys, tmp_path / "runs", "train.steps=500", "rollout.retries=0"), env=variables, stderr=subprocess.PIPE
    )
    try:
        wait_until(lambda: servers(tmp_path), START, "no server")
        assert len(all_of.servers()) > 1
        os.kill(all_of.keeper(), signal.SIGKILL)
        _, errors = run.communicate(timeout=45)  # no other server is started to end this one
    finally:
        run.kill()
    assert run.returncode == 1
    assert b"cannot be reached" in errors or b"no answer" in errors
    assert statuses(tmp_path / "runs") == ["failed"]
    wait_until(lambda: not all_of.left(), END, "something still runs")


def test_two_ranks_share_one_server_and_give_the_completions_of_one(keys, tmp_path):
    variables = environment(tmp_path)
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    alone = command(keys, tmp_path / "alone")
    several = [sys.executable, *ranks, *command(keys, tmp_path / "ranks")[2:]]
    for one in (alone, several):
        done = subprocess.run(one, env=variables, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
    rewards = []
    for runs in ("alone", "ranks"):
        (file,) = (tmp_path / runs).glob("*/*/metrics.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rewards.append([row["task/reward_mean"] for row in rows if "task/reward_mean" in row])
    assert rewards[0] == rewards[1]

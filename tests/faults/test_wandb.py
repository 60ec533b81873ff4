"""W&B that cannot be reached, is slow or is killed: training is not affected, and the W&B run is made from the files."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.killing import SETTING, only_run, until_steps

SETTING = tuple(one for one in SETTING if one != "tracker=none")


def command(runs: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "rlsparse.run", *SETTING, f"runs_dir={runs}", *overrides]


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Return the address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for one in taken:
            one.close()


def shown(folder: Path) -> dict[str, list[dict]]:
    """Return the records by kind that the reader of W&B finds in the one offline folder of a run."""
    (offline,) = (folder / "wandb").glob("offline-run-*")
    done = subprocess.run(
        [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", str(offline)],
        capture_output=True,
        text=True,
        check=True,
    )
    records: dict[str, list[dict]] = {}
    for line in done.stdout.splitlines():
        record = json.loads(line)
        records.setdefault(record["type"], []).append(record[record["type"]])
    return records


def steps_shown(about: dict[str, list[dict]], name: str = "step") -> list[float]:
    """Return a column of the rows of the training steps."""
    return [row["item"][name] for row in about["history"] if "objective/loss" in row["item"]]


@pytest.mark.slow
@pytest.mark.parametrize("server", ["silent", "absent"])
def test_run_with_an_unreachable_server_trains_at_full_speed(server, silent_server, tmp_path, full):
    """W&B tries to connect for 30 s and more; all 24 steps are done and written meanwhile."""
    if not full:
        pytest.skip("at full length only (make test-faults)")
    address = silent_server if server == "silent" else "http://127.0.0.1:9"
    fake = environment(WANDB_API_KEY="a" * 40, WANDB_BASE_URL=address, WANDB_MODE="online")
    process = subprocess.Popen(command(tmp_path), env=fake, stderr=subprocess.PIPE, text=True)
    until_steps(tmp_path, 1)
    deadline = time.monotonic() + 25  # W&B alone takes 30 s to give up
    while not list(tmp_path.glob("default/*/summary.json")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert json.loads((only_run(tmp_path) / "summary.json").read_text())["status"] == "finished"
    _, printed = process.communicate(timeout=200)  # the program waits for W&B a minute at most
    assert process.returncode == 0
    assert "W&B" in printed
    # the W&B run is made from the files afterwards
    sync = [sys.executable, "-m", "rlsparse.sync", "--runs", str(tmp_path), "--mode", "offline"]
    subprocess.run(sync, env=environment(), check=True)
    assert steps_shown(shown(only_run(tmp_path))) == list(range(1, 25))


@pytest.mark.slow
def test_run_whose_wandb_process_is_killed_trains_to_its_end(tmp_path, full):
    if not full:
        pytest.skip("at full length only (make test-faults)")
    long = command(tmp_path, "train.steps=100", "eval.every=100")
    process = subprocess.Popen(long, env=environment(), stderr=subprocess.PIPE, text=True)
    until_steps(tmp_path, 3)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    views = [child for child in children if b"rlsparse.sync" in Path(f"/proc/{child}/cmdline").read_bytes()]
    assert len(views) == 1
    os.kill(int(views[0]), signal.SIGKILL)
    process.communicate(timeout=300)
    assert process.returncode == 0
    assert json.loads((only_run(tmp_path) / "summary.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_run_that_was_killed_and_resumed_is_one_wandb_run_with_every_row(tmp_path):
    process = subprocess.Popen(command(tmp_path), env=environment(), stderr=subprocess.DEVNULL)
    until_steps(tmp_path, 9)
    process.kill()
    process.wait()
    subprocess.run(command(tmp_path), env=environment(), check=True, stderr=subprocess.DEVNULL)
    folder = only_run(tmp_path)
    about = shown(folder)
    assert steps_shown(about) == list(range(1, 25))  # each step once
    (run,) = about["run"]
    assert run["run_id"] == f"default-{folder.name}"


@pytest.mark.full
def test_sync_makes_the_wandb_run_of_a_run_without_one(tmp_path):
    subprocess.run(command(tmp_path, "tracker=none"), env=environment(), check=True, stderr=subprocess.DEVNULL)
    folder = only_run(tmp_path)
    assert not (folder / "wandb").exists()
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 25, "ki')  # an incomplete line is left out
    sync = [sys.executable, "-m", "rlsparse.sync", "--runs", str(tmp_path), "--experiment", "default"]
    for _ in range(2):  # the second time replaces the first
        done = subprocess.run(sync, env=environment(), check=True, capture_output=True, text=True)
        assert done.stdout.strip() == "1 of 1 runs shown; without an API key they are stored offline in their folders"
        assert steps_shown(shown(folder)) == list(range(1, 25))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()[:-1]]
    about = shown(folder)
    losses = steps_shown(about, "objective/loss")
    assert losses == pytest.approx([row["objective/loss"] for row in rows if row["kind"] == "train"])
    (run,) = about["run"]
    assert run["job_type"] == "grpo"
    shutil.rmtree(folder / "wandb")

"""One process works on a run at a time, until it ends; a change of versions between two starts is reported."""

import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from rlsparse.results.collect import collect
from rlsparse.results.tables import version_notes
from rlsparse.run import run
from rlsparse.storage import locks
from rlsparse.storage.locks import claimed, holder
from tests.conftest import composed
from tests.faults.killing import SETTING, only_run, until_steps

HOLD = """
import sys, time
from pathlib import Path
from rlsparse.storage import locks
locks.EXPIRY = 2.0
with locks.claimed(Path(sys.argv[1]), sys.argv[2]) as ours:
    print(ours, flush=True)
    time.sleep(60)
"""


def hold(folder: Path, kind: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder, kind], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "True"
    return process


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flock", "lease"])
def test_folder_has_one_holder_until_that_process_dies(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "EXPIRY", 2.0)
    monkeypatch.setattr(locks, "ACQUIRE_TIMEOUT", 0.5)
    folder = tmp_path / "run"
    other = hold(folder, kind)
    with claimed(folder, kind) as ours:
        assert not ours
    about = holder(folder)
    assert about is not None
    assert about["pid"] == other.pid
    time.sleep(3)  # a lease that is renewed does not expire
    with claimed(folder, kind) as ours:
        assert not ours
    other.kill()
    other.wait()
    with claimed(folder, kind) as ours:
        assert ours
        mine = holder(folder)
        assert mine is not None
    assert holder(folder) is None


@pytest.mark.slow
def test_stopped_holder_exits_when_another_process_has_its_lease(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "EXPIRY", 2.0)
    other = hold(tmp_path / "run", "lease")
    other.send_signal(signal.SIGSTOP)  # like a machine that loses the file system for a while
    with claimed(tmp_path / "run", "lease") as ours:
        assert ours
        other.send_signal(signal.SIGCONT)
        assert other.wait(timeout=30) == locks.LOST


def test_folder_without_a_lock_has_no_holder_and_stays_unchanged(tmp_path):
    assert holder(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_changed_config_is_another_run_but_not_a_changed_checkpoint_interval(tmp_path):
    small = [*SETTING, "train.steps=1", f"runs_dir={tmp_path}"]
    first = run(composed(*small))
    assert run(composed(*small, "train.checkpoint_every=7", "sweep.lock=lease"))["id"] == first["id"]
    assert run(composed(*small, "train.lr=0.5"))["id"] != first["id"]
    assert len(list(tmp_path.glob("default/*/summary.json"))) == 2


@pytest.mark.slow
def test_version_that_changed_in_the_middle_of_a_run_is_reported(fork_server, tmp_path, capfd):
    overrides = ["algorithm=sgrpo", *SETTING, f"runs_dir={tmp_path}"]
    fork_server.run(overrides, partial(until_steps, tmp_path, 5))
    folder = only_run(tmp_path)
    about = json.loads((folder / "provenance.json").read_text())
    about["versions"]["torch"] = "1.13.1"
    (folder / "provenance.json").write_text(json.dumps(about))
    summary = run(composed(*overrides))
    (line,) = summary["changed"]
    assert line.endswith("was 1.13.1")
    assert line.startswith("torch is ")
    assert f"warning: {line}: the steps of the run are not all of one version" in capfd.readouterr().err
    (note,) = version_notes(collect(folder.parent).runs)
    assert note == f"Versions changed in the middle of a run: {folder.name} ({line})."


@pytest.mark.slow
def test_skipped_results_of_another_version_are_reported(tmp_path, full):
    if not full:
        pytest.skip("at full length only (make test-faults)")
    command = [
        sys.executable,
        "-m",
        "rlsparse.run",
        "-m",
        *SETTING,
        "train.steps=1",
        "seed=0,1",
        f"runs_dir={tmp_path}",
    ]
    subprocess.run(command, check=True, capture_output=True)
    for file in tmp_path.glob("default/*/summary.json"):
        summary = json.loads(file.read_text())
        summary["versions"]["peft"] = "0.1"
        file.write_text(json.dumps(summary))
    again = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    assert "warning: 2 runs were done before with another version (peft is " in again
    assert again.count("finished before, skipped") == 2

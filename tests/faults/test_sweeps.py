"""Sweeps whose runs fail, exit, run out of memory or are killed, and sweeps that are started twice at once."""

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.faults.killing import SETTING, ended, heed_interrupts, until_steps

# an audit hook raises the fault where the first checkpoint of a run is opened, in any process, without a change of code
FAULT = """
import os, signal, sys
KIND, WHERE = os.environ["FAULT"].split(":")

def fault(event, args):
    if event == "open" and str(args[0]).endswith("state.json") and f"/{WHERE}-" in str(args[0]) and "w" in str(args[1]):
        if KIND == "exception":
            raise RuntimeError("a fault on purpose")
        if KIND == "exit":
            raise SystemExit(7)
        if KIND == "memory":
            raise MemoryError("no room for a checkpoint")
        if KIND == "killed":
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(fault)
"""
CAUSES = {
    "exception": "RuntimeError: a fault on purpose",
    "exit": "SystemExit: 7",
    "memory": "MemoryError: no room for a checkpoint",
    "killed": "its process died: TerminatedWorkerError",
}
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


def sweep(
    folder: Path, *overrides: str, env: Mapping[str, str] | None = None, group: int | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rlsparse.run", "-m", *SETTING, "train.steps=4", f"runs_dir={folder}", *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=group,
        preexec_fn=heed_interrupts,
    )


def states(runs: Path) -> dict[str, str]:
    """Return the status of each run by algorithm and seed."""
    summaries = [json.loads(file.read_text()) for file in runs.glob("default/*/summary.json")]
    return {f"{one['algorithm']}{one['seed']}": one["status"] for one in summaries}


def faulty(tmp_path: Path, fault: str) -> dict[str, str]:
    """Return the environment of a process in which the audit hook raises a fault, ``KIND:ALGORITHM``."""
    (tmp_path / "site").mkdir(exist_ok=True)
    (tmp_path / "site" / "sitecustomize.py").write_text(FAULT)
    return {"PYTHONPATH": str(tmp_path / "site"), "FAULT": fault}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "kind", "always"),
    [
        ("basic", "exit", True),
        ("basic", "exception", False),
        ("basic", "memory", False),
        ("joblib", "killed", False),
        ("joblib", "exit", False),
        ("joblib", "exception", False),
        ("joblib", "memory", False),
    ],
)
def test_sweep_with_a_failing_run_finishes_the_others(launcher, kind, always, tmp_path, full):
    if not (always or full):
        pytest.skip("at full length only (make test-faults)")
    axes = ["algorithm=grpo,tspmo,sgrpo", *(JOBLIB if launcher == "joblib" else ())]
    code, text = ended(sweep(tmp_path / "runs", *axes, env=faulty(tmp_path, f"{kind}:tspmo")))
    assert code == 1
    assert states(tmp_path / "runs") == {"grpo0": "finished", "sgrpo0": "finished", "tspmo0": "failed"}
    *_, failure, count = text.strip().splitlines()
    assert failure.startswith("failed: ")
    assert "algorithm=tspmo" in failure
    assert CAUSES[kind] in failure
    assert count == "3 runs: 2 finished, 1 failed"
    # the same command again, without the fault
    code, text = ended(sweep(tmp_path / "runs", *axes))
    assert code == 0
    assert states(tmp_path / "runs") == {"grpo0": "finished", "sgrpo0": "finished", "tspmo0": "finished"}
    assert len(re.findall("finished before, skipped", text)) == 2


@pytest.mark.full
def test_last_lines_of_a_sweep_name_every_failure(tmp_path):
    code, text = ended(sweep(tmp_path, "rollout.max_new_tokens=255,8,254"))
    assert code == 1
    *_, one, two, count = text.strip().splitlines()
    for line, tokens in ((one, 255), (two, 254)):
        assert line.startswith("failed: ")
        assert f"rollout.max_new_tokens={tokens}: no train prompt" in line
    assert count == "3 runs: 2 failed, 1 finished"
    code, text = ended(sweep(tmp_path, "rollout.max_new_tokens=255,8,254", "sweep.retry_failed=false"))
    assert code == 1
    assert len(re.findall("failed before, skipped", text)) == 2
    assert not list(tmp_path.glob("default/*/attempts"))  # no failed run was started again
    shown = subprocess.run(
        [sys.executable, "-m", "rlsparse.status", "--runs", str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    assert "failed: " in shown
    assert "no train prompt" in shown
    assert "3 runs: 2 failed, 1 finished" in shown


@pytest.mark.full
def test_two_copies_of_a_sweep_do_each_run_once(tmp_path):
    axes = ["algorithm=sgrpo", "seed=0,1,2,3", "train.steps=30"]
    one, two = sweep(tmp_path, *axes), sweep(tmp_path, *axes)
    until_steps(tmp_path, 3)
    (code_one, text_one), (code_two, text_two) = ended(one), ended(two)
    assert (code_one, code_two) == (0, 0)
    assert states(tmp_path) == {f"sgrpo{seed}": "finished" for seed in range(4)}
    for seed in range(4):
        made = len(re.findall(rf"sgrpo seed={seed}: sampled ", text_one + text_two))
        assert made == 1, f"seed {seed} was run {made} times"
    assert not list(tmp_path.glob("default/*/attempts"))
    assert "left to that" in text_one + text_two or "skipped" in text_one + text_two


@pytest.mark.slow
def test_run_of_a_killed_copy_is_resumed_by_the_other_copy(tmp_path, full):
    if not full:
        pytest.skip("at full length only (make test-faults)")
    axes = ["algorithm=sgrpo", "seed=0,1", "train.steps=60"]
    one = sweep(tmp_path, *axes)
    until_steps(tmp_path, 3)
    two = sweep(tmp_path, *axes)
    time.sleep(1)
    one.kill()
    assert ended(one)[0] == -signal.SIGKILL
    code, text = ended(two)
    assert code == 0, text
    assert states(tmp_path) == {"sgrpo0": "finished", "sgrpo1": "finished"}
    for file in tmp_path.glob("default/*/metrics.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 61))


@pytest.mark.slow
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.full), signal.SIGTERM])
def test_sweep_with_a_signal_to_all_processes_ends_with_a_checkpoint(number, tmp_path):
    """Like Ctrl-C in a terminal: to the program, the process of the verifier, and all others that it has started."""
    one = sweep(tmp_path, "algorithm=sgrpo", "seed=0,1", "train.steps=5000", "task.answer_format=boxed", group=0)
    until_steps(tmp_path, 3)
    os.killpg(one.pid, number)
    code, text = ended(one)
    assert code == 128 + number
    assert "Traceback" not in text
    assert f"{number.name}: stops after the current step" in text
    assert f"stopped by {number.name}" in text
    assert "verifier" not in text.lower()
    *_, folder = sorted(tmp_path.glob("default/*-s0-*/checkpoint/*"))
    assert not list(tmp_path.glob("default/*-s1-*"))
    rows = [json.loads(line) for line in (folder.parent.parent / "metrics.jsonl").read_text().splitlines()]
    assert folder.name == f"step-{rows[-1]['step']:06d}"
    assert not any(row.get("task/verifier_timeouts") for row in rows)


@pytest.mark.slow
def test_run_whose_terminal_is_closed_ends_with_a_checkpoint(tmp_path):
    """Like an ssh session that is lost: SIGHUP, and the display cannot be written any more."""
    terminal, theirs = pty.openpty()

    def attach() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    one = subprocess.Popen(
        [sys.executable, "-m", "rlsparse.run", *SETTING, "train.steps=5000", f"runs_dir={tmp_path}"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=attach,
    )
    os.close(theirs)
    until_steps(tmp_path, 3)
    os.close(terminal)
    one.wait(timeout=120)
    *_, folder = sorted(tmp_path.glob("default/*/checkpoint/*"))
    rows = [json.loads(line) for line in (folder.parent.parent / "metrics.jsonl").read_text().splitlines()]
    assert folder.name == f"step-{rows[-1]['step']:06d}"
    assert not (folder.parent.parent / "summary.json").exists()  # cut off, not failed


@pytest.mark.slow
def test_status_names_runs_that_are_running_cut_off_and_missing(tmp_path):
    one = sweep(tmp_path, "algorithm=sgrpo", "seed=0,1", "train.steps=5000")
    until_steps(tmp_path, 3)
    status = [sys.executable, "-m", "rlsparse.status", "--runs", str(tmp_path), "--experiment", "default"]
    shown = subprocess.run(status, capture_output=True, text=True, check=True).stdout
    assert re.search(
        rf"running: .*seed=0 .*\(step \d+ of 5000, \d+ s of training left, on .*, process {one.pid}\)", shown
    )
    assert re.search("missing: .*seed=1", shown)
    one.kill()
    one.wait()
    shown = subprocess.run(status, capture_output=True, text=True, check=True).stdout
    assert re.search(r"cut off: .*seed=0 .*\(step \d+ of 5000", shown)
    assert "2 runs: 1 cut off, 1 missing" in shown

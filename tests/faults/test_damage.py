"""Files that are truncated, garbled, missing or cannot be written: intact data is kept, damaged data is never used."""

import contextlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from rlsparse.config.schema import ConfigError
from rlsparse.results.collect import collect
from rlsparse.run import run
from rlsparse.storage.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from rlsparse.storage.jsonl import JsonLines, begins_with, read_rows
from tests.conftest import composed
from tests.faults.killing import SETTING, only_run, outcome, until_steps

FILES = ("tensors.safetensors", "state.json", "SHA256SUMS")


def accept_all(saved: Checkpoint) -> bool:
    return True


@pytest.fixture
def checkpoints(tmp_path):
    for step in (2, 4, 6):
        state = {"pending": [step], "files": {}}
        save_checkpoint(tmp_path, Checkpoint(step, {"adapter.A": torch.full((50, 50), float(step))}, state))
    return tmp_path


def test_last_two_checkpoints_are_kept_and_the_newest_is_loaded(checkpoints, logged):
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-000004", "step-000006"]
    saved = load_checkpoint(checkpoints, accept_all)
    assert saved is not None
    assert (saved.step, saved.state["pending"]) == (6, [6])
    assert bool((saved.tensors["adapter.A"] == 6).all())
    assert not logged


def damages(count: int):
    """Yield random damages: the kind, the file, the place in it as a share of its length, and the bit to flip."""
    chance = random.Random(0)
    for _ in range(count):
        kind, name = chance.choice(["cut", "flip", "missing", "empty", "longer"]), chance.choice(FILES)
        yield kind, name, chance.random(), chance.randrange(8)


def damage(file: Path, kind: str, where: float, bit: int) -> None:
    content = bytearray(file.read_bytes())
    at = int(where * len(content))
    if kind == "missing":
        file.unlink()
        return
    if kind == "cut":
        content = content[:at]
    elif kind == "flip":
        content[at] ^= 1 << bit
    elif kind == "empty":
        content = bytearray()
    else:
        content += b"\0" * (1 + at)
    file.write_bytes(content)


def test_damaged_checkpoint_is_skipped_for_the_one_before(checkpoints, full, logged):
    whole = checkpoints.with_name("whole")
    shutil.copytree(checkpoints, whole)
    for kind, name, where, bit in damages(500 if full else 100):
        shutil.rmtree(checkpoints)
        shutil.copytree(whole, checkpoints)
        damage(checkpoints / "step-000006" / name, kind, where, bit)
        logged.clear()
        saved = load_checkpoint(checkpoints, accept_all)
        assert saved is not None, (kind, name, where, bit)
        assert saved.step == 4, (kind, name, where, bit)
        assert bool((saved.tensors["adapter.A"] == 4).all())
        assert len(logged) == 1
        assert "step-000006 is damaged and skipped" in logged[0]
    for name in FILES:  # where both are damaged there is none
        damage(checkpoints / "step-000004" / name, "cut", 0.5, 0)
        if (checkpoints / "step-000006" / name).exists():
            damage(checkpoints / "step-000006" / name, "cut", 0.5, 0)
    assert load_checkpoint(checkpoints, accept_all) is None


def test_checkpoint_that_was_being_written_is_not_loaded(checkpoints, logged):
    shutil.copytree(checkpoints / "step-000006", checkpoints / ".step-000008.123")
    saved = load_checkpoint(checkpoints, accept_all)
    assert saved is not None
    assert saved.step == 6
    assert not logged


def test_row_without_room_is_not_written_in_part(tmp_path):
    file = JsonLines(tmp_path / "rows.jsonl")
    file.write({"step": 1})
    written = file.fingerprint()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limit[1]))  # the largest file, bytes
    try:
        with pytest.raises(OSError, match="too large"):
            file.write({"step": 2, "text": "x" * 500})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert read_rows(tmp_path / "rows.jsonl") == [{"step": 1}]
    file.write({"step": 2})
    assert read_rows(tmp_path / "rows.jsonl") == [{"step": 1}, {"step": 2}]
    assert begins_with(tmp_path / "rows.jsonl", written)
    (tmp_path / "rows.jsonl").write_text('{"step": 7}\n')
    assert not begins_with(tmp_path / "rows.jsonl", written)
    assert not begins_with(tmp_path / "nothing.jsonl", written)


@pytest.fixture(scope="module")
def undamaged(fork_server, tmp_path_factory):
    """The results of the run that is damaged below."""
    folder = tmp_path_factory.mktemp("whole")
    assert fork_server.run(["algorithm=sgrpo", *SETTING, f"runs_dir={folder}"]) == 0
    return outcome(only_run(folder))


@pytest.mark.slow
@pytest.mark.parametrize("damaged", ["checkpoint", "both checkpoints", "metrics cut", "metrics garbled", "provenance"])
def test_run_with_damaged_files_ends_with_the_same_results(damaged, undamaged, fork_server, tmp_path):
    overrides = ["algorithm=sgrpo", *SETTING]
    cut = tmp_path / "cut"
    fork_server.run([*overrides, f"runs_dir={cut}"], partial(until_steps, cut, 9))
    folder = only_run(cut)
    newest, *rest = sorted((folder / "checkpoint").glob("step-*"), reverse=True)
    metrics = folder / "metrics.jsonl"
    if "checkpoint" in damaged:
        for one in [newest] if damaged == "checkpoint" else [newest, *rest]:
            damage(one / "tensors.safetensors", "flip", 0.7, 3)
    elif damaged == "metrics cut":  # behind the end that the older checkpoint knows, before that of the newer one
        known = json.loads((rest[0] / "state.json").read_text())["files"]["metrics.jsonl"]["bytes"]
        metrics.write_bytes(metrics.read_bytes()[: known + 5])
    elif damaged == "metrics garbled":
        damage(metrics, "flip", 0.01, 2)
    else:
        (folder / "provenance.json").write_text("{")
    assert fork_server.run([*overrides, f"runs_dir={cut}"]) == 0
    assert outcome(folder) == undamaged
    started_again = (folder / "attempts").is_dir()
    assert started_again == (damaged in ("both checkpoints", "metrics garbled"))


def finished_sweep(tmp_path: Path) -> Path:
    for seed in (0, 1, 2):
        run(composed(*SETTING, "train.steps=2", f"seed={seed}", f"runs_dir={tmp_path}", "adapter=l1ra"))
    return tmp_path / "default"


@pytest.mark.slow
def test_damaged_summaries_and_rows_are_reported_and_left_out_of_the_tables(tmp_path, full):
    folder = finished_sweep(tmp_path)
    whole = collect(folder)
    assert len(whole.runs) == 3
    assert not whole.not_counted
    victim = folder / whole.runs["id"][1]
    content = (victim / "summary.json").read_bytes()
    chance = random.Random(1)
    broken = [b"", b"null", b"[]", b"{", b"\xff\xfe", content[:-20], content.replace(b'"finished"', b'"finishe"')]
    broken += [content.replace(b'"seed": 1', b'"seed": "one"'), content.replace(b'"final": {', b'"final": 3, "x": {')]
    broken += [
        json.dumps({**json.loads(content), "final": {"accuracy_sampled": value}}).encode() for value in (7, "0.5")
    ]
    for _ in range(300 if full else 60):
        one = bytearray(content)
        one[chance.randrange(len(one))] ^= 1 << chance.randrange(8)
        broken.append(bytes(one))
    for one in broken:
        (victim / "summary.json").write_bytes(one)
        found = collect(folder)
        assert len(found.runs) == 3 or (len(found.runs) == 2 and len(found.not_counted) == 1), one
        others = found.runs[found.runs["id"] != victim.name]
        assert others["final_sampled"].tolist() == whole.runs[whole.runs["id"] != victim.name]["final_sampled"].tolist()
    (victim / "summary.json").write_bytes(content)
    (folder / "plan.json").write_text('{"points": 3')
    with (victim / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "kind": "ran')
    tables = [sys.executable, "-m", "rlsparse.results", "--runs", str(tmp_path)]
    subprocess.run(tables, check=True, capture_output=True)
    line = "metrics.jsonl: cannot be read"
    assert line in (folder / "table.md").read_text()


def test_folder_that_cannot_be_written_is_refused_before_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"runs_dir=.*file/runs: cannot be written"):
        run(composed(*SETTING, f"runs_dir={tmp_path / 'file' / 'runs'}"))
    config = composed(*SETTING, f"runs_dir={tmp_path}")
    (tmp_path / "default").write_text("")  # a file in the place of the folder of the experiment
    with pytest.raises(ConfigError, match=r"runs_dir: .* cannot be written"):
        run(config)


def in_namespace(*commands: str) -> subprocess.CompletedProcess[str]:
    """Run shell commands in a mount namespace of their own: what they mount is gone afterwards."""
    mounts = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--user", "--map-root-user"]
    return subprocess.run([*mounts, "sh", "-ec", "\n".join(commands)], capture_output=True, text=True, timeout=300)


def may_mount(folder: Path) -> bool:
    """Return whether this process may mount file systems, as root or in a user namespace."""
    with contextlib.suppress(OSError):
        return in_namespace(f"mount -t tmpfs -o size=1m none {folder}").returncode == 0
    return False


@pytest.mark.slow
def test_full_disk_stops_the_run_and_leaves_earlier_files_intact(tmp_path, logged):
    """A checkpoint has 55,296 parameters and their two moments, 664 kB: a third one does not fit into 1,700 kB."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    if not may_mount(disk):
        pytest.skip("needs the right to mount a file system (root, or user namespaces)")
    arguments = " ".join(["algorithm=sgrpo", *SETTING])
    command = f"{sys.executable} -m rlsparse.run {arguments} runs_dir={disk}"
    done = in_namespace(
        f"mount -t tmpfs -o size=1700k none {disk}",
        f"{command} 2> {tmp_path / 'first'} && exit 9",
        f"cp -r {disk} {kept}",
        f"mount -o remount,size=64m {disk}",  # somebody frees space
        f"{command} 2> {tmp_path / 'second'}",
        f"cp -r {disk} {tmp_path / 'end'}",
    )
    first, second = ((tmp_path / name).read_text() for name in ("first", "second"))
    assert done.returncode == 0, (done.stderr, first, second)
    assert "No space left on device" in first
    left = only_run(kept)
    rows = read_rows(left / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 1 + rows[-1]["step"]))
    assert load_checkpoint(left / "checkpoint", accept_all) is not None
    assert not logged
    assert "resumes after step" in second
    assert json.loads((only_run(tmp_path / "end") / "summary.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_read_only_disk_is_refused_before_the_run(tmp_path):
    if not may_mount(tmp_path):
        pytest.skip("needs the right to mount a file system (root, or user namespaces)")
    done = in_namespace(
        f"mount -t tmpfs -o size=1m,ro none {tmp_path}",
        f"{sys.executable} -m rlsparse.run {' '.join(SETTING)} runs_dir={tmp_path}/runs",
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith("give a folder that you may write")
    assert "Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr

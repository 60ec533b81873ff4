"""Files that are cut short, garbled, gone, full or not ours: what is whole stays, and what is not is never used."""

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
from rlsparse.storage.jsonl import JsonLines, holds, read_rows
from tests.conftest import composed
from tests.faults.killing import SETTING, only_run, outcome, until_steps

FILES = ("tensors.safetensors", "state.json", "SHA256SUMS")


def everything(saved: Checkpoint) -> bool:
    return True


@pytest.fixture
def checkpoints(tmp_path):
    for step in (2, 4, 6):
        state = {"pending": [step], "files": {}}
        save_checkpoint(tmp_path, Checkpoint(step, {"adapter.A": torch.full((50, 50), float(step))}, state))
    return tmp_path


def test_the_last_two_checkpoints_are_kept_and_the_newest_is_read(checkpoints):
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-000004", "step-000006"]
    saved = load_checkpoint(checkpoints, everything, pytest.fail)
    assert saved is not None
    assert (saved.step, saved.state["pending"]) == (6, [6])
    assert bool((saved.tensors["adapter.A"] == 6).all())


def damages(count: int):
    """Files cut at a random place, bits turned over in a random place, files gone, folders emptied."""
    chance = random.Random(0)
    for _ in range(count):
        kind, name = chance.choice(["cut", "flip", "gone", "empty", "longer"]), chance.choice(FILES)
        yield kind, name, chance.random(), chance.randrange(8)


def damage(file: Path, kind: str, where: float, bit: int) -> None:
    content = bytearray(file.read_bytes())
    at = int(where * len(content))
    if kind == "gone":
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


def test_a_damaged_checkpoint_falls_back_to_the_one_before(checkpoints, full):
    whole = checkpoints.with_name("whole")
    shutil.copytree(checkpoints, whole)
    for kind, name, where, bit in damages(500 if full else 100):
        shutil.rmtree(checkpoints)
        shutil.copytree(whole, checkpoints)
        damage(checkpoints / "step-000006" / name, kind, where, bit)
        said: list[str] = []
        saved = load_checkpoint(checkpoints, everything, said.append)
        assert saved is not None, (kind, name, where, bit)
        assert saved.step == 4, (kind, name, where, bit)
        assert bool((saved.tensors["adapter.A"] == 4).all())
        assert len(said) == 1
        assert "step-000006 is damaged and passed over" in said[0]
    for name in FILES:  # and with both damaged there is none
        damage(checkpoints / "step-000004" / name, "cut", 0.5, 0)
        damage(checkpoints / "step-000006" / name, "cut", 0.5, 0) if (
            checkpoints / "step-000006" / name
        ).exists() else None
    assert load_checkpoint(checkpoints, everything, said.append) is None


def test_a_checkpoint_that_was_being_written_is_no_checkpoint(checkpoints):
    shutil.copytree(checkpoints / "step-000006", checkpoints / ".step-000008.123")
    saved = load_checkpoint(checkpoints, everything, pytest.fail)
    assert saved is not None
    assert saved.step == 6


def test_a_row_is_written_whole_or_not_at_all(tmp_path):
    file = JsonLines(tmp_path / "rows.jsonl")
    file.write({"step": 1})
    mark = file.mark()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limit[1]))  # bytes that a file may have
    try:
        with pytest.raises(OSError, match="too large"):
            file.write({"step": 2, "text": "x" * 500})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert read_rows(tmp_path / "rows.jsonl") == [{"step": 1}]
    file.write({"step": 2})
    assert read_rows(tmp_path / "rows.jsonl") == [{"step": 1}, {"step": 2}]
    assert holds(tmp_path / "rows.jsonl", mark)
    (tmp_path / "rows.jsonl").write_text('{"step": 7}\n')
    assert not holds(tmp_path / "rows.jsonl", mark)
    assert not holds(tmp_path / "nothing.jsonl", mark)


@pytest.mark.slow
@pytest.mark.parametrize(
    "harm", ["checkpoint", "both checkpoints", "metrics cut", "metrics garbled", "provenance gone"]
)
def test_a_run_with_damaged_files_ends_as_if_nothing_had_happened(harm, nursery, tmp_path, capfd):
    overrides = ["algorithm=sgrpo", *SETTING]
    assert nursery.run([*overrides, f"runs_dir={tmp_path / 'whole'}"]) == 0
    cut = tmp_path / "cut"
    nursery.run([*overrides, f"runs_dir={cut}"], partial(until_steps, cut, 9))
    folder = only_run(cut)
    newest, *rest = sorted((folder / "checkpoint").glob("step-*"), reverse=True)
    metrics = folder / "metrics.jsonl"
    if "checkpoint" in harm:
        for one in [newest] if harm == "checkpoint" else [newest, *rest]:
            damage(one / "tensors.safetensors", "flip", 0.7, 3)
    elif harm == "metrics cut":  # after what the older checkpoint knows of, before what the newer one does
        known = json.loads((rest[0] / "state.json").read_text())["files"]["metrics.jsonl"]["bytes"]
        metrics.write_bytes(metrics.read_bytes()[: known + 5])
    elif harm == "metrics garbled":
        damage(metrics, "flip", 0.01, 2)
    else:
        (folder / "provenance.json").write_text("{")
    assert nursery.run([*overrides, f"runs_dir={cut}"]) == 0
    again, whole = outcome(folder), outcome(only_run(tmp_path / "whole"))
    assert again == whole
    begun_anew = (folder / "attempts").is_dir()
    assert begun_anew == (harm in ("both checkpoints", "metrics garbled"))


def finished_sweep(tmp_path: Path) -> Path:
    for seed in (0, 1, 2):
        run(composed(*SETTING, "train.steps=2", f"seed={seed}", f"runs_dir={tmp_path}", "adapter=l1ra"))
    return tmp_path / "default"


@pytest.mark.slow
def test_damaged_summaries_and_lines_are_named_and_never_fatal(tmp_path, full):
    folder = finished_sweep(tmp_path)
    whole = collect(folder)
    assert len(whole.runs) == 3
    assert not whole.not_counted
    victim = folder / whole.runs["id"][1]
    content = (victim / "summary.json").read_bytes()
    chance = random.Random(1)
    harmed = [b"", b"null", b"[]", b"{", b"\xff\xfe", content[:-20], content.replace(b'"finished"', b'"finishe"')]
    harmed += [content.replace(b'"seed": 1', b'"seed": "one"'), content.replace(b'"final": {', b'"final": 3, "x": {')]
    harmed += [
        json.dumps({**json.loads(content), "final": {"accuracy_sampled": value}}).encode() for value in (7, "0.5")
    ]
    for _ in range(300 if full else 60):
        one = bytearray(content)
        one[chance.randrange(len(one))] ^= 1 << chance.randrange(8)
        harmed.append(bytes(one))
    for one in harmed:
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


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"runs_dir=.*file/runs: cannot be written"):
        run(composed(*SETTING, f"runs_dir={tmp_path / 'file' / 'runs'}"))
    config = composed(*SETTING, f"runs_dir={tmp_path}")
    (tmp_path / "default").write_text("")  # where the experiment's folder is to be
    with pytest.raises(ConfigError, match=r"runs_dir: .* cannot be written"):
        run(config)


def in_namespace(*commands: str) -> subprocess.CompletedProcess[str]:
    """Shell commands where file systems may be mounted, as root or in a user namespace, and vanish afterwards."""
    mounts = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--user", "--map-root-user"]
    return subprocess.run([*mounts, "sh", "-ec", "\n".join(commands)], capture_output=True, text=True, timeout=300)


def may_mount(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return in_namespace(f"mount -t tmpfs -o size=1m none {folder}").returncode == 0
    return False


@pytest.mark.slow
def test_a_full_disk_stops_the_run_with_what_was_there_intact(tmp_path):
    """55,296 parameters and their two moments are 664 kB a checkpoint: a third one does not fit into 1,700 kB."""
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
        f"mount -o remount,size=64m {disk}",  # somebody makes room
        f"{command} 2> {tmp_path / 'second'}",
        f"cp -r {disk} {tmp_path / 'end'}",
    )
    first, second = ((tmp_path / name).read_text() for name in ("first", "second"))
    assert done.returncode == 0, (done.stderr, first, second)
    assert "No space left on device" in first
    left = only_run(kept)
    rows = read_rows(left / "metrics.jsonl")  # every line is whole
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 1 + rows[-1]["step"]))
    assert load_checkpoint(left / "checkpoint", everything, pytest.fail) is not None
    assert "goes on after step" in second
    assert json.loads((only_run(tmp_path / "end") / "summary.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_a_read_only_disk_is_refused_at_the_start(tmp_path):
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

"""Run folders from an untrusted source: nothing in them is executed, and nothing is written outside of them."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlsparse.config.schema import ConfigError
from rlsparse.execution.preflight import preflight
from rlsparse.results.collect import collect
from rlsparse.run import run
from rlsparse.storage.checkpoints import Checkpoint, save_checkpoint
from rlsparse.storage.jsonl import JsonLines
from rlsparse.storage.locks import claimed
from rlsparse.sweep.plan import latest_sweep, read_plan
from rlsparse.sweep.status import sweep_states
from tests.conftest import ROOT, composed
from tests.faults.killing import SETTING


def test_package_never_loads_a_pickle():
    """No numpy.load, torch.load, joblib.load, yaml.load and the like; from_pretrained reads safetensors only."""
    for file in [*(ROOT / "rlsparse").rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py")]:
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                pickles = {"pickle", "cloudpickle", "dill", "shelve", "marshal"}
                assert not names & (pickles if file.name == "launchers.py" else pickles | {"joblib"}), file
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
                assert (owner, node.func.attr) not in {
                    (one, "load") for one in ("torch", "numpy", "np", "yaml", "OmegaConf")
                } | {("pd", "read_pickle"), ("yaml", "unsafe_load"), ("yaml", "full_load")}, file
    loading = (ROOT / "rlsparse" / "model" / "loading.py").read_text()
    assert "from_pretrained" in loading
    assert "use_safetensors=True" in loading
    assert "trust_remote_code=False" in loading


@pytest.fixture
def config(tmp_path):
    return composed(*SETTING, "train.steps=2", f"runs_dir={tmp_path / 'runs'}")


@pytest.fixture
def folder(config):
    (identity,) = preflight([config]).identities
    folder = Path(config.runs_dir) / config.experiment.name / identity.id
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "metrics.jsonl",
        "samples.jsonl",
        "summary.json",
        "config.yaml",
        "provenance.json",
        "holder.json",
        ".lock",
        ".lease",
        "error.txt",
        "checkpoint",
        "checkpoint/step-000002",
        "attempts",
        "adapter",
        "wandb",
    ],
)
def test_link_in_a_run_folder_is_refused_and_its_target_unchanged(name, config, folder, tmp_path):
    outside = tmp_path / "outside"
    if name in ("checkpoint", "checkpoint/step-000002", "attempts", "adapter", "wandb"):
        outside.mkdir()
        (outside / "precious").write_text("mine")
    else:
        outside.write_text("mine")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(outside)
    with pytest.raises(ConfigError, match=r"runs_dir: .* is a link; a run writes into its own folder only"):
        run(config)
    assert (outside / "precious" if outside.is_dir() else outside).read_text() == "mine"
    if outside.is_dir():
        assert len(list(outside.iterdir())) == 1


def test_sync_does_not_follow_a_link(folder, tmp_path):
    (tmp_path / "outside" / "offline-run-20240101_1-precious").mkdir(parents=True)
    (folder / "config.yaml").write_text("{}")
    (folder / "metrics.jsonl").write_text("")
    (folder / "wandb").symlink_to(tmp_path / "outside")
    sync = [sys.executable, "-m", "rlsparse.sync", "--runs", str(tmp_path / "runs"), "--mode", "offline"]
    done = subprocess.run(sync, capture_output=True, text=True)
    assert done.returncode == 1
    assert "is a link" in done.stderr
    assert [file.name for file in (tmp_path / "outside").iterdir()] == ["offline-run-20240101_1-precious"]


def test_run_folder_that_is_a_link_is_refused(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    folder.rmdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is a link"), claimed(folder, "flock"):
        pass
    assert not list((tmp_path / "elsewhere").iterdir())


def test_checkpoint_that_is_a_pickle_is_skipped(config, folder, tmp_path, capfd):
    class Bomb:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'boom'}",))

    forged = folder / "checkpoint" / "step-000001"
    forged.mkdir(parents=True)
    torch.save({"adapter.A": Bomb()}, forged / "tensors.safetensors")
    (forged / "state.json").write_text('{"step": 1, "files": {}}')
    sums = subprocess.run(
        ["sha256sum", "state.json", "tensors.safetensors"], cwd=forged, capture_output=True, text=True, check=True
    ).stdout
    (forged / "SHA256SUMS").write_text(sums)  # an attacker can write matching checksums
    assert run(config)["status"] == "finished"
    assert not (tmp_path / "boom").exists()
    assert "step-000001 is damaged and skipped" in capfd.readouterr().err


def test_checkpoint_of_another_adapter_fails_the_run_and_is_kept(config, folder):
    for name in ("metrics.jsonl", "samples.jsonl"):
        (folder / name).write_text("")
    files = {name: JsonLines(folder / name).fingerprint() for name in ("metrics.jsonl", "samples.jsonl")}
    state = {"files": files, "time": {}, "pending": [], "count": {}, "memory": {}}
    save_checkpoint(folder / "checkpoint", Checkpoint(1, {"adapter.nonsense": torch.zeros(3)}, state))
    with pytest.raises(ValueError, match="other modules"):
        run(config)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "Error" in summary["error"]
    assert (folder / "checkpoint" / "step-000001").is_dir()


def test_plan_with_paths_out_of_its_folder_is_not_followed(tmp_path):
    experiment = tmp_path / "runs" / "default"
    experiment.mkdir(parents=True)
    outside = tmp_path / "secret"
    outside.mkdir()
    (outside / "summary.json").write_text('{"status": "failed", "error": "the secret"}')
    points = {"../../secret": ["seed=1"], "ok-s0-1234567890": ["seed=2"], "..": ["seed=3"], "bad": [1, 2]}
    (experiment / "plan.json").write_text(json.dumps({"points": points, "latest": [["seed=2"], 3]}))
    assert read_plan(experiment) == {"ok-s0-1234567890": ["seed=2"]}
    assert latest_sweep(experiment) == []
    assert [one.state for one in sweep_states(experiment)] == ["missing"]
    assert "secret" not in str(collect(experiment).not_counted)


def test_interpolation_in_the_config_of_a_run_is_not_resolved(tmp_path):
    """W&B is sent the values of config.yaml, in which an interpolation is only text."""
    folder = tmp_path / "runs" / "default" / "grpo-s0-1234567890"
    folder.mkdir(parents=True)
    config = "experiment: {name: default}\nalgorithm: '${oc.env:SECRET}'\nmodel: {name: m}\ntask: {name: t}\n"
    (folder / "config.yaml").write_text(config + "tracker: {name: none}\n")
    (folder / "metrics.jsonl").write_text('{"step": 0, "kind": "eval", "eval/accuracy_greedy": 0.5}\n')
    (folder / "samples.jsonl").write_text("")
    sync = [sys.executable, "-m", "rlsparse.sync", "--runs", str(tmp_path / "runs"), "--mode", "offline"]
    subprocess.run(sync, env={**os.environ, "SECRET": "xyzzy-42"}, check=True, capture_output=True)
    files = [file.read_bytes() for file in (folder / "wandb").rglob("*") if file.is_file()]
    assert any(b"oc.env:SECRET" in content for content in files)
    assert not any(b"xyzzy-42" in content for content in files)
    (folder / "config.yaml").write_text(f"!!python/object/apply:os.system ['touch {tmp_path / 'boom'}']\n")
    assert subprocess.run(sync, capture_output=True).returncode == 1
    assert not (tmp_path / "boom").exists()


def test_folder_with_tensors_alone_is_skipped_as_a_checkpoint(config, folder, capfd):
    forged = folder / "checkpoint" / "step-000001"
    forged.mkdir(parents=True)
    save_file({"x": torch.zeros(1)}, forged / "tensors.safetensors")
    assert run(config)["status"] == "finished"
    assert "damaged and skipped" in capfd.readouterr().err

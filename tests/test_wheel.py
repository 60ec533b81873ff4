"""The package away from its checkout: a wheel carries the yaml files and the embedded model."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_extending import write_page

SMALL = ("eval.max_rows=4", "tracker=none")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The wheel's content, as an installer would lay it into site-packages."""
    work = tmp_path_factory.mktemp("wheel")
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        pytest.skip("needs uv beside the interpreter, as make setup puts it, to build the wheel")
    subprocess.run([uv, "build", "-q", "--wheel", "--out-dir", work, ROOT], check=True, timeout=300)
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(work / "site")
    return work / "site"


def test_wheel_is_small_and_contains_config_and_model(unpacked):
    package = unpacked / "rlsparse"
    names = {str(file.relative_to(package)) for file in package.rglob("*") if file.is_file()}
    expected = {str(file.relative_to(ROOT)) for file in ROOT.glob("conf/**/*.yaml")}
    assert expected <= names
    weights = package / "model" / "embedded" / "tiny" / "model.safetensors"
    assert weights.stat().st_size < 4 * 2**20
    assert not list(unpacked.rglob("*.ipynb"))


@pytest.mark.slow
def test_sweep_from_the_wheel_finishes(unpacked, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    where = subprocess.run(
        [sys.executable, "-c", "import rlsparse; print(rlsparse.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(unpacked))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "rlsparse.run",
            "-m",
            "algorithm=grpo,tspmo",
            "train.steps=1",
            *SMALL,
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("runs/default/*/summary.json"))) == 2


@pytest.mark.full
def test_own_component_with_the_wheel_finishes(unpacked, tmp_path):
    write_page(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "rlsparse.run", "--config-dir", "mine", "reward=brief", "train.steps=1", *SMALL],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("runs/default/*/summary.json"))) == 1

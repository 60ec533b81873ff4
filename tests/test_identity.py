"""A run's id: all that can change its numbers, and nothing else."""

import shutil
from pathlib import Path

import pytest

from rlsparse.config.run_id import identify
from rlsparse.model.policy import EMBEDDED, local_folder
from tests.conftest import composed


def identity(*overrides):
    config = composed(*overrides)
    return identify(config, local_folder(config.model), "cpu")


@pytest.mark.parametrize(
    "override",
    [
        "tracker=none",
        "runs_dir=elsewhere",
        "threads=1",
        "experiment.name=other",
        "tracker.samples=9",
        "device=cpu",
        "model.lr=0.001",
    ],
)
def test_what_cannot_change_the_numbers_does_not_change_the_id(override):
    assert identity(override) == identity()


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "train.lr=0.01",
        "lora_rank=4",
        "algorithm=sgrpo",
        "task.reward.wrong=-1",
        "eval.every=5",
        "dtype=bfloat16",
    ],
)
def test_what_can_change_them_does(override):
    assert identity(override).config_hash != identity().config_hash


def test_methods_differ_by_all_but_the_seed():
    assert identity("seed=1").method_hash == identity().method_hash
    assert identity("lora_rank=4").method_hash != identity().method_hash


def test_the_id_is_readable():
    assert identity("algorithm=sgrpo", "seed=3").id.startswith("sgrpo-s3-")


def test_a_moved_model_is_the_same_and_a_changed_one_is_not(tmp_path):
    shutil.copytree(EMBEDDED["tiny"], tmp_path / "a")
    shutil.copytree(EMBEDDED["tiny"], tmp_path / "b")
    a, b = (identity(f"model.path={tmp_path / name}") for name in "ab")
    assert a == b == identity()
    config = tmp_path / "b" / "config.json"
    config.write_text(config.read_text() + "\n")
    assert identity(f"model.path={tmp_path / 'b'}") != a


def test_local_data_is_known_by_its_content(tmp_path):
    for name in "ab":
        Path(tmp_path / name).mkdir()
        for split in ("train", "test"):
            (tmp_path / name / f"{split}.jsonl").write_text(
                '{"question_concat": "Q", "Equation": "1", "Answer": "1"}\n'
            )
    a, b = (identity("task=svamp", f"task.path={tmp_path / name}") for name in "ab")
    assert a == b
    (tmp_path / "b" / "test.jsonl").write_text('{"question_concat": "R", "Equation": "1", "Answer": "1"}\n')
    assert identity("task=svamp", f"task.path={tmp_path / 'b'}") != a

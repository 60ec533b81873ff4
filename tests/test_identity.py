"""The run id: a hash of everything that can change the numbers of a run, and of nothing else."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from rlsparse.algorithm import Algorithm
from rlsparse.components.advantage.group import GroupMean, GroupZscore
from rlsparse.components.component import describe
from rlsparse.components.reward import Reward
from rlsparse.config.run_id import files_digest
from rlsparse.execution.preflight import identity_of
from rlsparse.model.source import EMBEDDED
from tests.conftest import composed


def identity(*overrides):
    config = composed(*overrides)
    return identity_of(config, Algorithm.build(config), "cpu")


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
        "import_path=[elsewhere]",
        "sweep.lock=lease",
        "train.checkpoint_every=1",
    ],
)
def test_key_that_cannot_change_the_numbers_does_not_change_the_id(override):
    assert identity(override) == identity()


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "train.lr=0.01",
        "lora_rank=4",
        "algorithm=sgrpo",
        "reward.wrong=-1",
        "reward=offset",
        "advantage.epsilon=0",
        "advantage=group_mean",
        "clipping=self_ratio",
        "rollout=plain",
        "eval.every=5",
        "dtype=bfloat16",
    ],
)
def test_key_that_can_change_the_numbers_changes_the_id(override):
    assert identity(override).config_hash != identity().config_hash


def test_method_hash_with_another_seed_is_the_same():
    assert identity("seed=1").method_hash == identity().method_hash
    assert identity("lora_rank=4").method_hash != identity().method_hash


def test_component_in_the_id_is_its_class_without_module_and_its_values():
    assert describe(GroupZscore(epsilon=0.5), str) == {"class": "GroupZscore", "epsilon": 0.5}
    assert describe(GroupMean(), str) == {"class": "GroupMean"}


def test_id_begins_with_algorithm_and_seed():
    assert identity("algorithm=sgrpo", "seed=3").id.startswith("sgrpo-s3-")


def test_moved_model_keeps_the_id_and_changed_model_changes_it(tmp_path):
    shutil.copytree(EMBEDDED["tiny"], tmp_path / "a")
    shutil.copytree(EMBEDDED["tiny"], tmp_path / "b")
    a, b = (identity(f"model.path={tmp_path / name}") for name in "ab")
    assert a == b == identity()
    config = tmp_path / "b" / "config.json"
    config.write_text(config.read_text() + "\n")
    assert identity(f"model.path={tmp_path / 'b'}") != a


def test_moved_data_keeps_the_id_and_changed_data_changes_it(tmp_path):
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


@dataclass(frozen=True)
class Words(Reward):
    """A reward outside the package that reads a list of words."""

    source: str

    def __call__(self, completion):
        return float(completion.text in Path(self.source).read_text())


def test_file_that_a_value_of_a_component_outside_the_package_names_counts_by_its_content(tmp_path, monkeypatch):
    def described(source):
        return describe(Words(str(source)), files_digest)["source"]

    for place in ("a", "b"):
        (tmp_path / place / "words").mkdir(parents=True)
        (tmp_path / place / "words" / "list.txt").write_text("one two")
    first, second = (tmp_path / place / "words" / "list.txt" for place in "ab")
    assert described(first) == described(second) == described(first.parent)  # the place does not count
    before = described(first)
    (tmp_path / "a" / "NOTES.txt").write_text("note")
    assert described(first) == before
    first.write_text("three")
    assert before != described(first) == described(first.parent)
    monkeypatch.chdir(tmp_path)
    assert described("a") == "a"  # a word is no path, whatever lies in the present directory
    assert described("no/such/file.txt") == "no/such/file.txt"


def test_file_that_the_source_of_a_component_names_counts_by_its_content(tmp_path):
    (tmp_path / "reader.py").write_text(
        "from dataclasses import dataclass\nfrom pathlib import Path\nfrom rlsparse.components.reward import Reward\n"
        "@dataclass(frozen=True)\nclass Reader(Reward):\n"
        "    def __call__(self, completion):\n"
        "        return float(Path(__file__).with_name('price.txt').read_text())\n"
    )
    (tmp_path / "price.txt").write_text("1.0")
    words = (f"import_path=[{tmp_path}]", "reward._target_=reader.Reader")
    words += tuple(f"~reward.{key}" for key in ("correct", "wrong", "format"))
    before = identity(*words)
    (tmp_path / "other.txt").write_text("2.0")
    assert identity(*words) == before
    (tmp_path / "price.txt").write_text("2.0")
    assert identity(*words) != before

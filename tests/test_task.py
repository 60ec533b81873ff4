"""Rows: made by code, and read from folders with the hub's columns."""

import json
import re

import pytest

from rlsparse.components.reward.answer import ANSWER_FORMATS, plain_number
from rlsparse.components.reward.verifier import Verifier
from rlsparse.components.task import load_task
from rlsparse.config.schema import ConfigError
from tests.conftest import composed


@pytest.mark.parametrize("name", ["multiplication", "word_problems", "arithmetic"])
def test_generated_solutions_are_right_and_read_by_the_verifier(name):
    config = composed(f"task={name}").task
    task = load_task(config)
    assert (len(task.train), len(task.test)) == (config.train_rows, config.test_rows)
    with Verifier(config) as verifier:
        assert all(verifier.score(row.solution, row.answer).correct for row in task.train[:300] + task.test)
    for row in task.train[:300]:
        for left, right in re.findall(r"([\d*+-]+)=([\d*+-]+)", row.solution):
            assert eval(left) == eval(right), row.solution


@pytest.mark.parametrize("name", ["multiplication", "word_problems"])
def test_held_out_rows_are_fixed_and_never_trained_on(name):
    one, two = (load_task(composed(f"task={name}", f"task.seed={seed}").task) for seed in (0, 1))
    assert one.test == two.test
    assert one.train != two.train
    assert not {row.question for row in one.train + two.train} & {row.question for row in one.test}
    assert len({row.question for row in one.test}) == len(one.test)
    assert load_task(composed(f"task={name}").task) == one


def test_more_held_out_rows_than_exist_are_refused():
    with pytest.raises(ConfigError, match=r"task.test_rows=5000: .* only 1\d\d different"):
        load_task(composed("task.test_rows=5000").task)


def test_real_svamp(shared_data):
    config = composed("task=svamp", f"task.path={shared_data / 'svamp'}").task
    task = load_task(config)
    assert (len(task.train), len(task.test)) == (700, 150)
    row = task.test[0]
    assert (row.answer, row.solution) == ("45", "( 62 - 17 ) = 45\n#### 45")
    assert row.question.endswith("How many crunches did David do?")
    with Verifier(config) as verifier:
        assert all(verifier.score(row.solution, row.answer).correct for row in task.train + task.test)


def test_real_gsm8k(shared_data):
    config = composed("task=gsm8k", f"task.path={shared_data / 'gsm8k'}").task
    task = load_task(config)
    assert (len(task.train), len(task.test)) == (7473, 660)
    assert task.test[0].answer == "120"
    assert all(plain_number(row.answer) is not None for row in task.train + task.test)
    with Verifier(config) as verifier:
        assert all(verifier.score(row.solution, row.answer).correct for row in task.test)


ROW = {"question_concat": "Q?", "Equation": "( 3.0 + 4.0 )", "Answer": "7"}


def write(folder, train, test):
    for name, rows in (("train", train), ("test", test)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return composed("task=svamp", f"task.path={folder}").task


def test_a_local_folder(tmp_path):
    assert load_task(write(tmp_path, [ROW], [ROW])).train[0].solution == "( 3 + 4 ) = 7\n#### 7"


def test_bad_folders_are_refused_with_key_value_and_remedy(tmp_path):
    with pytest.raises(ConfigError, match=r"task.path=.*: there is no train.jsonl; give a folder"):
        load_task(composed("task=svamp", f"task.path={tmp_path}").task)
    with pytest.raises(ConfigError, match=r"task.path=.*: test row 1 lacks Answer; .* needs the columns"):
        load_task(write(tmp_path, [ROW], [{k: v for k, v in ROW.items() if k != "Answer"}]))
    with pytest.raises(ConfigError, match=r"task.path=.*: train has no rows"):
        load_task(write(tmp_path, [], [ROW]))
    (tmp_path / "train.jsonl").write_text("{nope\n")
    with pytest.raises(ConfigError, match=r"train.jsonl line 1 is not JSON"):
        load_task(composed("task=svamp", f"task.path={tmp_path}").task)


def test_the_hub_path_is_datasets_load_dataset(tmp_path):
    """load_dataset takes a folder for a hub id, so the real call runs here."""
    write(tmp_path, [ROW, ROW], [ROW])
    task = load_task(composed("task=svamp", f"task.hub={tmp_path}").task)
    assert (len(task.train), len(task.test)) == (2, 1)
    assert task.train[0].answer == "7"


def test_an_unreachable_hub_is_one_clear_message():
    with pytest.raises(ConfigError, match=r"task.hub=rlsparse-no/such-set: cannot be loaded: .* task.path=DIR"):
        load_task(composed("task=svamp", "task.hub=rlsparse-no/such-set").task)


def test_every_format_has_a_reader():
    assert set(ANSWER_FORMATS) == {"hash", "boxed", "answer_is", "last_number"}

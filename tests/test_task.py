"""The rows of tasks: made by code, and read from folders with the columns of the hub."""

import json
import re
from dataclasses import replace

import pytest

from rlsparse.components.component import build
from rlsparse.components.reward import Verifier
from rlsparse.components.reward.answer import ANSWER_FORMATS, plain_number
from rlsparse.components.task import Task
from rlsparse.components.task.base import with_line_breaks
from rlsparse.config.ranges import keys_of
from rlsparse.config.run_id import files_digest
from rlsparse.config.schema import ConfigError
from tests.conftest import composed


def task_of(*overrides):
    return build("task", composed(*overrides).task, Task)


def verifier_of(task):
    return Verifier(task.answer_format, task.verifier_time_limit)


@pytest.mark.parametrize("name", ["multiplication", "word_problems", "arithmetic"])
def test_generated_solutions_are_right_and_read_by_the_verifier(name):
    task = task_of(f"task={name}")
    rows = task.load()
    assert (len(rows.train), len(rows.test)) == (task.train_rows, task.test_rows)
    with verifier_of(task) as verifier:
        assert all(verifier.score(row.solution, row.answer).correct for row in rows.train[:300] + rows.test)
    for row in rows.train[:300]:
        for left, right in re.findall(r"([\d*+-]+)=([\d*+-]+)", row.solution):
            assert eval(left) == eval(right), row.solution


@pytest.mark.parametrize("name", ["multiplication", "word_problems"])
def test_held_out_rows_of_any_seed_are_the_same_and_never_trained_on(name):
    one, two = (task_of(f"task={name}", f"task.seed={seed}").load() for seed in (0, 1))
    assert one.test == two.test
    assert one.train != two.train
    assert not {row.question for row in one.train + two.train} & {row.question for row in one.test}
    assert len({row.question for row in one.test}) == len(one.test)
    assert task_of(f"task={name}").load() == one


def test_more_held_out_rows_than_exist_are_refused():
    with pytest.raises(ConfigError, match=r"task.test_rows=5000: .* only 1\d\d different"):
        task_of("task.test_rows=5000").load()


def test_real_svamp_is_read_and_its_solutions_are_right(shared_data):
    task = task_of("task=svamp", f"task.path={shared_data / 'svamp'}")
    rows = task.load()
    assert (len(rows.train), len(rows.test)) == (700, 150)
    row = rows.test[0]
    assert (row.answer, row.solution) == ("45", "( 62 - 17 ) = 45\n#### 45")
    assert row.question.endswith("How many crunches did David do?")
    with verifier_of(task) as verifier:
        assert all(verifier.score(row.solution, row.answer).correct for row in rows.train + rows.test)


def test_real_gsm8k_is_read_and_its_solutions_are_right(shared_data):
    task = task_of("task=gsm8k", f"task.path={shared_data / 'gsm8k'}")
    rows = task.load()
    assert (len(rows.train), len(rows.test)) == (7473, 660)
    assert rows.test[0].answer == "120"
    assert all(plain_number(row.answer) is not None for row in rows.train + rows.test)
    with verifier_of(task) as verifier:
        assert all(verifier.score(row.solution, row.answer).correct for row in rows.test)


ROW = {"question_concat": "Q?", "Equation": "( 3.0 + 4.0 )", "Answer": "7"}


def write(folder, train, test):
    for name, rows in (("train", train), ("test", test)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return task_of("task=svamp", f"task.path={folder}")


def test_local_folder_is_read_in_the_place_of_the_hub(tmp_path):
    assert write(tmp_path, [ROW], [ROW]).load().train[0].solution == "( 3 + 4 ) = 7\n#### 7"


def test_bad_folders_are_refused_with_key_value_and_remedy(tmp_path):
    with pytest.raises(ConfigError, match=r"task.path=.*: there is no train.jsonl; give a folder with train.jsonl"):
        task_of("task=svamp", f"task.path={tmp_path}").load()
    with pytest.raises(ConfigError, match=r"task.path=.*: test.jsonl line 1: lacks Answer; .* needs the columns"):
        write(tmp_path, [ROW], [{k: v for k, v in ROW.items() if k != "Answer"}]).load()
    with pytest.raises(ConfigError, match=r"task.path=.*: train has no rows"):
        write(tmp_path, [], [ROW]).load()
    (tmp_path / "train.jsonl").write_text("{nope\n")
    with pytest.raises(ConfigError, match=r"train.jsonl line 1 is not JSON"):
        task_of("task=svamp", f"task.path={tmp_path}").load()


def test_hub_id_is_read_with_load_dataset(tmp_path):
    """load_dataset takes a folder for a hub id, so the real call runs here."""
    row = "Q?,( 3.0 + 4.0 ),7\n"
    for split, lines in (("train", 2 * row), ("test", row)):
        (tmp_path / f"{split}.csv").write_text(f"question_concat,Equation,Answer\n{lines}")
    rows = task_of("task=svamp", f"task.hub={tmp_path}").load()
    assert (len(rows.train), len(rows.test)) == (2, 1)
    assert rows.train[0].answer == "7"


def test_unreachable_hub_gives_one_clear_message():
    with pytest.raises(ConfigError, match=r"task.hub=rlsparse-no/such-set: cannot be loaded: .* task.path=DIR"):
        task_of("task=svamp", "task.hub=rlsparse-no/such-set").load()


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (r"a\nb", "a\nb"),
        ("a\nb", "a\nb"),
        (r"a\\nb", r"a\nb"),
        (r"a\n\nb", "a\n\nb"),
        (r"\boxed{} \frac \\frac \t", r"\boxed{} \frac \\frac \t"),
        (r"x \\neq y", r"x \neq y"),
        ("a\\", "a\\"),
    ],
)
def test_backslash_n_of_a_prompt_is_a_line_break_and_other_backslashes_stay(written, text):
    assert with_line_breaks(written) == text


def test_question_is_put_into_a_prompt_unchanged():
    task = replace(task_of(), prompt=r"Q: {question}\nA: {question}")
    assert task.prompt_text(r"x\n{question}") == "Q: x\\n{question}\nA: x\\n{question}"


def test_both_spellings_of_a_line_break_are_one_identity():
    typed, real, other = (replace(task_of(), prompt="{question}" + end) for end in (r"\nGo", "\nGo", r"\\nGo"))
    assert typed.identity(files_digest) == real.identity(files_digest) != other.identity(files_digest)


def test_every_answer_format_has_a_reader():
    assert set(ANSWER_FORMATS) == {"hash", "boxed", "answer_is", "last_number"}
    assert set(ANSWER_FORMATS) == set(keys_of(Task)["answer_format"].bounds.options)

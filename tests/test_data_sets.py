"""Data sets by their columns, prompts with system text and examples, countdown, and how their bad input is refused."""

import csv
import gzip
import json
import time
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from math import nan
from typing import ClassVar

import pyarrow as pa
import pytest
from datasets import Dataset
from omegaconf import OmegaConf
from pyarrow import parquet as pq

from rlsparse.batch import Problem
from rlsparse.components.component import build
from rlsparse.components.reward import Verifier
from rlsparse.components.task import Rows, Task, data_warnings, load_task
from rlsparse.components.task.answers import after_hash, before_parenthesis, boxed, in_format
from rlsparse.components.task.data_set import DataSet, Gsm8k, Svamp
from rlsparse.components.task.generated import Multiplication, WordProblems
from rlsparse.components.task.hub import HubTask
from rlsparse.config.run_id import files_digest
from rlsparse.config.schema import ConfigError
from rlsparse.execution import model_check
from rlsparse.execution.preflight import preflight
from rlsparse.model.loading import wrap_policy
from rlsparse.model.policy import encode_prompt
from rlsparse.training.data import check_prompt, fitting, question_ids
from tests.conftest import composed
from tests.test_identity import identity

BENCHMARKS = {
    "math500": 500,
    "amc23": 40,
    "aime24": 30,
    "minerva_math": 272,
    "olympiadbench": 675,
    "gaokao2023en": 383,  # 2 of 385 rows have no answer
    "cmath": 600,
    "cn_middle_school": 101,
}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """datasets keeps what it has read in a folder of this test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@cache
def node_of(option):
    return composed(option).task


def task_of(*words):
    """The task of an option with changed keys; Hydra composes each option once, since that takes most of the time."""
    option = words[0] if words and words[0].startswith("task=") else "task=multiplication"
    changes = OmegaConf.from_dotlist([word for word in words if word != option])
    node = OmegaConf.to_container(OmegaConf.merge({"task": node_of(option)}, changes))["task"]
    return build("task", node, Task)


def data_set(path, *overrides):
    return task_of("task=data_set", f"task.path={path}", *overrides)


def lines(file, *rows):
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def pairs(count, start=0):
    return [{"question": f"Q{number}?", "answer": number} for number in range(start, start + count)]


def both(folder, train, test):
    lines(folder / "train.jsonl", *train)
    lines(folder / "test.jsonl", *test)
    return folder


def refused(task, *splits):
    with pytest.raises(ConfigError) as error:
        load_task(task, splits or ("train", "test"))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_file_is_read_for_evaluation_and_refused_for_training(name, shared_data):
    task = task_of(f"task={name}", f"task.path={shared_data / 'benchmarks' / name}.jsonl")
    rows = load_task(task, ("test",))
    assert (len(rows.train), len(rows.test)) == (0, BENCHMARKS[name])
    assert "boxed{}" in task.prompt_text("?")
    assert f"task.split.train=null: task={name} is for evaluation" in refused(task)
    assert f"eval.benchmarks=[{name}]" in refused(task)


def test_answers_of_benchmark_files_are_read_as_their_evaluation_reads_them(shared_data):
    def answers(name):
        path = f"task.path={shared_data / 'benchmarks' / name}.jsonl"
        return [one.answer for one in load_task(task_of(f"task={name}", path), ("test",)).test]

    assert answers("amc23")[:3] == ["27", "36", "45"]  # 27.0 in the file
    assert answers("minerva_math")[0] == "1.6"  # the box of the solution
    assert answers("olympiadbench")[0] == "2"  # ["2"]
    assert answers("cn_middle_school")[:6] == ["A", "C", "D", "B", "D", "1/9"]  # the last one has no choices


def test_asdiv_and_mawps_are_read_with_their_solutions(shared_data):
    asdiv = load_task(task_of("task=asdiv", f"task.path={shared_data / 'asdiv'}"))
    assert (len(asdiv.train), len(asdiv.test)) == (1515, 300)
    assert asdiv.train[0].question.endswith(
        "wash a pound of clothes. How many ounces of soap will she use to wash 9 pounds of clothes?"
    )
    assert (asdiv.train[0].answer, asdiv.train[0].solution) == ("18", "2*9=18\n#### 18")
    single = load_task(task_of("task=mawps", f"task.path={shared_data / 'mawps'}", "task.filter.type=singleop"))
    assert (len(single.train), len(single.test)) == (372, 57)
    assert single.test[0].answer == "180"  # 180.0 in the file
    assert single.test[0].columns["target"] == 180.0


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "json", "csv", "tsv", "parquet"])
def test_one_file_of_each_format_is_divided_by_a_hash_of_the_question(ending, tmp_path):
    rows, file = pairs(40), tmp_path / f"all.{ending}"
    if ending == "parquet":
        Dataset.from_list(rows).to_parquet(file)
    elif ending == "json":
        file.write_text(json.dumps(rows))
    elif ending == "jsonl.gz":
        file.write_bytes(gzip.compress("".join(json.dumps(row) + "\r\n" for row in rows).encode()))
    elif ending == "jsonl":
        lines(file, *rows)
    else:
        with file.open("w", newline="", encoding="utf-8-sig") as opened:
            writer = csv.DictWriter(opened, ["question", "answer"], delimiter="\t" if ending == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    found = load_task(data_set(file, "task.test_share=0.25"))
    held_out = {one.question for one in found.test}
    assert held_out | {one.question for one in found.train} == {row["question"] for row in rows}
    assert len(found.train) + len(found.test) == 40
    assert 4 <= len(held_out) <= 16  # 10 expected
    assert all(one.answer == one.question[1:-1] for one in found.train)
    # the same questions are held out from a part of the rows in another order
    part = lines(tmp_path / "part.jsonl", *reversed(rows[:30]))
    again = load_task(data_set(part, "task.test_share=0.25"))
    assert {one.question for one in again.test} == held_out & {row["question"] for row in rows[:30]}


def test_most_rows_are_the_first_ones_and_rows_behind_them_are_not_read(tmp_path):
    both(tmp_path, [*pairs(3), {"question": "Q", "answer": None}], pairs(4, 10))
    rows = load_task(data_set(tmp_path, "task.max_rows.train=3"))
    assert (len(rows.train), len(rows.test)) == (3, 4)
    assert "train.jsonl line 4: column answer is null" in refused(data_set(tmp_path))
    assert [one.answer for one in load_task(data_set(tmp_path, "task.max_rows=2")).test] == ["10", "11"]


def test_several_question_columns_are_joined_and_empty_ones_left_out(tmp_path):
    rows = [{"a": "Story.", "b": "How many?", "answer": 1}, {"a": None, "b": "Why?", "answer": 2}]
    both(tmp_path, rows, rows)
    task = data_set(tmp_path, "task.columns.question=[a,b]", r"task.join='\n'")
    assert [one.question for one in load_task(task).train] == ["Story.\nHow many?", "Why?"]
    both(tmp_path, [{"a": "", "b": None, "answer": 1}], rows)
    assert "line 1: columns a, b are all empty" in refused(task)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [(2, "C"), ("0", "A"), ("d", "D"), ("B", "B"), (4, None), (-1, None), ("E", None), ("9" * 5000, None)],
)
def test_answer_of_choices_is_their_letter_also_by_its_number(answer, letter, tmp_path):
    row = {"question": "2+2?", "choices": ["3", "5", "4", "6"], "answer": answer, "subject": "astronomy"}
    task = task_of("task=mmlu_stem", f"task.path={lines(tmp_path / 'all.jsonl', row)}")
    if letter is None:
        assert "there are 4 choices; give a letter from A to D, or a number from 0 to 3" in refused(task, "test")
    else:
        assert load_task(task, ("test",)).test[0].answer == letter


def test_number_of_a_choice_is_refused_where_the_answer_is_read_as_it_is(tmp_path):
    lines(tmp_path / "test.jsonl", {"question": "2+2?", "choices": ["3", "4"], "answer": 1})
    task = data_set(tmp_path, "task.columns.question=[question,choices]", "task.split.train=null")
    assert "column answer is 1, and the choices have letters; give task.answer=choice" in refused(task, "test")


def test_column_that_two_old_names_stand_for_is_refused(tmp_path):
    rows = [{"question": "Q", "golden": 1, "gold": 2}]
    task = data_set(both(tmp_path, rows, rows), "task.rename.golden=answer", "task.rename.gold=answer")
    assert "train.jsonl line 1: has the column answer twice; keep one" in refused(task)


def test_choices_are_lettered(tmp_path):
    both(tmp_path, [], [{"question": "2+2?", "choices": ["3", 4], "answer": "B"}])
    task = data_set(tmp_path, "task.columns.question=[question,choices]", "task.split.train=null")
    assert load_task(task, ("test",)).test[0].question == "2+2? (A) 3 (B) 4"


def test_column_is_renamed_only_where_the_new_name_is_not_there(tmp_path):
    rows = [{"golden": 1, "question": "Q1"}, {"golden": 9, "answer": 2, "question": "Q2"}]
    both(tmp_path, rows, rows)
    found = load_task(data_set(tmp_path, "task.rename.golden=answer")).train
    assert [one.answer for one in found] == ["1", "2"]
    assert found[0].columns == {"golden": 1, "question": "Q1"}


QUESTIONS = ["a {question} b", "${seed} $x", "{}{0}%s", "x\u2028y", "line\nbreak \\n", "\\boxed{3}"]


def test_question_with_signs_of_templates_reaches_the_prompt_unchanged(tmp_path):
    rows = [{"question": text, "answer": 1} for text in QUESTIONS]
    task = data_set(both(tmp_path, rows, rows), "task.prompt='Q: {question}|'")
    assert [task.prompt_text(one.question) for one in load_task(task).train] == [f"Q: {text}|" for text in QUESTIONS]


@pytest.mark.parametrize(
    ("value", "text"),
    [(27.0, "27"), (0.0, "0"), (-3.0, "-3"), (1.5, "1.5"), ("27.0", "27.0"), (True, None), (nan, None)],
)
def test_whole_number_that_became_a_float_is_read_as_a_whole_number(value, text, tmp_path):
    task = data_set(both(tmp_path, [{"question": "Q", "answer": value}], pairs(1)))
    if text is None:
        assert "train.jsonl line 1: column answer is" in refused(task)
    else:
        assert load_task(task).train[0].answer == text


def test_number_of_a_packed_file_keeps_its_digits(tmp_path):
    both(tmp_path, [], pairs(1))
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(b'{"question": "Q", "answer": 1.10}'))
    assert load_task(data_set(tmp_path)).train[0].answer == "1.10"
    assert load_task(task_of("task=data_set", f"task.hub={tmp_path}")).train[0].answer == "1.10"


def test_rows_without_an_answer_are_left_out_and_counted_if_asked(tmp_path):
    train = [
        *pairs(2),
        {"question": "Q", "answer": " "},
        {"question": "Q", "answer": nan},
        {"question": "Q", "answer": None},
    ]
    task = data_set(both(tmp_path, train, pairs(1, 5)), "task.empty_answers=leave_out")
    rows = load_task(task)
    assert [one.answer for one in rows.train] == ["0", "1"]
    assert data_warnings(task, rows) == ["task=data_set: 3 of 5 train rows have no answer and are left out"]


def test_held_out_questions_of_the_training_rows_are_counted(tmp_path):
    task = data_set(
        both(tmp_path, pairs(5), [{"question": "Q1? ", "answer": 1}, *pairs(2, 7)]), "task.max_new_tokens=8"
    )
    words = (
        "task=data_set",
        f"task.path={tmp_path}",
        "task.max_new_tokens=8",
        f"runs_dir={tmp_path}/runs",
        "tracker=none",
    )
    (warning,) = preflight([composed(*words)]).warnings
    assert warning.startswith("task=data_set: 1 of 3 held-out questions are training questions, too (test rows 1)")
    assert data_warnings(task, load_task(task_of())) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "task.columns.question=q",
            "train.jsonl line 1: lacks q; a row needs the columns q, answer, and this one has question, answer",
        ),
        ("task.split.test=dev", "there is no dev.jsonl; .* task.split.test=NAME .*: test, train$"),
        ("task.filter={answer: [77]}", r"leaves no train rows of task.path=.*, where answer has 0, 1, 2"),
        ("task.filter.kind=easy", "task.filter.kind: the train rows of .* have no such column, only question, answer"),
        ("task.shots=3", "task.shots=3: .* has 3 different training questions, .*; give at most 2"),
        ("task.answer=boxed", r"train.jsonl line 1: column answer has no .boxed\{\}"),
        ("task.answer=list_entry task.columns.answer=question", None),
    ],
)
def test_bad_data_key_is_refused_in_one_line(words, message, tmp_path):
    task = data_set(both(tmp_path, pairs(3), pairs(2, 5)), *(words.split() if "{" not in words else [words]))
    if message is None:
        assert load_task(task).train[0].answer == "Q0?"  # a text is its own entry
    else:
        with pytest.raises(ConfigError, match=message):
            load_task(task)
        refused(task)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task.columns.questoin=x"], "task.columns.questoin: no such key; here there are question, answer, solution"),
        (["task.columns.answer=null"], "task.columns.answer=null: must be the name of a column"),
        (["task.split.dev=x"], "task.split.dev: no such key"),
        (["task.max_rows=0"], r"task.max_rows=0: must be a whole number in \[1"),
        (["task.filter.kind=[]"], r"task.filter.kind=\[\]: must be a value"),
        (
            ["task.split.train=null", "task.test_share=0.5"],
            "task.test_share=0.5: is a share of the rows of task.split.train",
        ),
        (["task.path=null"], "task.path=null: task=data_set has no data set on the hub; give its file"),
        (["task.prompt_file=FILE/none.txt"], "task.prompt_file=.*none.txt: none.txt cannot be read"),
        (
            ["task.prompt_file=FILE/bad.txt"],
            r"task.prompt_file=.*bad.txt.: the text in this file must contain \{question\}",
        ),
        (["task.system='  '"], "task.system=: is empty"),
        (["task.shots=-1"], "task.shots=-1: must be in"),
    ],
)
def test_bad_value_of_a_key_is_refused(words, message, tmp_path):
    (tmp_path / "bad.txt").write_text("no place for it")
    with pytest.raises(ConfigError, match=message):
        load_task(data_set("x", *(word.replace("FILE", str(tmp_path)) for word in words)))


def test_broken_files_are_refused_in_one_line(tmp_path):
    (tmp_path / "cut.parquet").write_bytes(b"PAR1" + bytes(100))
    Dataset.from_dict({"question": [], "answer": []}).to_parquet(tmp_path / "none.parquet")
    (tmp_path / "lfs.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "semicolon.csv").write_text('"question, long";"answer"\n"Q";"1"\n')
    (tmp_path / "tabs.csv").write_text("question\tanswer\nQ\t1\n")
    (tmp_path / "commas.tsv").write_text("question,answer\nQ,1\n")
    (tmp_path / "spaces.csv").write_text("question, answer\nQ,1\n")
    (tmp_path / "zero.jsonl").write_bytes(b"")
    (tmp_path / "zero.parquet").write_bytes(b"")
    (tmp_path / "long.csv").write_text("question,answer\nQ,1\nQ,2,3\n")
    (tmp_path / "short.csv").write_text("question,answer\r\n\r\nQ\r\n")
    (tmp_path / "quote.csv").write_text('question,answer\n"Q,1\n')
    (tmp_path / "nan.csv").write_text("question,answer\nQ,NaN\n")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"question": "Q"}' * 99)[:-9])
    (tmp_path / "notes.txt").write_text("Q")
    for name, message in {
        "cut.parquet": "cut.parquet cannot be read .*; copy or download the file again",
        "none.parquet": "train has no rows; give at least one",
        "lfs.parquet": "lfs.parquet is a pointer of git-lfs",
        "semicolon.csv": "semicolon.csv has columns that are separated by semicolons; write commas",
        "tabs.csv": "tabs.csv has columns that are separated by tabs; write commas, or let its name end in .tsv",
        "commas.tsv": "commas.tsv has columns that are separated by commas; write tabs, or let its name end in .csv",
        "spaces.csv": "spaces.csv line 2: lacks answer; .* and this one has question, ' answer'",
        "zero.jsonl": "train has no rows: zero.jsonl has 0 bytes",
        "zero.parquet": "train has no rows: zero.parquet has 0 bytes",
        "long.csv": r"long.csv line 3 has 3 values, and there are 2 columns \(question, answer\)",
        "short.csv": "short.csv line 3 lacks a value of the column answer",
        "quote.csv": "quote.csv line 2 is not CSV",
        "nan.csv": "nan.csv line 2: column answer is NaN, which stands for a missing value",
        "cut.jsonl.gz": "cut.jsonl.gz cannot be unpacked",
        "notes.txt": "notes.txt is no jsonl, json, csv, tsv or parquet file",
        "none.csv": "there is no such folder or file",
    }.items():
        with pytest.raises(ConfigError, match=f"task.path={tmp_path}/{name}: {message}"):
            load_task(data_set(tmp_path / name, "task.test_share=0.5"))


@pytest.mark.parametrize("key", ["path", "hub"])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-00000-of-00002"], "lacks the part train-00001-of-00002 of the split train: .* that there are 2"),
        (["train-00002-of-00004"], "lacks the part train-00000-of-00004 and 2 others"),
        (["train-00000-of-00001", "train-00000-of-00002"], "has parts of 1 and of 2 files of the split train"),
        (["train-00000-of-00001-ab12", "train-00000-of-00001-cd34"], "has a part of the split train twice: .*; keep"),
        (["train-00000-of-00002", "train-00001-of-00002"], None),
        (["train-00001-of-00002", "train-00002-of-00002"], None),  # counted from 1
    ],
)
def test_part_of_a_split_that_is_missing_is_refused(key, names, message, tmp_path):
    lines(tmp_path / "test.jsonl", *pairs(1, 9))
    for number, name in enumerate(names):
        lines(tmp_path / f"{name}.jsonl", *pairs(1, number))
    task = task_of("task=data_set", f"task.{key}={tmp_path}")
    if message is None:
        assert [one.answer for one in load_task(task).train] == ["0", "1"]
    else:
        with pytest.raises(ConfigError, match=f"task.{key}={tmp_path}: {message}"):
            load_task(task)


def test_one_part_of_a_split_may_be_given_alone(tmp_path):
    file = lines(tmp_path / "test-00000-of-00002.jsonl", *pairs(1))
    assert len(load_task(data_set(file, "task.split.train=null"), ("test",)).test) == 1


def test_parts_without_leading_zeros_are_read_in_their_order(tmp_path):
    lines(tmp_path / "test.jsonl", *pairs(1, 20))
    for number in range(11):
        lines(tmp_path / f"train-{number}-of-11.jsonl", *pairs(1, number))
    assert [one.answer for one in load_task(data_set(tmp_path)).train] == [str(number) for number in range(11)]


def test_columns_of_a_parquet_file_that_are_not_needed_may_have_any_type(tmp_path):
    numbers = pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int32()))
    far = pa.array([2**62, 0], pa.timestamp("ms"))  # no date of Python
    table = pa.table({"question": ["Q?", "R?"], "answer": [1, 2], "map": numbers, "far": far})
    for split in ("train", "test"):
        pq.write_table(table, tmp_path / f"{split}.parquet")
    for key in ("path", "hub"):
        found = load_task(task_of("task=data_set", f"task.{key}={tmp_path}")).train
        assert [(one.question, one.answer) for one in found] == [("Q?", "1"), ("R?", "2")]
        assert found[0].columns == {"question": "Q?", "answer": 1, "map": [("a", 1)]}
    message = refused(data_set(tmp_path, "task.columns.answer=far"))
    assert "column far cannot be read" in message


@pytest.mark.parametrize("word", ["NA", "N/A", "NULL", "None", "nan", "null", "<NA>", " NA"])
def test_word_for_a_missing_value_is_refused_in_a_csv_file_alone(word, tmp_path):
    (tmp_path / "all.csv").write_text(f"question,answer\nQ,{word}\n")
    task = task_of("task=data_set", f"task.path={tmp_path / 'all.csv'}", "task.split.train=null")
    assert f"column answer is {word.strip()}, which stands for a missing value" in refused(task, "test")
    file = lines(tmp_path / "all.jsonl", {"question": "Q", "answer": word.strip()})
    assert load_task(replace(task, path=str(file)), ("test",)).test[0].answer == word.strip()


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_carriage_returns_alone_end_lines(ending, tmp_path):
    text = "question,answer\rQ,1\rR,2\r" if ending == "csv" else "".join(json.dumps(row) + "\r" for row in pairs(2))
    file = tmp_path / f"all.{ending}"
    file.write_bytes(text.encode())
    task = data_set(file, "task.split.train=null")
    assert len(load_task(task, ("test",)).test) == 2
    file.write_bytes(text.encode() + b"\xff")
    number = 4 if ending == "csv" else 3
    assert f"all.{ending} line {number} is not UTF-8 text" in refused(task, "test")


def test_long_list_of_other_splits_is_cut(tmp_path):
    for number in range(9):
        lines(tmp_path / f"set{number}.jsonl", *pairs(1))
    message = refused(data_set(tmp_path))
    assert message.endswith(
        "or task.split.train=NAME with the name of a split that is there: set0, set1, set2, set3, set4 and 4 others"
    )


def test_ways_to_read_an_answer_on_single_texts():
    assert after_hash("2+2=4\n#### 4\nbye") == after_hash("4") == "4"
    assert boxed(r"so \boxed{1} or \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"
    assert boxed(r"\boxed{\left\{x : x>1\right.}") == r"\left\{x : x>1\right."
    assert boxed(r"is $\boxed 5$.") == boxed(r"\fbox{5}") == boxed(r"\boxed 5 apples, fine.") == "5"
    assert [before_parenthesis(text) for text in ("21 (shirts)", "(-2,5)", "Fall")] == ["21", "(-2,5)", "Fall"]
    for text in (r"\boxed{1", r"\boxed{1} \boxed 1/2", r"\boxed 1,000", r"\boxed five"):
        with pytest.raises(ConfigError, match="not closed, or without braces"):
            boxed(text)


def test_solution_gets_the_answer_in_the_format_where_it_has_none():
    assert in_format("29*7=203", "203", "hash") == "29*7=203\n#### 203"
    assert in_format("29*7=203\n#### 203", "203", "hash") == "29*7=203\n#### 203"
    assert in_format("", "203", "boxed") == in_format("203", "203", "boxed") == r"\boxed{203}"
    assert in_format("so 203", "203", "last_number") == "so 203"
    assert in_format("203 in all.", "203", "answer_is") == "203 in all.\nThe answer is 203"


@pytest.mark.parametrize(
    ("solution", "answer", "answer_format"),
    [
        ("He was born in 2015.", "5", "last_number"),
        ("3-8=-5", "5", "last_number"),
        ("It is 1 1/2", "1/2", "last_number"),
        ("It is minus 5", "5", "last_number"),
        ("The answer is not clear. 3+4=7", "7", "answer_is"),
        ("The answer is 17.", "7", "answer_is"),
        ("#### 7\n#### 8", "7", "hash"),
        (r"\boxed{7} or \boxed{8}", "8", "boxed"),  # both are one answer, "7, 8"
        (r"\boxed{7}^2", "7", "boxed"),
    ],
)
def test_solution_from_which_the_format_reads_another_answer_gets_its_own(solution, answer, answer_format):
    written = in_format(solution, answer, answer_format)
    assert written.startswith(f"{solution}\n")
    with Verifier(answer_format, 2.0) as verifier:
        assert not verifier.score(solution, answer).correct
        assert verifier.read(written) == answer


@pytest.mark.parametrize(
    ("solution", "answer_format"),
    [
        ("5+2=7.", "last_number"),
        ("so $7$.", "last_number"),
        ("5-2=3. The final answer is: 7.", "answer_is"),
        ("#### 7\nbye", "hash"),
        (r"is $\boxed{7}$, as asked.", "boxed"),
    ],
)
def test_solution_that_states_its_answer_in_the_format_stays(solution, answer_format):
    assert in_format(solution, "7", answer_format) == solution
    assert Verifier(answer_format, 2.0).score(solution, "7").correct


def test_examples_precede_each_question_but_its_own(tmp_path):
    task = data_set(
        both(tmp_path, pairs(3), pairs(2, 7)), "task.shots=2", "task.system='Be brief.'", "task.prompt='{question}='"
    )
    rows = load_task(task)
    for one in rows.train:
        others = {f"Q{n}?=" for n in range(3)} - {f"{one.question}="}
        assert one.context[0] == ("system", "Be brief.")
        assert {text for role, text in one.context if role == "user"} == others
        assert one.preamble == len(one.context) == 5
    assert rows.test[0].context == rows.test[1].context
    asked = dict(zip(*[[text for _, text in rows.test[0].context[1:]][start::2] for start in (0, 1)], strict=True))
    assert all(solution == f"#### {question[1]}" for question, solution in asked.items())
    alone = load_task(task, ("test",))
    assert alone.test == rows.test
    other_order = data_set(
        both(tmp_path, pairs(3)[::-1], pairs(2, 7)),
        "task.shots=2",
        "task.system='Be brief.'",
        "task.prompt='{question}='",
    )
    assert load_task(other_order).test == rows.test


def test_question_with_other_spaces_is_no_example_for_itself(tmp_path):
    train = [{"question": f"Q {number}?", "answer": number} for number in range(4)]
    task = data_set(both(tmp_path, train, [{"question": "Q  3?", "answer": 3}]), "task.shots=3")
    (one,) = load_task(task).test
    asked = " ".join(content for role, content in one.context if role == "user")
    assert "Q 3?" not in asked
    assert all(f"Q {number}?" in asked for number in range(3))


def test_system_text_and_examples_are_text_before_the_question_without_a_chat_template(tiny):
    context = (("system", "S"), ("user", "1+1="), ("assistant", "2"))
    prompt = encode_prompt(tiny, Problem("3+4=", "7", "", context, preamble=3), "3+4=")
    assert tiny.tokenizer.decode(prompt.ids) == "S\n\n1+1=\n2\n\n3+4="


def test_system_text_or_examples_with_conversations_are_refused(tmp_path):
    talk = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    both(tmp_path, [{"question": talk, "answer": 1}, *pairs(3)], pairs(1, 9))
    assert "train row 1 of task=data_set has a system message of its own" in refused(
        data_set(tmp_path, "task.system=T")
    )
    assert "train row 1 of task=data_set is a conversation, which takes no examples" in refused(
        data_set(tmp_path, "task.shots=1")
    )


def test_prompt_file_counts_by_its_text_and_not_by_its_name(tmp_path):
    for name, text in (
        ("a.txt", "Q: {question}\r\nA:\r\n"),
        ("b.txt", "Q: {question}\nA:"),
        ("c.txt", "{question} \\n \\neq"),
    ):
        (tmp_path / name).write_bytes(text.encode("utf-8-sig"))
    a, b, c = (task_of(f"task.prompt_file={tmp_path / name}") for name in ("a.txt", "b.txt", "c.txt"))
    typed = replace(a, prompt_file=None, prompt=r"Q: {question}\nA:")
    assert a.prompt_text("1") == typed.prompt_text("1") == "Q: 1\nA:"
    assert (
        a.identity(files_digest) == b.identity(files_digest) == typed.identity(files_digest) != c.identity(files_digest)
    )
    assert c.prompt_text("1") == "1 \\n \\neq"


def test_new_keys_change_the_run_id_only_where_they_are_used():
    assert (
        identity("task.system=null", "task.shots=0", "model.template_arguments={}", "task.digits=[2,1]") == identity()
    )
    changes = ("task.system=S", "task.shots=1", "task.digits=[3,3]", "model.template_arguments.enable_thinking=false")
    assert len({identity(word).config_hash for word in changes} | {identity().config_hash}) == 5


def test_new_keys_leave_the_description_of_earlier_tasks_as_it_was():
    assert sorted(task_of("task=gsm8k").identity(files_digest)) == [
        "answer_format", "hub", "hub_config", "name", "path", "prompt", "revision", "verifier_time_limit"
    ]  # fmt: skip
    assert task_of("task=gsm8k", "task.columns.solution=null").identity(files_digest)["columns"]["solution"] is None


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if enable_thinking is false %}<no>{% endif %}{% endif %}"
)


def test_template_argument_reaches_the_prompt(tiny):
    tiny.tokenizer.chat_template = TEMPLATE
    problem = Problem("1+1=", "2", "", (("system", "S"),), preamble=1)
    for arguments, text in (
        ({}, "<system>S<user>1+1=<assistant>"),
        ({"enable_thinking": False}, "<system>S<user>1+1=<assistant><no>"),
    ):
        policy = wrap_policy(tiny.model, tiny.tokenizer, True, arguments)
        assert policy.tokenizer.decode(encode_prompt(policy, problem, "1+1=").ids) == text


@pytest.mark.parametrize(
    ("chat", "arguments", "message"),
    [
        (True, {"enable_thinkng": False}, "template_arguments.enable_thinkng=False: the chat template does not read enable_thinkng; it reads enable_thinking"),
        (True, {"tokenize": True}, "template_arguments.tokenize=True: is no variable of the chat template"),
        (True, {"add_generation_prompt": False}, "is no variable of the chat template"),
        (False, {"enable_thinking": False}, "model.chat_template=false, so nothing reads them"),
    ],
)  # fmt: skip
def test_template_argument_without_effect_is_refused(chat, arguments, message, tiny):
    tiny.tokenizer.chat_template = TEMPLATE
    with pytest.raises(ConfigError, match=message):
        wrap_policy(tiny.model, tiny.tokenizer, chat, arguments)


COUNTDOWN = Problem("Numbers 2, 3, 5. Target 16.", "(3+5)*2", "", columns={"numbers": [2, 3, 5], "target": 16})


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("(3+5)*2", True),
        ("2 * (5 + 3) = 16", True),
        (r"$2 \times (3+5)$.", True),
        ("**(3+5)*2**", True),
        ("(3+5)*2=8*2=16", True),
        ("(3+5)*2=17", False),
        ("16=(3+5)*2", False),  # the first side must use the numbers
        ("3+5+2", False),  # 10
        ("16", False),
        ("(3+5)*2+2-2", False),  # 2 three times
        ("(3+5)+8", False),  # 8 is not there
        ("8*2", False),
        ("(3+5)2", False),
        ("(3+5)*2*", False),
        ("(3+5)**2", False),
        ("32//2", False),
        ("-(-3-5)*2", False),
        ("0x10", False),
        ("__import__('os')", False),
        ("", False),
        ("(3+5)/(2-2)", False),
        ("9**9**9", False),
        ("(" * 200 + "3" + ")" * 200, False),
        ("3+" * 500_000 + "3", False),
        ("9" * 5000, False),
    ],
)
def test_countdown_answer_is_evaluated_exactly(answer, right):
    start = time.perf_counter()
    assert task_of("task=countdown").verdict(answer, COUNTDOWN) is right
    assert time.perf_counter() - start < 1


def test_countdown_uses_fractions_and_the_allowed_operations():
    thirds = Problem("", "1", "", columns={"numbers": [3, 3, 8, 8], "target": 24})
    assert task_of("task=countdown").verdict("8/(3-8/3)", thirds)  # 8/(1/3) = 24, inexact with floats
    assert not task_of("task=countdown", "task.operations=['+','*']").verdict(
        "(5-3)*8", replace(thirds, columns={"numbers": [3, 5, 8], "target": 16})
    )
    assert task_of("task=countdown", "task.use=at_most_once").verdict("3*8", thirds)
    assert not task_of("task=countdown", "task.use=at_most_once").verdict("3*3*3-3", thirds)


def test_countdown_solutions_are_right_and_no_problem_is_in_both_splits():
    task = task_of("task=countdown", "task.train_rows=500", "task.test_rows=100")
    rows = load_task(task)
    assert (len(rows.train), len(rows.test), data_warnings(task, rows)) == (500, 100, [])
    for one in [*rows.train, *rows.test]:
        assert task.verdict(one.answer, one)
        assert one.solution == f"{one.answer}={one.columns['target']}\n#### {one.answer}"
        numbers = one.columns["numbers"]
        assert 2 <= len(numbers) <= 3
        assert one.question == f"Numbers {', '.join(map(str, numbers))}. Target {one.columns['target']}."


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task.numbers=[3]"], r"task.numbers=\[3\]: must be the smallest and the largest one"),
        (["task.target=[9,1]"], r"task.target=\[9, 1\]: must be the smallest"),
        (["task.answer_format=last_number"], "task.answer_format=last_number: an answer of countdown is an expression"),
        (["task.operations=['^']"], "task.operations=.*: must be one of"),
        (
            ["task.target=[900000,900001]"],
            r"no expression of task.numbers=\[2, 3\] up to task.largest=20 .* allow more",
        ),
        (["task.numbers=[2,2]", "task.largest=1", "task.target=[2,2]"], "held-out problems|no training problems"),
    ],
)
def test_countdown_that_cannot_be_drawn_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        load_task(task_of("task=countdown", *words))


def test_product_of_three_digits_is_worked_out_place_by_place():
    rows = load_task(task_of("task=multiplication_3x3"))
    assert all(100 <= one.columns["a"] <= 999 and 100 <= one.columns["b"] <= 999 for one in rows.test)
    one = next(row for row in rows.train if row.question == "167*408=")
    # 167*400 = 40000+24000+2800, 167*8 = 800+480+56
    assert (
        one.solution == "100*400+60*400+7*400=40000+24000+2800=66800\n100*8+60*8+7*8=800+480+56=1336\n66800+1336=68136"
    )
    assert one.answer == "68136"


@dataclass(frozen=True)
class Trivia(HubTask):
    """A user's own task."""

    columns: ClassVar[tuple[str, ...]] = ("prompt", "target")

    def problem(self, row):
        return Problem(row["prompt"], answer=row["target"], solution="")


def test_own_task_may_begin_with_the_yaml_file_of_a_data_set(tmp_path):
    both(
        tmp_path,
        [{"prompt": "Q", "target": 7, "n": 1}, {"prompt": "R", "target": 8, "n": 2}],
        [{"prompt": "S", "target": 9, "n": 2}],
    )
    node = {key: value for key, value in node_of("task=gsm8k").items() if key != "_target_"}
    task = Trivia.of("task", {**node, "path": str(tmp_path), "filter": {"n": 2}})
    (one,) = load_task(task).train
    assert (one.question, one.answer, one.columns) == ("R", "8", {"prompt": "R", "target": 8, "n": 2})


def test_key_of_a_data_set_that_an_own_task_does_not_read_is_refused_where_it_was_changed():
    for option in ("data_set", "gsm8k", "math", "mmlu_stem"):
        node = {key: value for key, value in node_of(f"task={option}").items() if key != "_target_"}
        assert Trivia.of("task", node).name == option
    for change in ({"answer": "boxed"}, {"columns": {"question": "q"}}, {"empty_answers": "leave_out"}):
        with pytest.raises(ConfigError) as error:
            Trivia.of("task", {**node, **change})
        (key,) = change
        assert str(error.value).startswith(f"task.{key}: no such key; here there are answer_format")
        assert "\n" not in str(error.value)


def test_digits_of_a_task_without_them_are_refused():
    node = {key: value for key, value in node_of("task=word_problems").items() if key != "_target_"}
    with pytest.raises(ConfigError, match=r"task\.digits: no such key"):
        WordProblems.of("task", {**node, "digits": [9, 9]})


@pytest.mark.parametrize(
    ("option", "cls"),
    [("data_set", DataSet), ("gsm8k", Gsm8k), ("svamp", Svamp), ("multiplication", Multiplication)],
)
def test_values_that_the_run_id_leaves_out_are_those_of_the_yaml_file(option, cls):
    node = node_of(f"task={option}")
    assert {key: node[key] for key in cls.neutral} == cls.neutral


def test_filter_of_an_option_is_removed():
    assert node_of("task=mmlu_stem")["filter"]
    assert composed("task=mmlu_stem", "task.filter=null").task["filter"] is None
    tasks = composed("eval.benchmarks=[mmlu_stem]", "eval.tasks.mmlu_stem.filter={}").eval.tasks
    assert tasks["mmlu_stem"]["filter"] == {}
    assert tasks["mmlu_stem"]["columns"] == node_of("task=mmlu_stem")["columns"]


@pytest.mark.parametrize("digits", ["[2,2]", "[3,3]"])
def test_product_is_in_one_split_whatever_the_order_of_its_factors(digits):
    rows = load_task(task_of(f"task.digits={digits}", "task.train_rows=3000", "task.test_rows=500"))

    def pairs_of(found):
        return {tuple(sorted(one.columns.values())) for one in found}

    assert not pairs_of(rows.train) & pairs_of(rows.test)
    assert len({one.question for one in rows.test}) == 500


def test_question_ids_tell_conversations_apart_and_number_repeated_questions():
    talk = Problem("Q", "1", "", (("user", "A"), ("assistant", "B")))
    other = replace(talk, context=(("user", "A"), ("assistant", "C")))
    prepared = replace(talk, context=(("system", "S"), *talk.context), preamble=1)
    plain, shot = Problem("Q", "1", ""), Problem("Q", "1", "", (("user", "X"), ("assistant", "Y")), preamble=2)
    first, second, third, fourth, fifth = question_ids([talk, other, plain, shot, prepared])
    assert third == sha256(b"Q").hexdigest()[:16]
    assert (fourth, fifth) == (f"{third}-2", f"{first}-2")
    assert len({first, second, third}) == 3


def test_repeated_question_keeps_its_id_where_an_earlier_one_does_not_fit(tiny):
    long = Problem("1+1=", "2", "", (("user", "1" * 200), ("assistant", "2")), preamble=2)
    short = replace(long, context=(), preamble=0)
    prompts, ids = fitting(tiny, task_of(), [long, short], tiny.context - 20)
    assert [one.problem for one in prompts] == [short]
    assert ids == [f"{sha256(b'1+1=').hexdigest()[:16]}-2"]


def test_first_conversation_is_tried_where_a_system_text_precedes_every_question(tiny):
    plain = Problem("1+1=", "2", "", (("system", "S"),), preamble=1)
    talk = Problem("1+1=", "2", "", (("system", "S"), ("user", "Q"), ("assistant", "A")), preamble=1)
    check_prompt(tiny, task_of(), Rows([plain], [plain]))
    with pytest.raises(ConfigError, match="has earlier turns"):
        check_prompt(tiny, task_of(), Rows([plain], [plain, talk]))


def test_check_of_an_evaluation_only_task_checks_it_as_a_benchmark(tmp_path):
    rows = [{"problem": f"1+{number}=", "answer": str(number + 1)} for number in range(2)]
    words = ("task=math500", "task.max_new_tokens=8", f"runs_dir={tmp_path}/runs", "task.prompt='{question}'")
    report = str(model_check.check(composed(*words, f"task.path={lines(tmp_path / 'all.jsonl', *rows)}")))
    assert "0 training and 2 held-out answers, 2 equal to themselves" in report
    assert "| 1+0=\n" in report
    with pytest.raises(ConfigError, match=f"^task.path={tmp_path}/none.jsonl: there is no such folder or file"):
        model_check.check(composed(*words, f"task.path={tmp_path}/none.jsonl"))


def test_check_lists_no_question_of_countdown_for_its_several_answers(tmp_path):
    words = ("task=countdown", "task.numbers=[2,2]", "task.largest=3", "task.target=[1,9]", "task.test_rows=2")
    config = composed(*words, "task.train_rows=60", f"runs_dir={tmp_path}/runs")
    rows = load_task(build("task", config.task, Task))
    answers = {(one.question, one.answer) for one in [*rows.train, *rows.test]}
    assert len(answers) > len({question for question, _ in answers})  # such as 1+2 and 2+1
    report = str(model_check.check(config))
    assert "training rows repeat an earlier question" in report
    assert "gold answers" not in report


@dataclass(frozen=True)
class Smaller(Multiplication):
    """Accepts no answer above 100."""

    def verdict(self, answer, problem):
        return int(answer) <= 100


def test_check_judges_gold_answers_by_the_check_of_the_task():
    node = {key: value for key, value in node_of("task=multiplication").items() if key != "_target_"}
    rows = Rows([Problem("9*9=", "81", "9*9=81"), Problem("57*4=", "228", "57*4=228")], [])
    judged, (odd,) = model_check._gold_answers(Smaller.of("task", node), rows)
    assert judged == "2 training and 0 held-out answers, 1 equal to themselves"
    assert "train row 2: '228'" in odd


def test_rows_of_the_default_task_are_those_of_earlier_versions():
    rows = load_task(task_of())
    texts = [(one.question, one.answer, one.solution, one.context) for one in [*rows.train, *rows.test]]
    # the hash of the rows that the version before the key digits drew
    assert sha256(repr(texts).encode()).hexdigest()[:12] == "bd063d0192ec"

"""Values of rows: used as they are written, or refused with their place. The same for a folder and for the hub."""

import json
import os
import random
from dataclasses import dataclass, replace
from decimal import Decimal
from hashlib import sha256

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from rlsparse.batch import Problem
from rlsparse.components.component import build
from rlsparse.components.task import Rows, Task, load_task
from rlsparse.components.task.rows import Number, as_text, is_blank
from rlsparse.config.run_id import files_digest
from rlsparse.config.schema import ConfigError, NoiseConfig
from rlsparse.execution.preflight import preflight
from rlsparse.warm_start.noise import check_noise, corrupt
from tests.conftest import built, composed, composed_warm_start


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """datasets keeps what it has read in a folder of this test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def gsm8k(*overrides):
    return build("task", composed("task=gsm8k", *overrides).task, Task)


BASE = gsm8k("task.prompt='{question}'", "task.hub_config=null")


def hub(folder):
    return replace(BASE, hub=str(folder))


def write(folder, *lines):
    """Write the same lines as training and held-out rows; return the task with each of the two keys."""
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return replace(BASE, path=str(folder)), hub(folder)


def row(answer="1", question='"Q?"'):
    return f'{{"question": {question}, "answer": {answer}}}'


def refusals(folder, *lines):
    found = []
    for task in write(folder, *lines):
        with pytest.raises(ConfigError) as error:
            task.load()
        assert "\n" not in str(error.value)
        found.append(str(error.value))
    return found


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("0.00001", "0.00001"),
        ("1.10", "1.10"),
        ("1e-05", "0.00001"),
        ("1.50E-5", "0.0000150"),
        ("1e5", "100000"),
        ("-2.5e1", "-25"),
        ("7", "7"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("100000000000000000001", "100000000000000000001"),
        ("9" * 5000, "9" * 5000),
        ("1e400", "1" + "0" * 400),
        ('"1e-05"', "1e-05"),
        ('"2020-01-01"', "2020-01-01"),
        ('"\\ud83d\\ude00"', "\N{GRINNING FACE}"),
    ],
)
def test_value_is_used_as_it_is_written(written, text, tmp_path):
    for task in write(tmp_path, row(written)):
        assert task.load().train[0].answer == text


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("true", "column answer is true; give text"),
        ("null", "column answer is null; give text"),
        ("NaN", "column answer is nan, which is no finite number"),
        ("-Infinity", "column answer is -inf, which is no finite number"),
        ('{"value": 4}', "column answer is an object ({'value': 4}); give text"),
        ("[4]", "column answer is a list ([4]); give text"),
        ('[{"role": "assistant", "content": "4"}]', "column answer is a list"),
        ('""', "column answer is empty"),
        ('" \\t\\u200b"', "column answer is empty"),
        ("1e999999999", "column answer is '1e999999999'; give an exponent of at most 10000"),
        ("1e-99999999999999999999999", "give an exponent of at most 10000"),
        ('"\\ud800"', "column answer has the character '\\ud800'"),
        ('"4 ####  "', "column answer has nothing after its last ####"),
    ],
)
def test_value_that_is_no_answer_is_refused_with_line_or_row_and_column(written, reason, tmp_path):
    local, remote = refusals(tmp_path, "", row(), row(written))
    assert reason in local
    assert reason in remote
    assert local.startswith(f"task.path={tmp_path}: train.jsonl line 3: column answer ")
    assert remote.startswith(f"task.hub={tmp_path}: train row 2: column answer ")


def test_row_without_a_column_is_refused_with_the_columns_that_it_has(tmp_path):
    local, remote = refusals(tmp_path, '{"Question": "Q?", "answer": "1"}')
    reason = "lacks question; a row needs the columns question, answer, and this one has Question, answer"
    assert local == f"task.path={tmp_path}: train.jsonl line 1: {reason}"
    assert remote == f"task.hub={tmp_path}: train row 1: {reason}"


@pytest.mark.parametrize("nested", ["[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000])
def test_brackets_nested_deeply_are_refused_with_the_line(nested, tmp_path):
    for message in refusals(tmp_path, row(), row(nested)):
        assert "train.jsonl line 2 nests brackets too deeply" in message


def test_column_that_stands_twice_is_refused_only_if_it_is_needed(tmp_path):
    for message in refusals(tmp_path, '{"question": "Q?", "answer": "1", "answer": "2"}'):
        assert message.endswith("has the column answer twice; keep one")
    for task in write(tmp_path, '{"question": "Q?", "answer": "1", "note": 1, "note": 2}'):
        assert task.load().train[0].answer == "1"


def test_values_of_other_columns_do_not_matter(tmp_path):
    odd = '{"question": "Q?", "answer": "1", "a": "\\ud800", "b": NaN, "c": %s, "d": 1e999999999}' % ("9" * 5000)
    for task in write(tmp_path, odd):
        assert task.load().train[0] == Problem("Q?", "1", "#### 1")


def test_byte_order_mark_of_utf_8_is_skipped(tmp_path):
    tasks = write(tmp_path, "")
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_bytes(b"\xef\xbb\xbf" + row().encode())
    assert [task.load().train[0].answer for task in tasks] == ["1", "1"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_file_of_another_encoding_is_refused_with_the_remedy(encoding, tmp_path):
    for task in write(tmp_path, ""):
        (tmp_path / "train.jsonl").write_bytes(row().encode(encoding))
        with pytest.raises(ConfigError, match=r"train.jsonl is UTF-16 or UTF-32 text; save it as UTF-8"):
            task.load()


def test_byte_that_is_not_utf_8_is_refused_with_its_line(tmp_path):
    for task in write(tmp_path, ""):
        (tmp_path / "train.jsonl").write_bytes("\n".join([row(), row('"é"')]).encode("latin-1"))
        with pytest.raises(ConfigError, match=r"train.jsonl line 2 is not UTF-8 text .*; save it as UTF-8"):
            task.load()


TURNS = [
    {"role": "system", "content": ""},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": [{"type": "text", "text": "3*"}, {"type": "text", "text": "4="}]},
]


def test_conversation_is_a_question_with_its_earlier_turns(tmp_path):
    for task in write(tmp_path, row("12", json.dumps(TURNS)), row("1", '"alone"')):
        first, second = task.load().train
        assert first == Problem("3*4=", "12", "#### 12", (("system", ""), ("user", "Hello"), ("assistant", "Yes?")))
        assert second == Problem("alone", "1", "#### 1", ())


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "is an empty list"),
        (["Hello"], "is a list with 'Hello'; give text, or a conversation"),
        ([1, 2], "is a list with 1; give text, or a conversation"),
        ([{"from": "human", "value": "Hello"}], "is a list with {'from'"),
        (TURNS[:3], "ends with a turn of the role assistant; end it with one of the role user"),
        ([{"role": "tool", "content": "4"}, TURNS[1]], "has a turn of the role 'tool'; give one of system, user"),
        ([{"role": "user", "content": None}], "has a turn whose content is null"),
        ([{"role": "user", "content": " "}], "has a turn whose content is empty"),
        ([{"role": "user", "content": []}], "is empty"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "has a turn with the part {'type': 'image'"),
        ({"role": "user", "content": "Hello"}, "is an object"),
    ],
)
def test_other_lists_are_no_question(messages, reason, tmp_path):
    for message in refusals(tmp_path, row(question=json.dumps(messages))):
        assert f"column question {reason}" in message


def test_json_list_is_read_as_rows_of_a_hub_folder(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.json").write_text(f"[{row('1.10')}, {row('2')}]")
    assert [one.answer for one in hub(tmp_path).load().train] == ["1.10", "2"]


def parquet(folder, kind, *answers):
    features = Features({"question": Value("string"), "answer": kind})
    rows = Dataset.from_dict({"question": ["Q?"] * len(answers), "answer": list(answers)}, features=features)
    for split in ("train", "test"):
        rows.to_parquet(folder / f"{split}.parquet")
    return hub(folder)


@pytest.mark.parametrize(
    ("kind", "values", "texts"),
    [
        (Value("float64"), [1e-05, 0.1, 1e20], ["0.00001", "0.1", "100000000000000000000"]),
        (Value("float32"), [0.1, 1e-05], ["0.1", "0.00001"]),
        (Value("float16"), [np.float16(0.1)], ["0.1"]),
        (Value("int64"), [2**62 + 1], ["4611686018427387905"]),
        (Value("decimal128(9, 4)"), [Decimal("1.1000")], ["1.1000"]),
        (ClassLabel(names=["no", "yes"]), [1, 0], ["yes", "no"]),
    ],
)
def test_value_of_a_parquet_file_is_the_text_of_what_it_stores(kind, values, texts, tmp_path):
    assert [one.answer for one in parquet(tmp_path, kind, *values).load().train] == texts


@pytest.mark.parametrize(
    ("kind", "values", "reason"),
    [
        (Value("bool"), [True], "train row 1: column answer is true"),
        (Value("string"), ["1", None], "train row 2: column answer is null"),
        (Value("float32"), [float("nan")], "train row 1: column answer is nan"),
        (Value("binary"), [b"1"], "train row 1: column answer is binary data"),
    ],
)
def test_value_of_a_parquet_file_that_is_no_answer_is_refused(kind, values, reason, tmp_path):
    with pytest.raises(ConfigError, match=reason):
        parquet(tmp_path, kind, *values).load()


def test_values_of_a_csv_file_keep_their_digits(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("question,answer\nQ,007\nQ,1.10\nQ,9007199254740993\n")  # 2**53 + 1
    for task in (hub(tmp_path), replace(BASE, path=str(tmp_path))):
        assert [one.answer for one in task.load().train] == ["007", "1.10", "9007199254740993"]


def identity(task):
    return json.dumps(task.identity(files_digest), sort_keys=True)


def test_identity_of_a_folder_is_that_of_its_two_files(tmp_path):
    (task, _) = write(tmp_path, row())
    line = f"{row()}\n".encode()
    by_hand = sha256(b"test.jsonl" + sha256(line).digest() + b"train.jsonl" + sha256(line).digest()).hexdigest()
    assert task.identity(files_digest)["path"] == by_hand
    (tmp_path / "NOTES.txt").write_text("not read")
    (tmp_path / "other.jsonl").write_text("not read")
    assert task.identity(files_digest)["path"] == by_hand


@pytest.mark.parametrize("which", [0, 1], ids=["path", "hub"])
def test_changed_file_of_a_folder_is_another_identity_and_a_moved_folder_is_not(which, tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    task = write(folder, row())[which]
    before = identity(task)
    (folder / "NOTES.txt").write_text("not read")
    (folder / "README.md").write_text("not read")
    assert identity(task) == before
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert identity(replace(task, **{("path", "hub")[which]: str(link)})) == before
    times = os.stat(folder / "train.jsonl")
    (folder / "train.jsonl").write_text(f"{row('2')}\n")
    os.utime(folder / "train.jsonl", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert identity(task) != before
    assert task.load().train[0].answer == "2"


def test_parquet_file_that_changes_within_the_clock_of_the_disk_is_read_again(tmp_path):
    found = []
    for answer in ("1", "2"):
        task = parquet(tmp_path, Value("string"), answer)
        for file in tmp_path.glob("*.parquet"):
            os.utime(file, (1, 1))
        found.append((task.load().train[0].answer, identity(task)))
    assert [answer for answer, _ in found] == ["1", "2"]
    assert found[0][1] != found[1][1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("task.path=FILE", "is a file, and task=gsm8k needs training and held-out rows; .* task.test_share=0.1"),
        ("task.path=FOLDER/none", "there is no such folder"),
        ("task.path=''", "task.path=: names no folder"),
        ("task.hub=''", "task.hub=: names no data set"),
        ("task.hub=FILE", "task.hub=.*train.jsonl: is a file; give it as task.path=.*train.jsonl"),
        ("task.hub=FOLDER", "BuilderConfig 'main' not found.*task.hub_config=null"),
        ("task.hub=FOLDER task.hub_config=null task.revision=v1", "task.revision=v1: task.hub=.* has no revisions"),
    ],
)
def test_folder_that_cannot_be_read_is_refused_in_one_line(overrides, message, tmp_path):
    write(tmp_path, row())
    words = overrides.replace("FILE", str(tmp_path / "train.jsonl")).replace("FOLDER", str(tmp_path)).split()
    with pytest.raises(ConfigError, match=message) as error:
        gsm8k(*words).load()
    assert "\n" not in str(error.value)


def test_hub_folder_without_a_split_is_refused(tmp_path):
    write(tmp_path, row())
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"task.hub=.*: has no split test, only train; name one as task.split.test"):
        hub(tmp_path).load()


@dataclass(frozen=True)
class Given(Task):
    """A task whose rows are given."""

    rows: object

    def load(self):
        return self.rows


GOOD = Problem("Q?", "1", "1")


def given(rows):
    return Given("given", "{question}", "last_number", 8, 1.0, None, None, 0, rows)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (Problem("Q?", 4, "4"), "train row 2: answer is 4; it must be text"),
        (Problem(None, "4", "4"), "train row 2: question is None; it must be text"),
        (Problem("Q?", " ", "4"), "train row 2: answer is empty"),
        (Problem("", "4", "4"), "train row 2: question is empty"),
        (Problem("Q?", "4", None), "train row 2: solution is None; it must be text"),
        (Problem("Q?", "\ud800", "4"), r"train row 2: answer has the character '.ud800'"),
        (Problem("Q?", "4", "4", (("tool", "x"),)), r"train row 2: context has the turn \('tool', 'x'\)"),
        ({"question": "Q?"}, "train row 2: is {'question': 'Q.'}; it must be a Problem"),
    ],
)
def test_row_of_a_users_task_without_text_is_refused(problem, message):
    with pytest.raises(ConfigError, match=message):
        load_task(given(Rows([GOOD, problem], [GOOD])))


def test_users_task_that_returns_no_rows_is_refused():
    with pytest.raises(ConfigError, match=r"task=given .*: load\(\) returned None; return Rows\(train, test\)"):
        load_task(given(None))
    with pytest.raises(ConfigError, match="task=given: test has no rows"):
        load_task(given(Rows([GOOD], [])))


def test_row_without_a_solution_is_enough_for_rl():
    rows = Rows([Problem("Q?", "1", "")], [GOOD])
    assert load_task(given(rows)) is rows


def test_preflight_refuses_a_row_before_a_model_is_loaded(tmp_path):
    write(tmp_path, row(), row("true"))
    wanted = "train.jsonl line 2: column answer is true"
    words = ("task=gsm8k", "task.max_new_tokens=8", f"task.path={tmp_path}")
    points = [composed(*words, f"runs_dir={tmp_path}/runs", f"seed={seed}") for seed in (0, 1)]
    with pytest.raises(ConfigError) as error:
        preflight(points)
    assert str(error.value).count(wanted) == len(str(error.value).splitlines()) == 1
    with pytest.raises(ConfigError, match=wanted):
        warm_start_preflight(*words)


def warm_start_preflight(*words):
    from rlsparse.warm_start.run import preflight as check

    return check(composed_warm_start("model=tiny", "out=x", *words), "cpu")


def test_noise_on_an_answer_without_a_number_is_refused_where_its_row_is_used(tmp_path):
    write(tmp_path, row('"#### 5"'), row('"#### yes"'))
    words = ("task=gsm8k", f"task.path={tmp_path}", "warm_start=noisy")
    with pytest.raises(ConfigError, match=r"direct_wrong=0.8: .* training row 2 has none: 'yes'; set .*direct_wrong=0"):
        warm_start_preflight(*words)
    with pytest.raises(
        ConfigError, match=r"noise.slip=0.5: .* row 2 has none: '#### yes'; set warm_start.noise.slip=0"
    ):
        warm_start_preflight(*words, "warm_start.noise.direct_wrong=0")
    assert warm_start_preflight(*words, "warm_start.noise.direct_wrong=0", "warm_start.noise.slip=0").identity.id
    assert warm_start_preflight(*words, "warm_start.max_rows=1").identity.id


def test_noise_that_is_off_needs_no_numbers():
    words = [Problem("Q?", "yes", "#### yes")]
    check_noise(words, NoiseConfig(direct=0.0, direct_wrong=1.0, slip=0.0))
    check_noise(words, NoiseConfig(direct=1.0, direct_wrong=0.0, slip=1.0))


def test_warm_start_on_a_row_without_a_solution_is_refused():
    with pytest.raises(ConfigError, match="training row 2 has no solution"):
        check_noise([GOOD, Problem("Q?", "1", " ")], NoiseConfig(direct=0.0, direct_wrong=0.0, slip=0.0))


def test_noise_replaces_a_digit_by_one_of_the_same_script():
    problem = Problem(
        "Q?", "x²=\N{ARABIC-INDIC DIGIT THREE}", "no number but \N{ARABIC-INDIC DIGIT FIVE}\N{ARABIC-INDIC DIGIT ZERO}"
    )
    rng = random.Random(0)
    answers = {corrupt(problem, NoiseConfig(direct=1.0, direct_wrong=1.0, slip=0.0), rng) for _ in range(200)}
    assert answers == {f"x²={chr(0x660 + digit)}" for digit in range(10) if digit != 3}
    slip = corrupt(problem, NoiseConfig(direct=0.0, direct_wrong=0.0, slip=1.0), rng)
    assert slip == "no number but \N{ARABIC-INDIC DIGIT FIVE}"  # 50 without its last zero


def test_noise_on_other_digits_draws_as_before():
    config = NoiseConfig(direct=0.0, direct_wrong=0.0, slip=1.0)
    assert corrupt(Problem("Q?", "7", "3+4=7"), config, random.Random("a")) == "3+4=1"


def test_text_helpers_on_single_values():
    assert as_text(Decimal("1E+3")) == "1000"
    assert as_text(-0.0) == as_text(Number("-0.0")) == as_text(Number("-0e5")) == "0"
    assert as_text(Number("-0.00")) == "0.00"
    assert as_text(Number("-1e-3")) == "-0.001"
    assert as_text(Decimal("-0.0")) == "0.0"
    assert is_blank("\u2028\u00a0\ufeff")
    assert not is_blank("\u00a0.")


def test_indented_json_objects_one_after_the_other_are_read_as_datasets_reads_them(tmp_path):
    rows = [{"question": "a", "answer": f"#### {number}"} for number in (1.10, 2)]
    for split in ("train", "test"):
        (tmp_path / f"{split}.json").write_text("\n\n".join(json.dumps(row, indent=2) for row in rows))
    task = built("task=gsm8k", f"task.hub={tmp_path}", "task.hub_config=null").task
    assert [problem.answer for problem in task.load().train] == ["1.1", "2"]
    (tmp_path / "train.json").write_text('{"question": "a",\n "answer": "1"}\n{"question": ]')
    with pytest.raises(ConfigError, match=r"train\.json line 3 is not JSON"):
        task.load()


@pytest.mark.parametrize("name", ["a?b", "a[1]", "a*"])
def test_local_folder_of_the_hub_whose_name_is_a_pattern_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match="as a pattern; rename the folder"):
        built("task=gsm8k", f"task.hub='{tmp_path / name}'")

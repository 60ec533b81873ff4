"""Verdicts on answers of every kind: set by hand, those of the shared file, and gold answers against themselves."""

import json
import re

import pytest

from rlsparse.components.reward import MathVerify, Verifier
from rlsparse.components.reward.answer import ANSWER_FORMATS
from tests.verdict_rows import LAST_NUMBER_RIGHT, LAST_NUMBER_WRONG, RIGHT, WRONG

GOLD_COLUMNS = {
    "math500": "answer",
    "amc23": "answer",
    "aime24": "answer",
    "minerva_math": "solution",
    "olympiadbench": "final_answer",
    "gaokao2023en": "answer",
    "cmath": "answer",
    "cn_middle_school": "answer",
}
TRAINING_COLUMNS = {"asdiv": "answer", "mawps": "target", "svamp": "Answer", "gsm8k": "answer"}
MOST_REFUSED = 0.05  # of the right answers


@pytest.fixture(scope="module")
def process():
    with MathVerify() as one:
        yield one


@pytest.mark.parametrize("kind", RIGHT)
def test_right_answer_is_right(kind, process):
    verifier = Verifier("boxed", 20, process)
    assert [row for row in RIGHT[kind] if not verifier.judge(*row).correct] == []


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_answer_is_wrong(kind, process):
    verifier = Verifier("boxed", 20, process)
    assert [row for row in WRONG[kind] if verifier.judge(*row).correct] == []


def test_every_kind_has_ten_right_and_ten_wrong_rows():
    assert set(RIGHT) == set(WRONG)
    assert min(len(rows) for rows in (*RIGHT.values(), *WRONG.values())) >= 10


def test_last_number_is_read_whole(process):
    verifier = Verifier("last_number", 20, process)
    assert [row for row in LAST_NUMBER_RIGHT if not verifier.score(*row).correct] == []
    assert [row for row in LAST_NUMBER_WRONG if verifier.score(*row).correct] == []


@pytest.mark.parametrize("answer_format", ANSWER_FORMATS)
def test_judged_rows_have_no_wrong_answer_called_right_and_few_right_ones_refused(answer_format, shared_data, process):
    lines = (shared_data / "verdicts" / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["format"] == answer_format and row["certain"]]
    verifier = Verifier(answer_format, 20, process)
    verdicts = [(row["expected"], verifier.score(row["completion"], row["gold"]).correct) for row in rows]
    right = sum(expected for expected, _ in verdicts)
    agree = sum(expected == found for expected, found in verdicts)
    accepted, refused = verdicts.count((False, True)), verdicts.count((True, False))
    print(f"{answer_format}: {agree} agree, {accepted} wrong ones called right, {refused} right ones called wrong")
    assert right >= 40
    assert accepted == 0
    assert refused <= MOST_REFUSED * right


def last_box(solution):
    return Verifier("boxed", 1).read(solution)


def golds(shared_data, name):
    """Return the distinct gold answers of a file as they stand in it, without those that are empty."""
    files = sorted((shared_data / name).glob("*.jsonl")) or [shared_data / "benchmarks" / f"{name}.jsonl"]
    column = {**GOLD_COLUMNS, **TRAINING_COLUMNS}[name]
    found = []
    for row in (json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()):
        gold = row[column][0] if name == "olympiadbench" else str(row[column])
        gold = last_box(gold) if name == "minerva_math" else gold.split("####")[-1].strip()
        found.append(gold.split(" (")[0] if name == "asdiv" else gold)
    return [gold for gold in dict.fromkeys(found) if gold]


def rewritten(gold):
    r"""Yield a gold answer in other notation: as a formula, with \dfrac, with \left and \right, with spaces."""
    yield gold
    yield f"${gold}$"
    yield f"{gold}."
    yield gold.replace(r"\frac", r"\dfrac")
    if r"\left" in gold:
        yield gold.replace(r"\left", "").replace(r"\right", "")
    else:
        yield re.sub(r"(?<![A-Za-z])\(([^()]*)\)", r"\\left(\1\\right)", gold)
    if r"\text" not in gold:
        yield re.sub(r"(?<=[^\s\w\\])(?=[^\s\\!,.0-9])", " ", gold)
    if "$" not in gold:
        yield f"\n\\[ {gold} \\]\n"


@pytest.mark.parametrize("name", [*GOLD_COLUMNS, *TRAINING_COLUMNS])
def test_every_gold_answer_is_equal_to_itself_in_other_notation(name, shared_data, process):
    verifier = Verifier("boxed", 20, process)
    rows = [(text, gold) for gold in golds(shared_data, name) for text in rewritten(gold)]
    assert len(rows) > 100
    assert [row for row in rows if not verifier.score(rf"so \boxed{{{row[0]}}}", row[1]).correct] == []

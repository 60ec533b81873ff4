"""Reading answers and judging them, hostile ones included."""

import time
from fractions import Fraction

import pytest

from rlsparse.config import RewardConfig
from rlsparse.task.answer import after_hash, answer_is, boxed, last_number, plain_number
from rlsparse.task.verifier import Score, Verifier
from tests.conftest import composed


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234", 1234),
        ("1234", 1234),
        ("1234.0", 1234),
        ("−3", -3),
        ("-3.", -3),
        ("$5.00", 5),
        (r"\$5", 5),
        ("3/4", Fraction(3, 4)),
        ("0.75", Fraction(3, 4)),
        (".5", Fraction(1, 2)),
        ("+7", 7),
        ("1,234 dollars", 1234),
        ("45 push-ups", 45),
        ("3 / 4", Fraction(3, 4)),
        ("- 3", -3),
        ("14,", 14),
        ("**45**", 45),
    ],
)
def test_plain_numbers_are_settled_exactly(text, value):
    assert plain_number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1/0",
        "12,34",
        "5 million",
        "3 or 4",
        "45 and 46",
        "1e5",
        "1.2.3",
        "7 - 3",
        "7 3",
        "3 1/2",
        "9" * 100,
        "-",
        ".",
        "$",
    ],
)
def test_anything_else_is_not_a_plain_number(text):
    assert plain_number(text) is None


def test_each_format_reads_its_own_answer():
    assert after_hash("so 1\n#### 4\nbut #### 5 apples\nmore") == "5 apples"
    assert after_hash("####") is None
    assert boxed(r"\boxed{1} and \boxed{\frac{3}{4}}") == r"\frac{3}{4}"
    assert boxed(r"\boxed{4") is None
    assert answer_is("The answer is 4. No: the final answer is: $5.50. Done") == "$5.50"
    assert answer_is("it is 4") is None
    assert last_number("57*4=200+28=228") == "228"
    assert last_number("10-3") == "3"
    assert last_number("it falls to −3 degrees") == "-3"
    assert last_number("she pays $1,234.50.") == "$1,234.50"
    assert last_number("none") is None


def test_rewards_are_config():
    values = RewardConfig(correct=2.0, wrong=-1.0, format=0.5)
    assert Score(correct=True, answered=True).reward(values) == 2.5
    assert Score(correct=False, answered=True).reward(values) == -0.5
    assert Score(correct=False, answered=False).reward(values) == -1.0


def test_math_verify_judges_what_numbers_cannot():
    with Verifier(composed("task.answer_format=boxed").task) as verifier:
        assert verifier.score(r"\boxed{\frac{3}{4}}", "0.75") == Score(True, True)
        assert verifier.score(r"\boxed{x+1}", "1+x") == Score(True, True)
        assert verifier.score(r"\boxed{42\text{ cm}}", "42") == Score(True, True)
        assert verifier.score(r"\boxed{41\text{ cm}}", "42") == Score(False, True)
        assert verifier.score("no box", "42") == Score(False, False)


def test_no_output_can_hang_crash_or_zero_a_run():
    hostile = ["10000000!", "10**10**10", "{" * 900, "}{" * 400, "\\frac{" * 100, "\x00\ud7ff", "9" * 900, "1/" * 300]
    with Verifier(composed("task.answer_format=hash", "task.verifier_time_limit=1").task) as verifier:
        verifier.score("#### x", "y")  # starts the worker
        for text in hostile:
            start = time.monotonic()
            assert not verifier.score(f"#### {text}", "42").correct
            assert time.monotonic() - start < 60
            # the next answer is judged as ever
            assert verifier.score(r"#### \frac{84}{2}", "42") == Score(True, True)
        slow = verifier.score("#### 10000000!", "42")
        assert slow == Score(correct=False, answered=True, timed_out=True)


def test_a_worker_that_dies_is_replaced():
    with Verifier(composed("task.answer_format=hash").task) as verifier:
        assert verifier.score("#### x+1", "1+x").correct
        verifier._worker.kill()
        verifier._worker.wait()
        assert not verifier.score("#### x+1", "1+x").correct
        assert verifier.score("#### x+1", "1+x").correct

"""Reading and judging answers, hostile ones included."""

import os
import signal
import stat
import subprocess
import sys
import time
from fractions import Fraction

import pytest

from rlsparse.batch import Problem
from rlsparse.components.reward import Completion, MathVerify, Score, Verifier, VerifierError
from rlsparse.components.reward.answer import (
    ANSWER_FORMATS,
    LONGEST_CANDIDATE,
    after_hash,
    answer_is,
    boxed,
    last_number,
)
from rlsparse.components.reward.correctness import Correctness
from rlsparse.components.reward.values.comparison import canonical
from rlsparse.components.reward.values.number import plain_number
from tests.conftest import built

LIMIT = 2.0  # seconds, the default of every task
SUM = (r"x+\int_0^1 t dt", r"\int_0^1 t dt+x")  # an answer and a gold answer that only math-verify can compare
SLOW = (r"\lim_{x \to 0} x + 10000000!", r"10000000!+\lim_{x\to 0}x")  # math-verify does not finish with this one


@pytest.fixture(scope="module")
def boxes():
    with Verifier("boxed", time_limit=20) as verifier:
        yield verifier


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
        ("3 / 4", Fraction(3, 4)),
        ("- 3", -3),
        ("14,", 14),
        ("**45**", 45),
    ],
)
def test_plain_number_is_read_exactly(text, value):
    assert plain_number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1/0",
        "12,34",
        "5 million",
        "45 push-ups",
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
def test_plain_number_of_any_other_text_is_none(text):
    assert plain_number(text) is None


def test_answer_format_reads_its_answer():
    assert after_hash("so 1\n#### 4\nbut #### 5 apples\nmore") == "5 apples"
    assert after_hash("####") is None
    assert boxed(r"\boxed{1}, no: \boxed{\frac{3}{4}}") == r"\frac{3}{4}"
    assert boxed(r"$\boxed{1}$ or $\boxed{2}$") == "1, 2"  # two answers
    assert boxed(r"\boxed{42}. I put it in \boxed{}.") == "42"
    assert boxed(r"\boxed{42}^2") == "42^2"
    assert boxed(r"\boxed{4") is None
    assert answer_is("The answer is 4. No: the final answer is: $5.50. Done") == "$5.50"
    assert answer_is("it is 4") is None
    assert last_number("57*4=200+28=228") == "228"
    assert last_number("10-3") == "3"
    assert last_number("it falls to −3 degrees") == "-3"
    assert last_number("she pays $1,234.50.") == "$1,234.50"
    assert last_number("none") is None


def completion(correct, answered):
    score = Score(correct=correct, answered=answered)
    return Completion(text="", tokens=1, ended=True, problem=Problem("", "", ""), score=score)


def test_correctness_matches_values_computed_by_hand():
    reward = Correctness(correct=2.0, wrong=-1.0, format=0.5)
    assert reward(completion(correct=True, answered=True)) == 2.5
    assert reward(completion(correct=False, answered=True)) == -0.5
    assert reward(completion(correct=False, answered=False)) == -1.0


@pytest.mark.parametrize(
    ("option", "right", "wrong"), [("correctness", 1.0, 0.0), ("offset", 2.0, 1.0), ("signed", 1.0, -1.0)]
)
def test_reward_options_give_their_values(option, right, wrong):
    reward = built(f"reward={option}").reward
    assert reward(completion(correct=True, answered=True)) == right
    assert reward(completion(correct=False, answered=True)) == reward(completion(False, False)) == wrong


def test_only_integrals_sums_and_limits_are_judged_by_math_verify():
    with Verifier("boxed", LIMIT) as verifier:
        assert verifier.score(r"\boxed{\frac{3}{4}}", "0.75") == Score(True, True)
        assert verifier.score(r"\boxed{x+1}", "1+x") == Score(True, True)
        assert verifier.score(r"\boxed{42\text{ cm}}", "42") == Score(True, True)
        assert verifier.score(r"\boxed{41\text{ cm}}", "42") == Score(False, True)
        assert verifier.score("no box", "42") == Score(False, False)
        assert verifier.process.pid is None
        assert verifier.score(rf"\boxed{{{SUM[0]}}}", SUM[1]) == Score(True, True)
        assert verifier.score(r"\boxed{\int_1^0 x dx}", r"\int_0^1 x dx") == Score(False, True)  # -1/2 and 1/2
        assert verifier.score(r"\boxed{\int_0^1 x dx+1}", r"\int_0^1 x dx") == Score(False, True)
        assert verifier.process.pid is not None


def test_verifiers_may_share_one_process():
    with MathVerify() as process:
        with Verifier("hash", LIMIT, process) as one, Verifier("boxed", LIMIT, process) as other:
            assert one.score(f"#### {SUM[0]}", SUM[1]).correct
            pid = process.pid
            assert other.score(rf"\boxed{{{SUM[0]}}}", SUM[1]).correct
        assert process.pid == pid is not None  # the end of a verifier does not end it
    assert process.pid is None


def test_score_holds_the_answer_as_read_and_no_more_than_a_thousand_characters_of_it():
    verifier = Verifier("hash", LIMIT)
    assert verifier.score("so\n#### 42 apples\nmore", "42").answer == "42 apples"
    assert verifier.score("so 42", "42").answer is None
    long = "7" * 3000
    assert verifier.score(f"#### {long}", "42").answer == long[:LONGEST_CANDIDATE]
    assert verifier.score(f"#### {long}", long) == Score(True, True)


def test_read_and_judge_are_the_two_halves_of_score():
    verifier = Verifier("boxed", LIMIT)
    answer = verifier.read(r"so \boxed{3\frac12} cups")
    assert answer == r"3\frac12"
    assert verifier.judge(answer, "3.5") == verifier.score(r"\boxed{3\frac12}", "3.5") == Score(True, True)


def test_canonical_text_is_the_same_for_the_same_number():
    assert canonical("$1,234.0") == canonical("1 234") == canonical("**1234**") == "1234"
    assert canonical("3/4") == canonical(r"\frac{6}{8}") == "3/4"
    assert canonical("Yes") == canonical("yes.") != canonical("no")
    assert canonical("5 cm") != canonical("5 kg")


@pytest.mark.parametrize(
    "text",
    [
        r"41 \cup 42",
        r"41 \to 42",
        r"41 \Rightarrow 42",
        r"41 \lor 42",
        r"41 \mid 42",
        r"41 \& 42",
        r"41 \equiv 42",
        r"41 \\ 42",
        r"42 \\ 43",
        "41 → 42",
        "41 => 42",
        "41\n42",
        "41\x0b42",
        "41\u202842",
        "41$ $42",
        "41$$42",
        r"41 \# 42",
        r"41\degree 42",
        "41}{42",
        r"x \in 42",
        r"\not 42",
        r"\geq 42",
        "≥ 42",
        "< 42",
        r"42 \text{ dozen}",
        r"42 \text{ million}",
        r"42\text{ hundreds}",
        "42 plus one",
        "42 minus one",
        "42 squared",
        "42 factorial",
        "42 k",
        "42 is wrong",
        "42 is not the answer",
        "42½",
        "42²",
        "42_{8}",
        "42_5",
    ],
    ids=ascii,
)
def test_answer_of_more_than_a_number_is_wrong(text, boxes):
    assert boxes.score(rf"\boxed{{{text}}}", "42") == Score(False, True)


@pytest.mark.parametrize("text", ["{" * 7 + "9" + "}" * 7, "[" * 163, "5" + "(" * 500, r"\frac{" * 200], ids=len)
def test_answer_of_deep_brackets_is_wrong_without_math_verify(text):
    with Verifier("hash", LIMIT) as verifier:
        assert verifier.score(f"#### {text}", r"\frac{3}{4}") == Score(False, True)
        assert verifier.score(f"#### {text} {SUM[0]}", SUM[1]) == Score(False, True)
        assert verifier.process.pid is None


def test_answer_of_a_few_brackets_is_computed(boxes):
    text = r"\frac{1}{1+\frac{1}{1+\frac{1}{(1+\frac{1}{2})}}}"
    assert boxes.score(rf"\boxed{{{text}}}", r"\frac{5}{8}") == Score(True, True)


def test_long_runs_of_one_character_are_scored_in_linear_time():
    for text in (" " * 1_000_000, "5" + " " * 1_000_000 + "!", "5" + "\x1c" * 1_000_000 + "a!"):
        start = time.monotonic()
        for answer_format in ANSWER_FORMATS:
            with Verifier(answer_format, LIMIT) as verifier:
                verifier.score(rf"the answer is {text}x #### 5{text}x \boxed{{5{text}x}}", "42")
        assert time.monotonic() - start < 60  # the square of a million takes an hour


def test_hostile_completion_is_wrong_in_bounded_time_and_the_next_is_judged():
    hostile = ["10000000!", "10**10**10", "{" * 900, "}{" * 400, "\\frac{" * 100, "\x00\ud7ff", "9" * 900, "1/" * 300]
    with Verifier("hash", time_limit=1) as verifier:
        verifier.score(f"#### {SUM[0]}", SUM[1])  # starts the worker
        for text in hostile:
            start = time.monotonic()
            assert not verifier.score(f"#### {text}", "42").correct
            assert time.monotonic() - start < 60
            # the next answer is judged as before
            assert verifier.score(r"#### \frac{84}{2}", "42") == Score(True, True)
        slow = verifier.score(f"#### {SLOW[0]}", SLOW[1])
        assert slow == Score(correct=False, answered=True, timed_out=True)
        assert verifier.score(f"#### {SUM[0]}", SUM[1]) == Score(True, True)


def test_worker_that_dies_is_replaced():
    with Verifier("hash", LIMIT) as verifier:
        assert verifier.score(f"#### {SUM[0]}", SUM[1]).correct
        os.kill(verifier.process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, verifier.process.pid, os.WEXITED | os.WNOWAIT)
        assert verifier.score(f"#### {SUM[0]}", SUM[1]).correct


LIMITED = """
import resource, sys
from rlsparse.components.reward import Verifier, VerifierError
for limit in map(int, sys.argv[1:]):
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with Verifier("boxed", 20) as verifier:
        try:
            print(verifier.score(r"\\boxed{x+\\int_0^1 t dt}", r"\\int_0^1 t dt+x"))
        except VerifierError as error:
            print(error)
"""


@pytest.mark.slow
def test_memory_limit_below_that_of_the_worker_is_kept_and_one_that_is_too_low_is_named():
    limits = [str(4 * 10**9), str(600 * 2**20), str(20 * 2**20)]  # bytes
    done = subprocess.run([sys.executable, "-c", LIMITED, *limits], capture_output=True, text=True, check=True)
    right, also_right, error = done.stdout.splitlines()
    assert right == also_right
    assert right.startswith("Score(correct=True, ")
    assert error.startswith("math-verify does not start (")
    assert error.endswith("the memory limit of 20 MiB is too low: raise it to 1 GiB or more (ulimit -v, -d)")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            "raise ModuleNotFoundError(\"No module named 'math_verify'\")",
            "(ModuleNotFoundError: No module named 'math_verify'); install it again: pip install math-verify",
        ),
        (
            "import sys; sys.stderr.write('a warning\\n' * 50_000); raise ValueError('wrong version')",
            "(ValueError: wrong version); to see the whole error, run ",
        ),
        ("import os; os.abort()", "(ended by signal 6: Aborted"),
    ],
    ids=["missing", "broken", "killed"],
)
def test_worker_that_cannot_start_is_reported_with_its_last_words(module, message, tmp_path, monkeypatch):
    (tmp_path / "math_verify.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Verifier("hash", LIMIT) as verifier, pytest.raises(VerifierError) as caught:
        verifier.score(f"#### {SUM[0]}", SUM[1])
    assert str(caught.value).startswith(f"math-verify does not start {message}")
    assert "\n" not in str(caught.value)


def test_worker_that_dies_at_its_first_start_only_is_started_again(tmp_path, monkeypatch):
    marker, python = tmp_path / "begun", tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ -e {marker} ] || {{ touch {marker}; exit 1; }}\nexec {sys.executable} "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(python))
    with Verifier("hash", LIMIT) as verifier:
        assert verifier.score(f"#### {SUM[0]}", SUM[1]) == Score(True, True)


def test_python_that_is_gone_is_reported_as_the_system_says(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with Verifier("hash", LIMIT) as verifier, pytest.raises(VerifierError, match=r"does not start .*No such file"):
        verifier.score(f"#### {SUM[0]}", SUM[1])


def test_time_limit_holds_where_the_parent_process_ignores_and_blocks_its_signal():
    earlier = signal.signal(signal.SIGPROF, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF})
    try:
        with Verifier("hash", time_limit=1) as verifier:
            verifier.score(f"#### {SUM[0]}", SUM[1])  # starts the worker
            begin = os.times().children_user
            assert verifier.score(f"#### {SLOW[0]}", SLOW[1]).timed_out
            assert os.times().children_user - begin < 8  # without the signal it is killed after 10 s
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
        signal.signal(signal.SIGPROF, earlier)

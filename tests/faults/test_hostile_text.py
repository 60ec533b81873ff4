"""Hostile texts: no completion makes the verifier hang or crash, fills the memory, or is counted as right by mistake."""

import json
import os
import random
import resource
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest

from rlsparse.components.reward.answer import ANSWER_FORMATS, LONGEST_CANDIDATE
from rlsparse.components.reward.math_worker import MEMORY_LIMIT
from rlsparse.components.reward.values.comparison import canonical
from rlsparse.components.reward.verifier import Score, Verifier
from rlsparse.storage.jsonl import JsonLines
from tests.faults.nasty import HUGE, KINDS, PIECES, nasty, slow

LIMIT = 1.0
ALLOWANCE = 30.0  # seconds for a fresh worker on a busy machine
GROWTH = 300 * 2**10  # KiB
WRAPPED = {
    "hash": "so 5\n#### {}",
    "boxed": r"so \boxed{{{}}}",
    "answer_is": "So the answer is {}.",
    "last_number": "{}",
}


# answers and a gold answer that only math-verify can compare
GOLD, RIGHT, WRONG = r"x+\sum_{k=1}^{n} k^2", r"\sum_{k=1}^{n} k^2+x", r"\sum_{k=1}^{n} x+k^2"


def verifier_of(answer_format: str, limit: float = LIMIT) -> Verifier:
    return Verifier(answer_format, limit)


@pytest.fixture(scope="module")
def shared_verifier():
    """Return a verifier for the tests that leave it as it was; the start of its process takes seconds."""
    with verifier_of("boxed", limit=20) as verifier:
        yield verifier


def worker_pid(verifier: Verifier) -> int:
    assert verifier.process.pid is not None
    return verifier.process.pid


def worker_peak(verifier: Verifier) -> int:
    """Return the peak memory of the process of the verifier, KiB; 0 where it has none, or without /proc."""
    file = Path(f"/proc/{verifier.process.pid}/status")
    lines = file.read_text().split("\n") if file.is_file() else []
    return max((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), default=0)


@pytest.mark.slow
@pytest.mark.parametrize("answer_format", ANSWER_FORMATS)
def test_hostile_text_is_wrong_within_time_and_memory_limits(answer_format, full):
    draw = random.Random(f"{answer_format} {full}")
    count, hangs = (10_000, 10) if full else (250, int(answer_format == "boxed"))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    wrong, late, timed_out, peak, longest = [], [], 0, 0, 0.0
    with verifier_of(answer_format) as verifier:
        for number in range(count + hangs):
            payload, gold = (nasty if number < count else slow)(draw)
            began = time.monotonic()
            score = verifier.score(WRAPPED[answer_format].format(payload), gold)
            took = time.monotonic() - began
            peak, longest, timed_out = max(peak, worker_peak(verifier)), max(longest, took), timed_out + score.timed_out
            if score.correct:
                wrong.append((payload[:200], gold))
            if took > LIMIT + ALLOWANCE:
                late.append((payload[:200], gold, took))
        assert verifier.score(WRAPPED[answer_format].format("42"), "42") == Score(True, True)
        last = verifier.process.pid
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(  # shown with pytest -s
        f"{answer_format}: {count + hangs} texts in {time.monotonic() - start:.0f} s, {timed_out} timed out, longest "
        f"{longest:.1f} s, peak of the worker {peak // 1024} MiB, growth of this process {growth // 1024} MiB"
    )
    assert wrong == []
    assert late == []
    assert growth < GROWTH, f"{growth} KiB"
    assert peak * 1024 <= MEMORY_LIMIT, f"{peak} KiB"
    assert last is None or not Path(f"/proc/{last}").exists(), "the worker still runs after its verifier was closed"


GOLDS = (
    "43",
    "(4,7]",
    "x+1",
    "11,12",
    "May 7",
    "true",
    "x=8",
    r"\begin{pmatrix}1\\2\end{pmatrix}",
    r"\int x dx",
    "1>b>c",
)


@pytest.mark.parametrize("answer_format", ANSWER_FORMATS)
def test_long_run_of_any_piece_is_read_in_bounded_time(answer_format):
    verifier, late = verifier_of(answer_format), []
    for piece in PIECES:
        start = time.monotonic()
        verifier.read(WRAPPED[answer_format].format(piece * (100_000 // len(piece)) + "5"))
        if time.monotonic() - start > ALLOWANCE:  # a square of the length would take minutes
            late.append(piece)
    assert late == []


@pytest.mark.slow
def test_answer_of_repeated_or_mixed_pieces_is_wrong_in_bounded_time(full):
    draw, late, wrong = random.Random(0), [], []
    texts = [piece * (LONGEST_CANDIDATE // len(piece)) for piece in PIECES]
    texts += ["5" + text[:-3] + "x" for text in texts]
    for _ in range(20_000 if full else 300):
        mixed = "".join(draw.choice(PIECES) * draw.choice((1, 1, 1, 2, 5, 50)) for _ in range(draw.randint(1, 40)))
        texts.append(mixed[:LONGEST_CANDIDATE])
    with verifier_of("hash") as verifier:
        for text in texts:
            start = time.monotonic()
            wrong += [(text, gold) for gold in GOLDS if verifier.judge(text, gold).correct]
            verifier.judge("x+1", text)  # as a gold answer, too
            if time.monotonic() - start > ALLOWANCE:
                late.append(text)
    assert wrong == []
    assert late == []


GOLDS_OF_KINDS = (
    *(
        "5",
        "5 cm",
        "5%",
        "$5",
        "x=5",
        "y = 2x",
        "2x+y=3",
        "(0,5)",
        "(0,5]",
        "x<5",
        "1,2",
        r"\frac{3}{4}",
        "3:4",
        "May 5",
    ),
    *("3:30", "1010_2", "a<5<b", "5°C", r"\pm 5", "x^5", r"\sqrt{3}", r"\pi", "yes", "B", r"\sin x", "5/6/2024", "5万"),
    r"\begin{pmatrix}1\\2\end{pmatrix}",
)


def test_number_beyond_floating_point_is_wrong_in_an_answer_of_any_kind():
    verifier = verifier_of("hash")
    rows = [(kind.format(number), gold) for kind in KINDS for number in HUGE for gold in GOLDS_OF_KINDS]
    assert [row for row in rows if verifier.judge(*row).correct] == []


def test_number_beyond_floating_point_is_allowed_in_a_gold_answer_of_any_kind():
    verifier = verifier_of("hash")
    golds = [kind.format(number) for kind in KINDS for number in HUGE]
    assert [gold for gold in golds if verifier.judge("5", gold).correct] == []
    assert [gold for gold in golds if not verifier.judge(f" {gold} ", gold).correct] == []


def test_canonical_text_of_any_text_is_returned():
    draw = random.Random(0)
    texts = [kind.format(number) for kind in KINDS for number in HUGE]
    texts += ["一万" * 8000, "9" * 10_000, *(piece * (20_000 // len(piece)) for piece in PIECES)]
    texts += [nasty(draw)[0] for _ in range(100)]
    assert all(isinstance(canonical(text), str) for text in texts)
    assert canonical("99999999999^400") == canonical("(99999999999^400)") != canonical("99999999998^400")


@pytest.mark.parametrize(
    ("payload", "gold"),
    [
        ("42", "42"),
        ("−42", "-42"),
        ("  42\u00a0", "42"),
        ("٤٢", "42"),
        ("４２", "42"),
        ("042.000", "42"),
        (r"\$42.00", "42"),
        ("1,234", "1234"),
    ],
    ids=ascii,
)
@pytest.mark.parametrize("answer_format", ANSWER_FORMATS)
def test_right_number_in_unusual_notation_is_right_in_every_format(answer_format, payload, gold):
    with verifier_of(answer_format) as verifier:
        assert verifier.score(WRAPPED[answer_format].format(payload), gold) == Score(True, True)


def test_right_formula_in_other_notation_is_right(shared_verifier):
    right = [
        (r"$\frac{3}{4}$", "0.75"),
        (r"$\frac{84}{2}$ cups", "42"),
        (r"\frac{84}{2}\text{ cm}^2", "42"),
        ("x = 42", "42"),
        ("$6 * 7 = 42$", "42"),
        ("5 * $7 = $35", "35"),
        (r"\left(42\right)", "42"),
        ("{{42}}", "42"),
        (r"42\%", "42"),
        ("42_{10}", "42"),
        (r"x \in (1, 2)", "(1, 2)"),
        (r"\{2, 1\}", r"\{1, 2\}"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        ("\ud800 x+1", "\ud800 x+1"),
    ]
    scores = {text: shared_verifier.score(rf"\boxed{{{text}}}", gold) for text, gold in right}
    assert [text for text, score in scores.items() if score != Score(True, True)] == []


def test_worker_killed_between_two_answers_changes_neither_score(shared_verifier):
    assert shared_verifier.score(rf"\boxed{{{RIGHT}}}", GOLD).correct
    os.kill(worker_pid(shared_verifier), signal.SIGKILL)
    os.waitid(os.P_PID, worker_pid(shared_verifier), os.WEXITED | os.WNOWAIT)
    assert shared_verifier.score(rf"\boxed{{{RIGHT}}}", GOLD) == Score(True, True)


def test_late_reply_is_not_taken_for_the_next_answer(shared_verifier, monkeypatch):
    shared_verifier.score(rf"\boxed{{{RIGHT}}}", GOLD)
    slow_worker = worker_pid(shared_verifier)
    os.kill(slow_worker, signal.SIGSTOP)  # its reply would be "equal"
    with monkeypatch.context() as patch:
        patch.setattr(shared_verifier, "_time_limit", LIMIT)
        assert shared_verifier.score(rf"\boxed{{{RIGHT}}}", GOLD) == Score(False, True, timed_out=True)
    assert not Path(f"/proc/{slow_worker}").exists(), "it could still reply"
    assert shared_verifier.score(rf"\boxed{{{WRONG}}}", GOLD) == Score(False, True)


def test_interrupted_question_leaves_no_reply_for_the_next_answer(shared_verifier, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    shared_verifier.score(rf"\boxed{{{RIGHT}}}", GOLD)
    with monkeypatch.context() as patch:
        patch.setattr(shared_verifier.process, "_read_line", interrupt)
        with pytest.raises(KeyboardInterrupt):
            shared_verifier.score(rf"\boxed{{{RIGHT}}}", GOLD)
    assert shared_verifier.score(rf"\boxed{{{WRONG}}}", GOLD) == Score(False, True)


def test_hostile_text_in_json_lines_is_read_back_unchanged(tmp_path, full):
    draw = random.Random(0)
    texts = [nasty(draw)[0][:20_000] for _ in range(10_000 if full else 500)]
    texts += ["\ud800", "\\\ud800", '"\udfff"', "a\u2028b\u2029c\x85d\x1ce\rf\ng", "\x00"]
    with closing(JsonLines(tmp_path / "samples.jsonl")) as lines:
        for text in texts:
            lines.write({"text": text})
    *rows, end = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    assert end == ""
    assert len(rows) == len(texts)
    # JSON writes a character beyond U+FFFF and its two surrogates alike; both are read as the character
    expected = [text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass") for text in texts]
    assert [text for row, text in zip(rows, expected, strict=True) if json.loads(row)["text"] != text] == []

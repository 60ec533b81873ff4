"""Scoring completions: read the answer, settle plain numbers here, give the rest to math-verify in its own process."""

import json
import os
import selectors
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rlsparse.components.reward.answer import ANSWER_FORMATS, is_one_number, nesting, plain_number

WORKER = Path(__file__).with_name("math_worker.py")
START_LIMIT = 120.0  # seconds for importing math-verify on a busy machine
WALL = 10  # seconds on the wall for each of processor time, after which a worker counts as stuck
LONGEST_CANDIDATE = 1000  # characters; a longer final answer is wrong without asking
DEEPEST_CANDIDATE = 6  # brackets in brackets; the time math-verify's parser takes doubles and more with each


@dataclass(frozen=True)
class Score:
    """What the verifier says of one completion.

    Attributes:
        correct: the answer equals the gold answer.
        answered: an answer stands in the asked format, right or wrong.
        timed_out: math-verify did not finish in time; the answer counts as wrong.
    """

    correct: bool
    answered: bool
    timed_out: bool = False


class VerifierError(RuntimeError):
    """math-verify's process cannot be started: rewards would silently be zero, so the run must stop."""


class Verifier:
    """Reads and checks final answers. A context manager, since it may own a process."""

    def __init__(self, answer_format: str, time_limit: float) -> None:
        """
        Args:
            answer_format: name in ``ANSWER_FORMATS``.
            time_limit: processor time that math-verify may take for one answer, seconds.
        """
        self._read = ANSWER_FORMATS[answer_format]
        self._time_limit = time_limit
        self._worker: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._kill()

    def score(self, completion: str, gold: str) -> Score:
        """Score a completion against the gold answer. No completion can make this raise or hang."""
        answer = self._read(completion)
        if answer is None:
            return Score(correct=False, answered=False)
        if answer == gold:
            return Score(correct=True, answered=True)
        if len(answer) > LONGEST_CANDIDATE:  # first: a megabyte of spaces takes a pattern below an hour
            return Score(correct=False, answered=True)
        value, gold_value = plain_number(answer), plain_number(gold)
        if value is not None and gold_value is not None:
            return Score(correct=value == gold_value, answered=True)
        if nesting(answer) > DEEPEST_CANDIDATE or (gold_value is not None and not is_one_number(answer)):
            return Score(correct=False, answered=True)
        verdict = self._ask(answer, gold)
        return Score(correct=verdict is True, answered=True, timed_out=verdict is None)

    def _ask(self, candidate: str, gold: str) -> bool | None:
        """math-verify's verdict; None when it had to be killed or died of the answer."""
        if self._worker is not None and self._worker.poll() is not None:
            self._kill()  # ended since the last answer, which is not this one's fault
        worker = self._worker if self._worker is not None else self._start()
        assert worker.stdin is not None
        try:
            worker.stdin.write(json.dumps([candidate, gold]).encode() + b"\n")
            worker.stdin.flush()
            reply = self._read_line(worker, WALL * self._time_limit)
        except BrokenPipeError:
            reply = b""
        except BaseException:  # an interrupted question leaves a reply behind, which is not the next one's
            self._kill()
            raise
        if not reply:  # too slow, or the answer brought the process down: a fresh one for the next answer
            self._kill()
            return None
        return bool(json.loads(reply))

    def _start(self) -> subprocess.Popen[bytes]:
        self._worker = subprocess.Popen(
            [sys.executable, str(WORKER), str(self._time_limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # a Ctrl-C is for training, whose answers in hand are still to be judged
        )
        if self._read_line(self._worker, START_LIMIT) != b"ready\n":
            self._kill()
            raise VerifierError(
                f"math-verify does not start ({sys.executable} {WORKER}); install it again: pip install math-verify"
            )
        return self._worker

    def _read_line(self, worker: subprocess.Popen[bytes], limit: float) -> bytes:
        """One line from the worker, or b"" when it dies or the limit passes."""
        assert worker.stdout is not None
        deadline = time.monotonic() + limit
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(worker.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return b""
                chunk = os.read(worker.stdout.fileno(), 4096)
                if not chunk:
                    return b""
                line += chunk
        return line

    def _kill(self) -> None:
        if self._worker is None:
            return
        self._worker.kill()
        self._worker.wait()
        for pipe in (self._worker.stdin, self._worker.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        self._worker = None

"""The verifier: plain numbers are compared here, all other answers by math-verify in a separate process."""

import json
import os
import resource
import selectors
import signal
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
READY = b"ready\n"  # what the worker writes when it has started
WALL = 10  # elapsed seconds per second of processor time, after which a worker counts as stuck
LONGEST_CANDIDATE = 1000  # characters; a longer answer counts as wrong without math-verify
ENOUGH_MEMORY = 2**30  # bytes of address space; importing math-verify takes a tenth of it
LONGEST_REASON = 300  # characters of an error message of the worker
DEEPEST_CANDIDATE = 6  # nested brackets; each level at least doubles the time of the parser of math-verify


@dataclass(frozen=True)
class Score:
    """The result of the verifier for one completion.

    Attributes:
        correct: the answer equals the gold answer.
        answered: the completion has an answer in the requested format, right or wrong.
        timed_out: math-verify did not finish within its limits of time and memory; the answer counts as wrong.
    """

    correct: bool
    answered: bool
    timed_out: bool = False


class VerifierError(RuntimeError):
    """The process of math-verify cannot be started. The run must stop, since all its rewards would be zero."""


class Verifier:
    """Extracts and checks final answers. It is a context manager, since it may have to end a process."""

    def __init__(self, answer_format: str, time_limit: float) -> None:
        """Create a verifier; the process starts when it is first needed.

        Args:
            answer_format: a name in ``ANSWER_FORMATS``.
            time_limit: processor time for one answer in math-verify, seconds.
        """
        self._read = ANSWER_FORMATS[answer_format]
        self._time_limit = time_limit
        self._worker: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._kill()

    def score(self, completion: str, gold: str) -> Score:
        """Return the score of a completion for a gold answer. No completion can cause an error or an endless loop.

        Raises:
            VerifierError: math-verify cannot be started.
        """
        answer = self._read(completion)
        if answer is None:
            return Score(correct=False, answered=False)
        if answer == gold:
            return Score(correct=True, answered=True)
        if len(answer) > LONGEST_CANDIDATE:  # must be first: some patterns below take an hour for a megabyte of spaces
            return Score(correct=False, answered=True)
        value, gold_value = plain_number(answer), plain_number(gold)
        if value is not None and gold_value is not None:
            return Score(correct=value == gold_value, answered=True)
        if nesting(answer) > DEEPEST_CANDIDATE or (gold_value is not None and not is_one_number(answer)):
            return Score(correct=False, answered=True)
        verdict = self._ask(answer, gold)
        return Score(correct=verdict is True, answered=True, timed_out=verdict is None)

    def _ask(self, candidate: str, gold: str) -> bool | None:
        """Return the verdict of math-verify; None if its process died or was killed because of this answer."""
        if self._worker is not None and self._worker.poll() is not None:
            self._kill()  # it ended after the last answer, so this answer is not the cause
        worker = self._worker if self._worker is not None else self._start()
        assert worker.stdin is not None
        try:
            worker.stdin.write(json.dumps([candidate, gold]).encode() + b"\n")
            worker.stdin.flush()
            reply = self._read_line(worker, WALL * self._time_limit)
        except BrokenPipeError:
            reply = b""
        except BaseException:  # the reply to an interrupted question must not be read as that to the next one
            self._kill()
            raise
        if not reply:  # too slow, or the process died: the next answer gets a new process
            self._kill()
            return None
        return bool(json.loads(reply))

    def _start(self) -> subprocess.Popen[bytes]:
        """Start the worker; one that dies is started a second time, since the cause may be over.

        Raises:
            VerifierError: it does not start.
        """
        with suppress(VerifierError):
            return self._launch()
        return self._launch()

    def _launch(self) -> subprocess.Popen[bytes]:
        try:
            worker = subprocess.Popen(
                # with -W: warnings of libraries are no errors here, whatever PYTHONWARNINGS says
                [sys.executable, "-W", "ignore", str(WORKER), str(self._time_limit)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                process_group=0,  # Ctrl-C must not end it: the current training step still needs it
            )
        except OSError as error:
            raise VerifierError(
                f"math-verify does not start ({error}); end other processes, or raise the limits (ulimit -a)"
            ) from error
        self._worker = worker
        assert worker.stderr is not None
        try:
            output, errors = _read_start(worker)
        except BaseException:
            self._kill()
            raise
        if output.endswith(READY):
            worker.stderr.close()  # the worker writes nothing more there
            return worker
        self._kill()
        raise VerifierError(f"math-verify does not start {_why(worker.returncode, errors)}")

    def _read_line(self, worker: subprocess.Popen[bytes], limit: float) -> bytes:
        """Return one line from the worker; b"" if it dies or the time limit, in seconds, is over."""
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
        for pipe in (self._worker.stdin, self._worker.stdout, self._worker.stderr):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        self._worker = None


def _read_start(worker: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Return what the worker writes to standard output and standard error until it is ready, dies or is too slow."""
    output, errors = bytearray(), bytearray()
    deadline = time.monotonic() + START_LIMIT
    with selectors.DefaultSelector() as selector:
        for pipe, text in ((worker.stdout, output), (worker.stderr, errors)):
            assert pipe is not None
            selector.register(pipe, selectors.EVENT_READ, text)
        while selector.get_map() and not output.endswith(READY):
            found = selector.select(max(0.0, deadline - time.monotonic()))
            if not found:
                errors += f"not ready after {START_LIMIT:.0f} s\n".encode()
                break
            for key, _ in found:
                chunk = os.read(key.fd, 2**16)
                key.data.extend(chunk)
                if not chunk:
                    selector.unregister(key.fileobj)
    return bytes(output), bytes(errors)


def _why(exit_code: int, errors: bytes) -> str:
    """Return why a worker has not started, in brackets, and what helps.

    Args:
        exit_code: of the worker; the negative number of the signal that has ended it.
        errors: its standard error.
    """
    lines = [line.strip() for line in errors.decode(errors="replace").splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith("Fatal Python error")]
    reason = [*fatal, *reversed(lines)][0][:LONGEST_REASON] if lines else ""
    if exit_code < 0 and not reason.startswith("not ready"):
        reason = ", ".join(filter(None, [f"ended by signal {-exit_code}: {signal.strsignal(-exit_code)}", reason]))
    why = f"({reason or f'exit code {exit_code}'})"
    limits = (resource.getrlimit(resource.RLIMIT_AS)[1], resource.getrlimit(resource.RLIMIT_DATA)[0])
    limit = min((one for one in limits if one != resource.RLIM_INFINITY), default=None)
    no_memory = any(sign in errors for sign in (b"MemoryError", b"map segment", b"allocate memory"))
    if limit is not None and (limit < ENOUGH_MEMORY or no_memory):
        return f"{why}; the memory limit of {limit // 2**20} MiB is too low: raise it to 1 GiB or more (ulimit -v, -d)"
    if "No module named" in reason:
        return f"{why}; install it again: pip install math-verify"
    return f"{why}; to see the whole error, run {sys.executable} {WORKER} 1"

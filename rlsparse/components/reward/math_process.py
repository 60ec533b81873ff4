"""The process that runs math-verify: started when it is first needed, ended when it takes too long, replaced."""

import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

WORKER = Path(__file__).with_name("math_worker.py")
START_LIMIT = 120.0  # seconds for importing math-verify on a busy machine
READY = b"ready\n"  # what the worker writes when it has started
WALL = 10  # elapsed seconds per second of processor time, after which a worker counts as stuck
ENOUGH_MEMORY = 2**30  # bytes of address space; importing math-verify takes a tenth of it
LONGEST_REASON = 300  # characters of an error message of the worker


class VerifierError(RuntimeError):
    """The process of math-verify cannot be started. The run must stop, since all its rewards would be zero."""


class MathVerify:
    """The process of math-verify. It is a context manager; several verifiers may share it."""

    def __init__(self) -> None:
        self._worker: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "MathVerify":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._kill()

    @property
    def pid(self) -> int | None:
        """Return the id of the process; None where it does not run."""
        return None if self._worker is None else self._worker.pid

    def equal(self, answer: str, gold: str, time_limit: float) -> bool | None:
        """Return the verdict of math-verify; None if its process died or was killed because of this answer.

        Args:
            time_limit: processor time for this answer, seconds.

        Raises:
            VerifierError: math-verify cannot be started.
        """
        if self._worker is not None and self._worker.poll() is not None:
            self._kill()  # it ended after the last answer, so this answer is not the cause
        worker = self._worker if self._worker is not None else self._start()
        assert worker.stdin is not None
        try:
            worker.stdin.write(json.dumps([time_limit, answer, gold]).encode() + b"\n")
            worker.stdin.flush()
            reply = self._read_line(worker, WALL * time_limit)
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
                [sys.executable, "-W", "ignore", str(WORKER)],
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
    return f"{why}; to see the whole error, run {sys.executable} {WORKER}"

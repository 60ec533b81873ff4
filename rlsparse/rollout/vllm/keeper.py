"""Keeps one vLLM server alive as long as a run uses it. A program of its own, started by ``server.OwnServer``.

usage: keeper.py FOLDER

FOLDER has ``command.json`` (command and environment of the server). The keeper starts it, writes ``server.json`` once
it is ready, and ends it when no process holds a lock on ``users`` any more, when a file ``stop`` names it, or when it
is asked to end. The server ends with the keeper, also where that is killed. Only the standard library is imported, so
that it starts at once and needs little memory.
"""

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

PERIOD = 0.5  # seconds between two looks at the server and its users
LINGER = 20.0  # seconds without users before the server ends: the next run may be a new process, which starts slowly
PATIENCE = 20.0  # seconds for the server to end by itself
# without the proxies of the environment, which are not for this machine itself
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Unwanted(Exception):
    """Nobody waits for the server any more, which has not started yet."""


class Keeper:
    """See the module."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.key = secrets.token_urlsafe(24)
        self.id = secrets.token_hex(8)
        self.server: subprocess.Popen[bytes] | None = None
        self.guard = -1  # a pipe; see ``guard``
        self.closed: IO[bytes] | None = None  # the locked file that makes new users wait
        self.asked_to_end = False

    def __call__(self) -> None:
        """Run the server until nobody uses it."""
        plan = json.loads((self.folder / "command.json").read_text())
        for name in ("failed.json", "server.json", "stop"):
            (self.folder / name).unlink(missing_ok=True)
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal; the users of the server get it too
        reason = None
        try:
            reason = self._start(plan)
            if reason is None:
                self._watch()
        except Unwanted:
            pass
        except OSError as error:
            reason = f"the server cannot be started: {error}"
        finally:
            (self.folder / "server.json").unlink(missing_ok=True)
            self._stop()
            if reason is not None:
                write(self.folder / "failed.json", {"reason": reason, "time": time.time()})

    def _start(self, plan: dict[str, Any]) -> str | None:
        """Start the server and wait until it is ready; return why it is not, or None."""
        command = [*plan["command"], "--host", "127.0.0.1", "--port", str(self.port)]
        # the key is in the environment, since every user of the machine can read the arguments of a process
        environment = {**os.environ, **plan["environment"], "VLLM_API_KEY": self.key}
        file = self.folder / "server.log"
        if file.exists():
            file.replace(self.folder / "server.log.1")  # why an earlier server ended
        with file.open("wb") as log:
            self.server = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.guard = guard(self.server.pid)
        until = time.monotonic() + float(plan["start_timeout"])
        while not self._is_healthy():
            if self.server.poll() is not None:
                return f"the server ended while it started, exit code {self.server.returncode}: {self._last_error()}"
            if time.monotonic() > until:
                return f"the server was not ready after {plan['start_timeout']:g} s"
            if self.asked_to_end or not is_locked(self.folder / "users"):
                raise Unwanted
            time.sleep(PERIOD)
        about = {"url": f"http://127.0.0.1:{self.port}", "key": self.key, "id": self.id}
        write(self.folder / "server.json", about)
        return None

    def _watch(self) -> None:
        """Wait until nobody uses the server, or it has ended by itself, which its users notice."""
        assert self.server is not None
        unused_since: float | None = None
        while not self.asked_to_end and not self._is_unwanted() and self.server.poll() is None:
            if is_locked(self.folder / "users"):
                unused_since = None
            else:
                unused_since = unused_since or time.monotonic()
                if time.monotonic() - unused_since > LINGER and self._close_to_users():
                    # of runs that were killed; nobody else has a folder there now
                    shutil.rmtree(self.folder / "adapters", ignore_errors=True)
                    return
            time.sleep(PERIOD)

    def _close_to_users(self) -> bool:
        """Make new users wait until this process has ended; return False if one came before."""
        self.closed = (self.folder / "users").open("r+b")
        return is_lockable(self.closed)

    def _is_unwanted(self) -> bool:
        """Return whether a user has found that this very server does not answer."""
        with suppress(OSError):
            return (self.folder / "stop").read_text() == self.id
        return False

    def _is_healthy(self) -> bool:
        try:
            with OPENER.open(f"http://127.0.0.1:{self.port}/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def _last_error(self) -> str:
        """Return the last line of the log that names an error."""
        lines = (self.folder / "server.log").read_text(errors="replace").splitlines()
        named = [line.strip() for line in lines if "Error" in line or "error:" in line]
        return (named or lines or ["it wrote nothing"])[-1][-300:]

    def _stop(self) -> None:
        if self.server is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):  # its engine is a process of the same group, and may remain
            with suppress(ProcessLookupError):
                os.killpg(self.server.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self.server.wait(PATIENCE)
        os.write(self.guard, b"x")

    def _end(self, *_: object) -> None:
        self.asked_to_end = True


def is_locked(file: Path) -> bool:
    """Return whether another process has locked a file. A lock ends with its process."""
    with file.open("a+b") as opened:
        return not is_lockable(opened)


def is_lockable(file: IO[bytes]) -> bool:
    """Lock a file for this process until it is closed; return False where another process has locked it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def guard(group: int) -> int:
    """Start a process that kills a process group when this process ends; return the pipe that tells it not to.

    The signal that Linux can send at the death of a parent reaches one process alone, and a server whose engine is gone
    may wait for ever.
    """
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.close(writer)
        if os.read(reader, 1) == b"":  # the other end was closed without a word
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        os._exit(0)
    os.close(reader)
    return writer


def free_port() -> int:
    """Return a port of this machine that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def write(file: Path, content: dict[str, Any]) -> None:
    """Write a file that others see whole or not at all, and that only this user can read."""
    scratch = file.with_suffix(".new")
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened:
        json.dump(content, opened)
    scratch.replace(file)


def main() -> None:
    folder = Path(sys.argv[1])
    with (folder / "keeper").open("a+b") as lock:
        if is_lockable(lock):  # else another keeper is at work in this folder
            Keeper(folder)()


if __name__ == "__main__":
    main()

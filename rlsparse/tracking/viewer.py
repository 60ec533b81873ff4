"""Showing runs on W&B from a process of its own, so that nothing there can slow or stop training."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

QUIET = 5.0  # seconds that it waits without a word
LATER = "the runs' files have, and python -m rlsparse.sync shows it later"
WAIT = 60.0  # seconds that a program waits, at its end, for what is still to be uploaded


class Viewer:
    """Tells that process which runs to show. It reads their files, and goes on by itself when this process dies."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def show(self, folder: Path) -> None:
        """A run begins, or goes on; it is followed until it is ``done``."""
        if self._process is None or self._process.poll() is not None:
            try:
                self._start()
            except OSError as error:
                print(f"W&B is not shown ({error}); {LATER}", file=sys.stderr)
                return
        self._tell({"show": str(folder.resolve()), "pid": os.getpid()})

    def done(self, folder: Path) -> None:
        """Nothing more will be written about the run."""
        self._tell({"done": str(folder.resolve())})

    def close(self) -> None:
        """Wait for what is under way, but not for long."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(QUIET)
            if self._process.poll() is None:
                print(f"waiting for W&B, at most {WAIT:.0f} s (Ctrl-C leaves it)", file=sys.stderr)
            self._process.wait(WAIT - QUIET)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            self._process.kill()
            self._process.wait()
            print(f"W&B has not got all of it; {LATER}", file=sys.stderr)
        self._process = None

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rlsparse.sync", "--follow"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            process_group=0,  # a Ctrl-C is meant for training
        )
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)

    def _tell(self, message: dict[str, object]) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        with suppress(OSError):  # it is dead or does not read; our files have it all
            os.write(self._process.stdin.fileno(), json.dumps(message).encode() + b"\n")


@cache
def own_viewer() -> Viewer:
    """The one of this process, whoever launches its runs."""
    return Viewer()

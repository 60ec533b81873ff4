"""Showing runs on W&B from a process of its own, so that nothing there can slow or stop training."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

WAIT = 60.0  # seconds that a program waits, at its end, for what is still to be uploaded


class Viewer:
    """Tells that process which runs to show. It reads their files, and goes on by itself when this process dies."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def show(self, folder: Path) -> None:
        """A run begins, or goes on; it is followed until it is ``done``."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rlsparse.sync", "--follow"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                process_group=0,  # a Ctrl-C is meant for training
            )
            assert self._process.stdin is not None
            os.set_blocking(self._process.stdin.fileno(), False)
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
            self._process.wait(WAIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            print(
                f"W&B took longer than {WAIT:.0f} s; what it has not got, python -m rlsparse.sync shows it later",
                file=sys.stderr,
            )
        self._process = None

    def _tell(self, message: dict[str, object]) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        with suppress(OSError):  # it is dead or does not read; our files have it all
            os.write(self._process.stdin.fileno(), json.dumps(message).encode() + b"\n")

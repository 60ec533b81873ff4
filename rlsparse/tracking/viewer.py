"""The process that shows runs on W&B. Training does not wait for it, so W&B can neither slow nor stop a run."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

QUIET = 5.0  # seconds of waiting at the end before a message is printed
LATER = "its files are complete, and python -m rlsparse.sync shows it later"
WAIT = 60.0  # seconds of waiting at the end for the uploads, at most


class Viewer:
    """Starts ``python -m rlsparse.sync --follow`` and tells it which runs to show.

    That process reads the files of the runs. It finishes its work by itself if this process dies.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def show(self, folder: Path) -> None:
        """Show a run that starts or resumes, and follow its files until ``done``."""
        if self._process is None or self._process.poll() is not None:
            try:
                self._start()
            except OSError as error:
                print(f"W&B: {folder.name} is not shown ({error}); {LATER}", file=sys.stderr)
                return
        self._send({"show": str(folder.resolve()), "pid": os.getpid()})

    def done(self, folder: Path) -> None:
        """Report that the files of a run will not change any more."""
        self._send({"done": str(folder.resolve())})

    def close(self) -> None:
        """Wait for unfinished uploads, at most ``WAIT`` seconds."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(QUIET)
            if self._process.poll() is None:
                print(f"waiting for W&B, at most {WAIT:.0f} s (Ctrl-C stops waiting)", file=sys.stderr)
            self._process.wait(WAIT - QUIET)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            self._process.kill()
            self._process.wait()
            print(
                "W&B has not received everything; the files of the runs are complete, and python -m rlsparse.sync "
                "shows the runs later",
                file=sys.stderr,
            )
        self._process = None

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rlsparse.sync", "--follow"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C must reach the training process only
        )
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)

    def _send(self, message: dict[str, object]) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        with suppress(OSError):  # the process has died or does not read; the files of the run are complete anyway
            os.write(self._process.stdin.fileno(), json.dumps(message).encode() + b"\n")


@cache
def shared_viewer() -> Viewer:
    """Return the viewer that all runs of this process share."""
    return Viewer()

"""Standard input, output and error of a command, on any terminal, pipe or none."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from signal import SIGINT
from typing import Any

GONE = (errno.EPIPE, errno.EIO)  # the errors of a pipe without a reader and of a terminal that was closed


class _Pipe(io.FileIO):
    """A standard stream whose reader may go away: what is written after that is dropped."""

    def write(self, data: Any, /) -> int:
        """Write to the stream, and return the number of bytes that need not be written again.

        Raises:
            SystemExit: standard output cannot be written, for example on a full disk.
        """
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if error.errno not in GONE and self.fileno() == 1:
                raise SystemExit(f"error: standard output cannot be written ({error.strerror})") from error
            return len(memoryview(data).cast("B"))


def prepare_streams() -> None:
    """Prepare the standard streams for all that a command prints; every command calls this first.

    A character that the terminal cannot show is printed as an escape sequence such as ``\\u2192``. If the reader of a
    pipe has gone (``| head``), or the terminal, the work continues without output. A stream that is closed becomes
    ``/dev/null``, since the next file that is opened would otherwise get its number and the messages of libraries.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _reopened(stream))
        elif isinstance(stream, io.TextIOWrapper):  # in a test or a notebook
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def command() -> Iterator[None]:
    """Run a command that reads and writes files; also a decorator of its ``main``.

    The streams are prepared. A file that cannot be read or written, and Ctrl-C, end the program without a traceback.
    """
    prepare_streams()
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(128 + SIGINT)
    except OSError as error:
        if error.filename is None:
            raise
        sys.exit(f"error: {os.fsdecode(error.filename)}: cannot be read or written ({error.strerror})")


def _reopened(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    with suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Pipe(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=True,  # an error must be raised by the line that causes it, not when Python ends
    )

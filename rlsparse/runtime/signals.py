"""Being told to stop: SIGTERM, SIGINT, SIGUSR2 (SLURM's warning) and SIGHUP end a run after the step at hand, saved."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

ECHO = 1.0  # seconds
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)


class Interrupted(BaseException):
    """The run was told to stop, and can go on from where it is. Not an Exception: nothing may take it for a failure.

    Attributes:
        signal: its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


class StopRequest:
    """Whether a signal has asked to stop.

    Attributes:
        signal: its number; None while none has come.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, the first signal is noted and a later one has its usual effect. Only a main thread can listen.

        One that follows at once is the first one's echo: torchrun hands on the Ctrl-C that the terminal gave its ranks.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # one that is ignored stays so: nohup, or a shell's background job
        earlier = {n: signal.getsignal(n) for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN}

        def note(number: int, frame: FrameType | None) -> None:
            if self.signal is not None:
                if number != self.signal or time.monotonic() - self._since > ECHO:
                    for one, handler in earlier.items():
                        signal.signal(one, handler)
                    os.kill(os.getpid(), number)
                return
            self.signal, self._since = number, time.monotonic()
            with suppress(OSError):  # the terminal may be what went
                os.write(
                    2, f"{signal.Signals(number).name}: stops when the step at hand is done; again: at once\n".encode()
                )

        for number in earlier:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """
        Raises:
            Interrupted: a signal has asked to stop.
        """
        if self.signal is not None:
            raise Interrupted(self.signal)


def pass_on(number: int) -> None:
    """Let a signal, once the run is saved, do what a launcher has set up for it, such as having SLURM start it again.

    Nothing happens where nobody has: Python's own handler and the system's would only end the process.
    """
    handler = signal.getsignal(number)
    if callable(handler) and handler is not signal.default_int_handler:
        os.kill(os.getpid(), number)

"""Signals that stop a run: after SIGTERM, SIGINT, SIGUSR2 (from SLURM) or SIGHUP it finishes its step and is saved."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

REPEAT = 1.0  # seconds; the same signal within this time counts as one
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal has stopped the run, which can be resumed. This is no Exception, since the run has not failed.

    Attributes:
        signal: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


class StopRequest:
    """Records whether a signal has asked the run to stop.

    Attributes:
        signal: number of the signal; None as long as there was none.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the context, record the first signal; a second one has its usual effect.

        The same signal within ``REPEAT`` seconds is ignored: after Ctrl-C, both the terminal and torchrun send SIGINT
        to the ranks. Outside the main thread, where Python does not allow signal handlers, nothing is recorded.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # signals that are ignored stay ignored, as under nohup or in a background job of a shell
        earlier = {n: signal.getsignal(n) for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN}

        def record(number: int, frame: FrameType | None) -> None:
            if self.signal is not None:
                if number != self.signal or time.monotonic() - self._since > REPEAT:
                    for one, handler in earlier.items():
                        signal.signal(one, handler)
                    os.kill(os.getpid(), number)
                return
            self.signal, self._since = number, time.monotonic()
            with suppress(OSError):  # the terminal may be closed
                message = "stops after the current step; send the signal again to stop at once"
                os.write(2, f"{signal.Signals(number).name}: {message}\n".encode())

        for number in earlier:
            signal.signal(number, record)
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Raise ``Interrupted`` if a signal has asked the run to stop."""
        if self.signal is not None:
            raise Interrupted(self.signal)


def redeliver(number: int) -> None:
    """Send a signal to this process again after the run is saved, for the handler of a launcher.

    For example, the handler of submitit asks SLURM to start the job again. Nothing is sent if there is no such handler,
    since the default handlers would only end the process.
    """
    handler = signal.getsignal(number)
    if callable(handler) and handler is not signal.default_int_handler:
        os.kill(os.getpid(), number)

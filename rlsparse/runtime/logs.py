"""Messages to the person at the terminal: the logger ``rlsparse``, written to standard error around a progress bar."""

import logging
from contextlib import suppress

LOGGER = "rlsparse"


class TerminalHandler(logging.Handler):
    """Writes a line to standard error; a progress bar on the terminal stays below it."""

    def emit(self, record: logging.LogRecord) -> None:
        import sys

        from tqdm import tqdm

        with suppress(OSError, ValueError):  # a terminal that is gone ends no run
            tqdm.write(self.format(record), file=sys.stderr)


def log_to_terminal() -> None:
    """Show the messages of this package on the terminal. Called by every process that runs something, once or more."""
    logger = logging.getLogger(LOGGER)
    if not any(isinstance(handler, TerminalHandler) for handler in logger.handlers):
        logger.addHandler(TerminalHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False  # Hydra gives the root logger a handler of its own

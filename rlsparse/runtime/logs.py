"""Messages on the terminal: the logger ``rlsparse`` writes to standard error, without breaking a progress bar."""

import logging
from contextlib import suppress

LOGGER = "rlsparse"


class TerminalHandler(logging.Handler):
    """Writes a message to standard error, above a progress bar on the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        import sys

        from tqdm import tqdm

        with suppress(OSError, ValueError):  # a closed terminal must not end a run
            tqdm.write(self.format(record), file=sys.stderr)


def log_to_terminal() -> None:
    """Show the messages of this package on the terminal. It may be called several times in a process."""
    logger = logging.getLogger(LOGGER)
    if not any(isinstance(handler, TerminalHandler) for handler in logger.handlers):
        logger.addHandler(TerminalHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False  # Hydra adds a handler to the root logger

"""The process that runs math-verify: it reads one JSON line for each answer and writes one JSON line as the verdict.

It is started by its file path and imports nothing else of this package. The time limits of math-verify use signals,
which fail outside the main thread and disturb other timers; without a limit, an answer such as ``10**10**10`` would run
forever. So these limits are off, and the operating system ends this process after a limit of processor time. Unlike
elapsed time, processor time does not depend on the load of the machine.
"""

import json
import os
import resource
import signal
import sys
from contextlib import suppress

MEMORY_LIMIT = 4 * 2**30  # bytes of address space; an answer that needs more ends only this process


def main() -> None:
    """Answer questions until standard input is closed.

    A question is the limit of processor time in seconds, an answer, and the gold answer.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())  # what a library prints must not be read as an answer
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # this process ends when its standard input is closed
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # a parent process may have ignored or blocked it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    limit_memory()
    from math_verify import parse, verify

    def equal(candidate: str, gold: str) -> bool:
        return bool(
            verify(
                parse(f"${gold}$", parsing_timeout=None),
                parse(f"${candidate}$", parsing_timeout=None) or parse(candidate, parsing_timeout=None),
                timeout_seconds=None,
            )
        )

    equal("", r"\frac{1}{2}")  # builds patterns and parsers before the time of the first answer is measured
    equal(r"\sqrt{x}", "x+1")
    os.dup2(nowhere, sys.stderr.fileno())  # nobody reads it after the start
    answers.write(b"ready\n")
    for line in sys.stdin.buffer:
        limit, candidate, gold = json.loads(line)
        limit_time(limit)
        try:
            verdict = equal(candidate, gold)
        except MemoryError:
            sys.exit(1)  # the verdict is not known, and this process may be damaged
        except Exception:  # an answer that cannot be parsed is wrong
            verdict = False
        limit_time(0)
        answers.write(json.dumps(verdict).encode() + b"\n")


def limit_memory() -> None:
    """Limit the address space of this process; a lower limit that it may not raise stays."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT, hard)
    with suppress(ValueError, OSError):  # some systems do not allow it
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def limit_time(seconds: float) -> None:
    """Let the system end this process after this processor time; 0 for no limit."""
    with suppress(OSError):  # some sandboxes have no such timer; the limit of elapsed time in the parent process stays
        signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    main()

"""The process that runs math-verify: it reads one JSON line for each answer and writes one JSON line as the verdict.

It is started by its file path and imports nothing else of this package. The time limits of math-verify use signals,
which fail outside the main thread and disturb other timers; without a limit, an answer such as ``10**10**10`` would run
forever. So these limits are off, and the operating system ends this process after a limit of processor time. Unlike
elapsed time, processor time does not depend on the load of the machine.
"""

import json
import resource
import signal
import sys

MEMORY_LIMIT = 4 * 2**30  # bytes of address space; an answer that needs more ends only this process


def main() -> None:
    """Answer questions until standard input is closed; the argument is the limit of processor time in seconds."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # this process ends when its standard input is closed
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
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
    limit = float(sys.argv[1])  # seconds
    print("ready", flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, limit)  # the system ends this process after this processor time
        try:
            verdict = equal(*json.loads(line))
        except Exception:  # an answer that cannot be parsed is wrong
            verdict = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    main()

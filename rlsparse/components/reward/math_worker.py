"""The process that runs math-verify: one JSON line in, one out. Run by file path, so it imports nothing of ours.

math-verify's own time limits rest on signals, which fail outside a main thread and disturb other timers, and without
them a hostile answer (``10**10**10``) hangs for good. So they are off here, and the system ends this process when a
question has had its processor time: unlike the clock on the wall, that does not depend on what else the machine does.
"""

import json
import resource
import signal
import sys

MEMORY_LIMIT = 4 * 2**30  # bytes of address space: an answer that needs more ends this process, not the machine


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with its standard input
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

    equal("", r"\frac{1}{2}")  # the first question builds patterns and parsers: not in the first answer's time
    equal(r"\sqrt{x}", "x+1")
    limit = float(sys.argv[1])  # seconds
    print("ready", flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, limit)  # of processor time; then the system ends this process
        try:
            verdict = equal(*json.loads(line))
        except Exception:  # whatever a candidate makes the parser raise, it is not the answer
            verdict = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    main()

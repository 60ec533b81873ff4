"""The process that runs math-verify: one JSON line in, one out. Run by file path, so it imports nothing of ours.

math-verify's own time limits rest on signals, which fail outside a main thread and disturb other timers, and without
them a hostile answer (``10**10**10``) hangs for good. So they are off here, and whoever started this process kills it.
"""

import json
import resource
import sys

MEMORY_LIMIT = 4 * 2**30  # bytes of address space: an answer that needs more ends this process, not the machine


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    from math_verify import parse, verify

    print("ready", flush=True)
    for line in sys.stdin:
        candidate, gold = json.loads(line)
        try:
            equal = bool(
                verify(
                    parse(f"${gold}$", parsing_timeout=None),
                    parse(f"${candidate}$", parsing_timeout=None) or parse(candidate, parsing_timeout=None),
                    timeout_seconds=None,
                )
            )
        except Exception:  # whatever a candidate makes the parser raise, it is not the answer
            equal = False
        print(json.dumps(equal), flush=True)


if __name__ == "__main__":
    main()

"""Start runs without the seconds that imports take: a process that has imported everything forks once for each run.

A line on standard input is a JSON list of overrides. The process prints the process id of the run; after an empty
line, and when the run has ended, it prints its wait status (``waitpid``). Runs share the standard error of the process.
"""

import json
import os
import signal
import sys
import traceback

import torch

from rlsparse.config.compose import compose
from rlsparse.run import run
from rlsparse.runtime.preload import import_all
from rlsparse.runtime.signals import Interrupted


def main() -> None:
    import_all()
    # SIGINT is ignored where a shell runs the tests in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    print("ready", flush=True)
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            os._exit(_run(json.loads(line)))
        print(child, flush=True)
        sys.stdin.readline()
        print(os.waitpid(child, 0)[1], flush=True)


def _run(overrides: list[str]) -> int:
    try:
        run(compose(overrides))
    except Interrupted:
        return 3
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()

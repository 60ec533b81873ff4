"""Starts runs without the seconds that imports take: a process that has everything loaded forks one for each.

A line on standard input is a JSON list of overrides. It answers with the number of the process that runs them and,
after an empty line and when that has ended, with what ``waitpid`` says. A child's standard error goes where this process's does.
"""

import json
import os
import signal
import sys
import traceback

import torch

from rlsparse.config.compose import compose_config
from rlsparse.run import run
from rlsparse.runtime.preload import import_all
from rlsparse.runtime.signals import Interrupted


def main() -> None:
    import_all()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored where a shell has put the tests in the background
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
        run(compose_config(overrides))
    except Interrupted:
        return 3
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()

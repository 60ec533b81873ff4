"""Run a command of the package as ``python -m MODULE ARGUMENTS`` does, without the seconds that its imports take.

A process that has imported the package forks once for each command. Tests of imports, of the start of the program or of
signals start a process of their own instead.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TIMEOUT = 600  # seconds


def run_command(module: str, *arguments: object, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Return the exit code and the output of a command.

    Args:
        module: name of a module, or path of a file that ends with ``.py``.
        environment: variables that are added to those of the tests.
    """
    command = [module, *map(str, arguments)]
    if sys.platform != "linux":  # forking a process that has loaded torch is safe on Linux only
        everything = {**os.environ, **environment}
        return subprocess.run(
            [sys.executable, *([] if module.endswith(".py") else ["-m"]), *command],
            cwd=cwd,
            env=everything,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder) / name for name in ("out", "err"))
        variables = {**os.environ, **environment}
        request = {"command": command, "cwd": str(cwd), "environment": variables, "out": str(out), "err": str(err)}
        code = _server().run(request)
        return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())


class _Server:
    """The process that forks."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.commands"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        atexit.register(self._process.kill)

    def run(self, request: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, "the process that forks has ended"
        return int(line)


@cache
def _server() -> _Server:
    return _Server()


def _serve() -> None:
    from rlsparse.runtime.preload import import_all

    import_all()
    import rlsparse.results.__main__
    import rlsparse.run
    import rlsparse.warm_start.run  # noqa: F401

    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where a shell runs the tests in background
    while line := sys.stdin.readline():
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(request)
            return
        print(_ended(child), flush=True)


def _ended(child: int) -> int:
    """Return the exit code of a process; minus the signal that ended it, as ``subprocess`` does."""
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.alarm(TIMEOUT)
    status = os.waitpid(child, 0)[1]
    signal.alarm(0)
    return os.waitstatus_to_exitcode(status)


def _become(request: dict[str, Any]) -> None:
    """Do a command in this process, as if it were a new one."""
    import runpy

    os.setsid()  # a signal to the group of the command reaches no other process
    for name, number in (("out", 1), ("err", 2)):
        file = os.open(request[name], os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    module, *arguments = request["command"]
    sys.path[0] = request["cwd"]
    sys.argv = [module, *arguments]
    for name in (module, f"{module}.__main__"):
        sys.modules.pop(name, None)  # it is executed again, as the main module
    if module.endswith(".py"):
        runpy.run_path(module, run_name="__main__")
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _serve()

"""The servers of ``rollout=vllm``: one that runs of this machine start and share, or those that a user has started."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from rlsparse.rollout.vllm.client import Client, ServerError
from rlsparse.rollout.vllm.keeper import is_locked
from rlsparse.runtime.machine import check_private

PERIOD = 0.2  # seconds between two looks for a server that starts
AGAIN = 3.0  # seconds until a keeper is started again after one has ended
KEEPER = Path(__file__).with_name("keeper.py")
MODULE = "vllm.entrypoints.openai.api_server"  # `vllm serve` looks for a distribution that the wheel for CPUs is not
log = logging.getLogger(__name__)


class Servers(ABC):
    """The servers that sample for a run."""

    @abstractmethod
    def clients(self) -> list[Client]:
        """Return the connections.

        Raises:
            ServerError: a server that must be started first cannot be started.
        """

    @abstractmethod
    def renew(self) -> None:
        """Give up the present connections after one was lost, so that ``clients`` returns others."""

    def close(self) -> None:
        """Use them no more."""
        return

    @property
    @abstractmethod
    def exchange(self) -> Path | None:
        """A folder that they can read; None where the user must name one."""

    @property
    @abstractmethod
    def adapter_hint(self) -> str:
        """What may help where they refuse an adapter."""

    def show(self, folder: Path) -> None:
        """Let them read a folder of ``exchange``."""
        return


@dataclass(frozen=True)
class Plan:
    """A server to start. Runs with equal plans share one.

    Attributes:
        command: without host and port.
        environment: variables to add.
        start_timeout: seconds until it must be ready.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    start_timeout: float


class OwnServer(Servers):
    """A server of this machine that starts with its first user and ends after its last one, however that ends.

    A keeper (a process of its own) watches the server and the locks that its users hold on a file.
    """

    def __init__(self, plan: Plan, timeout: float) -> None:
        """Name the server; nothing is started yet.

        Args:
            timeout: seconds until a request must be answered.
        """
        self._plan, self._timeout = plan, timeout
        self.folder = _private_folder() / hashlib.sha256(json.dumps(asdict(plan)).encode()).hexdigest()[:16]
        self._client: Client | None = None
        self._id = ""

    @property
    def exchange(self) -> Path:
        return self.folder / "adapters"

    @property
    def adapter_hint(self) -> str:
        return "where the rank is too large, give a larger rollout.max_lora_rank"

    def clients(self) -> list[Client]:
        """Return the connection to the server once it is ready; start it if nobody has."""
        if self._client is None:
            self.exchange.mkdir(parents=True, exist_ok=True)
            _use(self.folder)
            _connections[self.folder] += 1
            try:
                about = self._ready()
            except BaseException:
                _connections[self.folder] -= 1
                raise
            self._client, self._id = Client(about["url"], about["key"], self._timeout), about["id"]
        return [self._client]

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
            _connections[self.folder] -= 1

    def renew(self) -> None:
        if self._client is not None:
            self._client.close()
            _connections[self.folder] -= 1
            (self.folder / "stop").write_text(self._id)  # no effect where another user has renewed it already
        self._client = None

    def _ready(self) -> dict[str, Any]:
        """Return address, key and id of the server once it is ready; start it if nobody has."""
        started, next_try = time.time(), 0.0
        keeper: subprocess.Popen[bytes] | None = None
        while True:
            if not is_locked(self.folder / "keeper"):  # such as after a restart of the machine
                (self.folder / "server.json").unlink(missing_ok=True)
            about = _read(self.folder / "server.json")
            if about is not None and about["id"] != self._id:
                return about
            failed = _read(self.folder / "failed.json")
            if keeper is not None and keeper.poll() is not None and failed is not None and failed["time"] > started:
                raise ServerError(f"rollout.server=auto: {failed['reason']} (log: {self.folder / 'server.log'})")
            if keeper is None:
                log.info("rollout=vllm: waits for a server, about a minute (log: %s)", self.folder / "server.log")
            if (keeper is None or keeper.poll() is not None) and time.time() > next_try:
                # it ends at once where another keeper is at work
                keeper, next_try = self._start_keeper(), time.time() + AGAIN
            if time.time() - started > 2 * self._plan.start_timeout:
                raise ServerError(f"rollout.server=auto: no server was ready (log: {self.folder / 'server.log'})")
            time.sleep(PERIOD)

    def _start_keeper(self) -> "subprocess.Popen[bytes]":
        scratch = self.folder / f"command.{os.getpid()}"
        scratch.write_text(json.dumps(asdict(self._plan)))
        scratch.replace(self.folder / "command.json")
        return subprocess.Popen(
            [sys.executable, str(KEEPER), str(self.folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


class GivenServers(Servers):
    """Servers that a user has started."""

    def __init__(self, urls: Sequence[str], key: str | None, timeout: float, exchange: str | None) -> None:
        self._urls, self._key, self._timeout = urls, key, timeout
        self._exchange = None if exchange is None else Path(exchange)
        self._clients: list[Client] = []

    @property
    def exchange(self) -> Path | None:
        return self._exchange

    @property
    def adapter_hint(self) -> str:
        return (
            f"rollout.exchange={self._exchange}: the server must see this folder at the same path; where the rank is "
            "too large, start it with a larger --max-lora-rank"
        )

    def show(self, folder: Path) -> None:
        # the server may be of another user, and the umask of this one may forbid all others to read
        folder.chmod(0o755)
        for file in folder.iterdir():
            file.chmod(0o644)

    def clients(self) -> list[Client]:
        if not self._clients:
            self._clients = [Client(url, self._key, self._timeout) for url in self._urls]
        return self._clients

    def close(self) -> None:
        for one in self._clients:
            one.close()
        self._clients = []

    def renew(self) -> None:
        self.close()


# process id and folder of a server -> the open file on which this process holds a lock; a fork holds none
_users: dict[tuple[int, Path], IO[bytes]] = {}
_connections: Counter[Path] = Counter()  # open ones of this process, by the folder of the server


def _use(folder: Path) -> None:
    """Hold a lock on the server of a folder until this process ends, or uses another one and this one no more.

    A keeper that is ending its server comes first.
    """
    for key in [one for one in _users if one != (os.getpid(), folder) and not _connections[one[1]]]:
        _users.pop(key).close()  # the server of an earlier run with another plan
    if (os.getpid(), folder) in _users:
        return
    file = (folder / "users").open("a+b")
    fcntl.lockf(file, fcntl.LOCK_SH)
    _users[os.getpid(), folder] = file


def _private_folder() -> Path:
    """Return the folder of this user's servers on this machine.

    Raises:
        ServerError: it cannot be made, or others can read or write it.
    """
    # a shared TMPDIR must not show the servers of other nodes, or of other jobs of SLURM, which end with their job
    place = "-".join(filter(None, [socket.gethostname(), os.environ.get("SLURM_JOB_ID")]))
    folder = Path(tempfile.gettempdir()) / f"rlsparse-{os.getuid()}-{place}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        check_private(folder)
    except OSError as error:
        raise ServerError(f"rollout.server=auto: {error}; set TMPDIR to a folder of your own") from error
    return folder


def _read(file: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        content: dict[str, Any] = json.loads(file.read_text())
        return content
    return None

"""What a run shares with its vLLM servers: the adapter of each step, and the requests for completions."""

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar
from uuid import uuid4

from rlsparse.config.schema import ConfigError
from rlsparse.model.policy import Policy
from rlsparse.rollout.vllm.client import Client, ServerError
from rlsparse.rollout.vllm.same_model import compare, noise
from rlsparse.rollout.vllm.server import Servers

log = logging.getLogger(__name__)
Item = TypeVar("Item")


@dataclass(frozen=True)
class Order:
    """A request for completions of a prompt, without the name of the model.

    Attributes:
        prompt: its number.
    """

    prompt: int
    body: dict[str, Any]


@dataclass
class Connection:
    """What a run shares with its servers: connections and adapters.

    Attributes:
        servers: all with the same base model.
        folder: of its adapters.
        retries: see ``Vllm``.
    """

    servers: Servers
    folder: Path
    retries: int
    _bases: dict[str, str] = field(default_factory=dict)  # address of a server -> name of its base model
    _name: str = ""  # of the adapter that the servers have
    _digest: str = ""
    _count: int = 0

    def connect(self, policy: Policy, temperature: float) -> None:
        """Compare the model of each server with that of the policy, and its adapter with noise in it.

        Raises:
            ConfigError: a server serves another model, or returns log-probabilities of another temperature.
            ServerError: a server cannot be used.
        """
        self._trying(partial(self._connect, policy, temperature))

    def _connect(self, policy: Policy, temperature: float) -> None:
        for client in self.servers.clients():
            client.check()
            base = self._base(client)
            if policy.export_adapter is None:
                compare(client, base, policy, temperature)
            else:
                client.check_takes_adapters()
        if policy.export_adapter is not None:
            # Not without the adapter: on a CPU, vLLM applies its last adapter to requests of the base model too if
            # requests with an adapter are in the same batch (its pull request 48421). A LoRA of 0 would not be seen.
            with noise(policy.model):
                self._serve(policy)
                for client in self.servers.clients():
                    compare(client, self._name, policy, temperature)

    def complete(self, policy: Policy, orders: Sequence[Order], at_once: int) -> list[list[dict[str, Any]]]:
        """Return the completions of each order; where a server is lost, all of them are asked for again.

        Args:
            at_once: orders that wait for an answer at the same time.

        Raises:
            ServerError: no server has answered.
        """
        return self._trying(partial(self._complete, policy, orders, at_once))

    def close(self) -> None:
        """Make the servers forget the adapter of this run, and remove its files."""
        try:
            self._forget(self._name)
        except ServerError as error:
            log.info("rollout=vllm: %s", error)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.servers.close()

    def _base(self, client: Client) -> str:
        """Return the name of the base model of a server, which may be a fresh one at a new address."""
        if client.url not in self._bases:
            models = client.base_models()
            if not models:
                raise ServerError(f"{client.url}: serves no model")
            self._bases[client.url] = models[0]
        return self._bases[client.url]

    def _complete(self, policy: Policy, orders: Sequence[Order], at_once: int) -> list[list[dict[str, Any]]]:
        clients = self.servers.clients()
        self._serve(policy)
        names = [self._base(one) if policy.export_adapter is None else self._name for one in clients]
        calls = [
            partial(clients[place].complete, {**order.body, "model": names[place]})
            for order, place in zip(orders, cycle(range(len(clients))), strict=False)
        ]
        return in_threads(calls, at_once)

    def _trying(self, work: Callable[[], Item]) -> Item:
        for attempt in range(self.retries + 1):
            try:
                return work()
            except ServerError as error:
                if not error.lost:
                    raise
                self.servers.renew()  # after the last attempt too, for a run that comes later
                self._name = self._digest = ""  # a fresh server has no adapters
                if attempt == self.retries:
                    raise
                log.warning("warning: rollout=vllm: %s; it is tried again", error)
        raise AssertionError

    def _serve(self, policy: Policy) -> None:
        """Give the present adapter to the servers if it is new."""
        if policy.export_adapter is None:
            return
        folder = self.folder / str(self._count)
        policy.export_adapter(folder)
        self.servers.show(folder)
        digest = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
        if digest == self._digest:
            shutil.rmtree(folder)
            return
        name, before = f"{self.folder.name}-{self._count}", self._name
        self._count += 1  # before a server may fail: a name is never used again
        for client in self.servers.clients():
            try:
                client.load_adapter(name, str(folder))
            except ServerError as error:
                if error.lost:
                    raise
                raise ServerError(f"{error}; {self.servers.adapter_hint}") from error
        self._name, self._digest = name, digest
        self._forget(before)

    def _forget(self, name: str) -> None:
        if name:
            for client in self.servers.clients():
                client.unload_adapter(name)
            shutil.rmtree(self.folder / name.rpartition("-")[2], ignore_errors=True)


def in_threads(calls: Sequence[Callable[[], Item]], count: int) -> list[Item]:
    """Return the results of some calls, of which at most ``count`` are made at the same time.

    After the first error no call begins, and it is raised once the calls that have begun have ended: a server must not
    compute for an adapter that is unloaded next. Ctrl-C waits for none of them, and they do not keep this process from
    ending, as the threads of ``ThreadPoolExecutor`` would.
    """
    waiting: SimpleQueue[int] = SimpleQueue()
    ended: SimpleQueue[None] = SimpleQueue()  # an item for each thread that has ended
    results: dict[int, Item] = {}
    errors: list[Exception] = []

    def work() -> None:
        with suppress(Empty):
            while not errors:
                number = waiting.get_nowait()
                try:
                    results[number] = calls[number]()
                except Exception as error:
                    errors.append(error)
        ended.put(None)

    for number in range(len(calls)):
        waiting.put(number)
    threads = min(count, len(calls))
    for _ in range(threads):
        Thread(target=work, daemon=True).start()
    for _ in range(threads):
        ended.get()
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(calls))]


def adapter_folder(servers: Servers) -> Path:
    """Return a new folder for the adapters of a run, which its servers can read.

    Raises:
        ConfigError: it cannot be written.
    """
    parent = servers.exchange
    assert parent is not None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"rlsparse-{uuid4().hex[:8]}-", dir=parent)).absolute()
        servers.show(folder)
        return folder
    except OSError as error:
        raise ConfigError(f"rollout.exchange={parent}: cannot be written ({error}); give another folder") from error

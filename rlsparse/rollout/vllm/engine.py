"""The rollout engine that asks a vLLM server for completions."""

import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import torch
from torch import Generator, Tensor

from rlsparse.batch import NonFiniteError, Prompt, Rollout
from rlsparse.components.component import Digest, Range
from rlsparse.config.schema import ConfigError
from rlsparse.model.policy import Policy, token_log_probs_and_entropy
from rlsparse.rollout.columns import Columns, completion_limits, left_pad
from rlsparse.rollout.engine import Request, RolloutEngine
from rlsparse.rollout.stopping import stopping
from rlsparse.rollout.vllm.client import Client, ServerError
from rlsparse.rollout.vllm.server import MODULE, GivenServers, OwnServer, Plan, Servers

AUTO = "auto"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes for --max-lora-rank
SEEDS = 2**31  # vLLM gives completion i of a request the seed of the request plus i
PROBE = 16  # tokens that are compared before training
# nats, in the mean over these tokens: bfloat16 differs by 0.02 to 0.1, another model by more than 1
ALLOWED = 0.5
NOISE = 0.02  # deviation of the noise in the adapter while servers are compared
SCORED = 2048  # tokens of a forward pass for entropies
CPU_CACHE = "1"  # GiB for keys and values on a CPU
log = logging.getLogger(__name__)
Item = TypeVar("Item")


@dataclass(frozen=True)
class Vllm(RolloutEngine):
    """Samples with a vLLM server, which has a copy of the base model and gets the adapter of each step.

    Its log-probabilities are those of its own kernels, so completions count as samples of another model, and
    ``off_policy`` can correct that. It returns no entropies: where a token sampler needs them, they come from a forward
    pass of the policy.

    Attributes:
        server: ``auto``: started by the first run that needs it, shared by all runs with the same ``Plan``, and ended
            after the last one. Or one address, ``http://host:port``, or a list of them.
        python: ``auto``: the Python of an environment that has vLLM.
        devices: ``auto``: the GPUs of the server, as for CUDA_VISIBLE_DEVICES; None for that of the run that starts it.
        gpu_memory: ``auto``: share of the memory of its GPU that the server takes.
        max_lora_rank: ``auto``: the largest rank that it can serve, rounded up to one of ``RANKS``.
        max_loras: ``auto``: adapters that it can use at the same time; others wait.
        arguments: ``auto``: further arguments of the server.
        api_key: an address: name of the environment variable that holds its key.
        exchange: an address: a folder for adapters that this process and the server both see.
        timeout: seconds until a request must be answered.
        start_timeout: ``auto``: seconds until a server must be ready.
        retries: how many times a rollout is tried again after a server was lost.
    """

    uses_policy: ClassVar[bool] = False
    neutral: ClassVar[Mapping[str, Any]] = {"arguments": []}

    server: str | list[str]
    python: str
    devices: str | int | None
    gpu_memory: Annotated[float, Range(0, 1, above=True)]
    max_lora_rank: Annotated[int, Range(1, RANKS[-1])]
    max_loras: Annotated[int, Range(1, 1000)]
    arguments: Any  # a list of texts, which may be empty
    api_key: str | None
    exchange: str | None
    timeout: Annotated[float, Range(0, above=True)]
    start_timeout: Annotated[float, Range(0, above=True)]
    retries: Annotated[int, Range(0, 100)]

    def problems(self) -> Iterator[str]:
        if self.top_p < 1 or self.top_k > 0:
            yield (
                f"top_p={self.top_p}: with rollout.top_k={self.top_k}, vLLM returns the log-probabilities of the "
                "truncated distribution, which is not the policy that is trained; take rollout.top_p=1 rollout.top_k=0"
            )
        for url in self._urls:
            if not url.startswith(("http://", "https://")) or not _has_host(url):
                yield f"server={url}: must be {AUTO} or an address such as http://localhost:8000"
        if not isinstance(self.arguments, list) or not all(isinstance(one, str) for one in self.arguments):
            yield f"arguments={self.arguments}: must be a list of texts, such as [--max-model-len=4096]"
        if self._urls and self.exchange is None:
            yield (
                "exchange=null: the server gets adapters through a folder that both this process and the server see; "
                "give one, such as rollout.exchange=/tmp/adapters where both are on one machine"
            )
        if not self._urls and self.api_key is not None:
            yield f"api_key={self.api_key}: is for a server with an address; one that we start has its own key"

    def identity(self, digest: Digest) -> dict[str, Any]:
        """Return the keys of sampling and further arguments; where the server is changes no number."""
        sampling = {"arguments", *(field.name for field in fields(RolloutEngine))}
        return {key: value for key, value in super().identity(digest).items() if key in sampling}

    def check(self, quantized: bool) -> None:
        if quantized:
            raise ConfigError(
                "rollout=vllm: the server would sample from the weights before quantization; take rollout=fast, or "
                "model.quantization=off"
            )
        if not self._urls:
            self._check_python()
            return
        for client in self._servers(None).clients():
            try:
                client.check()
                client.check_takes_adapters()
            except ServerError as error:
                raise ConfigError(f"rollout.server={client.url}: {error}") from error
            finally:
                client.close()

    def fitting(self, policy: Policy) -> RolloutEngine:
        """Return the engine that is connected to a server of the model of this policy.

        Raises:
            ConfigError: no server can serve it.
        """
        if policy.location is None:
            raise ConfigError(
                f"rollout=vllm: no folder has the weights of {policy.key}, which are those of a model with an adapter "
                "in it; take rollout=fast, or save them as a whole model"
            )
        if hasattr(policy.model, "get_base_model") and policy.export_adapter is None:
            raise ConfigError("rollout=vllm: vLLM applies plain LoRA alone; take rollout=fast")
        try:
            servers = self._servers(policy)
            servers.clients()  # also makes the folder for adapters
            connection = Connection(servers, _adapter_folder(servers), self.retries)
            with ExitStack() as failed:
                failed.callback(connection.close)
                connection.connect(policy, self.temperature)
                failed.pop_all()
        except ServerError as error:
            raise ConfigError(f"rollout=vllm: {error}") from error
        own = {field.name: getattr(self, field.name) for field in fields(RolloutEngine)}
        return ConnectedVllm(**own, connection=connection)

    def generate(self, policy: Policy, request: Request, generator: Generator) -> Rollout:
        raise RuntimeError("call fitting first, which connects to a server")

    def pass_over(self, request: Request, count: int, generator: Generator) -> None:
        seeds_of(request, count, generator)

    @property
    def _urls(self) -> list[str]:
        if self.server == AUTO:
            return []
        return [self.server] if isinstance(self.server, str) else list(self.server)

    def _check_python(self) -> None:
        setup = "make vllm makes such an environment here; see docs/engines.md"
        if not Path(self.python).expanduser().is_file():
            raise ConfigError(f"rollout.python={self.python}: there is no such program; {setup}")
        code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
        try:
            done = subprocess.run([Path(self.python).expanduser(), "-c", code], check=False, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConfigError(f"rollout.python={self.python}: cannot be run ({error}); {setup}") from error
        if done.returncode != 0:
            raise ConfigError(f"rollout.python={self.python}: this environment has no vLLM; {setup}")

    def _servers(self, policy: Policy | None) -> Servers:
        """Return the servers.

        Args:
            policy: whose model a server is started for; None for servers that a user has started.

        Raises:
            ServerError: there is no place for the files of a server.
            ConfigError: the variable of the key is not set.
        """
        if not self._urls:
            assert policy is not None
            return OwnServer(self._plan(policy), self.timeout)
        key = None if self.api_key is None else os.environ.get(self.api_key)
        if self.api_key is not None and not key:
            raise ConfigError(f"rollout.api_key={self.api_key}: no environment variable of this name is set")
        return GivenServers(self._urls, key, self.timeout, self.exchange)

    def _plan(self, policy: Policy) -> Plan:
        """Return how to start the server of the model of a policy."""
        location = str(policy.location)
        dtype = str(policy.causal_lm.dtype).removeprefix("torch.")
        rank = next(rank for rank in RANKS if rank >= self.max_lora_rank)
        command = [str(Path(self.python).expanduser().absolute()), "-m", MODULE]
        command += ["--model", str(Path(location).absolute()) if Path(location).is_dir() else location]
        command += ["--revision", policy.revision] if policy.revision is not None else []
        command += ["--dtype", dtype, "--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"]
        if policy.export_adapter is not None:
            command += ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", str(self.max_loras)]
            command += ["--max-cpu-loras", str(4 * self.max_loras)]
        environment = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_NO_USAGE_STATS": "1"}
        if policy.device.type == "cuda":
            command += ["--gpu-memory-utilization", f"{self.gpu_memory:g}"]
        else:
            environment |= {"VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE)}
        if self.devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = str(self.devices)
        elif policy.device.type == "cuda":
            visible, index = os.environ.get("CUDA_VISIBLE_DEVICES"), policy.device.index or 0
            environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[index] if visible else str(index)
        return Plan([*command, *self.arguments], environment, self.start_timeout)


@dataclass(frozen=True)
class ConnectedVllm(RolloutEngine):
    """The engine that is connected to servers of the model of a policy."""

    uses_policy: ClassVar[bool] = False

    connection: "Connection"

    @property
    def label(self) -> str:
        return "vllm"

    def close(self) -> None:
        self.connection.close()

    def pass_over(self, request: Request, count: int, generator: Generator) -> None:
        seeds_of(request, count, generator)

    def generate(self, policy: Policy, request: Request, generator: Generator) -> Rollout:
        seeds = seeds_of(request, len(request.prompts), generator)
        copies = 1 if request.greedy else request.group_size  # greedy completions of a prompt are equal
        orders = [
            Order(number, self._body(policy, prompt, seed + first, min(self.max_rows, copies - first), request.greedy))
            for number, (prompt, seed) in enumerate(zip(request.prompts, seeds, strict=True))
            for first in range(0, copies, self.max_rows)
        ]
        at_once = max(1, self.max_rows // min(self.max_rows, copies))
        completions: list[list[dict[str, Any]]] = [[] for _ in request.prompts]
        try:
            answers = self.connection.complete(policy, orders, at_once)
        except ServerError as error:
            if _is_finite(policy, request.prompts):
                raise
            # a policy that has diverged is a result, not a fault of the server, which cannot send NaN
            raise NonFiniteError("the policy's log-probabilities are not finite") from error
        for order, found in zip(orders, answers, strict=True):
            completions[order.prompt] += found * (request.group_size if request.greedy else 1)
        rollout = self._rollout(policy, request.prompts, [one for group in completions for one in group])
        entropy = _entropies(policy, rollout, self.temperature) if request.needs_entropy else None  # (B, T)
        return replace(rollout, entropy=entropy)

    def _body(self, policy: Policy, prompt: Prompt, seed: int, n: int, greedy: bool) -> dict[str, Any]:
        """Return the request for completions of a prompt.

        Every setting is given, since a server may have others as defaults.
        """
        return {
            "prompt": list(prompt.ids),
            "n": n,
            "seed": seed,
            "max_tokens": self.max_new_tokens - prompt.begun,
            "temperature": 0.0 if greedy else self.temperature,
            "top_p": 1.0 if greedy else self.top_p,
            "top_k": 0 if greedy else self.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "ignore_eos": True,  # the ends are those of the policy
            "stop_token_ids": list(policy.eos_ids),
            "stop": [] if policy.stop_text is None else [policy.stop_text],
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "logprobs": 0,
            "return_token_ids": True,
        }

    def _rollout(self, policy: Policy, prompts: Sequence[Prompt], completions: Sequence[Mapping[str, Any]]) -> Rollout:
        """Return the completions of a server as a rollout."""
        prompt_ids, prompt_lengths = left_pad(prompts, policy)  # (P, S), (P,)
        B, T = len(completions), self.max_new_tokens
        limits = completion_limits(prompts, T, B // len(prompts), policy).tolist()
        out = Columns.empty(B, T, policy)
        for row, (one, limit) in enumerate(zip(completions, limits, strict=True)):
            if one["finish_reason"] == "length" and len(one["token_ids"]) < limit:
                raise ServerError(
                    f"the context of the server is too short for rollout.max_new_tokens={T}: a completion was cut "
                    f"after {len(one['token_ids'])} tokens; give it a larger --max-model-len (by "
                    "rollout.arguments with rollout.server=auto)"
                )
            ids, log_probs = one["token_ids"][:limit], one["logprobs"]["token_logprobs"][:limit]
            L = len(ids)
            out.ids[row, :L] = torch.tensor(ids, device=policy.device)
            out.log_probs[row, :L] = torch.tensor(log_probs, device=policy.device)
            out.lengths[row] = L
        self._find_ends(policy, out)
        return out.rollout(prompt_ids, prompt_lengths)

    def _find_ends(self, policy: Policy, out: Columns) -> None:
        """Cut each completion after the token that ends it, by the rule of the other engines."""
        has_ended = stopping(policy)
        rows = torch.arange(len(out.ids), device=policy.device)
        for t in range(int(out.lengths.max()) if policy.stop_text is not None else 0):
            growing = rows[~out.ended & (out.lengths > t)]
            if len(growing) > 0:
                ended = growing[has_ended(out.ids, growing, t, out.ids[growing, t])]
                out.ended[ended], out.lengths[ended] = True, t + 1
        last = out.ids.gather(1, (out.lengths - 1).clamp(min=0)[:, None]).squeeze(1)  # (B,)
        out.ended |= torch.isin(last, torch.tensor(policy.eos_ids, device=policy.device)) & (out.lengths > 0)
        inside = torch.arange(out.ids.shape[1], device=policy.device) < out.lengths[:, None]  # (B, T)
        out.ids.masked_fill_(~inside, policy.pad_id)
        out.log_probs.masked_fill_(~inside, 0.0)


def _has_host(url: str) -> bool:
    try:
        found = urlsplit(url)  # a user in it would be a secret in the config of the run
        return bool(found.hostname) and found.port != 0 and found.username is None
    except ValueError:  # a port that is no number
        return False


def seeds_of(request: Request, count: int, generator: Generator) -> list[int]:
    """Return a seed in [0, ``SEEDS``) for each of some prompts; none is drawn for greedy completions."""
    if request.greedy:
        return [0] * count
    return [int(seed) for seed in torch.randint(SEEDS, (count,), generator=generator)]


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
            models = client.base_models()
            if not models:
                raise ServerError(f"{client.url}: serves no model")
            self._bases[client.url] = models[0]
            if policy.export_adapter is None:
                compare(client, models[0], policy, temperature)
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

    def _complete(self, policy: Policy, orders: Sequence[Order], at_once: int) -> list[list[dict[str, Any]]]:
        clients = self.servers.clients()
        self._serve(policy)
        names = [self._bases[one.url] if policy.export_adapter is None else self._name for one in clients]
        with ThreadPoolExecutor(min(at_once, len(orders))) as pool:
            waiting = [
                pool.submit(clients[place].complete, {**order.body, "model": names[place]})
                for order, place in zip(orders, cycle(range(len(clients))), strict=False)
            ]
            try:
                return [one.result() for one in waiting]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

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
        digest = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
        if digest == self._digest:
            shutil.rmtree(folder)
            return
        name, before = f"{self.folder.name}-{self._count}", self._name
        self._count += 1  # before a server may fail: a name is never used again
        for client in self.servers.clients():
            client.load_adapter(name, str(folder))
        self._name, self._digest = name, digest
        self._forget(before)

    def _forget(self, name: str) -> None:
        if name:
            for client in self.servers.clients():
                client.unload_adapter(name)
            shutil.rmtree(self.folder / name.rpartition("-")[2], ignore_errors=True)


def _adapter_folder(servers: Servers) -> Path:
    """Return a new folder for the adapters of a run, which its servers can read.

    Raises:
        ConfigError: it cannot be written.
    """
    parent = servers.exchange
    assert parent is not None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"rlsparse-{uuid4().hex[:8]}-", dir=parent)).absolute()
        if isinstance(servers, GivenServers):
            folder.chmod(0o755)  # the server may be of another user
        return folder
    except OSError as error:
        raise ConfigError(f"rollout.exchange={parent}: cannot be written ({error}); give another folder") from error


@contextmanager
def noise(model: Any) -> Iterator[None]:
    """Within the context, the trained parameters of a model have noise added."""
    trained = [one for one in model.parameters() if one.requires_grad]
    kept = [one.detach().clone() for one in trained]
    generator = Generator().manual_seed(0)
    with torch.no_grad():
        for one in trained:
            one.add_(NOISE * torch.randn(one.shape, generator=generator).to(one))
    try:
        yield
    finally:
        with torch.no_grad():
            for one, value in zip(trained, kept, strict=True):
                one.copy_(value)


@torch.no_grad()
def compare(client: Client, name: str, policy: Policy, temperature: float) -> None:
    """Compare the log-probabilities of a server with those of the policy as it is now.

    Args:
        name: of the model on the server.

    Raises:
        ConfigError: they differ by more than rounding, or are those of another temperature.
        ServerError: the server does not answer, or refuses.
    """
    generator = Generator().manual_seed(0)
    ids = torch.randint(policy.vocabulary, (PROBE,), generator=generator).tolist()
    body = {"model": name, "prompt": ids, "temperature": temperature, "seed": 0, "logprobs": 0, "ignore_eos": True}
    body |= {"top_p": 1.0, "top_k": 0, "max_tokens": PROBE, "return_token_ids": True}
    try:
        (scored,) = client.complete({**body, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0})
        (sampled,) = client.complete(body)
    except ServerError as error:
        if "out of vocabulary" not in str(error):
            raise
        raise ConfigError(f"rollout.server={client.url}: serves a model of another vocabulary ({error})") from error
    theirs = [one[str(token)]["logprob"] for token, one in zip(ids[1:], scored["prompt_logprobs"][1:], strict=True)]
    difference = _mean_difference(theirs, _log_probs(policy, ids, 1.0))
    if not difference <= ALLOWED:
        raise ConfigError(
            f"rollout.server={client.url}: serves another model ({name}) than {policy.key}: log-probabilities of the "
            f"same tokens differ by {difference:.2f} nats in the mean; start it with the model of this run"
        )
    tokens, theirs = sampled["token_ids"], sampled["logprobs"]["token_logprobs"]
    processed, raw = (
        _mean_difference(theirs, _log_probs(policy, ids + tokens, one)[len(ids) - 1 :]) for one in (temperature, 1.0)
    )
    if raw < processed:
        raise ConfigError(
            f"rollout.server={client.url}: returns log-probabilities at temperature 1, and rollout.temperature is "
            f"{temperature:g}; start it with --logprobs-mode processed_logprobs"
        )


def _log_probs(policy: Policy, ids: list[int], temperature: float) -> Tensor:
    """Return the log-probabilities of all tokens but the first, (L - 1,) float32."""
    row = torch.tensor([ids], device=policy.device)  # (1, L)
    logits = policy.model(input_ids=row, use_cache=False).logits[0, :-1].float() / temperature  # (L - 1, V)
    found: Tensor = logits.log_softmax(dim=1).gather(1, row[0, 1:, None]).squeeze(1)
    return found


def _mean_difference(theirs: Sequence[float], ours: Tensor) -> float:
    return float((torch.tensor(theirs, device=ours.device) - ours).abs().mean())


@torch.no_grad()
def _is_finite(policy: Policy, prompts: Sequence[Prompt]) -> bool:
    """Return whether the policy computes finite log-probabilities of some prompts."""
    scored = (_log_probs(policy, list(prompt.ids), 1.0) for prompt in prompts)
    return all(bool(one.isfinite().all()) for one in scored)


@torch.no_grad()
def _entropies(policy: Policy, rollout: Rollout, temperature: float) -> Tensor:
    """Return the entropies of the policy at each token, (B, T) float32, nats; 0 after the end."""
    B, T = rollout.completion_ids.shape
    most = max(1, SCORED // (T + rollout.prompt_ids.shape[1]))  # rows
    parts = [
        token_log_probs_and_entropy(policy, rollout, rows, rollout.mask[rows], temperature)[1]
        for rows in torch.arange(B, device=policy.device).split(most)
    ]
    return torch.cat(parts)

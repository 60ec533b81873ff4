"""The requests to a vLLM server: health, models, adapters, completions."""

import logging
from collections.abc import Mapping
from typing import Any

import httpx2

logging.getLogger("httpx2").setLevel(logging.WARNING)  # it has a line for each request
CONNECT = 10.0  # seconds until a server must have taken a connection
UNLOAD = 10.0  # seconds until a server must have forgotten an adapter; that it has not changes no result
# in messages of a server that is still healthy: it is stopping, or has a NaN, which may be left from another run
BROKEN = ("shutting down", "not JSON compliant")
ENDS = ("stop", "length")  # of a whole completion
WANTS_UPDATES = "start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment"


class ServerError(Exception):
    """A server did not answer, or refused a request.

    Attributes:
        lost: whether a fresh server may do better: it did not answer in time, or failed by itself.
    """

    def __init__(self, message: str, lost: bool = False) -> None:
        super().__init__(message)
        self.lost = lost


class Client:
    """A connection to one server. Its methods may be called from several threads."""

    def __init__(self, url: str, key: str | None, timeout: float) -> None:
        """Prepare requests; nothing is sent yet.

        Args:
            url: ``http://host:port``; with ``/v1``, as other clients want it, it means the same.
            key: the API key; None where the server asks for none.
            timeout: seconds until an answer must be there.
        """
        self.url, self._timeout, self._has_key = url.rstrip("/").removesuffix("/v1"), timeout, key is not None
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        # vLLM closes a connection that was idle for 5 s; one that is closed while it is used would look like a failure
        limits = httpx2.Limits(max_connections=None, keepalive_expiry=2.0)
        self._http = httpx2.Client(
            base_url=self.url,
            headers=headers,
            limits=limits,
            trust_env=False,  # a proxy of the environment is not for a server of one's own
        )

    def check(self) -> None:
        """Raise ServerError unless the server is healthy and takes the key."""
        self._send("GET", "/health")
        self.base_models()

    def check_takes_adapters(self) -> None:
        """Raise ServerError unless the server takes adapters while it runs."""
        # vLLM's own answer to this names the adapter; where it has no such route, FastAPI answers
        reply = self._reply("POST", "/v1/unload_lora_adapter", {"lora_name": "rlsparse-none"})
        if "rlsparse-none" not in reply.text:
            raise ServerError(f"{self.url} takes no adapters while it runs; {WANTS_UPDATES}")

    def base_models(self) -> list[str]:
        """Return the names of the base model, as requests must give them.

        Raises:
            ServerError: the server does not answer, or refuses; so do the methods below.
        """
        found = self._send("GET", "/v1/models").get("data", [])
        return [str(one["id"]) for one in found if one.get("parent") is None]

    def load_adapter(self, name: str, folder: str) -> None:
        """Make the server read an adapter in the format of peft.

        Args:
            name: a new one. Reloading under an old name (``load_inplace``) from the same folder would keep what vLLM
                has cached of prompts with the old weights.
            folder: as the server sees it.
        """
        self._send("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder})

    def unload_adapter(self, name: str) -> None:
        """Make the server forget an adapter; one that it does not know is no error."""
        reply = self._reply("POST", "/v1/unload_lora_adapter", {"lora_name": name}, min(self._timeout, UNLOAD))
        if reply.status_code not in (200, 400, 404):
            raise self._error(reply)

    def complete(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the completions of one prompt in their order; see the completions API of OpenAI and vLLM's additions.

        Of each, this package reads ``token_ids``, ``finish_reason`` and ``logprobs.token_logprobs`` (nats).
        """
        choices = self._send("POST", "/v1/completions", body)["choices"]
        for one in choices:
            if one["finish_reason"] not in ENDS:  # "abort": the server is stopping, and has cut this completion off
                reason = f"finish_reason={one['finish_reason']}"
                raise ServerError(f"{self.url}/v1/completions: a completion is incomplete ({reason})", lost=True)
        return sorted(choices, key=lambda one: int(one["index"]))

    def version(self) -> str:
        """Return the version of vLLM."""
        return str(self._send("GET", "/version").get("version", "unknown"))

    def close(self) -> None:
        """Close the connections; requests that wait fail."""
        self._http.close()

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        reply = self._reply(method, path, body)
        if reply.status_code != 200:
            raise self._error(reply)
        try:
            found: dict[str, Any] = reply.json()
        except ValueError:
            found = {}  # /health has no body, and the routes of adapters answer with plain text
        return found

    def _reply(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout: float | None = None
    ) -> httpx2.Response:
        timeout = timeout or self._timeout
        limits = httpx2.Timeout(timeout, connect=min(timeout, CONNECT), pool=None)
        try:
            return self._http.request(method, path, json=body, timeout=limits)
        except httpx2.ConnectTimeout as error:
            raise ServerError(f"{self.url}: cannot be reached (no connection in time)", lost=True) from error
        except httpx2.TimeoutException as error:
            limit = f"no answer within {timeout:g} seconds (rollout.timeout)"
            raise ServerError(f"{self.url}{path}: {limit}", lost=True) from error
        except (httpx2.HTTPError, httpx2.InvalidURL, RuntimeError) as error:  # RuntimeError: the client is closed
            raise ServerError(f"{self.url}: cannot be reached ({error})", lost=True) from error

    def _is_healthy(self) -> bool:
        try:
            return self._http.get("/health", timeout=CONNECT).status_code == 200
        except (httpx2.HTTPError, RuntimeError):
            return False

    def _error(self, reply: httpx2.Response) -> ServerError:
        try:
            content = reply.json()
            error = content.get("error", content)
            text = str(error.get("message", error) if isinstance(error, dict) else error)
        except (ValueError, AttributeError):
            text = reply.text
        text = " ".join(text.split())[:500]
        if reply.status_code in (401, 403):
            fault = "refuses the key" if self._has_key else "asks for a key"
            return ServerError(f"{self.url}: {fault}; rollout.api_key must name the variable that holds it")
        # a server that is healthy refuses this request alone, such as an adapter that it cannot use
        lost = reply.status_code >= 500 and not self._is_healthy()
        lost |= any(message in text for message in BROKEN)
        return ServerError(f"{self.url}{reply.url.path}: {reply.status_code}: {text}", lost=lost)

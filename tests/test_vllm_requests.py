"""What a run makes of the answers of a vLLM server. A small HTTP server gives them; tests/vllm has the real one."""

import copy
import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torch import Generator

from rlsparse.batch import NonFiniteError, Problem, Prompt
from rlsparse.config.schema import ConfigError
from rlsparse.rollout import Request, RolloutEngine, RolloutSampler
from rlsparse.rollout.vllm import engine as vllm
from rlsparse.rollout.vllm.client import Client, ServerError
from rlsparse.rollout.vllm.connection import Connection, Order, in_threads
from rlsparse.rollout.vllm.server import GivenServers
from rlsparse.runtime.distributed import World
from rlsparse.runtime.oom import MemoryLimits
from tests.conftest import ROOT, built

WHOLE = {"index": 0, "finish_reason": "stop", "token_ids": [7]}


@pytest.fixture
def serve():
    """Return a function that starts a server with these answers, path -> (status, content), and returns its address."""
    servers = []

    def start(answers: dict[str, tuple[int, object]]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, content = answers.get(self.path, (404, {"error": "Not Found"}))
                text = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_POST = do_GET

            def log_message(self, *_):
                return

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for one in servers:
        one.shutdown()


def error_of(call: Callable[[], object]) -> ServerError:
    with pytest.raises(ServerError) as found:
        call()
    return found.value


def test_completion_that_a_stopping_server_cut_off_is_asked_for_again(serve):
    cut = {**WHOLE, "finish_reason": "abort"}
    url = serve({"/v1/completions": (200, {"choices": [WHOLE, {**cut, "index": 1}]}), "/health": (200, {})})
    error = error_of(lambda: Client(url, None, 5).complete({}))
    assert error.lost  # although the server is healthy
    assert "a completion is incomplete (finish_reason=abort)" in str(error)


@pytest.mark.parametrize(
    ("status", "message", "lost"),
    [
        (500, "Server shutting down", True),
        (400, "Out of range float values are not JSON compliant", True),
        (500, "rank 32 is too large", False),
    ],
)
def test_healthy_server_that_refuses_is_lost_only_if_it_stops_or_has_a_nan(serve, status, message, lost):
    url = serve({"/v1/load_lora_adapter": (status, {"error": {"message": message}}), "/health": (200, {})})
    assert error_of(lambda: Client(url, None, 5).load_adapter("a", "/a")).lost == lost


def test_messages_name_the_key_that_helps(serve):
    url = serve({"/v1/models": (401, {"error": "Unauthorized"})})
    asked = str(error_of(Client(url, None, 5).base_models))
    assert "asks for a key; rollout.api_key must name the variable" in asked
    assert "refuses the key; rollout.api_key must name the variable" in str(error_of(Client(url, "k", 5).base_models))


def test_address_with_v1_as_other_clients_want_it_is_the_same_server(serve):
    url = serve({"/v1/models": (200, {"data": [{"id": "base"}]})})
    assert Client(f"{url}/v1/", None, 5).base_models() == ["base"]


def test_late_answer_names_the_time_limit():
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as silent:  # takes connections, answers nothing
        url = f"http://127.0.0.1:{silent.server_port}"
        error = error_of(Client(url, None, 0.2).base_models)
    assert error.lost
    assert str(error) == f"{url}/v1/models: no answer within 0.2 seconds (rollout.timeout)"


def test_base_model_is_sampled_from_a_fresh_server_at_another_address(serve, tiny, tmp_path):
    cut = {"/v1/completions": (200, {"choices": [{**WHOLE, "finish_reason": "abort"}]})}
    first = serve({"/v1/models": (200, {"data": [{"id": "old"}]}), **cut})
    fresh = serve({"/v1/models": (200, {"data": [{"id": "new"}]}), "/v1/completions": (200, {"choices": [WHOLE]})})

    class Moving(GivenServers):
        def renew(self):
            super().renew()
            self._urls = [fresh]

    base = replace(tiny, export_adapter=None)
    connection = Connection(Moving([first], None, 5, str(tmp_path)), tmp_path, retries=1)
    assert connection.complete(base, [Order(0, {})], 1) == [[WHOLE]]


def test_calls_in_threads_keep_their_order_and_run_at_the_same_time():
    together = threading.Barrier(3)  # of three calls that wait for each other

    def call(number):
        together.wait(10)
        return number

    assert in_threads([lambda n=n: call(n) for n in range(6)], 3) == list(range(6))


def test_after_an_error_no_call_begins_and_those_that_have_begun_end_first():
    began, failed = [], threading.Event()

    def slow():
        failed.wait(10)
        time.sleep(0.2)
        began.append("slow has ended")

    def fail():
        failed.set()
        raise ServerError("lost")

    with pytest.raises(ServerError, match="lost"):
        in_threads([slow, fail, lambda: began.append("late"), lambda: began.append("later")], 2)
    assert began == ["slow has ended"]


HANGING = """
import os, signal, threading, time
from rlsparse.rollout.vllm.connection import in_threads
threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
in_threads([lambda: time.sleep(600)], 1)
"""


def test_ctrl_c_does_not_wait_for_a_server_that_hangs():
    done = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode != 0
    assert "KeyboardInterrupt" in done.stderr


def test_other_users_can_read_an_adapter_whatever_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        folder = tmp_path / "0"
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"")
        GivenServers([], None, 1, str(tmp_path)).show(folder)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert stat.S_IMODE((folder / "adapter_model.safetensors").stat().st_mode) == 0o644


def test_entropies_are_computed_for_fewer_rows_where_memory_runs_out(tiny, monkeypatch):
    plain = replace(built("rollout=plain").rollout, max_new_tokens=6)
    prompts = [Prompt(Problem("", "", ""), (1, 2, 3)), Prompt(Problem("", "", ""), (4, 5))]
    rollout = plain.generate(tiny, Request(prompts, 4), Generator().manual_seed(0))
    exact, sizes = vllm.token_log_probs_and_entropy, []

    def limited(policy, rollout, rows, mask, temperature):
        sizes.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return exact(policy, rollout, rows, mask, temperature)

    length = rollout.prompt_ids.shape[1] + rollout.completion_ids.shape[1]
    monkeypatch.setattr(vllm, "SCORED", 6 * length)  # six rows at a time
    whole = exact(tiny, rollout, torch.arange(8), rollout.mask, 1.0)[1]
    monkeypatch.setattr(vllm, "token_log_probs_and_entropy", limited)
    torch.testing.assert_close(vllm._entropies(tiny, rollout, 1.0), whole, atol=1e-6, rtol=0)
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1, 1, 1]


@dataclass(frozen=True)
class Threads(World):
    """Two ranks that are threads of this process."""

    parts: tuple = ()
    barrier: threading.Barrier = None

    def gathered(self, part):
        self.parts[self.rank].extend(part)
        self.barrier.wait(20)
        return [item for one in self.parts for item in one]


def test_policy_that_overflows_on_one_rank_ends_the_step_on_all(tiny):
    engine = built("rollout=plain", "rollout.max_new_tokens=4").rollout

    class Overflowing(type(engine)):
        def generate(self, policy, request, generator):
            raise NonFiniteError("the policy's log-probabilities are not finite")

    broken = Overflowing(**asdict(engine))
    parts, barrier, ended = ([], []), threading.Barrier(2), []

    def rank(number):
        world = Threads(number, 2, number, parts, barrier)
        one = RolloutSampler(tiny, broken if number else engine, MemoryLimits(64, 1, 1), world)
        with pytest.raises(NonFiniteError, match="not finite"):
            one(Request([Prompt(Problem("", "", ""), (1, 2))] * 2, 2), Generator().manual_seed(0))
        ended.append(number)

    ranks = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join(60)
    assert sorted(ended) == [0, 1]


def test_module_with_an_adapter_that_the_server_would_leave_out_is_refused_before_a_server_starts(tiny, tmp_path):
    algorithm = built("rollout=vllm", "rollout.lora_modules=[q_proj]", "adapter.target_modules=[q_proj,v_proj,o_proj]")
    policy = replace(tiny, model=copy.deepcopy(tiny.model))
    algorithm.adapter.attach(policy, 2, 0)
    with pytest.raises(ConfigError, match=r"rollout\.lora_modules=\['q_proj'\]: the adapter is on o_proj, v_proj too"):
        algorithm.rollout.fitting(policy)


def test_policy_that_has_diverged_is_not_sent_to_a_server_that_others_use(tiny):
    own = {one.name: getattr(built("rollout=vllm").rollout, one.name) for one in fields(RolloutEngine)}
    engine = vllm.ConnectedVllm(**own, connection=None)  # a request would be an AttributeError
    policy = replace(tiny, model=copy.deepcopy(tiny.model))
    with torch.no_grad():
        next(policy.model.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="not finite"):
        engine.generate(policy, Request([Prompt(Problem("", "", ""), (1, 2))], 2), Generator().manual_seed(0))


def test_version_of_each_server_is_recorded(serve, tmp_path):
    urls = [serve({"/version": (200, {"version": one})}) for one in ("0.33.0", "0.32.0", "0.32.0")]
    engine = built("rollout=vllm", f"rollout.server=[{','.join(urls)}]", f"rollout.exchange={tmp_path}").rollout
    assert engine.versions() == {"vllm": "0.32.0, 0.33.0"}

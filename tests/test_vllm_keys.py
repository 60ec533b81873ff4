"""What is wrong with the keys of rollout=vllm is said before anything starts; no server is needed here."""

import http.server
import re
import sys
import threading
from contextlib import nullcontext
from dataclasses import replace

import pytest

from rlsparse.algorithm import Algorithm
from rlsparse.config.compose import compose
from rlsparse.config.schema import ConfigError
from rlsparse.execution.preflight import identity_of, preflight
from rlsparse.results.names import method_overrides
from rlsparse.storage.summary import write_summary
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["layer_skip=r25"], "layer_skip: rollout=vllm samples from a copy of the whole model"),
        (["adapter=dora"], "adapter=dora: rollout=vllm applies plain LoRA alone"),
        (["adapter=full"], "adapter=full: rollout=vllm applies plain LoRA alone"),
        (["adapter=adalora"], "adapter=adalora: rollout=vllm applies plain LoRA alone"),
        (["rollout.top_p=0.9"], "rollout.top_p=0.9: with rollout.top_k=0, vLLM returns"),
        (["rollout.server=localhost:8000"], "rollout.server=localhost:8000: must be auto or an address"),
        (["rollout.server=http://localhost:1"], "rollout.exchange=null: the server gets adapters through a folder"),
        (["rollout.api_key=KEY"], "rollout.api_key=KEY: is for a server with an address"),
        (["rollout.server=[]"], r"rollout.server=\[\]: must be text or a list of names"),
        (["rollout.arguments=['--port=80']"], "rollout.arguments: --port is set by rlsparse"),
        (["rollout.max_lora_rank=600"], "rollout.max_lora_rank=600: must be"),
        (["rollout.arguments=[1]"], "rollout.arguments=\\[1\\]: must be a list of texts"),
        (["rollout.python=/nowhere/python"], "rollout.python=/nowhere/python: there is no such program; make vllm"),
        ([f"rollout.python={sys.executable}"], "this environment has no vLLM; make vllm"),
    ],
)
def test_bad_values_are_refused_in_one_message(overrides, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        preflight([compose(["rollout=vllm", f"runs_dir={tmp_path}", "tracker=none", *overrides])])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.api_key=sk-SeCrEt", "rollout.api_key: must be the name of the environment variable"),
        ("rollout.server=http://me:SeCrEt@host:80", "rollout.server: an address must have no user name or password"),
        ("rollout.arguments=['--api-key=SeCrEt']", "rollout.arguments: --api-key would be stored"),
        ("rollout.arguments=[--hf_token,SeCrEt]", "rollout.arguments: --hf-token would be stored"),
    ],
)
def test_secret_in_the_wrong_key_is_refused_and_not_shown(override, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as refused:
        preflight([compose(["rollout=vllm", f"runs_dir={tmp_path}", "tracker=none", override])])
    assert "SeCrEt" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_arguments_of_the_docs_can_be_read():
    page = (ROOT / "docs" / "engines.md").read_text()
    found = set(re.findall(r"'(rollout\.arguments=[^']*)'", page))
    assert found == {'rollout.arguments=["--tensor-parallel-size=2"]', 'rollout.arguments=["--max-model-len=4096"]'}
    for override in found:
        Algorithm.build(compose(["rollout=vllm", override]))


def given(url, tmp_path):
    keys = [f"rollout.server={url}", f"rollout.exchange={tmp_path}", f"runs_dir={tmp_path}", "tracker=none"]
    return compose(["rollout=vllm", *keys])


def test_an_address_without_a_server_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"rollout\.server=http://127\.0\.0\.1:9: .*cannot be reached"):
        preflight([given("http://127.0.0.1:9", tmp_path)])


@pytest.mark.parametrize(
    ("status", "retry_failed", "needs_server"),
    [("finished", True, False), ("diverged", True, False), ("failed", True, True), ("failed", False, False)],
)
def test_a_run_that_is_done_needs_no_server_any_more(status, retry_failed, needs_server, tmp_path):
    config = given("http://127.0.0.1:9", tmp_path)
    config = replace(config, sweep=replace(config.sweep, retry_failed=retry_failed))
    run_id = identity_of(config, Algorithm.build(config), "cpu").id
    folder = tmp_path / config.experiment.name / run_id
    folder.mkdir(parents=True)
    write_summary(folder, {"status": status})
    with pytest.raises(ConfigError, match="cannot be reached") if needs_server else nullcontext():
        assert [identity.id for identity in preflight([config]).identities] == [run_id]


def test_an_unset_variable_of_the_key_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("RLSPARSE_TEST_KEY", raising=False)
    config = given("http://127.0.0.1:9", tmp_path)
    config.rollout["api_key"] = "RLSPARSE_TEST_KEY"
    with pytest.raises(ConfigError, match=r"rollout\.api_key=RLSPARSE_TEST_KEY: no environment variable"):
        preflight([config])


def test_key_with_the_line_end_of_a_file_works_and_one_that_cannot_be_sent_is_not_shown(tmp_path, monkeypatch):
    config = given("http://127.0.0.1:9", tmp_path)
    config.rollout["api_key"] = "RLSPARSE_TEST_KEY"
    monkeypatch.setenv("RLSPARSE_TEST_KEY", "SeCrEt\r")
    with pytest.raises(ConfigError, match="cannot be reached") as refused:
        preflight([config])
    assert "SeCrEt" not in str(refused.value)
    monkeypatch.setenv("RLSPARSE_TEST_KEY", "SeCr\u00eat")
    with pytest.raises(
        ConfigError, match="RLSPARSE_TEST_KEY: the key in this variable must be of printable ASCII"
    ) as refused:
        preflight([config])
    assert "SeCr" not in str(refused.value)


def test_a_server_that_is_no_vllm_is_refused(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(ConfigError, match="404"):
            preflight([given(f"http://127.0.0.1:{server.server_port}", tmp_path)])
    finally:
        server.shutdown()


def test_where_the_server_is_does_not_count_in_the_run_id():
    def run_id(*overrides):
        config = compose(["rollout=vllm", *overrides])
        return identity_of(config, Algorithm.build(config), "cpu").id

    elsewhere = ["rollout.server=http://gpu:8000", "rollout.exchange=/shared", "rollout.timeout=5", "rollout.retries=3"]
    assert run_id() == run_id(*elsewhere)
    assert method_overrides(["rollout=vllm", *elsewhere, "rollout.lora_modules=[q_proj]"]) == ("rollout=vllm",)
    for override in ("rollout.temperature=0.9", "rollout.arguments=['--seed=1']"):
        assert run_id() != run_id(override)
        assert method_overrides([override]) == (override,)
    assert run_id() != run_id("rollout=fast")

"""The W&B dashboard, built by the real library and read back from the specification that saving sends."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from wandb_workspaces.workspaces import Workspace, internal

from rlsparse.tracking import dashboard
from rlsparse.tracking.dashboard import LEFT_OUT, SECTIONS, shown, specification, undocumented, workspace
from rlsparse.tracking.metrics import METRICS
from tests.conftest import ROOT, composed

# end the process when anything looks up a host, connects or starts another program
OFFLINE = """
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.posix_spawn", "os.system"):
        sys.stderr.write(f"not offline: {event} {arguments}")
        sys.stderr.flush()
        import os
        os._exit(99)

sys.addaudithook(refuse)
from rlsparse.tracking.dashboard import main
main()
"""


@pytest.fixture(scope="module")
def spec() -> str:
    return specification(workspace("project", experiment="svamp"))


def call(
    *arguments: str, code: str = "from rlsparse.tracking.dashboard import main; main()", home: Path, **environment: str
):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=home,
        capture_output=True,
        text=True,
        env={**kept, "PYTHONPATH": str(ROOT), "HOME": str(home), "NETRC": str(home / "netrc"), **environment},
        timeout=120,
    )


def test_every_metric_is_in_a_panel_or_in_the_list_of_those_left_out(spec):
    """A new metric that is in neither of the two fails here."""
    in_panels = [name for section, name in shown(spec) if section != "Samples"]
    assert len(in_panels) == len(set(in_panels))
    assert set(in_panels).isdisjoint(LEFT_OUT)
    assert set(in_panels) | set(LEFT_OUT) == set(METRICS)


def test_panel_of_a_metric_that_no_run_logs_is_refused(monkeypatch, capsys):
    monkeypatch.setitem(SECTIONS, "Tokens", ("tokens/frac_updated", "tokens/nope", "tokens/nope_"))
    assert undocumented(specification(workspace("project"))) == ["tokens/nope", "tokens/nope_"]
    monkeypatch.setattr(sys, "argv", ["dashboard"])
    with pytest.raises(SystemExit, match=r"show metrics that no run logs .*: tokens/nope, tokens/nope_"):
        dashboard.main()
    assert not capsys.readouterr().out


def test_curves_are_means_with_a_band_over_the_runs_of_an_algorithm(spec):
    section = json.loads(spec)["section"]
    assert section["runSets"][0]["grouping"] == [{"section": "config", "name": "algorithm.value"}]
    assert section["settings"]["useRunsTableGroupingInPanels"] is True
    for one in section["panelBankConfig"]["sections"]:
        assert one["localPanelSettings"]["useRunsTableGroupingInPanels"] is True
        for panel in one["panels"]:
            if panel["viewType"] == "Run History Line Plot":
                config = panel["config"]
                assert (config["xAxis"], config["groupAgg"], config["groupArea"]) == ("step", "mean", "stddev")
    assert next(iter(SECTIONS)) == section["panelBankConfig"]["sections"][0]["name"] == "Learning curves"


def test_runs_are_filtered_by_experiment_or_grouped_by_it(spec):
    (only,) = json.loads(spec)["section"]["runSets"][0]["filters"]["filters"]
    assert (only["key"], only["op"], only["value"]) == ({"section": "run", "name": "group"}, "=", "svamp")
    everything = json.loads(specification(workspace("project", by=["layer_skip.ratio", "off_policy.level"])))
    runs = everything["section"]["runSets"][0]
    assert runs["filters"]["filters"] == []
    assert [key["name"] for key in runs["grouping"]] == ["group", "layer_skip.value.ratio", "off_policy.value.level"]


def test_specification_read_back_is_the_same_workspace(spec):
    parsed = internal.WorkspaceViewspec.model_validate_json(spec)
    view = internal.View(entity="", project="project", display_name="x", name="", id="", spec=parsed)
    again = Workspace._from_model(view)
    assert specification(again) == spec
    assert [section.name for section in again.sections] == [*SECTIONS, "Samples"]
    assert {type(panel).__name__ for s in again.sections for panel in s.panels} == {
        "LinePlot",
        "WeavePanelSummaryTable",
    }


@pytest.mark.slow
def test_logged_run_has_the_keys_that_the_dashboard_uses(tmp_path):
    """Step, group, config key and table of samples of an offline run, as the reader of W&B finds them."""
    folder = tmp_path / "runs" / "svamp" / "id"
    folder.mkdir(parents=True)
    config = {"algorithm": "grpo", "experiment": {"name": "svamp"}, "model": {"name": "tiny"}, "task": {"name": "t"}}
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "tracker": {"mode": "offline"}}))
    (folder / "metrics.jsonl").write_text('{"step": 3, "kind": "eval", "eval/accuracy_sampled": 0.5}\n')
    (folder / "samples.jsonl").write_text('{"step": 3, "completion": "2"}\n')
    synced = call("--mode", "offline", code="from rlsparse.tracking.sync import main; main()", home=tmp_path)
    assert synced.returncode == 0, synced.stderr
    (offline,) = (folder / "wandb").glob("offline-run-*")
    done = subprocess.run(
        [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", str(offline)],
        capture_output=True,
        text=True,
        check=True,
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    (started,) = [one["run"] for one in records if one["type"] == "run"]
    rows = [one["history"]["item"] for one in records if one["type"] == "history"]
    spec = json.loads(specification(workspace("project", experiment="svamp")))["section"]
    assert started["run_group"] == spec["runSets"][0]["filters"]["filters"][0]["value"]
    assert started["config"]["update"]["algorithm"] == config["algorithm"]
    assert {"step", "eval/accuracy_sampled"} <= set(rows[0])
    tables = [key for key, value in rows[-1].items() if value == "table-file"]
    assert tables == [f"{name}._type" for section, name in shown(json.dumps({"section": spec})) if section == "Samples"]
    assert composed().algorithm  # a string, by which the runs are grouped


@pytest.mark.slow
def test_dashboard_without_save_sends_nothing(tmp_path):
    """Even with an API key no host is looked up, nothing connects and no process starts."""
    done = call("--experiment", "svamp", code=OFFLINE, home=tmp_path, WANDB_API_KEY="a" * 40)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("rlsparse svamp: project rlsparse, entity (default)\n")
    assert "only group = svamp" in done.stdout
    for section in (*SECTIONS, "Samples", "Left out"):
        assert f"\n\n{section}\n" in done.stdout
    assert "--save saves the workspace to W&B" in done.stdout


@pytest.mark.slow
def test_saving_without_a_login_is_refused_with_one_message(tmp_path):
    done = call("--save", home=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: --save: no W&B login here: run wandb login, or set WANDB_API_KEY")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--experiment", "it's"], "error: --experiment it's: no experiment can have this name; use letters"),
        (
            ["--by", "algorithm,nope.x"],
            "error: --by nope.x: the config of a run has no such key; its keys begin with one of s",
        ),
    ],
)
def test_bad_input_is_refused_with_one_message(arguments, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dashboard", *arguments])
    with pytest.raises(SystemExit, match=re.escape(message)):
        dashboard.main()


def test_missing_library_is_refused_with_one_message(monkeypatch):
    monkeypatch.setattr(dashboard, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["dashboard"])
    with pytest.raises(
        SystemExit, match=r'^error: wandb-workspaces is not installed; pip install "rlsparse\[dashboard\]"$'
    ):
        dashboard.main()


@pytest.fixture
def stand_in() -> Iterator[tuple[str, list[dict]]]:
    """Return the address of a server that answers the W&B client for saving, and the list of what it was sent.

    It refuses the project ``not-mine``.
    """
    sent: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            if self.path != "/graphql":
                self.send_error(404)
                return
            query = json.loads(body)
            if "upsertView" in query["query"]:
                sent.append(query["variables"])
            refused = "upsertView" in query["query"] and query["variables"]["projectName"] == "not-mine"
            view = {"view": {"id": "1", "name": query["variables"].get("name")}} if "variables" in query else None
            viewer = {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
            data = {"upsertView": view} if "upsertView" in query["query"] else {"viewer": viewer}
            answer = {"errors": [{"message": "permission denied"}], "data": None} if refused else {"data": data}
            payload = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", sent
        server.shutdown()


@pytest.mark.slow
def test_saving_sends_the_specification_that_was_checked(stand_in, tmp_path):
    address, sent = stand_in
    login = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": address, "WANDB_ERROR_REPORTING": "false"}
    done = call("--experiment", "svamp", "--save", home=tmp_path, **login)
    assert done.returncode == 0, done.stderr
    (view,) = sent
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("me", "rlsparse", "rlsparse svamp")
    assert list(shown(view["spec"])) == list(shown(specification(workspace("p", experiment="svamp"))))
    assert f"saved: {address}/me/rlsparse?nw=" in done.stdout
    refused = call("--project", "not-mine", "--save", home=tmp_path, **login)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: --save: ")
    assert "permission denied" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert (
        call("--save", code=OFFLINE, home=tmp_path, **login).returncode == 99
    )  # the audit hook notices the connection
    assert [view["projectName"] for view in sent] == ["rlsparse", "not-mine"]

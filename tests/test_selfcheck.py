"""The self-check of a machine on the CPU: it passes here, finds what is broken, and its report names no user."""

import getpass
import json
import math
import platform
import socket
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rlsparse.execution.self_check import child, children, memory, parts, paths, resume, speed
from rlsparse.execution.self_check.command import NAMES, check, main
from rlsparse.execution.self_check.environment import name_in_cpuinfo
from rlsparse.execution.self_check.findings import (
    EMBEDDED,
    FAILED,
    PASSED,
    SKIPPED,
    Figure,
    Finding,
    PartResult,
    Setting,
)
from rlsparse.execution.self_check.report import anonymous
from rlsparse.execution.self_check.scene import difference
from rlsparse.model import source
from rlsparse.model.packing import PACKED
from tests.commands import run_command
from tests.conftest import ROOT


@pytest.fixture
def setting(tmp_path) -> Setting:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return Setting("cpu", "tiny", quick=True, scratch=scratch)


def called(monkeypatch, *arguments: object) -> int:
    """Return the exit code of the command line."""
    monkeypatch.setattr(sys, "argv", ["rlsparse-selfcheck", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code)


def private_texts(folder: Path) -> list[str]:
    """Return what a report must not contain."""
    return [text for text in (str(folder), str(Path.home()), str(ROOT), sys.prefix, platform.node()) if text]


def failures(found) -> list[str]:
    return [f"{finding.name}: {finding.reason}" for finding in found if finding.verdict == FAILED]


@pytest.mark.slow
def test_quick_check_of_this_cpu_passes_and_shows_figures_beside_their_bounds(monkeypatch, capsys, tmp_path):
    out = tmp_path / "selfcheck.json"
    chosen = ("environment", "paths", "memory", "speed", "engines")
    assert called(monkeypatch, "--device", "cpu", "--quick", "--out", out, "--only", *chosen) == 0
    text = out.read_text()
    assert not [private for private in private_texts(tmp_path) if private in text]
    report = json.loads(text)
    assert (report["verdict"], report["device"], report["model"]) == (PASSED, "cpu", "tiny")
    assert report["versions"]["torch"] == version("torch")
    verdicts = {part["name"]: part["verdict"] for part in report["parts"]}
    assert verdicts == {**dict.fromkeys(chosen, PASSED), "speed": SKIPPED}
    checks = {part["name"]: {one["name"]: one for one in part["findings"]} for part in report["parts"]}
    gradient = checks["paths"]["algorithm=tspmo"]["figures"]["gradient, fast - float64, relative"]
    assert 0 < gradient["value"] <= gradient["most"]
    kept = checks["paths"]["algorithm=grpo adapter.layers=last_third"]["figures"]
    assert kept["frozen layers whose outputs are kept"] == {"value": 2, "unit": "of 3"}
    for name in ("rollout=fast", "rollout=plain"):
        assert checks["engines"][name]["figures"]["speed"]["value"] > 0
    table = capsys.readouterr().out
    for text in ("same completions", "tokens/s", "1.0e-04 nats", "parts: 4 passed, 0 failed, 1 skipped", str(out)):
        assert text in table


def test_part_that_raises_has_failed_and_the_others_still_run(monkeypatch, capsys, tmp_path):
    home, inside = Path.home() / "models" / "llama", tmp_path / "weights" / "x.bin"

    def broken(_: Setting):
        yield Finding.of("first", Figure("n", 1))
        raise RuntimeError(f"\nno kernel in {home} nor {inside}\nsecond line")

    monkeypatch.setattr(parts, "PARTS", {**parts.PARTS, "paths": broken, "resume": lambda _: [Finding.of("fine")]})
    out = tmp_path / "report.json"
    code = called(monkeypatch, "--device", "cpu", "--out", out, "--only", "environment", "paths", "resume")
    assert code == 1
    text = out.read_text()
    report = json.loads(text)
    assert [(part["name"], part["verdict"]) for part in report["parts"]] == [
        ("environment", PASSED),
        ("paths", FAILED),
        ("resume", PASSED),
    ]
    assert report["parts"][1]["error"].startswith("RuntimeError: no kernel in ~/models/llama nor ")
    assert report["parts"][1]["error"].endswith("x.bin")
    assert [one["name"] for one in report["parts"][1]["findings"]] == ["first"]
    assert not [private for private in private_texts(tmp_path) if private in text]
    assert "parts: 2 passed, 1 failed, 0 skipped" in capsys.readouterr().out


@pytest.mark.slow
def test_paths_that_are_wrong_are_found(monkeypatch, setting):
    """A tenth of a per cent in the log-probabilities of the packed path shows in its values and in its gradient."""

    def wrong(*arguments):
        return 1.001 * PACKED.log_probs(*arguments)

    monkeypatch.setattr(paths, "packed_log_probs", wrong)
    monkeypatch.setattr(paths, "PACKED", replace(PACKED, log_probs=wrong))
    finding = paths._of_config(setting, ("algorithm=tspmo",))
    assert finding.verdict == FAILED
    assert "scoring log-probs, packed - plain" in finding.reason
    assert "gradient, fast - float64, relative" in finding.reason
    assert "gradient, plain" not in finding.reason


def test_update_that_loses_rows_where_memory_runs_out_is_found(monkeypatch, setting):
    """Of the 8 rows, the halved update leaves out those of all microbatches but the first."""
    gradient = memory._gradient

    def lossy(one, path, batch):
        if path in (memory.PACKED, memory.PLAIN):
            return gradient(one, path, batch)
        rows = torch.arange(len(batch.scales))[:, None] < memory.FIT
        return gradient(one, path, replace(batch, scales=batch.scales * rows))

    monkeypatch.setattr(memory, "_gradient", lossy)
    found = list(memory.memory(setting))
    assert [one.verdict for one in found] == [PASSED, FAILED, FAILED, SKIPPED]
    assert all("gradient" in one.reason for one in found[1:3])


TORCHRUN = """
import os, runpy, sys
count, port, module, *arguments = sys.argv[1:]
ranks = []
for rank in range(int(count)):
    ranks.append(os.fork())
    if ranks[-1] == 0:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": count, "TORCHELASTIC_RUN_ID": "test"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        os._exit(0)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks))
"""


@pytest.fixture
def forked(monkeypatch, tmp_path):
    """Have the processes of a self-check, and ranks, fork from one that has imported the package."""
    script = tmp_path / "torchrun.py"
    script.write_text(TORCHRUN)

    def run(command, env, capture_output, text, timeout):
        assert command[:2] == [sys.executable, "-m"]
        if command[2] != "torch.distributed.run":
            return run_command(*command[2:], cwd=ROOT, **env)
        count = command[4].removeprefix("--nproc_per_node=")
        assert command[5:7] == ["-m", children.MODULE]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return run_command(str(script), count, port, *command[6:], cwd=ROOT, **env)

    monkeypatch.setattr(children.subprocess, "run", run)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_resumed_run_equals_the_whole_one_and_one_bit_of_difference_is_seen(forked, setting):
    (finding,) = parts.PARTS["resume"](setting)
    assert failures([finding]) == []
    assert [figure.name for figure in finding.figures if figure.value is True] == [
        "stopped by SIGTERM",
        "resumed after that step",
        "finished",
        "same metrics, times aside",
        "same samples and answers",
        "same bytes of the adapter",
    ]
    cut = setting.scratch / "resume-cut"
    other = children.outcome(cut)
    assert len(other.rows) == 8  # six steps, and an evaluation before and after them
    weights = next(cut.rglob("adapter_model.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # one bit of the last number
    weights.write_bytes(content)
    compared = {figure.name: figure.holds for figure in resume._same_bits(children.outcome(cut), other)}
    assert not compared["same bytes of the adapter"]
    assert compared["same metrics, times aside"]


def outcome_with(tensors: list[float], peak: int = 0, **row: float) -> children.Outcome:
    rows = [{"kind": "train", "step": 1, **row}]
    return children.Outcome("finished", rows, b"", bytes(str(tensors), "ascii"), torch.tensor(tensors), peak)


def test_resumed_run_on_a_device_that_does_not_repeat_its_bits_may_be_ten_times_as_far_as_another_whole_run():
    # the whole run is (3, 4), of length 5; another one is (3, 4.005), 0.001 away; ten times that is 0.01
    whole, again = outcome_with([3.0, 4.0]), outcome_with([3.0, 4.005])
    near, far = ({f.name: f for f in resume._near(outcome_with([3.0, x]), whole, again)} for x in (4.04, 4.06))
    assert near["adapter, two runs without interruption, relative"].value == pytest.approx(0.001, rel=1e-3)
    assert near["adapter, resumed - whole, relative"].value == pytest.approx(0.008, rel=1e-3)
    assert near["adapter, resumed - whole, relative"].holds
    assert far["adapter, resumed - whole, relative"].value == pytest.approx(0.012, rel=1e-3)
    assert not far["adapter, resumed - whole, relative"].holds


def test_limit_of_gpu_memory_is_a_share_of_the_peak_without_it(monkeypatch, setting):
    """The peak is 1000 bytes, so the second process may use 600 of 4000, which is a fraction of 0.15."""
    asked, outcomes = [], iter([outcome_with([1.0], 1000, loss=2.0), outcome_with([1.0], 500, loss=2.001)])

    def do_runs(_, runs, memory=0):
        asked.append(memory)
        return children.Ended(["finished"], "out of memory in training: microbatches of 8 rows" if memory else "")

    monkeypatch.setattr(memory, "do_runs", do_runs)
    monkeypatch.setattr(memory, "outcome", lambda runs: next(outcomes))
    finding = memory._run(replace(setting, device="cuda"))
    assert asked == [0, 600]
    assert finding.verdict == PASSED  # 0.001 of 2 is within 1e-3
    fractions = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(total_memory=4000))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    child._limit_memory("cuda", 600)
    assert fractions == [0.15]


def test_run_that_does_not_run_out_of_memory_or_ends_with_other_numbers_has_failed(monkeypatch, setting):
    ends = {"": 2.0, "out of memory in the rollout": 2.01}  # 2.01 is 5e-3 from 2
    for log, loss in ends.items():
        outcomes = iter([outcome_with([1.0], 1000, loss=2.0), outcome_with([1.0], 500, loss=loss)])
        monkeypatch.setattr(memory, "do_runs", lambda *_, log=log, **__: children.Ended(["finished"], log))
        monkeypatch.setattr(memory, "outcome", lambda runs, outcomes=outcomes: next(outcomes))
        assert memory._run(replace(setting, device="cuda")).verdict == FAILED


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_ranks_have_the_gradient_of_one_process(forked, setting):
    (finding,) = parts.PARTS["ranks"](setting)
    assert failures([finding]) == []
    values = {figure.name: figure for figure in finding.figures}
    assert 0 < values["gradient, relative"].value <= 1e-6  # the ranks add in another order than one process
    assert finding.name.startswith("first step of 2 ranks")


@pytest.mark.slow
def test_process_that_fails_is_an_error_with_its_last_message(forked):
    with pytest.raises(children.ChildError, match=r"exit code 1: KeyError: 'nothing'"):
        children.start([], {"kind": "nothing"})


def test_metrics_are_compared_relative_to_what_is_allowed():
    # 100 and 100.005 differ by 0.005; allowed are 100 · 1e-4 = 0.01; 0 and 5e-7 of 1e-6: half of what is allowed each
    close = children.greatest_ratio([{"a": 100.005, "b": 5e-7}], [{"a": 100.0, "b": 0.0}], 1e-4, 1e-6)
    assert close.value == pytest.approx(0.5)
    assert close.holds
    assert not children.greatest_ratio([{"a": 100.02}], [{"a": 100.0}], 1e-4, 1e-6).holds  # twice as much
    assert not children.greatest_ratio([{"a": 1.0, "b": 2.0}], [{"a": 1.0}], 1e-4, 1e-6).holds
    assert not children.greatest_ratio([{"a": math.nan}], [{"a": 1.0}], 1e-4, 1e-6).holds
    assert not children.greatest_ratio([], [{"a": 1.0}], 1e-4, 1e-6).holds
    assert not children.greatest_ratio([{"kind": "eval"}], [{"kind": "train"}], 1e-4, 1e-6).holds


def test_figure_holds_within_its_bound_and_not_for_nan():
    assert Figure("x", 1e-5, "nats", 1e-5).holds
    assert not Figure("x", 1.1e-5, "nats", 1e-5).holds
    assert not Figure("x", math.nan, "nats", 1e-5).holds
    assert Figure("x", math.nan).holds  # without a bound
    assert Figure("x", True).holds
    assert not Figure("x", False).holds
    assert Finding.of("f", Figure("a", True), Figure("b", False)).reason == "does not hold: b"


def test_verdict_of_a_part_is_that_of_its_worst_finding():
    passed, failed = Finding.of("p", Figure("x", True)), Finding.of("f", Figure("x", False))
    skipped = Finding.skipped("s", "no GPU")
    assert PartResult("n", 0.0, [passed, skipped]).verdict == PASSED
    assert PartResult("n", 0.0, [passed, failed, skipped]).verdict == FAILED
    assert PartResult("n", 0.0, [skipped]).verdict == SKIPPED
    assert PartResult("n", 0.0, [passed], error="RuntimeError: x").verdict == FAILED


def test_report_is_written_after_each_part(setting, tmp_path):
    out, seen = tmp_path / "report.json", []

    def second(_: Setting):
        seen.append([part["name"] for part in json.loads(out.read_text())["parts"]])
        return [Finding.of("x", Figure("not a number", math.inf))]

    report = check(setting, {"one": lambda _: [], "two": second}, out)
    assert seen == [["one"]]
    written = json.loads(out.read_text(), parse_constant=pytest.fail)  # JSON has no infinity
    assert written["parts"][1]["findings"][0]["figures"]["not a number"]["value"] == "inf"
    assert [part.name for part in report.parts] == ["one", "two"]


def test_texts_become_anonymous(monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    monkeypatch.setattr(platform, "node", lambda: "box7")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    assert anonymous("/home/ada/llama/config.json is missing") == "~/llama/config.json is missing"
    assert anonymous("'/data/ada/llama/w.bin' (ada on box7)") == "'<folder>/w.bin' (<user> on <host>)"
    assert anonymous("in /mnt/share/models/") == "in <folder>/"
    assert anonymous("Canada, adam, 3/4 of a/b, https://example.org/a/b") == (
        "Canada, adam, 3/4 of a/b, https://example.org/a/b"
    )
    assert anonymous(f"{ROOT}/rlsparse/batch.py") in ("<code>/rlsparse/batch.py", "<here>/rlsparse/batch.py")


def test_report_names_a_local_model_by_its_last_folder(setting, tmp_path):
    folder = tmp_path / "llama"
    folder.mkdir()
    report = check(replace(setting, model=str(folder)), {}, tmp_path / "report.json")
    assert json.loads(report.text())["model"] == "llama (a local folder)"
    assert replace(setting, model=str(folder)).words()[-1] == f"model.path={folder}"
    assert replace(setting, model="org/name").words()[-1] == "model.name=org/name"


def test_processor_has_its_family_and_model_since_a_virtual_machine_may_hide_its_name():
    x86 = "processor\t: {}\nvendor_id\t: AuthenticAMD\ncpu family\t: {}\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nstepping\t: 1\n\n"
    assert name_in_cpuinfo(x86.format(0, 25) + x86.format(1, 26)) == "AMD EPYC (family 25, model 17)"
    arm = "processor\t: 0\nBogoMIPS\t: 243.75\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n\n"
    assert name_in_cpuinfo(arm) is None
    assert (
        name_in_cpuinfo("processor\t: 0\nmodel name\t: ARMv7 Processor rev 4 (v7l)\n\n")
        == "ARMv7 Processor rev 4 (v7l)"
    )


def test_figures_of_the_benchmark_are_those_of_its_report():
    committed = json.loads((ROOT / "experiments" / "benchmarks" / "vs_trl.json").read_text())
    found = {finding.name: finding for finding in speed._steps(committed)}
    assert len(found) == 3 * 3
    figures = {figure.name: figure for figure in found["tspmo against trl"].figures}
    assert figures["times faster than TRL"].value == committed["time"]["tspmo"]["trl"]
    assert figures["peak memory of TRL"].value == pytest.approx(7.17, abs=0.005)  # GiB; README of the benchmarks
    assert speed._rollout(committed).figures[0].value == committed["rollout"]["ours"]


def test_speed_without_trl_checkout_or_chat_template_is_skipped_with_the_reason(setting, monkeypatch, tmp_path):
    def reason(one: Setting) -> str:
        (finding,) = speed.speed(one)
        assert finding.verdict == SKIPPED
        return finding.reason

    assert "give --model HuggingFaceTB/SmolLM2-135M-Instruct" in reason(setting)
    monkeypatch.setattr(speed, "find_spec", lambda name: None)
    assert "TRL is not installed" in reason(replace(setting, model="org/name"))
    monkeypatch.setattr(speed, "SCRIPT", tmp_path / "vs_trl.py")
    assert "experiments/benchmarks of the checkout" in reason(replace(setting, model="org/name"))


def test_benchmark_gets_the_arguments_of_the_setting_and_its_failure_is_an_error(setting, monkeypatch):
    seen = []

    def run(command, **more):
        seen.append((command, more["env"]["CUDA_VISIBLE_DEVICES"]))
        return subprocess.CompletedProcess(command, 1, "", "Traceback\nValueError: no chat template\n\n")

    monkeypatch.setattr(speed.subprocess, "run", run)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    with pytest.raises(RuntimeError, match="exit code 1: ValueError: no chat template"):
        list(speed.speed(Setting("cuda", "org/name", True, setting.scratch)))
    ((told, devices),) = seen
    assert devices == "3"
    assert told[1] == str(ROOT / "experiments" / "benchmarks" / "vs_trl.py")
    for pair in (["--model", "org/name"], ["--device", "cuda"], ["--steps", "2"], ["--settings", "trl_tuned"]):
        assert told[told.index(pair[0]) + 1] == pair[1]


def test_step_with_vllm_is_timed_where_it_is_installed_and_skipped_with_the_reason_where_not(
    setting, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)  # a checkout may have .venv-vllm
    report, told = json.loads((ROOT / "experiments" / "benchmarks" / "vs_trl.json").read_text()), []

    def run(command, **more):
        told.append(command)
        Path(command[command.index("--out") + 1]).write_text(json.dumps(report))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(speed.subprocess, "run", run)
    reasons = {one.name: one.reason for one in speed.speed(replace(setting, model="org/name"))}
    assert "there is no such program; make vllm" in reasons["W1 with rollout=vllm against TRL"]
    assert len(told) == 1
    monkeypatch.setattr("rlsparse.rollout.vllm.engine.Vllm.check", lambda self, quantized: None)
    names = [one.name for one in speed.speed(replace(setting, model="org/name"))]
    assert "grpo against trl_tuned, rollout=vllm" in names
    ours = told[2]  # the race without vLLM comes first again
    assert "--full-only" in ours
    for pair in (["--overrides", "rollout=vllm"], ["--settings", "trl_tuned"]):
        assert ours[ours.index(pair[0]) + 1] == pair[1]


def test_names_on_the_command_line_are_those_of_the_parts():
    assert tuple(parts.PARTS) == NAMES
    assert set(EMBEDDED) == set(source.EMBEDDED)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_device_that_is_not_there_is_an_error_without_a_report(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["rlsparse-selfcheck", "--device", "cuda", "--out", str(tmp_path / "r.json")])
    with pytest.raises(SystemExit, match="error: device=cuda: torch has no such device here"):
        main()
    assert not (tmp_path / "r.json").exists()
    monkeypatch.setattr(sys, "argv", ["rlsparse-selfcheck", "--out", str(tmp_path / "nowhere" / "r.json")])
    with pytest.raises(SystemExit, match="there is no folder"):
        main()


def test_difference_is_judged_relative_to_the_size_of_the_number():
    # |-20.0002 + 20| = 2e-4 of 1e-4 + 20e-5 = 3e-4; |-1.00009 + 1| = 9e-5 of 1e-4 + 1e-5 = 1.1e-4, which is the larger share
    found = torch.tensor([[-20.0002, -1.00009]], dtype=torch.float64)
    figure = difference("x", found, torch.tensor([[-20.0, -1.0]]), 1e-4)
    assert (figure.value, figure.most) == (pytest.approx(9e-5), pytest.approx(1.1e-4))
    assert figure.holds
    assert not difference("x", torch.tensor([-20.0, math.nan]), torch.tensor([-20.0, -1.0]), 1e-4).holds
    assert not difference("x", torch.zeros(0), torch.zeros(0), 1e-4).holds

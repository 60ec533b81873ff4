"""Machines as strangers have them: W&B's variables and limits, terminals, file systems, files from other editors."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml

from rlsparse.config.compose import compose
from rlsparse.config.schema import ConfigError
from rlsparse.execution.preflight import preflight
from rlsparse.results.claims_file import ClaimError, read_claims
from rlsparse.results.study import ResultsError, read_study
from rlsparse.runtime.distributed import ALONE, join_world
from rlsparse.storage.atomic import read_object, read_yaml, sync, write_whole
from rlsparse.storage.streams import command
from rlsparse.sweep.status import main as status
from rlsparse.tracking.wandb_environment import environment_tags, prepare_environment, root_folder
from rlsparse.tracking.wandb_names import group_name, project_name, shortened, usable_tags, wandb_id

BOM = b"\xef\xbb\xbf"


@pytest.fixture
def no_wandb(monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    return monkeypatch


# names on W&B


def test_names_that_fit_are_unchanged():
    assert wandb_id("svamp", "grpo-s0-0123456789") == "svamp-grpo-s0-0123456789"
    assert len(wandb_id("e" * 97, "grpo-s0-0123456789")) == 116
    assert wandb_id("e" * 97, "grpo-s0-0123456789") == "e" * 97 + "-grpo-s0-0123456789"
    assert group_name("e" * 128) == "e" * 128
    assert usable_tags(["org/model", "t" * 64]) == ["org/model", "t" * 64]


def test_long_names_are_shortened_each_to_another_one():
    ids = [wandb_id("e" * 98, f"grpo-s{seed}-0123456789") for seed in range(3)]
    assert {len(one) for one in ids} == {116}
    assert len(set(ids)) == 3
    assert ids[0] == wandb_id("e" * 98, "grpo-s0-0123456789")
    assert ids[0].startswith("e" * 98)
    assert len(group_name("e" * 129)) == 128
    tags = usable_tags(["m" * 64 + "a", "m" * 64 + "b"])
    assert [len(tag) for tag in tags] == [64, 64]
    assert tags[0] != tags[1]


def test_name_of_long_characters_fits_the_folder_that_wandb_makes():
    name = wandb_id("漢" * 66, "grpo-s0-0123456789")  # 3 bytes each
    assert len(name) == 85
    long = wandb_id("漢" * 80, "grpo-s0-0123456789")
    assert len(os.fsencode(long)) <= 220
    assert len(os.fsencode(f"offline-run-20250101_000000-{long}")) <= 255


def test_half_of_a_surrogate_pair_is_written_as_an_escape():
    assert shortened("a\udcff", 64) == "a\\udcff"


def test_empty_and_repeated_tags_are_left_out(no_wandb):
    assert usable_tags(["grpo", "", " ", "grpo", "a\nb", 7]) == ["grpo", "a b", "7"]
    no_wandb.setenv("WANDB_TAGS", ",a,,b ")
    assert environment_tags() == ["a", "b"]


def test_project_is_that_of_the_config_then_of_the_environment_then_the_default(no_wandb):
    assert project_name(None) == "rlsparse"
    no_wandb.setenv("WANDB_PROJECT", "")
    assert project_name(None) == "rlsparse"
    no_wandb.setenv("WANDB_PROJECT", "mine")
    assert project_name(None) == "mine"
    assert project_name("rlsparse") == "rlsparse"
    assert compose().tracker.project is None


@pytest.mark.parametrize(
    ("overrides", "environment", "message"),
    [
        (["tracker.project=a/b"], {}, "tracker.project=a/b: W&B takes none of"),
        (["tracker.project=''"], {}, "tracker.project=: names no W&B project"),
        ([f"tracker.project={'p' * 129}"], {}, f"tracker.project={'p' * 129}: W&B takes at most 128 characters"),
        ([], {"WANDB_PROJECT": "a:b"}, "WANDB_PROJECT=a:b: W&B takes none of"),
        ([], {"WANDB_MODE": "off"}, "WANDB_MODE=off: must be one of online, offline, disabled"),
    ],
    ids=["slash", "empty", "long", "environment", "mode"],
)
def test_what_wandb_would_refuse_is_refused_before_the_run(overrides, environment, message, no_wandb, tmp_path):
    for name, value in environment.items():
        no_wandb.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        preflight([compose(["tracker=wandb", f"runs_dir={tmp_path}", *overrides])])
    assert str(caught.value).startswith(message)
    assert preflight([compose(["tracker=none", f"runs_dir={tmp_path}"])]).identities


def test_tracker_does_not_change_the_run_id(tmp_path):
    config = compose([f"runs_dir={tmp_path}", "tracker=wandb"])
    other = replace(config, tracker=replace(config.tracker, project="mine", mode="offline"))
    (one,) = preflight([config]).identities
    (two,) = preflight([other]).identities
    assert one.id == two.id


# the environment of W&B


@pytest.mark.parametrize("home", ["file", ""], ids=["unwritable", "none"])
def test_environment_of_wandb_has_folders_that_can_be_written(home, no_wandb, tmp_path):
    (tmp_path / "file").touch()
    no_wandb.setenv("WANDB_RUN_ID", "one")
    no_wandb.setenv("WANDB_TAGS", ",a,")
    no_wandb.setenv("WANDB_DATA_DIR", str(tmp_path / "file"))
    no_wandb.setenv("XDG_CACHE_HOME", "relative")
    with patch.dict(os.environ, {"HOME": home and str(tmp_path / home)}):
        prepare_environment()
        for name in ("XDG_CACHE_HOME", "WANDB_DATA_DIR"):
            folder = Path(os.environ[name])
            assert folder.is_absolute()
            assert os.access(folder, os.W_OK)
        assert os.path.isabs(os.environ["HOME"])
        assert "WANDB_RUN_ID" not in os.environ
        assert os.environ["WANDB_TAGS"] == "a"


def test_wandb_dir_is_used_if_it_can_be_written(no_wandb, tmp_path, capsys):
    run = tmp_path / "run"
    assert root_folder(run) == run
    no_wandb.setenv("WANDB_DIR", str(tmp_path / "new" / "folder"))
    assert root_folder(run) == tmp_path / "new" / "folder"
    (tmp_path / "file").touch()
    no_wandb.setenv("WANDB_DIR", str(tmp_path / "file"))
    assert root_folder(run) == root_folder(run) == run
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"W&B: WANDB_DIR={tmp_path / 'file'} cannot be written")


def begun_run(runs: Path, experiment: str) -> Path:
    """Write the folder of a run that has ended, and return it."""
    folder = runs / experiment / "grpo-s0-0123456789"
    folder.mkdir(parents=True)
    config = {
        "algorithm": "grpo",
        "experiment": {"name": experiment},
        "model": {"name": "org/" + "m" * 90},
        "task": {"_target_": "mine.Own"},
        "tracker": {"name": "wandb", "project": None, "entity": None, "mode": "auto", "tags": ["", "t" * 80]},
    }
    (folder / "config.yaml").write_bytes(BOM + yaml.safe_dump(config).replace("\n", "\r\n").encode())
    (folder / "metrics.jsonl").write_text('{"step": 0, "kind": "eval", "eval/accuracy_greedy": 0.5}\n')
    (folder / "samples.jsonl").write_text("")
    return folder


@pytest.mark.slow
def test_sync_heeds_the_variables_of_wandb_and_replaces_only_its_own_run(no_wandb, tmp_path):
    """Names are longer than W&B allows, and there is no home folder."""
    experiment, elsewhere = "e" * 150, tmp_path / "elsewhere"
    begun_run(tmp_path / "runs", experiment)
    other = elsewhere / "wandb" / "offline-run-20250101_000000-other-grpo-s0-0123456789"
    other.mkdir(parents=True)
    variables = {
        "WANDB_DIR": str(elsewhere),
        "WANDB_PROJECT": "mine",
        "WANDB_ENTITY": "team",
        "WANDB_TAGS": "a,,b",
        "WANDB_NOTES": "a note",
        "WANDB_RUN_ID": "one",
        "WANDB_RUN_GROUP": "one",
        "WANDB_NAME": "one",
        "WANDB_SWEEP_ID": "one",
        "WANDB_MODE": "offline",
    }
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    sync_command = [sys.executable, "-m", "rlsparse.sync", "--runs", str(tmp_path / "runs")]
    for _ in range(2):
        done = subprocess.run(sync_command, env={**environment, **variables}, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    name = wandb_id(experiment, "grpo-s0-0123456789")
    offline = [path for path in (elsewhere / "wandb").glob("offline-run-*") if path != other]
    assert other.is_dir()
    assert [path.name.split("-", 3)[3] for path in offline] == [name]  # the second time has replaced the first
    assert not (tmp_path / "runs" / experiment / "grpo-s0-0123456789" / "wandb").exists()
    inspect = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", str(offline[0])]
    printed = subprocess.run(inspect, capture_output=True, text=True, check=True).stdout
    records = [json.loads(line) for line in printed.splitlines()]
    (run,) = [record["run"] for record in records if record["type"] == "run"]
    assert (run["project"], run["entity"], run["notes"]) == ("mine", "team", "a note")
    assert (run["run_id"], run["display_name"]) == (name, "grpo-s0-0123456789")
    assert (run["run_group"], run["job_type"]) == (group_name(experiment), "grpo")
    long = ["org/" + "m" * 90, "t" * 80]
    assert run["tags"] == usable_tags(["grpo", long[0], "Own", long[1], "a", "b"])


@pytest.mark.slow
def test_sync_says_that_wandb_is_turned_off(no_wandb, tmp_path):
    begun_run(tmp_path, "study")
    no_wandb.setenv("WANDB_DISABLED", "true")
    done = subprocess.run(
        [sys.executable, "-m", "rlsparse.sync", "--runs", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: W&B is turned off")
    assert "Traceback" not in done.stderr


# terminals


def run_python(code: str, stdout: int, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-c", code], stdout=stdout, stderr=subprocess.PIPE, env={**os.environ, **environment}
    )


PRINT = "from rlsparse.storage.streams import prepare_streams; prepare_streams()\n"


def test_character_that_the_terminal_cannot_show_is_printed_as_an_escape():
    code = PRINT + r"print('3 \u00b1 1, \udcff')"
    done = run_python(code, subprocess.PIPE, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"3 \\xb1 1, \\udcff\n", b"")


def test_work_continues_when_the_reader_of_a_pipe_has_gone(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    code = PRINT + f"[print('x' * 10**5) for _ in range(9)]; open({str(tmp_path / 'end')!r}, 'w').close()"
    done = run_python(code, writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "end").exists()


def test_full_disk_behind_standard_output_ends_a_command_with_one_line(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "wb") as full:
        done = run_python(PRINT + "print('x')", full.fileno())
    expected = f"error: standard output cannot be written ({os.strerror(errno.ENOSPC)})\n"
    assert (done.returncode, done.stderr.decode()) == (1, expected)


def test_closed_stream_is_replaced_so_that_no_file_takes_its_number(tmp_path):
    code = PRINT + f"import os; print(os.open({str(tmp_path)!r}, os.O_RDONLY) > 2)"
    shell = f'exec "{sys.executable}" -c "$CODE" 2>&- <&-'
    done = subprocess.run(["sh", "-c", shell], env={**os.environ, "CODE": code}, stdout=subprocess.PIPE)
    assert done.stdout == b"True\n"


def test_folder_whose_name_is_too_long_ends_a_command_with_one_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["status", "--runs", "x" * 300])
    with pytest.raises(SystemExit, match=r"^error: x{300}: cannot be read or written \(File name too long\)$"):
        status()


def test_error_without_a_file_keeps_its_traceback():
    @command()
    def fails() -> None:
        raise OSError("no file")

    with pytest.raises(OSError, match="no file"):
        fails()


# files from other editors


def test_files_with_a_byte_order_mark_are_read_as_without(tmp_path):
    (tmp_path / "summary.json").write_bytes(BOM + b'{"status": "finished"}\r\n')
    (tmp_path / "config.yaml").write_bytes(BOM + b"seed: 1\r\nmodel:\r\n  name: tiny\r\n")
    (tmp_path / "claims.yaml").write_bytes(BOM + b"baseline: grpo\r\nclaims: []\r\n")
    (tmp_path / "results.csv").write_bytes(BOM + b"method,id,status\r\ngrpo,a,finished\r\n")
    (tmp_path / "curves.csv").write_bytes(BOM + b'"method",step\r\ngrpo,2\r\n')
    assert read_object(tmp_path / "summary.json") == {"status": "finished"}
    assert read_yaml(tmp_path / "config.yaml") == {"seed": 1, "model": {"name": "tiny"}}
    study = read_study(tmp_path)
    assert study.claims is not None
    assert (study.claims.baseline, study.claims.claims) == ("grpo", [])
    assert study.runs.to_dict("records") == [{"method": "grpo", "id": "a", "status": "finished"}]
    assert study.curves.to_dict("records") == [{"method": "grpo", "step": 2}]


def test_header_of_an_experiment_with_a_byte_order_mark_counts(tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\r\nexperiment:\r\n  name: mine\r\ntrain:\r\n  steps: 7\r\n"
    (tmp_path / "experiment" / "mine.yaml").write_bytes(BOM + text.encode())
    config = compose(["experiment=mine"], [str(tmp_path)])
    assert (config.experiment.name, config.train.steps) == ("mine", 7)


@pytest.mark.parametrize("content", [b"method;id;status\ngrpo;a;finished\n", b"method,id,status\ngrpo,\xe9,finished\n"])
def test_results_that_are_no_csv_in_utf8_are_refused_with_their_name(content, tmp_path):
    (tmp_path / "results.csv").write_bytes(content)
    with pytest.raises(ResultsError, match=r"results\.csv: "):
        read_study(tmp_path)


def test_claims_that_are_not_utf8_are_refused_with_their_name(tmp_path):
    (tmp_path / "claims.yaml").write_bytes(b"claims: [] # \xe9")
    with pytest.raises(ClaimError, match=r"claims\.yaml: is not UTF-8 text"):
        read_claims(tmp_path / "claims.yaml")


# file systems and other programs


def test_file_system_that_cannot_flush_is_accepted(tmp_path):
    status_file = Path("/proc/self/status")
    if not status_file.exists():
        pytest.skip("this system has no /proc")
    descriptor = os.open(status_file, os.O_RDONLY)
    with pytest.raises(OSError, match="Invalid argument"):
        os.fsync(descriptor)
    os.close(descriptor)
    sync(status_file)
    write_whole(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"


def test_full_disk_is_reported_before_the_run():
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(ConfigError, match=r"^runs_dir=/dev/full: cannot be written"):
        preflight([compose(["runs_dir=/dev/full", "tracker=none"])])


def test_world_size_of_another_program_is_not_read(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "all")
    assert join_world() is ALONE


@pytest.mark.slow
def test_dry_run_that_cannot_print_does_not_train(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "rlsparse.run", "--dry-run", f"runs_dir={tmp_path / 'runs'}", "tracker=none"],
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: standard output cannot be written")
    assert not (tmp_path / "runs" / "default").exists()


@pytest.mark.slow
def test_run_with_little_address_space_judges_formulas(tmp_path):
    """Below 4 GiB, which the process of math-verify would take, and near what torch itself needs."""
    data = tmp_path / "data"
    data.mkdir()
    row = json.dumps({"question": "3+4", "answer": r"#### \frac{7}{x}"})  # a formula
    for split in ("train", "test"):
        (data / f"{split}.jsonl").write_text(row)
    short = "train.steps=1 train.prompts_per_step=1 train.group_size=2 eval.max_rows=1 rollout.max_new_tokens=8"
    words = f"{short} task=gsm8k task.path={data} task.answer_format=last_number tracker=none runs_dir={tmp_path}/runs"
    command_line = f"ulimit -v 4000000; exec {sys.executable} -m rlsparse.run {words}"
    done = subprocess.run(["bash", "-c", command_line], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    (summary,) = (tmp_path / "runs" / "default").glob("*/summary.json")
    assert json.loads(summary.read_text())["status"] == "finished"

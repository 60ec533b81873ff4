"""The CPU threads of a run: the number of threads=auto, the share under a launcher, and the warning of too many."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import joblib
import pytest
import torch

from rlsparse.config.checks import problems
from rlsparse.config.compose import config_dir
from rlsparse.config.run_id import Inputs, identify
from rlsparse.config.schema import ConfigError, EvaluateConfig
from rlsparse.execution.run_once import run
from rlsparse.runtime import devices
from rlsparse.runtime.devices import SMALL_MODEL, auto_threads, cpu_threads, sharing_cpus
from rlsparse.runtime.distributed import ALONE, World
from rlsparse.runtime.machine import (
    Machine,
    Work,
    busy_threads,
    cpu_quota,
    first_number,
    listed,
    other_runs,
    oversubscription,
    runs_folder,
)
from rlsparse.sweep.launchers import launcher_spec, limit_threads, resolve_settings, share_of_cpus
from tests.conftest import ROOT, composed, composed_warm_start
from tests.test_launchers import launcher

LARGE = SMALL_MODEL  # parameters; a model below this is small
TWO = frozenset({0, 1})


def work(threads: int, cpus: frozenset[int] = TWO, processes: int = 1) -> Work:
    return Work(threads, processes, cpus)


def machine(cpus: int = 2, others: tuple[Work, ...] = (), busy: float = 0.0, quota: float | None = None) -> Machine:
    return Machine(cpus, quota, others, busy)


# the key


def test_threads_are_auto_by_default_in_a_run_a_warm_start_and_an_evaluation():
    assert composed().threads == "auto"
    assert composed_warm_start("out=new").threads == "auto"
    assert "\nthreads: auto " in Path(config_dir(), "evaluate.yaml").read_text()


@pytest.mark.parametrize(("word", "value"), [("auto", "auto"), ("2", 2), ("'2'", 2), ("null", None), ("1024", 1024)])
def test_threads_may_be_auto_or_a_number_or_null(word, value):
    config = composed(f"threads={word}")
    assert (config.threads, type(config.threads)) == (value, type(value))
    assert problems(config) == []


@pytest.mark.parametrize("word", ["0", "-1", "1025", "many", "AUTO", "''"])
def test_other_threads_are_refused_with_what_would_be_right(word):
    value = word.strip("'")
    try:
        found = "\n".join(problems(composed(f"threads={word}")))
    except ConfigError as error:
        found = str(error)
    assert found == f"threads={value}: must be auto or a whole number in [1, 1024]"


def test_threads_of_an_evaluation_are_checked_too():
    values = dict.fromkeys(EvaluateConfig.__dataclass_fields__)
    assert EvaluateConfig(**{**values, "threads": "auto"}).threads == "auto"
    with pytest.raises(ConfigError, match="threads=all: must be auto"):
        EvaluateConfig(**{**values, "threads": "all"})


def test_threads_from_an_environment_variable_are_a_number(monkeypatch):
    monkeypatch.setenv("CORES_OF_THIS_TEST", "3")
    assert composed("threads=${oc.env:CORES_OF_THIS_TEST}").threads == 3


def test_number_of_threads_does_not_change_the_run_id():
    ids = {identify(composed(f"threads={word}"), Inputs({}, None, "cpu")).id for word in ("auto", "null", "1", "2")}
    assert len(ids) == 1


# threads=auto


@pytest.mark.parametrize(
    ("parameters", "environment", "default", "cpus", "expected"),
    [
        (LARGE - 1, {"OMP_NUM_THREADS": "8", "SLURM_CPUS_PER_TASK": "4"}, 16, 16, 1),  # small
        (LARGE, {"OMP_NUM_THREADS": "8", "SLURM_CPUS_PER_TASK": "4"}, 16, 16, 8),  # OMP_NUM_THREADS comes first
        (LARGE, {"OMP_NUM_THREADS": "8"}, 2, 2, 8),  # also if it is more than there is: the warning says so
        (LARGE, {"OMP_NUM_THREADS": "3,2"}, 16, 16, 3),  # three threads, and two within each
        (LARGE, {"OMP_NUM_THREADS": "", "SLURM_CPUS_PER_TASK": "4"}, 16, 16, 4),
        (LARGE, {"SLURM_CPUS_PER_TASK": "4"}, 2, 64, 4),
        (LARGE, {"SLURM_CPUS_PER_TASK": "4"}, 1, 1, 1),  # srun has bound the task to one CPU
        (LARGE, {}, 8, 16, 8),  # 8 cores with two hardware threads each
        (LARGE, {}, 64, 2, 2),  # a container with two CPUs on a machine with 64
    ],
)
def test_auto_threads_follow_the_model_the_environment_and_the_cpus(parameters, environment, default, cpus, expected):
    assert auto_threads(parameters, environment, default, cpus) == expected


@pytest.mark.parametrize(
    ("text", "number"),
    [("4", 4), (" 4 ", 4), ("4,2", 4), ("08", 8), ("0", None), ("-2", None), ("", None), (None, None), ("all", None)],
)
def test_first_number_of_a_variable_is_above_0_or_none(text, number):
    assert first_number(text) == number


@pytest.mark.parametrize(("threads", "expected"), [(3, 3), ("auto", 2), (None, 2)])
def test_threads_of_torch_are_those_of_the_key_within_the_context_only(threads, expected, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    before = torch.get_num_threads()
    with cpu_threads(threads, LARGE):
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == before


# the share under a launcher


@pytest.mark.parametrize(("cpus", "runs", "share"), [(8, 4, 2), (8, 3, 2), (2, 2, 1), (2, 4, 1), (64, 8, 8)])
def test_share_of_a_run_is_the_cpus_divided_by_the_runs(cpus, runs, share):
    assert share_of_cpus(cpus, runs) == share


@pytest.mark.parametrize(
    ("given", "share", "kept"), [("8", 2, "2"), ("1", 2, "1"), (None, 2, None), ("8,4", 2, "2"), ("x", 2, "x")]
)
def test_omp_threads_of_all_runs_are_lowered_to_the_share_of_each(given, share, kept, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    limit_threads(share)
    assert os.environ.get("OMP_NUM_THREADS") == kept


@pytest.mark.slow
@pytest.mark.parametrize(("given", "runs", "at_a_time"), [(None, 2, 2), ("64", 2, 2), (None, 1, 1)])
def test_process_of_joblib_has_the_share_of_a_run(given, runs, at_a_time, monkeypatch):
    """joblib divides the CPUs by n_jobs if OMP_NUM_THREADS is not set; a sweep may have fewer runs."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    node = launcher("joblib", n_jobs=2)
    omp_threads = partial(os.getenv, "OMP_NUM_THREADS")  # no function of this file, which takes seconds to import
    check = launcher_spec(node).prepare(resolve_settings(node), omp_threads, runs)
    assert check(omp_threads) == str(max(1, joblib.cpu_count() // at_a_time))


@pytest.mark.parametrize(("address", "kept"), [(None, "4"), ("auto", "64")])
def test_tasks_of_an_own_ray_cluster_have_the_threads_of_their_cores(address, kept, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    node = launcher("ray", ray={"init": {"address": address}, "remote": {"num_cpus": 4}})
    launcher_spec(node).prepare(resolve_settings(node), lambda: None, 2)
    assert os.environ["OMP_NUM_THREADS"] == kept


# CPUs and load


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000\n"}, 1.5),  # 150 ms of each 100 ms
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "400000 100000\n"}, 4.0),  # of the parent
        ("0::/a/b\n", {"a/b/cpu.max": "200000 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),  # the smaller one
        ("0::/of/the/host\n", {"cpu.max": "200000 100000\n"}, 2.0),  # in a container
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("4:cpu,cpuacct:/a\n0::/\n", {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"}, 3.0),
        ("4:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, None),
        ("3:cpuset:/a\n", {"cpu/a/cpu.cfs_quota_us": "100000", "cpu/a/cpu.cfs_period_us": "100000"}, None),
        ("nonsense\n", {"cpu.max": "nonsense"}, None),
    ],
)
def test_cpu_quota_is_the_smallest_of_the_cgroups_of_a_process(membership, files, quota, tmp_path):
    cgroups = write(tmp_path / "cgroup", {"made": "", **files})
    named = write(tmp_path, {"membership": membership}) / "membership"
    assert cpu_quota(cgroups, named) == quota


def test_cpu_quota_without_cgroups_is_none(tmp_path):
    assert cpu_quota(tmp_path, tmp_path / "membership") is None


@pytest.mark.parametrize(
    ("load", "states", "busy"),
    [
        ("3.50 1.00 0.50 5/300 77", "R", 3.5),  # 5 - 1 of this process = 4 can run now; the average is smaller
        ("3.50 1.00 0.50 2/300 77", "R", 1.0),  # the programs of the last minute have ended, except one
        ("0.20 1.00 0.50 9/300 77", "R", 0.2),  # a short peak
        ("3.50 1.00 0.50 5/300 77", "RRSR", 2.0),  # 5 - 3 threads of this process; one of its threads sleeps
        ("3.50 1.00 0.50 1/300 77", "RR", 0.0),  # one of its threads has ended in between: never below 0
        ("nonsense", "R", 0.0),
    ],
)
def test_busy_threads_have_computed_for_a_minute_and_still_do(load, states, busy, tmp_path):
    # a name may have spaces and brackets in it
    tasks = write(tmp_path / "task", {f"{at}/stat": f"{at} (a) R b) {one} 1 2" for at, one in enumerate(states)})
    (tasks / "99").mkdir()  # it has ended
    file = write(tmp_path, {"loadavg": load}) / "loadavg"
    assert busy_threads(file, tasks) == busy
    assert busy_threads(tmp_path / "none", tmp_path / "none") == 0.0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_busy_threads_of_this_machine_are_at_most_its_load_average():
    assert 0 <= busy_threads() <= os.getloadavg()[0] + 1  # between the two readings it changes by less than 1


# the warning


def test_run_alone_with_as_many_threads_as_cpus_has_no_warning():
    assert oversubscription(work(2), machine()) is None
    assert oversubscription(work(1), machine(busy=0.7)) is None


def test_two_runs_with_two_threads_each_on_two_cpus_have_a_warning():
    assert oversubscription(work(2), machine(others=(work(2),))) == (
        "this run computes with 2 threads, and 1 other run with 2 threads on 2 CPUs; both get much slower; "
        "give threads=1 to each, or run them one after the other"
    )


def test_several_other_runs_are_summed_up_and_the_remedy_is_the_share_of_each():
    cpus = frozenset(range(8))
    others = (work(4, cpus), work(1, cpus))  # 4 + 4 + 1 = 9 threads on 8 CPUs; 8 / 3 runs = 2.67
    assert oversubscription(work(4, cpus), machine(8, others)) == (
        "this run computes with 4 threads, and 2 other runs with 5 threads on 8 CPUs; all get much slower; "
        "give threads=2 to each, or run them one after the other"
    )
    assert oversubscription(work(3, cpus), machine(8, others)) is None  # 3 + 4 + 1 = 8 threads


def test_runs_with_one_thread_each_share_the_cpus_without_a_warning():
    assert oversubscription(work(1), machine(others=(work(1), work(1), work(1)))) is None
    assert oversubscription(work(1), machine(others=(work(2),))) is not None  # the other one waits for its own threads


def test_runs_on_different_cpus_do_not_count():
    first, second = frozenset({0, 1}), frozenset({2, 3})
    assert oversubscription(work(2, first), machine(4, (work(2, second),))) is None
    # all four CPUs belong to one of the two runs: 2 + 3 = 5 threads on 4 CPUs, then 2 + 2 = 4 threads
    everywhere = first | second
    assert oversubscription(work(2, first), machine(4, (work(3, everywhere),))) is not None
    assert oversubscription(work(2, first), machine(4, (work(2, everywhere),))) is None


def test_run_with_more_threads_than_cpus_has_a_warning_also_alone():
    assert oversubscription(work(8), machine()) == (
        "this run computes with 8 threads on 2 CPUs, which makes it much slower; give threads=2"
    )
    assert oversubscription(work(8, frozenset(range(8))), machine(64, quota=2.0)) == (
        "this run computes with 8 threads on 2 CPUs, which makes it much slower; give threads=2"
    )
    # a quota of half a CPU is one CPU
    assert oversubscription(work(2, frozenset({5})), machine(64, quota=0.5)) == (
        "this run computes with 2 threads on 1 CPU, which makes it much slower; give threads=1"
    )


def test_ranks_of_a_run_are_its_processes():
    # 2 ranks with 2 threads each on 2 CPUs: 4 threads; 2 CPUs / 2 ranks = 1
    assert oversubscription(work(2, processes=2), machine()) == (
        "this run computes with 4 threads on 2 CPUs, which makes it much slower; give threads=1"
    )
    assert oversubscription(work(1, processes=4), machine()) is None  # one thread each: no rank waits for its own


def test_other_programs_that_have_computed_for_a_minute_cause_a_warning():
    cpus = frozenset(range(4))
    # 4 - 1.5 = 2.5 CPUs are free
    assert oversubscription(work(4, cpus), machine(4, busy=1.5)) == (
        "this run computes with 4 threads on a machine with 4 CPUs, on which other programs compute with about "
        "1.5 threads (load average of the last minute); both get much slower; give threads=2, or wait until they "
        "have ended"
    )
    assert oversubscription(work(2, cpus), machine(4, busy=1.5)) is None  # 2 + 1.5 threads on 4 CPUs
    assert oversubscription(work(4, cpus), machine(4, busy=0.5)) is None  # less than LEAST_LOAD: a short peak
    assert oversubscription(work(1, cpus), machine(4, busy=9.0)) is None  # one thread: it shares without a loss


def test_load_of_other_runs_is_not_counted_twice():
    cpus = frozenset(range(4))
    # the load of 2.2 is that of the other run with 2 threads, and 0.2 of other programs: 2 + 2 threads on 4 CPUs
    assert oversubscription(work(2, cpus), machine(4, (work(2, cpus),), busy=2.2)) is None
    # 1.0 of other programs: 4 - 2 - 1 = 1 CPU is free
    line = oversubscription(work(2, cpus), machine(4, (work(2, cpus),), busy=3.0))
    assert line is not None
    assert "about 1.0 threads" in line
    assert "give threads=1" in line


def test_load_of_a_large_machine_is_compared_with_all_its_cpus():
    """The load average counts the whole machine, also where this process may use a part of it."""
    assert oversubscription(work(4, frozenset(range(4))), machine(64, busy=40.0)) is None  # 40 + 4 threads on 64 CPUs
    assert oversubscription(work(4, frozenset(range(4))), machine(64, busy=62.0)) is not None


# the list of runs

LISTED = """
import sys
from pathlib import Path
from rlsparse.runtime.machine import Work, listed
with listed(Work(int(sys.argv[2]), 1, frozenset({0, 1})), Path(sys.argv[1])):
    print("listed", flush=True)
    sys.stdin.readline()
print("ended", flush=True)
"""


class Other:
    """Another process, which is listed with some threads until it is told to end."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", LISTED, str(folder), str(threads)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "listed\n"

    def end(self) -> None:
        self.process.communicate("\n", timeout=60)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)
        assert self.process.returncode == -signal.SIGKILL


@pytest.fixture
def others():
    started: list[Other] = []

    def start(folder: Path, threads: int) -> Other:
        started.append(Other(folder, threads))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.kill()


def test_other_processes_are_listed_until_they_end_or_are_killed(others, tmp_path):
    folder = tmp_path / "runs"
    assert other_runs(folder) == []  # there is no such folder
    first, second = others(folder, 2), others(folder, 3)
    assert sorted(one.threads for one in other_runs(folder)) == [2, 3]
    assert other_runs(folder)[0] == Work(other_runs(folder)[0].threads, 1, TWO)
    with listed(work(5), folder):
        assert sorted(one.threads for one in other_runs(folder)) == [2, 3]  # without this process
        assert len(list(folder.iterdir())) == 3
    second.kill()
    assert len(list(folder.iterdir())) == 2  # the killed process has left its file
    assert [one.threads for one in other_runs(folder)] == [2]
    assert len(list(folder.iterdir())) == 1
    first.end()
    assert other_runs(folder) == []
    assert list(folder.iterdir()) == []


def test_this_process_stays_listed_while_it_looks_at_the_others(others, tmp_path):
    """A lock of this kind ends when its process closes any opening of the file."""
    folder = tmp_path / "runs"
    with listed(work(5), folder):
        other_runs(folder)
        code = (
            "import sys; from pathlib import Path; from rlsparse.runtime.machine import other_runs; "
            "print([one.threads for one in other_runs(Path(sys.argv[1]))])"
        )
        done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout == "[5]\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_child_process_does_not_keep_the_lock_of_a_killed_run(tmp_path):
    folder = tmp_path / "runs"
    code = (
        "import os, sys, time; from pathlib import Path; from rlsparse.runtime.machine import Work, listed\n"
        "with listed(Work(2, 1, frozenset({0})), Path(sys.argv[1])):\n"
        "    child = os.fork()\n"
        "    if child == 0: time.sleep(60); os._exit(0)\n"
        "    print(child, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    try:
        assert [one.threads for one in other_runs(folder)] == [2]
        parent.kill()
        parent.wait(timeout=60)
        os.kill(child, 0)  # it is still there, with the open file
        assert other_runs(folder) == []
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


def test_folder_that_others_may_write_is_not_used(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    folder.chmod(0o777)
    with listed(work(2), folder):
        assert list(folder.iterdir()) == []
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(target)
    with listed(work(2), tmp_path / "link"):
        assert list(target.iterdir()) == []


def test_unreadable_file_in_the_folder_is_not_a_run(others, tmp_path):
    folder = tmp_path / "runs"
    others(folder, 2)
    (file,) = folder.iterdir()
    content = json.loads(file.read_text())
    assert content == {"threads": 2, "processes": 1, "cpus": [0, 1]}
    file.write_text("{")  # its process still holds the lock
    assert other_runs(folder) == []
    assert file.exists()


def test_errors_of_a_run_pass_through_its_listing(tmp_path):
    with pytest.raises(OSError, match="disk is full"), listed(work(1), tmp_path / "runs"):
        raise OSError("disk is full")
    assert list((tmp_path / "runs").iterdir()) == []


def test_folder_of_the_list_belongs_to_this_user_and_machine():
    name = runs_folder().name
    assert name.startswith(f"rlsparse-cpus-{os.getuid()}-")
    assert "/" not in name


# a run


@pytest.fixture
def quiet_machine(monkeypatch, tmp_path):
    """A machine with two CPUs on which nothing else computes, and a list of runs of its own."""
    folder = tmp_path / "runs"
    monkeypatch.setattr(devices, "runs_folder", lambda: folder)
    monkeypatch.setattr(devices, "allowed_cpus", lambda: TWO)
    now = lambda folder: Machine(2, None, other_runs(folder), 0.0)  # noqa: E731
    monkeypatch.setattr(devices.Machine, "now", now)
    return folder


def test_run_is_listed_with_the_threads_of_torch_and_warns_of_another(quiet_machine, others, logged):
    with cpu_threads(2, LARGE):
        with sharing_cpus(torch.device("cpu"), ALONE):
            assert [json.loads(file.read_text())["threads"] for file in quiet_machine.iterdir()] == [2]
        assert logged == []
        others(quiet_machine, 2)
        with sharing_cpus(torch.device("cpu"), ALONE):
            pass
    assert len(logged) == 1
    assert logged[0].startswith("warning: this run computes with 2 threads, and 1 other run with 2 threads on 2 CPUs;")


def test_run_on_a_gpu_counts_as_one_thread(quiet_machine, others, logged):
    others(quiet_machine, 1)
    with cpu_threads(2, LARGE), sharing_cpus(torch.device("cuda"), ALONE):
        pass
    assert logged == []


def test_ranks_of_torchrun_on_this_machine_count(quiet_machine, monkeypatch, logged):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with cpu_threads(2, LARGE), sharing_cpus(torch.device("cpu"), World(0, 4, 0)):  # 4 ranks on two machines
        assert [json.loads(file.read_text())["processes"] for file in quiet_machine.iterdir()] == [2]
    assert len(logged) == 1
    assert "this run computes with 4 threads on 2 CPUs" in logged[0]


@pytest.mark.slow
def test_run_warns_once_at_its_start_and_continues(quiet_machine, others, logged, tmp_path):
    others(quiet_machine, 2)
    short = ["train.steps=1", "eval.max_rows=2", "tracker=none", f"runs_dir={tmp_path / 'out'}"]
    summary = run(composed(*short, "threads=2"))
    assert summary["status"] == "finished"
    assert len([line for line in logged if "1 other run with 2 threads on 2 CPUs" in line]) == 1
    assert len(list(quiet_machine.iterdir())) == 1  # only the other one is still listed

"""What we know of Hydra's launchers, and where their runs go."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from omegaconf import OmegaConf
from submitit.slurm.slurm import SlurmJob

from rlsparse.config.schema import ConfigError
from rlsparse.runtime.distributed import ALONE, World
from rlsparse.runtime.gpus import own_gpu
from rlsparse.sweep.launchers import ENGINES, engine_of, gpu_count, settings_of
from rlsparse.sweep.slurm import ask_the_queue
from rlsparse.training import setup as workplace
from tests.conftest import ROOT, composed

CONF = ROOT / "conf" / "hydra" / "launcher"
NAMES = ("local", "joblib", "slurm", "ray")


def launcher(name: str, /, **changed):
    return OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), changed)


def settings(name: str, /, **changed):
    fixed = {"joblib": {"n_jobs": 2}, "slurm": {"name": "n", "submitit_folder": "f"}}.get(name, {})
    return settings_of(launcher(name, **{**fixed, **changed}))


def test_every_file_is_a_launcher_that_we_know():
    assert sorted(file.stem for file in CONF.glob("*.yaml")) == sorted(NAMES)
    assert {OmegaConf.load(CONF / f"{name}.yaml")._target_ for name in NAMES} == set(ENGINES)


@pytest.mark.parametrize("name", NAMES)
def test_its_keys_are_those_of_the_plugin(name):
    assert settings(name)["_target_"] in ENGINES
    if name != "local":
        with pytest.raises(ConfigError, match=r"hydra\.launcher\.partitoin"):
            settings(name, partitoin="gpu")


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("slurm", "signal_delay_s", 20000, r"signal_delay_s=20000: each job .* give less than 14400"),
        ("joblib", "n_jobs", "many", r"hydra\.launcher\.n_jobs: Value 'many'"),
        ("joblib", "n_jobs", 0, r"hydra\.launcher\.n_jobs=0: give the number"),
        ("slurm", "timeout_min", 0, r"hydra\.launcher\.timeout_min=0: must be at least 1"),
        ("slurm", "gpus_per_node", "two", r"hydra\.launcher\.gpus_per_node: Value 'two'"),
    ],
)
def test_a_bad_value_is_named(name, key, value, message):
    with pytest.raises(ConfigError, match=message):
        settings(name, **{key: value})


@pytest.mark.parametrize("name", ["joblib", "slurm", "ray"])
def test_a_missing_extra_says_which(name, monkeypatch):
    module = ENGINES[OmegaConf.load(CONF / f"{name}.yaml")._target_].schema.partition(":")[0]
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(
        ConfigError, match=rf'hydra/launcher={name}: is not installed .*pip install "rlsparse\[{name}\]"'
    ):
        settings(name)


def test_ranks_take_no_other_launcher(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert settings("local")
    with pytest.raises(ConfigError, match="hydra/launcher=joblib: under torchrun"):
        settings("joblib")


def test_the_device_of_runs_elsewhere_is_what_they_ask_for():
    def device(name, /, **changed):
        engine = engine_of(launcher(name))
        return engine.device and engine.device(settings(name, **changed))

    assert device("local") is None
    assert device("joblib") is None
    assert device("slurm") == "cpu"
    assert device("slurm", gpus_per_node=1) == "cuda"
    assert device("ray") == "cpu"
    assert device("ray", ray={"remote": {"num_gpus": 0.5}}) == "cuda"


def test_runs_side_by_side():
    def count(name, /, **changed):
        return engine_of(launcher(name)).at_a_time(settings(name, **changed))

    assert count("local") == 1
    assert count("joblib", n_jobs=3) == 3
    assert count("slurm", array_parallelism=7) == 7
    assert count("ray", ray={"init": {"num_cpus": 8}, "remote": {"num_cpus": 2}}) == 4
    assert count("ray", ray={"init": {"num_cpus": 8, "num_gpus": 2}, "remote": {"num_gpus": 1}}) == 2
    assert count("ray", ray={"init": {"address": "auto"}}) is None


def test_runs_side_by_side_have_different_gpus(tmp_path):
    with own_gpu(tmp_path, 4, 2) as first, own_gpu(tmp_path, 4, 2) as second:
        assert (first, second) == ("cuda:0", "cuda:1")
        with own_gpu(tmp_path, 4, 2) as third:  # a third run at a time goes where the first is
            assert third == "cuda:0"
    with own_gpu(tmp_path, 4, 2) as again:  # whoever is done leaves its place
        assert again == "cuda:0"


def test_a_place_is_never_given_twice_at_a_time(tmp_path):
    held, most, lock = [], [], threading.Lock()

    def work():
        for _ in range(20):
            with own_gpu(tmp_path, 3, 3) as device:
                with lock:
                    held.append(device)
                    most.append(max(map(held.count, held)))
                with lock:
                    held.remove(device)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 60
    assert max(most) == 1


def test_a_gpu_is_a_certain_one(monkeypatch):
    """torch.cuda.set_device wants its number; ranks of a machine take one each."""
    monkeypatch.setattr(workplace, "resolve_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def named(device, ranks=ALONE):
        return str(workplace.device_of(composed(f"device={device}"), ranks))

    assert [named("cpu"), named("cuda"), named("cuda:1")] == ["cpu", "cuda:0", "cuda:1"]
    assert [named("cuda", World(local, 3, local)) for local in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]


def test_a_job_in_the_queue_is_not_done_whatever_its_state_is_called():
    ask_the_queue()
    watcher = SlurmJob.watcher
    watcher._registered = {"7_0", "7_1", "8"}
    found = watcher.read_info("7_0|CONFIGURING\n8|PENDING\n9|RUNNING\n")
    assert {job: one["State"] for job, one in found.items()} == {
        "7_0": "RUNNING",
        "8": "RUNNING",
        "7_1": "not in the queue",
    }


def test_gpus_are_counted_without_a_driver_too():
    assert gpu_count() >= 0


@pytest.mark.parametrize("name", NAMES)
def test_hydra_takes_our_files_without_a_word(name):
    """Wherever its plugins come from: here ours are found first."""
    done = subprocess.run(
        [sys.executable, "-m", "rlsparse.run", "--cfg", "hydra", "-p", "hydra.launcher", f"hydra/launcher={name}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    printed, written = OmegaConf.create(done.stdout), OmegaConf.load(CONF / f"{name}.yaml")
    assert OmegaConf.to_container(printed) == OmegaConf.to_container(written)  # interpolations as they stand

"""Hydra's launchers: their keys, how many runs they do at a time, and the device of each run."""

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
from rlsparse.runtime.gpus import reserve_gpu
from rlsparse.sweep.launchers import LAUNCHERS, gpu_count, launcher_spec, resolve_settings
from rlsparse.sweep.slurm import use_squeue
from rlsparse.training import setup
from tests.conftest import ROOT, composed

CONF = ROOT / "conf" / "hydra" / "launcher"
NAMES = ("local", "joblib", "slurm", "ray")


def launcher(name: str, /, **changed):
    return OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), changed)


def settings(name: str, /, **changed):
    fixed = {"joblib": {"n_jobs": 2}, "slurm": {"name": "n", "submitit_folder": "f"}}.get(name, {})
    return resolve_settings(launcher(name, **{**fixed, **changed}))


def test_every_config_of_a_launcher_is_a_known_launcher():
    assert sorted(file.stem for file in CONF.glob("*.yaml")) == sorted(NAMES)
    assert {OmegaConf.load(CONF / f"{name}.yaml")._target_ for name in NAMES} == set(LAUNCHERS)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_key_of_a_launcher_is_refused(name):
    assert settings(name)["_target_"] in LAUNCHERS
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
def test_bad_value_of_a_launcher_is_refused_with_key_and_value(name, key, value, message):
    with pytest.raises(ConfigError, match=message):
        settings(name, **{key: value})


@pytest.mark.parametrize("name", ["joblib", "slurm", "ray"])
def test_launcher_that_is_not_installed_names_its_extra(name, monkeypatch):
    module = LAUNCHERS[OmegaConf.load(CONF / f"{name}.yaml")._target_].schema.partition(":")[0]
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(
        ConfigError, match=rf'hydra/launcher={name}: is not installed .*pip install "rlsparse\[{name}\]"'
    ):
        settings(name)


def test_launcher_under_torchrun_is_refused(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert settings("local")
    with pytest.raises(ConfigError, match="hydra/launcher=joblib: under torchrun"):
        settings("joblib")


def test_device_of_remote_runs_follows_from_the_gpus_they_request():
    def device(name, /, **changed):
        spec = launcher_spec(launcher(name))
        return spec.device and spec.device(settings(name, **changed))

    assert device("local") is None
    assert device("joblib") is None
    assert device("slurm") == "cpu"
    assert device("slurm", gpus_per_node=1) == "cuda"
    assert device("ray") == "cpu"
    assert device("ray", ray={"remote": {"num_gpus": 0.5}}) == "cuda"


def test_number_of_runs_at_a_time_follows_from_the_keys_of_the_launcher():
    def count(name, /, **changed):
        return launcher_spec(launcher(name)).max_parallel(settings(name, **changed))

    assert count("local") == 1
    assert count("joblib", n_jobs=3) == 3
    assert count("slurm", array_parallelism=7) == 7
    assert count("ray", ray={"init": {"num_cpus": 8}, "remote": {"num_cpus": 2}}) == 4
    assert count("ray", ray={"init": {"num_cpus": 8, "num_gpus": 2}, "remote": {"num_gpus": 1}}) == 2
    assert count("ray", ray={"init": {"address": "auto"}}) is None


def test_parallel_runs_get_different_gpus(tmp_path):
    with reserve_gpu(tmp_path, 4, 2) as first, reserve_gpu(tmp_path, 4, 2) as second:
        assert (first, second) == ("cuda:0", "cuda:1")
        with reserve_gpu(tmp_path, 4, 2) as third:  # a third run shares the GPU of the first
            assert third == "cuda:0"
    with reserve_gpu(tmp_path, 4, 2) as again:  # the places of finished runs are free
        assert again == "cuda:0"


def test_gpu_place_is_never_given_to_two_runs_at_a_time(tmp_path):
    held, most, lock = [], [], threading.Lock()

    def work():
        for _ in range(20):
            with reserve_gpu(tmp_path, 3, 3) as device:
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


def test_device_of_a_rank_has_a_gpu_number(monkeypatch):
    """torch.cuda.set_device needs the number; the ranks of a machine get one GPU each."""
    monkeypatch.setattr(setup, "resolve_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def named(device, world=ALONE):
        return str(setup.device_of(composed(f"device={device}"), world))

    assert [named("cpu"), named("cuda"), named("cuda:1")] == ["cpu", "cuda:0", "cuda:1"]
    assert [named("cuda", World(rank, 3, rank)) for rank in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]


def test_job_in_the_queue_counts_as_running_in_any_state():
    use_squeue()
    watcher = SlurmJob.watcher
    watcher._registered = {"7_0", "7_1", "8"}
    found = watcher.read_info("7_0|CONFIGURING\n8|PENDING\n9|RUNNING\n")
    assert {job: one["State"] for job, one in found.items()} == {
        "7_0": "RUNNING",
        "8": "RUNNING",
        "7_1": "not in the queue",
    }


def test_gpu_count_without_a_driver_is_a_number():
    assert gpu_count() >= 0


@pytest.mark.parametrize("name", NAMES)
def test_hydra_reads_the_config_of_a_launcher_without_a_warning(name):
    """The plugin of this package must work when it is found before those of the launchers."""
    done = subprocess.run(
        [sys.executable, "-m", "rlsparse.run", "--cfg", "hydra", "-p", "hydra.launcher", f"hydra/launcher={name}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    printed, written = OmegaConf.create(done.stdout), OmegaConf.load(CONF / f"{name}.yaml")
    assert OmegaConf.to_container(printed) == OmegaConf.to_container(written)  # interpolations as they stand

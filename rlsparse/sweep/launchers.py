"""The properties of Hydra's launchers that a sweep needs; Hydra's plugins do the launching. Imports no torch."""

import ctypes
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlsparse.config.schema import ConfigError
from rlsparse.runtime.machine import first_number
from rlsparse.sweep.slurm import check_queue, use_squeue, wait_for_jobs

Settings = Mapping[str, Any]  # the keys of a hydra.launcher node
Check = Callable[[], Any]  # checks the points of a sweep
RunCheck = Callable[[Check], Any]  # calls a check in the right process and returns its result
Prepare = Callable[[Settings, Callable[[], None], int], RunCheck]  # settings, import of heavy packages, number of runs


def _check_here(check: Check) -> Any:
    return check()


@dataclass(frozen=True)
class LauncherSpec:
    """The properties of one launcher.

    Attributes:
        extra: optional dependency of rlsparse that installs the plugin; empty for a launcher of Hydra itself.
        schema: the config schema of the plugin as ``module:class``, which has the types of the keys; empty for none.
        max_parallel: returns the number of runs at a time for given settings; None if it is not known.
        device: returns the kind of device of the runs for given settings; None if the runs are on this machine.
        prepare: is called first and returns how to call the check of the sweep. If the runs are in other processes of
            this machine, it starts these processes, which import heavy packages, and the check is called in one.
        wait: is called after the launcher has failed; returns when none of its jobs is left, or ends them.
    """

    extra: str
    schema: str
    max_parallel: Callable[[Settings], int | None]
    device: Callable[[Settings], str] | None = None
    prepare: Prepare = lambda settings, preload, runs: _check_here
    wait: Callable[[Settings], None] = lambda settings: None


def gpus_or_cores() -> int:
    """Return the number of GPUs of this machine; without a GPU, the number of cores that this process may use."""
    return gpu_count() or _core_count()


def gpu_count() -> int:
    """Return the number of GPUs that this process may use."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:  # there is no driver; importing torch only to find that out would take seconds
        return 0
    import torch

    return torch.cuda.device_count()


def _core_count() -> int:
    import joblib

    return int(joblib.cpu_count())  # respects the limits of containers


def _joblib_max_parallel(settings: Settings) -> int:
    return _core_count() if settings["n_jobs"] == -1 else int(settings["n_jobs"])


def _start_joblib_workers(settings: Settings, preload: Callable[[], None], runs: int) -> RunCheck:
    """Start the processes in which joblib will do the runs, so that this process need not import torch itself."""
    from joblib import Parallel, delayed

    needed = min(runs, _joblib_max_parallel(settings))
    share = share_of_cpus(_core_count(), needed)
    # joblib would give each process the share of n_jobs processes, also where there are fewer runs
    os.environ.setdefault("OMP_NUM_THREADS", str(share))
    limit_threads(share)
    # the same arguments as in the launcher; with other arguments, joblib would start other processes
    given = {key: value for key, value in settings.items() if key != "_target_"} | {"backend": "loky"}
    starting = Parallel(**given, return_as="generator")(delayed(preload)() for _ in range(needed))

    def check_in_worker(check: Check) -> Any:
        list(starting)
        return Parallel(**given)([delayed(check)()])[0]

    return check_in_worker


def share_of_cpus(cpus: int, runs: int) -> int:
    """Return the CPU threads of each of several runs side by side; at least 1."""
    return max(1, cpus // runs)


def limit_threads(share: int) -> None:
    """Lower OMP_NUM_THREADS to the share of a run if it is set to more.

    The processes of the runs inherit it. Ray sets it to the share of each process only if it is not set.
    Otherwise each of them would compute with the threads that are meant for all of them together.
    """
    given = first_number(os.environ.get("OMP_NUM_THREADS"))
    if given is not None and given > share:
        os.environ["OMP_NUM_THREADS"] = str(share)


def _slurm_device(settings: Settings) -> str:
    return "cuda" if settings.get("gpus_per_node") else "cpu"


def _ray_device(settings: Settings) -> str:
    return "cuda" if settings["ray"]["remote"].get("num_gpus") else "cpu"


def _prepare_slurm(settings: Settings, preload: Callable[[], None], runs: int) -> RunCheck:
    check_queue()
    use_squeue()
    return _check_here


def _prepare_ray(settings: Settings, preload: Callable[[], None], runs: int) -> RunCheck:
    if not settings["ray"]["init"].get("address"):  # the processes of a running cluster do not inherit from this one
        limit_threads(max(1, int(settings["ray"]["remote"].get("num_cpus") or 1)))
    return _check_here


def _end_ray_tasks(settings: Settings) -> None:
    import ray

    ray.shutdown()


def _ray_max_parallel(settings: Settings) -> int | None:
    """Return how many runs fit into a cluster that the sweep starts; None for a running cluster."""
    cluster, run = settings["ray"]["init"], settings["ray"]["remote"]
    if cluster.get("address"):
        return None
    fitting = []
    for key, count in (("num_cpus", lambda: os.cpu_count() or 1), ("num_gpus", gpu_count)):
        if needed := run.get(key):
            available = cluster.get(key)
            fitting.append(int((count() if available is None else available) / needed))
    return max(1, min(fitting, default=1))


PLUGINS = "hydra_plugins"
# _target_ of hydra.launcher -> properties
LAUNCHERS: dict[str, LauncherSpec] = {
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher": LauncherSpec("", "", lambda settings: 1),
    f"{PLUGINS}.hydra_joblib_launcher.joblib_launcher.JoblibLauncher": LauncherSpec(
        "joblib",
        f"{PLUGINS}.hydra_joblib_launcher.config:JobLibLauncherConf",
        _joblib_max_parallel,
        prepare=_start_joblib_workers,
    ),
    f"{PLUGINS}.hydra_submitit_launcher.submitit_launcher.SlurmLauncher": LauncherSpec(
        "slurm",
        f"{PLUGINS}.hydra_submitit_launcher.config:SlurmQueueConf",
        lambda settings: settings["array_parallelism"],
        device=_slurm_device,
        prepare=_prepare_slurm,
        wait=lambda settings: wait_for_jobs(str(settings["name"])),
    ),
    f"{PLUGINS}.hydra_ray_launcher.ray_launcher.RayLauncher": LauncherSpec(
        "ray",
        f"{PLUGINS}.hydra_ray_launcher._config:RayLauncherConf",
        _ray_max_parallel,
        device=_ray_device,
        prepare=_prepare_ray,
        wait=_end_ray_tasks,
    ),
}
# any other launcher of Hydra is assumed to do one run at a time on this machine
UNKNOWN = LauncherSpec("", "", lambda settings: 1)
AT_LEAST_ONE = ("timeout_min", "array_parallelism", "cpus_per_task", "mem_gb", "signal_delay_s")


def launcher_spec(launcher: DictConfig) -> LauncherSpec:
    """Return the properties of the launcher of a composed ``hydra.launcher`` node."""
    return LAUNCHERS.get(str(launcher.get("_target_")), UNKNOWN)


def resolve_settings(launcher: DictConfig) -> dict[str, Any]:
    """Return the keys of the launcher with resolved interpolations.

    Raises:
        ConfigError: the launcher is not installed or cannot be used here, or a key or value is not valid.
    """
    spec = launcher_spec(launcher)
    if spec.extra and "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError(
            f"hydra/launcher={spec.extra}: under torchrun all ranks share each run; take hydra/launcher=local"
        )
    module, _, name = spec.schema.partition(":")
    try:
        schema = OmegaConf.structured(getattr(import_module(module), name)) if spec.schema else OmegaConf.create()
        settings: Any = OmegaConf.to_container(launcher, resolve=True)
        if spec.schema:
            OmegaConf.merge(schema, OmegaConf.create(settings))
    except ImportError as error:
        raise ConfigError(
            f'hydra/launcher={spec.extra}: is not installed ({error}); pip install "rlsparse[{spec.extra}]"'
        ) from error
    except OmegaConfBaseException as error:
        key = str(error.full_key).removeprefix("hydra.launcher.")
        raise ConfigError(f"hydra.launcher.{key}: {str(error).splitlines()[0]}") from error
    for key in AT_LEAST_ONE:
        if isinstance(settings.get(key), int) and settings[key] < 1:
            raise ConfigError(f"hydra.launcher.{key}={settings[key]}: must be at least 1")
    if "signal_delay_s" in settings and settings["signal_delay_s"] >= 60 * settings["timeout_min"]:
        raise ConfigError(
            f"hydra.launcher.signal_delay_s={settings['signal_delay_s']}: each job would be asked to stop when it "
            f"starts, because hydra.launcher.timeout_min={settings['timeout_min']}; give less than "
            f"{60 * settings['timeout_min']}"
        )
    if "n_jobs" in settings and (settings["n_jobs"] == 0 or settings["n_jobs"] < -1):
        raise ConfigError(
            f"hydra.launcher.n_jobs={settings['n_jobs']}: give the number of runs at a time, or -1 for one per core"
        )
    return settings

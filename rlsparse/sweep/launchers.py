"""What we must know of each of Hydra's launchers to hand it a sweep; the launching itself is theirs. No torch."""

import ctypes
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlsparse.config.schema import ConfigError
from rlsparse.sweep.slurm import ask_the_queue, check_queue, wait_for_queue

Check = Callable[[], Any]
Begin = Callable[[Mapping[str, Any], Callable[[], None], int], Callable[[Check], Any]]  # the last: runs at most


@dataclass(frozen=True)
class Engine:
    """A launcher.

    Attributes:
        extra: of ours, that installs it; empty where Hydra brings it.
        schema: the plugin's own, as ``module:class``, whose types hold for our keys.
        at_a_time: runs side by side, by its settings; None where that is not known.
        device: kind of device of its runs where they are not on this machine, by its settings; else None.
        begin: called first; where runs are in other processes of this machine, these import meanwhile what they will
            need, and the function that is returned does the sweep's check in one of them.
        settle: waits until none of its jobs is left, after it gave up over one, or ends them.
    """

    extra: str
    schema: str
    at_a_time: Callable[[Mapping[str, Any]], int | None]
    device: Callable[[Mapping[str, Any]], str] | None = None
    begin: Begin = lambda settings, ready, runs: lambda check: check()
    settle: Callable[[Mapping[str, Any]], None] = lambda settings: None


def gpus_or_cores() -> int:
    """GPUs of this machine, else the cores that this process may use."""
    return gpu_count() or _cores()


def gpu_count() -> int:
    """GPUs that this process may use."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:  # no driver; importing torch to learn that takes seconds
        return 0
    import torch

    return torch.cuda.device_count()


def _cores() -> int:
    import joblib

    return int(joblib.cpu_count())  # knows of containers' limits


def _joblib_places(settings: Mapping[str, Any]) -> int:
    return _cores() if settings["n_jobs"] == -1 else int(settings["n_jobs"])


def _begin_workers(settings: Mapping[str, Any], ready: Callable[[], None], runs: int) -> Callable[[Check], Any]:
    """The processes that joblib will use again for the runs, so that this one need not import torch at all."""
    from joblib import Parallel, delayed

    # the launcher's own arguments: joblib starts other processes for others
    given = {key: value for key, value in settings.items() if key != "_target_"} | {"backend": "loky"}
    needed = min(runs, _joblib_places(settings))
    beginning = Parallel(**given, return_as="generator")(delayed(ready)() for _ in range(needed))

    def check_there(check: Check) -> Any:
        list(beginning)
        return Parallel(**given)([delayed(check)()])[0]

    return check_there


def _slurm_device(settings: Mapping[str, Any]) -> str:
    return "cuda" if settings.get("gpus_per_node") else "cpu"


def _ray_device(settings: Mapping[str, Any]) -> str:
    return "cuda" if settings["ray"]["remote"].get("num_gpus") else "cpu"


def _begin_slurm(settings: Mapping[str, Any], ready: Callable[[], None], runs: int) -> Callable[[Check], Any]:
    check_queue()
    ask_the_queue()
    return lambda check: check()


def _end_tasks(settings: Mapping[str, Any]) -> None:
    import ray

    ray.shutdown()


def _ray_places(settings: Mapping[str, Any]) -> int | None:
    """Of a cluster of our own; of a running one it is not known."""
    given, remote = settings["ray"]["init"], settings["ray"]["remote"]
    if given.get("address"):
        return None
    room = []
    for kind, count in (("num_cpus", lambda: os.cpu_count() or 1), ("num_gpus", gpu_count)):
        if wanted := remote.get(kind):
            have = given.get(kind)
            room.append(int((count() if have is None else have) / wanted))
    return max(1, min(room, default=1))


PLUGINS = "hydra_plugins"
# _target_ -> what we know of it
ENGINES: dict[str, Engine] = {
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher": Engine("", "", lambda settings: 1),
    f"{PLUGINS}.hydra_joblib_launcher.joblib_launcher.JoblibLauncher": Engine(
        "joblib",
        f"{PLUGINS}.hydra_joblib_launcher.config:JobLibLauncherConf",
        _joblib_places,
        begin=_begin_workers,
    ),
    f"{PLUGINS}.hydra_submitit_launcher.submitit_launcher.SlurmLauncher": Engine(
        "slurm",
        f"{PLUGINS}.hydra_submitit_launcher.config:SlurmQueueConf",
        lambda settings: settings["array_parallelism"],
        device=_slurm_device,
        begin=_begin_slurm,
        settle=wait_for_queue,
    ),
    f"{PLUGINS}.hydra_ray_launcher.ray_launcher.RayLauncher": Engine(
        "ray",
        f"{PLUGINS}.hydra_ray_launcher._config:RayLauncherConf",
        _ray_places,
        device=_ray_device,
        settle=_end_tasks,
    ),
}
# another launcher of Hydra's: one run at a time, on this machine, as far as we know
UNKNOWN = Engine("", "", lambda settings: 1)
AT_LEAST_ONE = ("timeout_min", "array_parallelism", "cpus_per_task", "mem_gb", "signal_delay_s")


def engine_of(launcher: DictConfig) -> Engine:
    """Of a composed ``hydra.launcher`` node."""
    return ENGINES.get(str(launcher.get("_target_")), UNKNOWN)


def settings_of(launcher: DictConfig) -> dict[str, Any]:
    """The launcher's keys, resolved.

    Raises:
        ConfigError: the launcher is not installed; a key it does not know, or a value of another kind than it takes.
    """
    engine = engine_of(launcher)
    if engine.extra and "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError(f"hydra/launcher={engine.extra}: under torchrun the ranks share each run; take local")
    module, _, name = engine.schema.partition(":")
    try:
        schema = OmegaConf.structured(getattr(import_module(module), name)) if engine.schema else OmegaConf.create()
        settings: Any = OmegaConf.to_container(launcher, resolve=True)
        if engine.schema:
            OmegaConf.merge(schema, OmegaConf.create(settings))
    except ImportError as error:
        raise ConfigError(
            f'hydra/launcher={engine.extra}: is not installed ({error}); pip install "rlsparse[{engine.extra}]"'
        ) from error
    except OmegaConfBaseException as error:
        key = str(error.full_key).removeprefix("hydra.launcher.")
        raise ConfigError(f"hydra.launcher.{key}: {str(error).splitlines()[0]}") from error
    for key in AT_LEAST_ONE:
        if isinstance(settings.get(key), int) and settings[key] < 1:
            raise ConfigError(f"hydra.launcher.{key}={settings[key]}: must be at least 1")
    if "signal_delay_s" in settings and settings["signal_delay_s"] >= 60 * settings["timeout_min"]:
        raise ConfigError(
            f"hydra.launcher.signal_delay_s={settings['signal_delay_s']}: each job would be told to stop at once, with "
            f"hydra.launcher.timeout_min={settings['timeout_min']}; give less than {60 * settings['timeout_min']}"
        )
    if "n_jobs" in settings and (settings["n_jobs"] == 0 or settings["n_jobs"] < -1):
        raise ConfigError(
            f"hydra.launcher.n_jobs={settings['n_jobs']}: give the number of runs at a time, or -1 for one a core"
        )
    return settings

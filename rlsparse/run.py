"""The command line of one run, or with -m of a sweep: ``python -m rlsparse.run``."""

import logging
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from signal import SIGINT

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from rlsparse.config.compose import check_group_options, config_dir, register_schemas, run_config
from rlsparse.config.hydra_errors import one_line_errors
from rlsparse.config.schema import Config, ConfigError
from rlsparse.config.words import keys_of_swept_groups, read_words
from rlsparse.execution.run_once import RECORDED, Job, Process, run
from rlsparse.model.cache import model_cache
from rlsparse.runtime.distributed import RankLost, World, join_world
from rlsparse.runtime.gpus import reserve_gpu, slots_folder
from rlsparse.runtime.logs import log_to_terminal
from rlsparse.runtime.preload import quieten
from rlsparse.runtime.signals import Interrupted
from rlsparse.storage.streams import prepare_streams
from rlsparse.sweep.dry_run import replace_flag
from rlsparse.sweep.launchers import gpu_count, gpus_or_cores
from rlsparse.sweep.plan import latest_sweep
from rlsparse.sweep.slurm import handle_stop_signal
from rlsparse.tracking.viewer import shared_viewer

__all__ = ["Job", "Process", "main", "run"]

log = logging.getLogger("rlsparse.run")  # this module is __main__ under python -m

register_schemas()
OmegaConf.register_new_resolver("gpus_or_cores", gpus_or_cores, replace=True)


def main() -> None:
    """Do one run, or with -m the points of a sweep. Under torchrun the other ranks take part in the training."""
    prepare_streams()
    log_to_terminal()
    world = join_world()
    if world.rank > 0:
        _work(world)
        return
    in_step = True  # with the other ranks

    @hydra.main(version_base="1.3", config_path=config_dir(), config_name="config")
    def job(config: DictConfig) -> None:
        nonlocal in_step
        log_to_terminal()  # in a worker of a launcher, too
        context = HydraConfig.get()
        ours = run_config(config)
        try:
            with _on_own_gpu(ours, context, world) as placed:
                run(placed, _job(ours, context), Process(model_cache(), shared_viewer(), world))
        except (Interrupted, KeyboardInterrupt) as error:  # ends a sweep too, with the shell's code for the signal
            in_step = world.size == 1 or isinstance(error, Interrupted)  # at once is not after the same step
            number = getattr(error, "signal", SIGINT)
            handle_stop_signal(number)
            sys.exit(128 + number)
        except BaseException as error:
            in_step = world.size == 1
            if context.mode == RunMode.RUN and in_step:
                if RECORDED in getattr(error, "__notes__", ()):
                    sys.exit(1)  # one message; error.txt of the run has the traceback
                if isinstance(error, ConfigError):
                    sys.exit(f"error: {error}")
                raise
            # the rest of a sweep continues; its last lines name every failure
            if RECORDED not in getattr(error, "__notes__", ()):
                log.error("%s: %s: %s", " ".join(context.overrides.task), type(error).__name__, error)
            if not in_step:
                sys.exit(1)

    try:
        words = read_words(replace_flag(sys.argv[1:]))
        check_group_options(words)
        sys.argv[1:] = keys_of_swept_groups(words)
        with closing(shared_viewer()), one_line_errors():
            job()
    except ConfigError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        log.info("interrupted; the same command resumes from what is saved")
        sys.exit(128 + SIGINT)
    finally:
        if in_step:
            with suppress(RankLost):
                world.send(None)
                world.leave()


def _work(world: World) -> None:
    from rlsparse.execution.worker import work

    quieten()
    logging.getLogger("rlsparse").setLevel(logging.CRITICAL)  # rank 0 says it
    try:
        work(world)
    except RankLost as error:
        sys.exit(f"rank {world.rank}: {error}")


@contextmanager
def _on_own_gpu(config: Config, context: HydraConf, world: World) -> Iterator[Config]:
    """Give a run a GPU of its own, where several run side by side on a machine that has several."""
    places = context.launcher.get("n_jobs", 1)
    side_by_side = places != 1 and world.size == 1
    if config.device in ("auto", "cuda") and side_by_side and (gpus := gpu_count()) > 1:
        with reserve_gpu(slots_folder(), places, gpus) as device:
            yield replace(config, device=device)
    else:
        yield config


def _job(config: Config, context: HydraConf) -> Job:
    """Return the place of the job of Hydra in its sweep."""
    overrides = list(context.overrides.task)
    sweep = latest_sweep(Path(config.runs_dir) / config.experiment.name) if context.mode == RunMode.MULTIRUN else []
    if overrides not in sweep:  # another sweep of the experiment has been planned since
        return Job(overrides)
    return Job(overrides, sweep.index(overrides) + 1, sweep)


if __name__ == "__main__":
    main()

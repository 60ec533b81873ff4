"""One run: compose, check, train, evaluate, write. ``python -m rlsparse.run`` is its command line."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from signal import SIGINT

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from rlsparse.config.compose import check_group_options, config_dir, register_schemas, run_config
from rlsparse.config.schema import Config, ConfigError
from rlsparse.execution.run_once import attempt, discard_checkpoints
from rlsparse.model.cache import Loader, own_loader
from rlsparse.runtime.distributed import ALONE, RankLost, Ranks, join_ranks
from rlsparse.runtime.gpus import own_gpu, places_folder
from rlsparse.runtime.preload import import_all, quieten
from rlsparse.runtime.signals import Interrupted, StopRequest
from rlsparse.storage.locks import claimed
from rlsparse.storage.summary import Summary, provenance, read_summary
from rlsparse.sweep.dry_run import as_override
from rlsparse.sweep.launchers import gpu_count, gpus_or_cores
from rlsparse.sweep.plan import latest_sweep
from rlsparse.sweep.slurm import stopped
from rlsparse.tracking.viewer import Viewer, own_viewer

DONE = ("finished", "diverged")

# torch and transformers are imported inside functions, so that --help and a misspelled key answer at once


@dataclass(frozen=True)
class Job:
    """Where a run stands among others.

    Attributes:
        overrides: what the user asked for.
        number: from 1.
        sweep: the overrides of every job of the sweep; empty for a single run.
    """

    overrides: Sequence[str] = field(default_factory=list)
    number: int = 1
    sweep: Sequence[Sequence[str]] = field(default_factory=list)

    def label(self, config: Config) -> str:
        """Place in the sweep, algorithm, seed, and the other overrides that tell this job from the rest."""
        place = f"[{self.number}/{len(self.sweep)}] " if self.sweep else ""
        swept = [o for o in self.overrides if any(o not in others for others in self.sweep)]
        extra = [o for o in swept if o.split("=")[0] not in ("algorithm", "seed")]
        return " ".join([f"{place}{config.algorithm}", f"seed={config.seed}", *extra])


def run(
    config: Config,
    job: Job | None = None,
    loader: Loader | None = None,
    viewer: Viewer | None = None,
    ranks: Ranks = ALONE,
) -> Summary:
    """Do one run and write its folder ``<runs_dir>/<experiment>/<id>/``; one that is done already is only read.

    A run that diverges (a loss that is not finite) ends with that status, its data kept, and does not raise.

    Args:
        loader: holds the model between the runs of a sweep.
        viewer: shows runs on W&B; None for one that this run waits for.
        ranks: train with this process, which is rank 0, and wait in ``follow``.

    Raises:
        ConfigError: bad input, before any model loads.
        Interrupted: a signal asked it to stop; it is saved.
        RankLost: another rank is gone; it can go on from its last checkpoint.
        Exception: whatever broke the run, after its summary says so.
    """
    stop = StopRequest()
    # from here on: what a run imports takes seconds, which a launcher's own handler would break off
    try:
        with stop.listening():
            return _run(config, job or Job(), loader or Loader(), viewer, stop, ranks)
    finally:
        stop.check()  # told when there was nothing left to interrupt: a sweep must not go on all the same


def _run(config: Config, job: Job, loader: Loader, viewer: Viewer | None, stop: StopRequest, ranks: Ranks) -> Summary:
    import_all()
    from rlsparse.execution.preflight import preflight

    quieten()
    (identity,) = preflight([config])
    folder = Path(config.runs_dir) / config.experiment.name / identity.id
    with claimed(folder, config.sweep.lock) as ours:
        if not ours:
            print(f"{job.label(config)}: another process works on it, left to that ({folder})", file=sys.stderr)
            return {"id": identity.id, "status": "running"}
        earlier = read_summary(folder)
        if earlier is not None and (earlier["status"] in DONE or not config.sweep.retry_failed):
            _skip(folder, earlier, job.label(config))
            return earlier
        who = provenance(identity, config.experiment.name, config.algorithm, config.seed, list(job.overrides))
        with closing(Viewer()) as own:
            return attempt(config, folder, who, job.label(config), loader, viewer or own, stop, ranks)


def _skip(folder: Path, earlier: Summary, label: str) -> None:
    if earlier["status"] == "finished":
        discard_checkpoints(folder)  # it may have been killed between its last two acts
    again = "" if earlier["status"] == "finished" else "; delete the folder to do it again"
    print(f"{label}: {earlier['status']} before, skipped ({folder}{again})", file=sys.stderr)


register_schemas()
OmegaConf.register_new_resolver("gpus_or_cores", gpus_or_cores, replace=True)


def main() -> None:
    """The command line: one run, or with -m the points of a sweep. Under torchrun, rank 0's; the others train along."""
    ranks = join_ranks()
    if ranks.number > 0:
        _follow(ranks)
        return
    in_step = True  # with the other ranks

    @hydra.main(version_base="1.3", config_path=config_dir(), config_name="config")
    def job(config: DictConfig) -> None:
        nonlocal in_step
        context = HydraConfig.get()
        ours = run_config(config)
        try:
            with _at_its_place(ours, context, ranks) as placed:
                run(placed, _job(ours, context), own_loader(), own_viewer(), ranks)
        except (Interrupted, KeyboardInterrupt) as error:  # ends a sweep too, with the shell's code for the signal
            in_step = ranks.size == 1 or isinstance(error, Interrupted)  # at once is not after the same step
            number = getattr(error, "signal", SIGINT)
            stopped(number)
            sys.exit(128 + number)
        except BaseException as error:
            in_step = ranks.size == 1
            if context.mode == RunMode.RUN and in_step:
                raise
            # the rest of a sweep goes on; its last lines name every failure
            print(f"{' '.join(context.overrides.task)}: {type(error).__name__}: {error}", file=sys.stderr)
            if not in_step:
                sys.exit(1)

    try:
        sys.argv[1:] = as_override(sys.argv[1:])
        check_group_options(sys.argv[1:])
        with closing(own_viewer()):
            job()
    except ConfigError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is saved", file=sys.stderr)
        sys.exit(128 + SIGINT)
    finally:
        if in_step:
            with suppress(RankLost):
                ranks.tell(None)
                ranks.part()


def _follow(ranks: Ranks) -> None:
    from rlsparse.execution.worker import follow

    quieten()
    try:
        follow(ranks)
    except RankLost as error:
        sys.exit(f"rank {ranks.number}: {error}")


@contextmanager
def _at_its_place(config: Config, context: HydraConf, ranks: Ranks) -> Iterator[Config]:
    """The config with a GPU of its own, where runs are side by side on a machine that has several."""
    places = context.launcher.get("n_jobs", 1)
    side_by_side = places != 1 and ranks.size == 1
    if config.device in ("auto", "cuda") and side_by_side and (gpus := gpu_count()) > 1:
        with own_gpu(places_folder(), places, gpus) as device:
            yield replace(config, device=device)
    else:
        yield config


def _job(config: Config, context: HydraConf) -> Job:
    """Where Hydra's job stands in its sweep."""
    overrides = list(context.overrides.task)
    sweep = latest_sweep(Path(config.runs_dir) / config.experiment.name) if context.mode == RunMode.MULTIRUN else []
    if overrides not in sweep:  # another sweep of the experiment was planned since
        return Job(overrides)
    return Job(overrides, sweep.index(overrides) + 1, sweep)


if __name__ == "__main__":
    main()

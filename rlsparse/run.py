"""One run: compose, check, train, evaluate, write. ``python -m rlsparse.run`` is its command line."""

import sys
import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGINT

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from rlsparse.attempt import attempt, discard_checkpoints
from rlsparse.claim import claimed
from rlsparse.compose import check_group_options, config_dir, register_schemas, run_config
from rlsparse.config import Config, ConfigError
from rlsparse.loader import Loader
from rlsparse.plan import latest_sweep
from rlsparse.stopping import Interrupted, StopRequest, pass_on
from rlsparse.summary import Summary, provenance, read_summary
from rlsparse.tracking.viewer import Viewer

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


def run(config: Config, job: Job | None = None, loader: Loader | None = None, viewer: Viewer | None = None) -> Summary:
    """Do one run and write its folder ``<runs_dir>/<experiment>/<id>/``; one that is done already is only read.

    A run that diverges (a loss that is not finite) ends with that status, its data kept, and does not raise.

    Args:
        loader: holds the model between the runs of a sweep.
        viewer: shows runs on W&B; None for one that this run waits for.

    Raises:
        ConfigError: bad input, before any model loads.
        Interrupted: a signal asked it to stop; it is saved.
        Exception: whatever broke the run, after its summary says so.
    """
    stop = StopRequest()
    # from here on: what a run imports takes seconds, which a launcher's own handler would break off
    try:
        with stop.listening():
            return _run(config, job or Job(), loader or Loader(), viewer, stop)
    finally:
        stop.check()  # told when there was nothing left to interrupt: a sweep must not go on all the same


def _run(config: Config, job: Job, loader: Loader, viewer: Viewer | None, stop: StopRequest) -> Summary:
    from rlsparse.preflight import preflight

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
            return attempt(config, folder, who, job.label(config), loader, viewer or own, stop)


def _skip(folder: Path, earlier: Summary, label: str) -> None:
    if earlier["status"] == "finished":
        discard_checkpoints(folder)  # it may have been killed between its last two acts
    again = "" if earlier["status"] == "finished" else "; delete the folder to do it again"
    print(f"{label}: {earlier['status']} before, skipped ({folder}{again})", file=sys.stderr)


def quieten() -> None:
    """Silence loaders' bars and deprecation notices of one library about another, which would bury our own lines."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")


register_schemas()


def main() -> None:
    """The command line: one run, or with -m the points of a sweep one after the other."""
    loader, viewer = Loader(), Viewer()

    @hydra.main(version_base="1.3", config_path=config_dir(), config_name="config")
    def job(config: DictConfig) -> None:
        context = HydraConfig.get()
        ours = run_config(config)
        try:
            run(ours, _job(ours, context), loader, viewer)
        except (Interrupted, KeyboardInterrupt) as error:  # ends a sweep too, with the shell's code for the signal
            number = getattr(error, "signal", SIGINT)
            pass_on(number)
            sys.exit(128 + number)
        except BaseException as error:
            if context.mode == RunMode.RUN:
                raise
            # the rest of a sweep goes on; its last lines name every failure
            print(f"{' '.join(context.overrides.task)}: {type(error).__name__}: {error}", file=sys.stderr)

    try:
        check_group_options(sys.argv[1:])
    except ConfigError as error:
        sys.exit(f"error: {error}")
    with closing(viewer):
        try:
            job()
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from what is saved", file=sys.stderr)
            sys.exit(128 + SIGINT)


def _job(config: Config, context: HydraConf) -> Job:
    """Where Hydra's job stands in its sweep."""
    overrides = list(context.overrides.task)
    sweep = latest_sweep(Path(config.runs_dir) / config.experiment.name) if context.mode == RunMode.MULTIRUN else []
    if overrides not in sweep:  # another sweep of the experiment was planned since
        return Job(overrides)
    return Job(overrides, sweep.index(overrides) + 1, sweep)


if __name__ == "__main__":
    main()

"""One run: compose, check, train, evaluate, write. ``python -m rlsparse.run`` is its command line."""

import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from rlsparse.compose import check_group_options, config_dir, register_schemas, run_config
from rlsparse.config import Config, ConfigError
from rlsparse.summary import Summary, about_adapter, headline, provenance, read_summary, results, write_summary
from rlsparse.sweep import latest_sweep

if TYPE_CHECKING:
    from rlsparse.identity import Identity
    from rlsparse.loader import Loader
    from rlsparse.tracking.tracker import Tracker

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


def run(config: Config, job: Job | None = None, loader: "Loader | None" = None) -> Summary:
    """Do one run and write its folder ``<runs_dir>/<experiment>/<id>/``; one that is done already is only read.

    A run that diverges (a loss that is not finite) ends with that status, its data kept, and does not raise.

    Args:
        loader: holds the model between the runs of a sweep.

    Raises:
        ConfigError: bad input, before any model loads.
        Exception: whatever broke the run, after its summary says so.
    """
    from rlsparse.batch import NonFiniteError
    from rlsparse.loader import Loader
    from rlsparse.preflight import preflight

    quieten()
    job = job or Job()
    (identity,) = preflight([config])
    folder = Path(config.runs_dir) / config.experiment.name / identity.id
    earlier = read_summary(folder)
    if earlier is not None and earlier["status"] in ("finished", "diverged"):
        again = "" if earlier["status"] == "finished" else "; delete the folder to do it again"
        print(f"{job.label(config)}: {earlier['status']} before, skipped ({folder}{again})", file=sys.stderr)
        return earlier
    _set_aside(folder)
    folder.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(asdict(config)), folder / "config.yaml")
    tracker = _open_tracker(config, job, folder, identity)
    who = provenance(identity, config.experiment.name, config.algorithm, config.seed, list(job.overrides))
    summary: Summary = {**who, "status": "failed", "error": None}
    failure: BaseException | None = None
    try:
        _train(config, folder, tracker, summary, loader or Loader())
        summary["status"] = "finished"
    except NonFiniteError as error:
        summary |= {"status": "diverged", "error": str(error)}
    except KeyboardInterrupt as error:  # cut off, not failed: the same command does it again
        failure = error
    except BaseException as error:
        failure = error
        summary["error"] = f"{type(error).__name__}: {error}"
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
    if isinstance(failure, KeyboardInterrupt):
        tracker.say(f"{job.label(config)}: interrupted ({folder}); the same command does it again")
    else:
        write_summary(folder, summary)
        tracker.say(f"{job.label(config)}: {headline(summary)} ({folder})")
    tracker.close(summary, exit_code=0 if failure is None else 1)
    if failure is not None:
        traceback.clear_frames(failure.__traceback__)  # a sweep keeps the error; it must not keep the model with it
        raise failure
    return summary


def _train(config: Config, folder: Path, tracker: "Tracker", summary: Summary, loader: "Loader") -> None:
    """Load, train, evaluate and export; what is known goes into ``summary`` even when it breaks."""
    from rlsparse.adapter import ADAPTERS
    from rlsparse.policy import resolve_device, set_threads
    from rlsparse.prompts import encode_task
    from rlsparse.streams import stream_seed
    from rlsparse.task import load_task
    from rlsparse.task.verifier import Verifier
    from rlsparse.tracking.measure import Clock, free_memory, peak_memory, reuse_freed_memory
    from rlsparse.train import train

    device = resolve_device(config.device)
    clock = Clock(device)
    reuse_freed_memory()
    with loader.lend(config.model, device, config.dtype) as policy:
        free_memory(device)  # after the model is there, which an earlier run may have loaded
        set_threads(config.threads, policy.model.num_parameters())
        data = encode_task(policy, load_task(config.task), config.task, config.rollout, config.eval)
        adapter = ADAPTERS[config.adapter.name](
            policy, config.adapter, config.lora_rank, stream_seed(config.seed, "adapter")
        )
        summary["device"] = str(device)
        summary["prompts_skipped"] = {"train": data.skipped_train, "test": data.skipped_test}
        if data.skipped_train or data.skipped_test:
            tracker.say(
                f"warning: {data.skipped_train} training and {data.skipped_test} held-out prompts leave no room for "
                f"rollout.max_new_tokens={config.rollout.max_new_tokens} in the context of {policy.context} tokens; "
                "skipped"
            )
        try:
            with Verifier(config.task) as verifier:
                train(config, policy, adapter, data, verifier, tracker, clock)
        finally:
            summary |= results(tracker.history)
            parameters = sum(p.numel() for p in adapter.parameters())
            summary["adapter"] = about_adapter(
                config.adapter.name, adapter.ranks(), adapter.budget, parameters, adapter.moves, tracker.history
            )
            summary["time"] = {"total": clock.elapsed(), **clock.total}
            summary["peak_memory_bytes"] = peak_memory(device)
            adapter.export(folder / "adapter")
        adapter.remove()


def _open_tracker(config: Config, job: Job, folder: Path, identity: "Identity") -> "Tracker":
    from rlsparse.tracking.progress import Progress
    from rlsparse.tracking.tracker import Tracker
    from rlsparse.tracking.wandb_view import WandbView

    def view() -> WandbView:
        tags = [config.algorithm, config.model.name, config.task.name]
        return WandbView(folder, identity.id, asdict(config), asdict(config.tracker), tags)

    progress = Progress(job.label(config), config.train.steps)
    return Tracker(folder, progress, view if config.tracker.name == "wandb" else None)


def quieten() -> None:
    """Silence loaders' bars and deprecation notices of one library about another, which would bury our own lines."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")


def _set_aside(folder: Path) -> None:
    """Keep what an attempt that did not finish has left, under another name."""
    if folder.exists():
        number = 1
        while folder.with_name(f"{folder.name}.attempt{number}").exists():
            number += 1
        folder.rename(folder.with_name(f"{folder.name}.attempt{number}"))


register_schemas()


def main() -> None:
    """The command line: one run, or with -m the points of a sweep one after the other."""
    from rlsparse.loader import Loader

    loader = Loader()

    @hydra.main(version_base="1.3", config_path=config_dir(), config_name="config")
    def job(config: DictConfig) -> None:
        context = HydraConfig.get()
        ours = run_config(config)
        sweep = latest_sweep(Path(ours.runs_dir) / ours.experiment.name) if context.mode == RunMode.MULTIRUN else []
        try:
            run(ours, Job(list(context.overrides.task), context.job.num + 1 if sweep else 1, sweep), loader)
        except KeyboardInterrupt:
            sys.exit(130)  # the shell's code for it; ends a sweep too

    try:
        check_group_options(sys.argv[1:])
    except ConfigError as error:
        sys.exit(f"error: {error}")
    job()


if __name__ == "__main__":
    main()

"""One attempt at a run: begun, or gone on with from its last checkpoint, to its summary."""

import json
import shutil
import traceback
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from rlsparse.config.schema import Config, ConfigError
from rlsparse.runtime.distributed import ALONE, RankLost, Ranks
from rlsparse.runtime.signals import Interrupted
from rlsparse.storage.atomic import sync, write_whole
from rlsparse.storage.locks import HOLDER, LEASE, LOCK
from rlsparse.storage.summary import (
    FILE,
    PROVENANCE,
    Summary,
    about_adapter,
    changed_versions,
    headline,
    read_provenance,
    results,
    setting,
    write_summary,
)

if TYPE_CHECKING:
    from rlsparse.model.cache import Loader
    from rlsparse.runtime.signals import StopRequest
    from rlsparse.storage.checkpoints import Checkpoint
    from rlsparse.tracking.progress import Progress
    from rlsparse.tracking.viewer import Viewer
    from rlsparse.training.setup import Workplace

CUT_OFF = (Interrupted, KeyboardInterrupt, RankLost)
CONFIG, ERROR, CHECKPOINTS, ATTEMPTS = "config.yaml", "error.txt", "checkpoint", "attempts"


def attempt(
    config: Config,
    folder: Path,
    who: Mapping[str, Any],
    label: str,
    loader: "Loader",
    viewer: "Viewer",
    stop: "StopRequest",
    ranks: Ranks = ALONE,
) -> Summary:
    """Do the run in its folder, which is ours alone.

    Args:
        who: see ``summary.provenance``.
        label: of the run, for a person.
        viewer: shows the run elsewhere, where ``tracker`` asks for it.
        stop: whether it was told to.
        ranks: train with this one, which is rank 0.

    Raises:
        Interrupted: a signal asked it to stop; it is saved.
        RankLost: another rank is gone; it can go on from its last checkpoint.
        BaseException: whatever broke the run, after its summary says so.
    """
    from rlsparse.batch import NonFiniteError
    from rlsparse.tracking.progress import Progress

    progress = Progress(label, config.train.steps)
    summary: Summary = {**who, "status": "failed", "error": None}
    failure: BaseException | None = None
    with closing(progress):
        try:
            begun, saved = _begin(config, folder, who, progress.say)
            summary |= begun
            if saved is not None:
                progress.goes_on_after(saved.step)
                progress.say(f"{label}: goes on after step {saved.step} ({folder})")
            stop.check()
            _train(config, folder, progress, summary, loader, viewer, stop, saved, ranks)
            summary["status"] = "finished"
        except NonFiniteError as error:
            summary |= {"status": "diverged", "error": str(error)}
        except CUT_OFF as error:  # not failed
            failure = error
        except BaseException as error:
            failure = error
            summary["error"] = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        if isinstance(failure, CUT_OFF):
            how = str(failure) or "interrupted at once"
            progress.say(f"{label}: {how} ({folder}); the same command goes on with it")
        else:
            _record(folder, summary, failure, progress.say)
            progress.say(f"{label}: {headline(summary)} ({folder})")
    viewer.done(folder)
    if failure is not None:
        traceback.clear_frames(failure.__traceback__)  # whoever keeps the error must not keep the model with it
        raise failure
    discard_checkpoints(folder)
    return summary


def discard_checkpoints(folder: Path) -> None:
    """Free what a run has no more use for, once its summary is written."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _begin(
    config: Config, folder: Path, who: Mapping[str, Any], say: Callable[[str], None]
) -> tuple[Mapping[str, Any], "Checkpoint | None"]:
    """Who the run is, and where to go on from; None where it begins, in a folder with nothing of earlier attempts."""
    from rlsparse.storage.checkpoints import Checkpoint, load_checkpoint
    from rlsparse.storage.jsonl import holds

    def fits(saved: Checkpoint) -> bool:
        return all(holds(folder / name, mark) for name, mark in saved.state["files"].items())

    saved = load_checkpoint(folder / CHECKPOINTS, fits, say)
    if saved is None:
        _set_aside(folder, say)
    else:
        begun = read_provenance(folder) or who
        changed = changed_versions(begun, who)
        for line in changed:
            say(f"warning: {line}: the run's steps are not all of one version")
        changed = list(dict.fromkeys([*begun.get("changed", []), *changed]))
        who = {**who, "versions": begun["versions"], "git": begun["git"], **({"changed": changed} if changed else {})}
        for name in (FILE, ERROR):  # of the attempt that failed
            (folder / name).unlink(missing_ok=True)
    write_whole(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(asdict(config))))
    write_whole(folder / PROVENANCE, json.dumps(who, indent=1))
    return who, saved


def _set_aside(folder: Path, say: Callable[[str], None]) -> None:
    """Keep what an attempt that cannot be gone on with has left, in ``attempts/``."""
    left = [path for path in folder.iterdir() if path.name not in (LOCK, LEASE, HOLDER, ATTEMPTS)]
    if left:
        number = 1
        while (folder / ATTEMPTS / str(number)).exists():
            number += 1
        (folder / ATTEMPTS / str(number)).mkdir(parents=True)
        for path in left:
            path.rename(folder / ATTEMPTS / str(number) / path.name)
        say(f"no checkpoint to go on from: begins again; what was there is in {folder / ATTEMPTS / str(number)}")


def _record(folder: Path, summary: Summary, failure: BaseException | None, say: Callable[[str], None]) -> None:
    """Write how it ended, if that can be written: what broke the run may be a full disk."""
    try:
        if failure is not None:
            write_whole(folder / ERROR, "".join(traceback.format_exception(failure)))
        write_summary(folder, summary)
    except OSError as error:
        say(f"the summary cannot be written ({error}); what was there is as it was ({folder})")
        if failure is None:
            raise


def _train(
    config: Config,
    folder: Path,
    progress: "Progress",
    summary: Summary,
    loader: "Loader",
    viewer: "Viewer",
    stop: "StopRequest",
    saved: "Checkpoint | None",
    ranks: Ranks,
) -> None:
    """Load, train, evaluate and export; what is known goes into ``summary`` even when it breaks."""
    from rlsparse.batch import NonFiniteError
    from rlsparse.tracking.profiling import Clock, peak_memory
    from rlsparse.tracking.tracker import Tracker
    from rlsparse.train import train
    from rlsparse.training.checkpointing import Keeper
    from rlsparse.training.setup import device_of, workplace

    ranks.tell((config, saved))
    device = device_of(config, ranks)
    clock = Clock(device, saved.state["time"] if saved is not None else None)
    with (
        closing(Tracker(folder, progress, saved.state["files"] if saved is not None else None)) as tracker,
        workplace(config, device, loader) as place,
    ):
        if config.tracker.name == "wandb":
            viewer.show(folder)  # now that its files are as they will go on
        summary |= {"device": str(device), "ranks": ranks.size, "setting": setting(config)}
        summary["prompts_skipped"] = {"train": place.data.skipped_train, "test": place.data.skipped_test}
        _tell_skipped(config, place, progress.say)
        keeper = Keeper(folder / CHECKPOINTS, config.train.checkpoint_every, tracker, clock, stop, saved, ranks)
        adapter = place.adapter
        try:
            train(config, place, tracker, clock, keeper, ranks)
        except NonFiniteError:
            adapter.export(folder / "adapter")
            raise
        finally:
            summary |= results(tracker.history)
            parameters = sum(p.numel() for p in adapter.parameters())
            summary["adapter"] = about_adapter(
                config.adapter.name, adapter.ranks(), adapter.budget, parameters, adapter.moves, tracker.history
            )
            summary["time"] = {"total": clock.elapsed(), **clock.total}
            summary["peak_memory_bytes"] = peak_memory(device)
        adapter.export(folder / "adapter")
        for file in (folder / "adapter").iterdir():
            sync(file)
        tracker.marks()  # on disk, since the checkpoints will not be for long


def _tell_skipped(config: Config, place: "Workplace", say: Callable[[str], None]) -> None:
    data = place.data
    if data.skipped_train or data.skipped_test:
        say(
            f"warning: {data.skipped_train} training and {data.skipped_test} held-out prompts leave no room for "
            f"rollout.max_new_tokens={config.rollout.max_new_tokens} in the context of {place.policy.context} tokens; "
            "skipped"
        )

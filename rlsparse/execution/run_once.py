"""One run from start to end: checked, started or resumed, trained, and its summary written."""

import json
import logging
import shutil
import traceback
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlsparse.config.compose import as_yaml
from rlsparse.config.schema import Config, ConfigError
from rlsparse.runtime.distributed import ALONE, RankLost, World
from rlsparse.runtime.logs import log_to_terminal
from rlsparse.runtime.preload import import_all, quieten
from rlsparse.runtime.signals import Interrupted, StopRequest
from rlsparse.storage.atomic import sync, write_whole
from rlsparse.storage.locks import claimed
from rlsparse.storage.run_folder import RunFolder
from rlsparse.storage.summary import (
    DONE,
    Summary,
    about_adapter,
    changed_versions,
    headline,
    provenance,
    read_provenance,
    read_summary,
    results,
    setting,
    write_summary,
)
from rlsparse.tracking.viewer import Viewer

if TYPE_CHECKING:
    from rlsparse.model.cache import ModelCache
    from rlsparse.model.policy import Policy
    from rlsparse.storage.checkpoints import Checkpoint
    from rlsparse.tracking.progress import Progress
    from rlsparse.tracking.tracker import Tracker
    from rlsparse.training.setup import Training

RECORDED = "recorded in summary.json and error.txt of the run"  # a note on an error that was logged with its run
CUT_OFF = (Interrupted, KeyboardInterrupt, RankLost)
log = logging.getLogger(__name__)

# torch and transformers are imported inside functions, so that --help and a misspelt key answer at once


@dataclass(frozen=True)
class Job:
    """The place of a run among others.

    Attributes:
        overrides: what the user asked for.
        number: from 1.
        sweep: the overrides of every job of the sweep; empty for a single run.
    """

    overrides: Sequence[str] = field(default_factory=list)
    number: int = 1
    sweep: Sequence[Sequence[str]] = field(default_factory=list)

    def label(self, config: Config) -> str:
        """Return the place in the sweep, algorithm, seed, and the other overrides that distinguish this job."""
        place = f"[{self.number}/{len(self.sweep)}] " if self.sweep else ""
        swept = [o for o in self.overrides if any(o not in others for others in self.sweep)]
        extra = [o for o in swept if o.split("=")[0] not in ("algorithm", "seed")]
        return " ".join([f"{place}{config.algorithm}", f"seed={config.seed}", *extra])


@dataclass(frozen=True)
class Process:
    """What the runs of a process share.

    Attributes:
        models: keeps the model between runs.
        viewer: shows runs on W&B; None for one that each run waits for.
        world: the ranks that train with this one, which is rank 0.
    """

    models: "ModelCache"
    viewer: Viewer | None = None
    world: World = ALONE


def run(config: Config, job: Job | None = None, process: Process | None = None) -> Summary:
    """Do one run and write its folder ``<runs_dir>/<experiment>/<id>/``; one that is done already is only read.

    A run that diverges (a loss that is not finite) ends with that status, keeps its data, and does not raise.

    Raises:
        ConfigError: bad input, before any model loads.
        Interrupted: a signal asked it to stop; it is saved.
        RankLost: another rank has died; the run can resume from its last checkpoint.
        Exception: whatever made the run fail, after its summary says so.
    """
    from rlsparse.model.cache import ModelCache

    stop = StopRequest()
    # from here on: what a run imports takes seconds, in which the handler of a launcher would end it
    try:
        with stop.listening():
            return _run(config, job or Job(), process or Process(ModelCache()), stop)
    finally:
        stop.check()  # a signal that came when nothing was left to stop: a sweep must not continue all the same


def _run(config: Config, job: Job, process: Process, stop: StopRequest) -> Summary:
    import_all()
    from rlsparse.algorithm import Algorithm
    from rlsparse.execution.preflight import preflight

    quieten()
    log_to_terminal()
    (identity,) = preflight([config]).identities
    folder = RunFolder(Path(config.runs_dir) / config.experiment.name / identity.id)
    label = job.label(config)
    with claimed(folder.path, config.sweep.lock) as ours:
        if not ours:
            log.info("%s: another process works on it, skipped (%s)", label, folder.path)
            return {"id": identity.id, "status": "running"}
        earlier = read_summary(folder.path)
        if earlier is not None and (earlier["status"] in DONE or not config.sweep.retry_failed):
            _skip(folder, earlier, label)
            return earlier
        about = provenance(identity, config.experiment.name, config.algorithm, config.seed, list(job.overrides))
        about["versions"] |= Algorithm.build(config).rollout.versions()
        with closing(Viewer()) as own:
            attempt = _Attempt(config, folder, about, label, process, process.viewer or own, stop)
            return attempt()


def _skip(folder: RunFolder, earlier: Summary, label: str) -> None:
    if earlier["status"] == "finished":
        discard_checkpoints(folder.path)  # a process may have been killed between its last two actions
    again = "" if earlier["status"] == "finished" else "; delete the folder to do it again"
    log.info("%s: %s before, skipped (%s%s)", label, earlier["status"], folder.path, again)


def discard_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a run that needs them no more, once its summary is written."""
    shutil.rmtree(RunFolder(folder).checkpoints, ignore_errors=True)


@dataclass
class _Attempt:
    """An attempt at a run: from its start or its last checkpoint to its summary.

    Attributes:
        folder: of the run, which this process alone works on.
        about: see ``summary.provenance``.
        label: of the run, for a person.
        viewer: shows the run on W&B, where ``tracker`` asks for it.
        summary: what is known so far.
    """

    config: Config
    folder: RunFolder
    about: Mapping[str, Any]
    label: str
    process: Process
    viewer: Viewer
    stop: StopRequest
    summary: Summary = field(default_factory=dict)

    def __call__(self) -> Summary:
        """Do the run.

        Raises:
            Interrupted: a signal asked it to stop; it is saved.
            RankLost: another rank has died; the run can resume from its last checkpoint.
            BaseException: whatever made the run fail, after its summary says so.
        """
        from rlsparse.batch import NonFiniteError
        from rlsparse.tracking.progress import Progress

        progress = Progress(self.label, self.config.train.steps)
        self.summary |= {**self.about, "status": "failed", "error": None}
        failure: BaseException | None = None
        with closing(progress):
            try:
                saved = self._begin()
                if saved is not None:
                    progress.resume_after(saved.step)
                    log.info("%s: resumes after step %d (%s)", self.label, saved.step, self.folder.path)
                self.stop.check()
                self._train(progress, saved)
                self.summary["status"] = "finished"
            except NonFiniteError as error:
                self.summary |= {"status": "diverged", "error": str(error)}
            except CUT_OFF as error:  # not failed
                failure = error
            except BaseException as error:
                failure = error
                error.add_note(RECORDED)
                self.summary["error"] = _one_line(error, self.config.import_path)
            if isinstance(failure, CUT_OFF):
                how = str(failure) or "interrupted at once"
                log.info("%s: %s (%s); the same command resumes it", self.label, how, self.folder.path)
            else:
                self._record(failure)
                log.info("%s: %s (%s)", self.label, headline(self.summary), self.folder.path)
        self.viewer.done(self.folder.path)
        if failure is not None:
            traceback.clear_frames(failure.__traceback__)  # a stored exception must not hold the model in memory
            raise failure
        discard_checkpoints(self.folder.path)
        return self.summary

    def _begin(self) -> "Checkpoint | None":
        """Write config and provenance; return the last checkpoint, or None where the run starts anew."""
        from rlsparse.storage.checkpoints import Checkpoint, load_checkpoint
        from rlsparse.storage.jsonl import begins_with

        def fits(saved: Checkpoint) -> bool:
            return all(begins_with(self.folder.path / name, mark) for name, mark in saved.state["files"].items())

        about = dict(self.about)
        saved = load_checkpoint(self.folder.checkpoints, fits)
        if saved is None:
            self._set_aside()
        else:
            begun = read_provenance(self.folder.path) or about
            changed = changed_versions(begun, about)
            for line in changed:
                log.warning("warning: %s: the steps of the run are not all of one version", line)
            changed = list(dict.fromkeys([*begun.get("changed", []), *changed]))
            about |= {"versions": begun["versions"], "git": begun["git"], **({"changed": changed} if changed else {})}
            for file in (self.folder.summary, self.folder.error):  # of the attempt that failed
                file.unlink(missing_ok=True)
        write_whole(self.folder.config, as_yaml(self.config))
        write_whole(self.folder.provenance, json.dumps(about, indent=1))
        self.summary |= about
        return saved

    def _set_aside(self) -> None:
        """Move what an attempt that cannot be resumed has left into ``attempts/``."""
        kept = (self.folder.lock, self.folder.lease, self.folder.holder, self.folder.attempts)
        left = [path for path in self.folder.path.iterdir() if path not in kept]
        if not left:
            return
        number = 1
        while (self.folder.attempts / str(number)).exists():
            number += 1
        target = self.folder.attempts / str(number)
        target.mkdir(parents=True)
        for path in left:
            path.rename(target / path.name)
        log.info("no checkpoint to resume from: starts again; earlier files are in %s", target)

    def _record(self, failure: BaseException | None) -> None:
        """Write how the attempt ended, if that can be written: the cause may be a full disk."""
        try:
            if failure is not None:
                write_whole(self.folder.error, "".join(traceback.format_exception(failure)))
            write_summary(self.folder.path, self.summary)
        except OSError as error:
            log.error("the summary cannot be written (%s); the folder is unchanged (%s)", error, self.folder.path)
            if failure is None:
                raise

    def _train(self, progress: "Progress", saved: "Checkpoint | None") -> None:
        """Load, train, evaluate and export; what is known goes into the summary even when it fails."""
        from rlsparse.algorithm import Algorithm
        from rlsparse.runtime.devices import sharing_cpus
        from rlsparse.tracking.profiling import Clock
        from rlsparse.tracking.tracker import Tracker
        from rlsparse.training.setup import RunContext, device_of, training

        self.process.world.send((self.config, saved))
        device = device_of(self.config, self.process.world)
        clock = Clock(device, saved.state["time"] if saved is not None else None)
        algorithm = Algorithm.build(self.config)
        files = saved.state["files"] if saved is not None else None
        with closing(Tracker(self.folder, progress, files)) as tracker:
            context = RunContext(
                device, self.process.world, self.folder, saved, tracker, clock, self.stop, self.process.models
            )
            with (
                training(self.config, algorithm, context) as training_run,
                sharing_cpus(device, self.process.world),
            ):
                if self.config.tracker.name == "wandb":
                    self.viewer.show(self.folder.path)  # after the files are cut back to the checkpoint
                ranks = self.process.world.size
                self.summary |= {"device": str(device), "ranks": ranks}
                self.summary["setting"] = setting(self.config, algorithm.task.label)
                self._loop(training_run, tracker, clock, device)
            tracker.flush()  # on disk, since the checkpoints will be removed

    def _loop(self, training_run: "Training", tracker: "Tracker", clock: Any, device: Any) -> None:
        from rlsparse.batch import NonFiniteError
        from rlsparse.tracking.profiling import peak_memory
        from rlsparse.train import train

        self._note_skipped(training_run)
        self._note_endings(training_run.policy)
        adapter, algorithm = training_run.adapter, training_run.algorithm
        trained = self.folder.model if algorithm.adapter.exports_model else self.folder.adapter
        try:
            train(training_run)
        except NonFiniteError:
            adapter.export(trained)
            raise
        finally:
            self.summary |= results(tracker.history)
            self.summary["adapter"] = about_adapter(
                algorithm.adapter.label, adapter, tracker.history if algorithm.adapter.moves_ranks else None
            )
            self.summary["time"] = {"total": clock.elapsed(), **clock.total}
            self.summary["peak_memory_bytes"] = peak_memory(device)
        adapter.export(trained)
        for file in trained.iterdir():
            sync(file)

    def _note_skipped(self, training_run: "Training") -> None:
        data, algorithm = training_run.data, training_run.algorithm
        self.summary["prompts_skipped"] = {"train": data.skipped_train, "test": data.skipped_test}
        if benchmarks := training_run.evaluate.benchmarks:
            self.summary["prompts_skipped"]["benchmarks"] = {one.name: one.skipped for one in benchmarks}
        if data.skipped_train or data.skipped_test:
            log.warning(
                "warning: %d training and %d held-out prompts leave no room for rollout.max_new_tokens=%d in the "
                "context of %d tokens; skipped",
                data.skipped_train,
                data.skipped_test,
                algorithm.rollout.max_new_tokens,
                training_run.policy.context,
            )

    def _note_endings(self, policy: "Policy") -> None:
        from rlsparse.model.endings import ending_texts, unending

        self.summary["completion_ends_at"] = ending_texts(policy)
        if warning := unending(policy):
            log.warning("warning: %s", warning)


def _one_line(error: BaseException, import_path: Sequence[str]) -> str:
    """Return an error for the summary; with file and line where a user's own module raised it."""
    if isinstance(error, ConfigError):
        return str(error)
    line = f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if any(Path(one.filename).is_relative_to(folder) for folder in import_path)]
    return f"{own[-1].filename}, line {own[-1].lineno}: {line}" if own else line

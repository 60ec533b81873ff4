"""``python -m rlsparse.sync``: show runs on W&B from the files in their folders, after training or during it."""

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock

from rlsparse.config.compose import config_dir
from rlsparse.storage.jsonl import read_rows, rows_of
from rlsparse.storage.locks import holder, refuse_links
from rlsparse.storage.run_folder import RunFolder, begun_runs, path_argument
from rlsparse.storage.streams import command
from rlsparse.storage.summary import read_summary
from rlsparse.tracking.viewer import LATER
from rlsparse.tracking.wandb_environment import is_disabled, prepare_environment, root_folder, wandb_folder
from rlsparse.tracking.wandb_names import project_problem, wandb_id

if TYPE_CHECKING:
    from rlsparse.tracking.wandb_view import WandbView

POLL = 0.5  # seconds between two reads of a file that is being written
NICE = 10  # added to the niceness of this process, so that training has priority on a shared core
PATIENCE = 60  # seconds that W&B has to finish after the training process has ended


def publish(
    folder: Path, over: Callable[[], bool], settings: dict[str, Any] | None = None, pid: int | None = None
) -> None:
    """Show a run on W&B row by row, until the run has ended and all its rows are shown.

    Args:
        folder: the folder of the run.
        over: returns whether the files of the run will not change any more.
        settings: values that replace the ``tracker`` keys of the run.
        pid: id of the training process; None if the run is not training.

    Raises:
        Exception: any error of W&B, or the files of the run cannot be read.
    """
    refuse_links(folder)
    config = yaml.safe_load(RunFolder(folder).config.read_text(encoding="utf-8-sig"))  # ${oc.env:SECRET} stays text
    chosen = {**wandb_defaults(), **config["tracker"], **(settings or {})}
    if chosen["mode"] == "auto" and is_disabled():
        return
    from rlsparse.tracking.wandb_view import WandbView, usual_mode

    if chosen["mode"] == "auto":
        chosen["mode"] = usual_mode()
    if chosen["mode"] == "disabled":
        return
    with _lock(folder, config["experiment"]["name"]):  # an earlier process may not have finished
        view = WandbView(folder, config, chosen, pid)
        if view.url:
            print(f"W&B: {view.url}", file=sys.stderr, flush=True)
        number = _show_rows(view, RunFolder(folder).metrics, over)
        samples = read_rows(RunFolder(folder).samples)
        view.finish(number, samples, read_summary(folder))


def _lock(folder: Path, experiment: str) -> FileLock:
    """Return the lock that the process which shows a run holds, beside the files of W&B."""
    root = root_folder(folder)
    file = RunFolder(folder).wandb_lock
    if root != folder:  # the folder of the run may be read-only
        file = wandb_folder(root) / f".{wandb_id(experiment, folder.name)}.lock"
    try:
        file.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise OSError(f"{file.parent} cannot be written: {error.strerror}; WANDB_DIR names another folder") from error
    return FileLock(file)


def wandb_defaults() -> dict[str, Any]:
    """Return the keys of ``tracker=wandb``, for runs with ``tracker=none``."""
    values: dict[str, Any] = yaml.safe_load((Path(config_dir()) / "tracker" / "wandb.yaml").read_text(encoding="utf-8"))
    return {key: value for key, value in values.items() if key != "defaults"}


def _show_rows(view: "WandbView", file: Path, over: Callable[[], bool]) -> int:
    """Log the rows of a file while it is written, and return their number."""
    number = at = 0
    while True:
        ended = over()  # before reading, so that no row written in between is missed
        with file.open("rb") as opened:
            opened.seek(at)
            lines = opened.read()
        complete = lines[: lines.rfind(b"\n") + 1]
        at += len(complete)
        for row in rows_of(complete):
            view.log(number, row)
            number += 1
        if ended:
            return number
        time.sleep(POLL)


def follow() -> None:
    """Show the runs that ``Viewer`` names on standard input one after the other, each until it is done."""
    waiting: list[tuple[Path, int]] = []
    done: set[Path] = set()
    closed = threading.Event()

    def listen() -> None:
        for line in sys.stdin:
            message = json.loads(line)
            if "show" in message:
                waiting.append((Path(message["show"]), message["pid"]))
            else:
                done.add(Path(message["done"]))
        closed.set()
        signal.alarm(PATIENCE)  # ends this process even if W&B is still waiting for its server

    def is_over(folder: Path) -> bool:
        return folder in done or closed.is_set()

    os.nice(NICE)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # training ends first, and then this process, as after Ctrl-C
    threading.Thread(target=listen, daemon=True).start()
    while waiting or not closed.is_set():
        if not waiting:
            time.sleep(POLL)
            continue
        folder, pid = waiting.pop(0)
        _try(folder, partial(is_over, folder), pid=pid)


def _try(folder: Path, over: Callable[[], bool], **how: Any) -> bool:
    try:
        publish(folder, over, **how)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"W&B: {folder.name} is not shown ({reason[:300]}); {LATER}", file=sys.stderr)
        return False
    return True


def _is_off() -> bool:
    """Return whether W&B is turned off on this machine."""
    try:
        from rlsparse.tracking.wandb_view import usual_mode

        return usual_mode() == "disabled"
    except Exception:  # each run will report it
        return False


@command()
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m rlsparse.sync", description=__doc__)
    parser.add_argument(
        "--runs", type=path_argument, default=Path("runs"), help="folder of experiments, the key runs_dir"
    )
    parser.add_argument("--experiment", help="show only the runs of this experiment")
    parser.add_argument("--mode", choices=("auto", "online", "offline"), default="auto", help="see tracker.mode")
    parser.add_argument("--project", help="W&B project; by default that of each run")
    parser.add_argument("--entity", help="W&B user or team; by default that of each run")
    parser.add_argument("--follow", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    prepare_environment()
    if options.follow:
        follow()
        return
    if not options.runs.is_dir():
        sys.exit(f"error: --runs {options.runs}: there is no such folder; give the runs_dir of the runs")
    given = {"mode": options.mode, "project": options.project, "entity": options.entity}
    settings = {key: value for key, value in given.items() if value is not None}
    if options.experiment and not (options.runs / options.experiment).is_dir():
        sys.exit(f"error: --experiment {options.experiment}: there is no {options.runs / options.experiment}")
    if options.project is not None and (problem := project_problem(options.project, "--project")):
        sys.exit(f"error: {problem}")
    if options.mode == "auto" and _is_off():
        sys.exit("error: W&B is turned off (WANDB_MODE, WANDB_DISABLED, wandb disabled); give --mode online or offline")
    folders = [run.path for run in begun_runs(options.runs, options.experiment)]
    shown = 0
    for folder in folders:
        if holder(folder) is not None:
            print(f"{folder.name}: still running, skipped", file=sys.stderr)
        elif _try(folder, lambda: True, settings=settings):
            shown += 1
    place = root_folder(Path("their folders"))
    print(f"{shown} of {len(folders)} runs shown; without an API key they are stored offline in {place}")
    if shown < len(folders):
        sys.exit(1)


if __name__ == "__main__":
    main()

"""``python -m rlsparse.sync``: runs on W&B, made from their own files; now, or while they are written."""

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
from rlsparse.storage.run_folder import RunFolder
from rlsparse.storage.summary import read_summary
from rlsparse.tracking.viewer import LATER

if TYPE_CHECKING:
    from rlsparse.tracking.wandb_view import WandbView

POLL = 0.5  # seconds between two looks at a file that grows
NICE = 10  # training goes first where they share a core
PATIENCE = 60  # seconds that W&B has to finish once nobody is there any more to wait for it


def publish(
    folder: Path, over: Callable[[], bool], settings: dict[str, Any] | None = None, pid: int | None = None
) -> None:
    """Show a run on W&B, row by row, until it is over and all its rows are shown.

    Args:
        over: whether nothing more will be written.
        settings: replace the run's own ``tracker`` keys.
        pid: of the process that trains.

    Raises:
        Exception: whatever W&B raises, or the run's files cannot be read.
    """
    from rlsparse.tracking.wandb_view import WandbView

    refuse_links(folder)
    config = yaml.safe_load(RunFolder(folder).config.read_text(encoding="utf-8"))  # resolves no ${oc.env:SECRET}
    RunFolder(folder).wandb.mkdir(exist_ok=True)
    with FileLock(RunFolder(folder).wandb / ".lock"):  # an earlier process may still be at it
        view = WandbView(folder, config, {**wandb_defaults(), **config["tracker"], **(settings or {})}, pid)
        if view.url:
            print(f"W&B: {view.url}", file=sys.stderr, flush=True)
        number = _show_rows(view, RunFolder(folder).metrics, over)
        samples = read_rows(RunFolder(folder).samples)
        view.finish(number, samples, read_summary(folder))


def wandb_defaults() -> dict[str, Any]:
    """The keys of ``tracker=wandb``, for runs that had ``tracker=none``."""
    values: dict[str, Any] = yaml.safe_load((Path(config_dir()) / "tracker" / "wandb.yaml").read_text(encoding="utf-8"))
    return {key: value for key, value in values.items() if key != "defaults"}


def _show_rows(view: "WandbView", file: Path, over: Callable[[], bool]) -> int:
    """Log the file's rows while it grows; their number."""
    number = at = 0
    while True:
        ended = over()  # asked first: what is written before the answer is read below
        with file.open("rb") as opened:
            opened.seek(at)
            lines = opened.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        at += len(whole)
        for row in rows_of(whole):
            view.log(number, row)
            number += 1
        if ended:
            return number
        time.sleep(POLL)


def follow() -> None:
    """Show the runs that are named on standard input, one after the other, each until it is done (``Viewer``)."""
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
        signal.alarm(PATIENCE)  # ends this process, whatever W&B waits for

    def is_over(folder: Path) -> bool:
        return folder in done or closed.is_set()

    os.nice(NICE)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as with Ctrl-C, training ends first and then this
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


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m rlsparse.sync", description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of experiments (runs_dir of the runs)")
    parser.add_argument("--experiment", help="only this one")
    parser.add_argument("--mode", choices=("auto", "online", "offline"), default="auto", help="as tracker.mode")
    parser.add_argument("--project", help="instead of the runs' own")
    parser.add_argument("--entity", help="instead of the runs' own")
    parser.add_argument("--follow", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("WANDB_SILENT", "true")
    if options.follow:
        follow()
        return
    if not options.runs.is_dir():
        sys.exit(f"error: --runs {options.runs}: there is no such folder; give the runs_dir of the runs")
    given = {"mode": options.mode, "project": options.project, "entity": options.entity}
    settings = {key: value for key, value in given.items() if value is not None}
    if options.experiment and not (options.runs / options.experiment).is_dir():
        sys.exit(f"error: --experiment {options.experiment}: there is no {options.runs / options.experiment}")
    folders = sorted(file.parent for file in options.runs.glob(f"{options.experiment or '*'}/*/metrics.jsonl"))
    shown = 0
    for folder in folders:
        if holder(folder) is not None:
            print(f"{folder.name}: running, left out", file=sys.stderr)
        elif _try(folder, lambda: True, settings=settings):
            shown += 1
    print(f"{shown} of {len(folders)} runs made for W&B; those without an API key lie in their folders, offline")
    if shown < len(folders):
        sys.exit(1)


if __name__ == "__main__":
    main()

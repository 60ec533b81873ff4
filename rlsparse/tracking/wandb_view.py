"""Weights & Biases: shows the content of the files of a run."""

import os
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb

from rlsparse.storage.run_folder import RunFolder
from rlsparse.tracking.metrics import METRICS, SAMPLE_TABLE, STEP
from rlsparse.tracking.wandb_environment import environment_tags, is_disabled, mode_problem, root_folder, wandb_folder
from rlsparse.tracking.wandb_names import (
    LONGEST_LABEL,
    LONGEST_NAME,
    group_name,
    project_name,
    project_problem,
    shortened,
    usable_tags,
    wandb_id,
)

SAMPLE_COLUMNS = ["step", "question", "completion", "gold", "reward", "correct"]


class WandbView:
    """Shows a run as one W&B run: config, group, job type, tags, metric definitions, a table of completions."""

    def __init__(
        self, folder: Path, config: Mapping[str, Any], settings: Mapping[str, Any], pid: int | None = None
    ) -> None:
        """Start the W&B run, or resume it under the same id; online if there is an API key, else offline.

        Args:
            folder: the folder of the run; W&B writes its files into it, or into ``WANDB_DIR``.
            config: the complete config of the run, for the W&B table.
            settings: the ``tracker`` keys ``project``, ``entity``, ``mode`` (not ``auto``) and ``tags``.
            pid: id of the training process, for the system metrics of W&B; None if the run is not training.

        Raises:
            ValueError: W&B has no such project name.
            Exception: any error of W&B.
        """
        if problem := project_problem(settings["project"]):
            raise ValueError(problem)
        mode = settings["mode"]
        experiment, algorithm = config["experiment"]["name"], config["algorithm"]
        name = wandb_id(experiment, folder.name)
        root = root_folder(folder)
        if mode == "offline":  # W&B cannot resume offline runs: an earlier part would be a second run with the same id
            for earlier in offline_folders(folder, root, name):
                shutil.rmtree(earlier, ignore_errors=True)
        self._run = wandb.init(
            project=project_name(settings["project"]),
            entity=settings["entity"],
            mode=mode,
            dir=str(root),
            id=name,
            name=shortened(folder.name, LONGEST_NAME),
            resume="allow" if mode == "online" else None,
            reinit="finish_previous",
            group=group_name(experiment),
            job_type=shortened(algorithm, LONGEST_LABEL),
            tags=usable_tags(
                [algorithm, config["model"]["name"], _task_name(config["task"]), *settings["tags"], *environment_tags()]
            ),
            config=dict(config),
            settings=wandb.Settings(
                silent=True, console="off", init_timeout=30, x_stats_pid=pid or os.getpid(), x_disable_stats=pid is None
            ),
        )
        self.url: str | None = self._run.url if mode == "online" else None
        self._run.define_metric(STEP)
        for name in METRICS:
            self._run.define_metric(f"{name}*" if name[-1] in "/_" else name, step_metric=STEP, summary="last")

    def log(self, number: int, row: Mapping[str, Any]) -> None:
        """Log row ``number`` of ``metrics.jsonl``; W&B ignores a row that it already has."""
        self._run.log({k: v for k, v in row.items() if k != "kind"}, step=number)

    def finish(self, number: int, samples: Sequence[Mapping[str, Any]], summary: Mapping[str, Any] | None) -> None:
        """Log completions and summary, and finish the W&B run.

        Args:
            number: number of rows of ``metrics.jsonl``.
            samples: rows of ``samples.jsonl``.
            summary: the summary of the run; None if the run was interrupted.
        """
        cells: list[Any] = [[row.get(column) for column in SAMPLE_COLUMNS] for row in samples]
        self._run.log({SAMPLE_TABLE: wandb.Table(columns=list(SAMPLE_COLUMNS), data=cells)}, step=number)
        self._run.summary.update(dict(summary or {}))
        broken = summary is None or summary.get("status") == "failed"
        self._run.finish(exit_code=1 if broken else 0)


def _task_name(task: Mapping[str, Any]) -> str:
    """Return the name of a task; for a class of a user's own without a name, that of the class."""
    return str(task.get("name") or str(task.get("_target_")).rpartition(".")[2])


def usual_mode() -> str:
    """Return the mode of a run with ``tracker.mode=auto``: online, offline, disabled, or another one of W&B.

    ``WANDB_MODE`` chooses it, or the commands ``wandb offline`` and ``wandb disabled``; else it is online with an API
    key and offline without.
    """
    if problem := mode_problem("auto"):
        raise ValueError(problem)
    if is_disabled():
        return "disabled"
    mode = {"dryrun": "offline", "run": "online"}.get(chosen := wandb.setup().settings.mode, chosen)
    if mode == "online" and not os.environ.get("WANDB_MODE") and not has_key():
        return "offline"
    return mode


def offline_folders(folder: Path, root: Path, name: str) -> list[Path]:
    """Return the folders of earlier offline runs of a run.

    Args:
        folder: the folder of the run.
        root: the folder in which W&B makes its own; other runs may share it.
        name: the id of the run on W&B.
    """
    own = re.compile(rf"offline-run-\d{{8}}_\d{{6}}-{re.escape(name)}(-\d+)?")
    shared = [path for path in wandb_folder(root).glob("offline-run-*") if own.fullmatch(path.name)]
    return [*RunFolder(folder).wandb.glob("offline-run-*"), *shared]


def has_key() -> bool:
    """Return whether W&B has an API key of this user, from the environment or from ``wandb login``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(os.environ.get("WANDB_API_KEY")) or bool(wandb.login(prompt=False))

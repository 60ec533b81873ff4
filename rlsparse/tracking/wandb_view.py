"""Weights & Biases: shows the content of the files of a run."""

import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb

from rlsparse.storage.run_folder import RunFolder
from rlsparse.tracking.metrics import METRICS, SAMPLE_TABLE, STEP

SAMPLE_COLUMNS = ["step", "question", "completion", "gold", "reward", "correct"]


class WandbView:
    """Shows a run as one W&B run: config, group, job type, tags, metric definitions, a table of completions."""

    def __init__(
        self, folder: Path, config: Mapping[str, Any], settings: Mapping[str, Any], pid: int | None = None
    ) -> None:
        """Start the W&B run, or resume it under the same id; online if there is an API key, else offline.

        Args:
            folder: the folder of the run; its name is the id of the run, and W&B writes its files into it.
            config: the complete config of the run, for the W&B table.
            settings: the ``tracker`` keys ``project``, ``entity``, ``mode`` and ``tags``.
            pid: id of the training process, for the system metrics of W&B; None if the run is not training.
        """
        mode = settings["mode"]
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
        if mode == "offline":  # W&B cannot resume offline runs: an earlier part would be a second run with the same id
            for earlier in RunFolder(folder).wandb.glob("offline-run-*"):
                shutil.rmtree(earlier, ignore_errors=True)
        self._run = wandb.init(
            project=settings["project"],
            entity=settings["entity"],
            mode=mode,
            dir=str(folder),
            id=f"{config['experiment']['name']}-{folder.name}",
            name=folder.name,
            resume="allow" if mode == "online" else None,
            reinit="finish_previous",
            group=config["experiment"]["name"],
            job_type=config["algorithm"],
            tags=[config["algorithm"], config["model"]["name"], config["task"]["name"], *settings["tags"]],
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


def has_key() -> bool:
    """Return whether W&B has an API key of this user, from the environment or from ``wandb login``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(os.environ.get("WANDB_API_KEY")) or bool(wandb.login(prompt=False))

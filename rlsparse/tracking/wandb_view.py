"""Weights & Biases as a view of a run's own files."""

import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb

from rlsparse.tracking.metrics import METRICS, SAMPLE_TABLE, STEP

SAMPLE_COLUMNS = ["step", "question", "completion", "gold", "reward", "correct"]


class WandbView:
    """One W&B run: config, group, job type, tags, metric definitions, a table of sample completions."""

    def __init__(
        self, folder: Path, config: Mapping[str, Any], settings: Mapping[str, Any], pid: int | None = None
    ) -> None:
        """Starts the run, or goes on with it under the same id; online with an API key, offline without.

        Args:
            folder: the run's folder, whose name is its id; W&B's files go into ``wandb/`` in it.
            config: the run's whole config, for the W&B table.
            settings: the ``tracker`` keys ``project``, ``entity``, ``mode`` and ``tags``.
            pid: the process that trains, for W&B's system metrics; None where none does.
        """
        mode = settings["mode"]
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
        if mode == "offline":  # it cannot resume: an earlier one of this run would be half of it, under the same id
            for earlier in (folder / "wandb").glob("offline-run-*"):
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
        """Row ``number`` of ``metrics.jsonl``; W&B drops one that it has already."""
        self._run.log({k: v for k, v in row.items() if k != "kind"}, step=number)

    def finish(self, number: int, samples: Sequence[Mapping[str, Any]], summary: Mapping[str, Any] | None) -> None:
        """
        Args:
            number: rows of ``metrics.jsonl``.
            summary: of the run; None where it was cut off.
        """
        cells: list[Any] = [[row.get(column) for column in SAMPLE_COLUMNS] for row in samples]
        self._run.log({SAMPLE_TABLE: wandb.Table(columns=list(SAMPLE_COLUMNS), data=cells)}, step=number)
        self._run.summary.update(dict(summary or {}))
        broken = summary is None or summary.get("status") == "failed"
        self._run.finish(exit_code=1 if broken else 0)


def has_key() -> bool:
    """Whether W&B has an API key of this user: from the environment, or left by ``wandb login``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(os.environ.get("WANDB_API_KEY")) or bool(wandb.login(prompt=False))

"""Weights & Biases as a view of the run's own files: nothing depends on it, and no failure of it stops a run."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlsparse.tracking.metrics import METRICS

SAMPLE_COLUMNS = ["step", "question", "completion", "gold", "reward", "correct"]


class WandbView:
    """One W&B run: config, group, job type, tags, metric definitions, a table of sample completions."""

    def __init__(
        self, folder: Path, run_id: str, config: Mapping[str, Any], settings: Mapping[str, Any], tags: list[str]
    ) -> None:
        """Starts the run; online with an API key, offline without.

        Args:
            folder: the run's folder; W&B's files go into ``wandb/`` in it.
            config: the run's whole config, for the W&B table.
            settings: the ``tracker`` keys ``project``, ``entity``, ``mode`` and ``tags``.
            tags: tags beside the settings' own.
        """
        import wandb  # only here: tracker=none must not need it

        self._wandb = wandb
        self._samples: list[list[Any]] = []
        mode = settings["mode"]
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if _has_key(wandb) else "offline")
        self._run = wandb.init(
            project=settings["project"],
            entity=settings["entity"],
            mode=mode,
            dir=str(folder),
            id=f"{config['experiment']['name']}-{run_id}",
            name=run_id,
            resume="allow" if mode == "online" else None,
            reinit="finish_previous",
            group=config["experiment"]["name"],
            job_type=config["algorithm"],
            tags=[*tags, *settings["tags"]],
            config=dict(config),
            settings=wandb.Settings(silent=True, console="off", init_timeout=30),
        )
        self.url: str | None = self._run.url if mode == "online" else None
        self._run.define_metric("step")
        for name in METRICS:
            self._run.define_metric(f"{name}*" if name[-1] in "/_" else name, step_metric="step", summary="last")

    def log(self, row: Mapping[str, Any]) -> None:
        self._run.log(dict(row))

    def sample(self, row: Mapping[str, Any]) -> None:
        self._samples.append([row[column] for column in SAMPLE_COLUMNS])

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        self._run.log({"samples": self._wandb.Table(columns=list(SAMPLE_COLUMNS), data=list(self._samples))})
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=exit_code)


def _has_key(wandb: Any) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(os.environ.get("WANDB_API_KEY")) or bool(wandb.login(prompt=False))

"""Everything a run tells about itself while it runs, in one object."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlsparse.tracking.files import JsonLines
from rlsparse.tracking.metrics import rank_row
from rlsparse.tracking.progress import Progress
from rlsparse.tracking.wandb_view import WandbView


class Tracker:
    """Writes ``metrics.jsonl`` and ``samples.jsonl`` first, then tells W&B and the display."""

    def __init__(self, folder: Path, progress: Progress, view: Callable[[], WandbView] | None) -> None:
        """
        Args:
            view: starts the W&B view; None for ``tracker=none``.
        """
        self.history: list[dict[str, Any]] = []  # every row of metrics.jsonl
        self._metrics = JsonLines(folder / "metrics.jsonl")
        self._samples = JsonLines(folder / "samples.jsonl")
        self._progress = progress
        self._view: WandbView | None = None
        if view is not None:
            self._tell_view(lambda: setattr(self, "_view", view()))
        if self._view is not None and self._view.url:
            self._progress.say(f"W&B: {self._view.url}")

    def train(self, step: int, metrics: Mapping[str, float]) -> None:
        """A training step's metrics."""
        self._log({"step": step, "kind": "train", **metrics})
        self._progress.step(metrics["task/reward_mean"], metrics["rollout/tokens_per_second"])

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """An evaluation's metrics."""
        self._log({"step": step, "kind": "eval", **metrics})
        self._progress.evaluation(step, metrics["eval/accuracy_greedy"], metrics["eval/accuracy_sampled"])

    def ranks(self, step: int, ranks: Mapping[str, int]) -> None:
        """The rank of the adapter on each module, by module name: at the start and after each rank update."""
        self._log(rank_row(step, ranks))

    def sample(self, row: Mapping[str, Any]) -> None:
        """A completion worth keeping."""
        self._samples.write(row)
        if self._view is not None:
            self._view.sample(row)

    def say(self, line: str) -> None:
        """A line for the person at the terminal."""
        self._progress.say(line)

    def close(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Close the files, the display and the W&B run."""
        self._metrics.close()
        self._samples.close()
        self._progress.close()
        if self._view is not None:
            view = self._view
            self._tell_view(lambda: view.finish(summary, exit_code))

    def _log(self, row: dict[str, Any]) -> None:
        self.history.append(row)
        self._metrics.write(row)
        if self._view is not None:
            view = self._view
            self._tell_view(lambda: view.log({k: v for k, v in row.items() if k != "kind"}))

    def _tell_view(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # W&B raises what it likes; our own files have the row already
            view, self._view = self._view, None
            if view is not None:
                with suppress(Exception):
                    view.finish({}, exit_code=1)
            self._progress.say(
                f"W&B is off for the rest of this run ({type(error).__name__}: {error}); the files go on"
            )

"""Everything a run tells about itself while it runs, in one object."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlsparse.storage.jsonl import JsonLines, read_rows
from rlsparse.tracking.metrics import rank_row
from rlsparse.tracking.progress import Progress

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"


class Tracker:
    """Writes ``metrics.jsonl`` and ``samples.jsonl``, then tells the display; W&B shows what the files hold."""

    def __init__(self, folder: Path, progress: Progress, marks: Mapping[str, Any] | None = None) -> None:
        """
        Args:
            marks: of the files of a run that goes on, see ``marks``.
        """
        sizes = {name: marks[name]["bytes"] if marks else 0 for name in (METRICS, SAMPLES)}
        self._metrics = JsonLines(folder / METRICS, sizes[METRICS])
        self._samples = JsonLines(folder / SAMPLES, sizes[SAMPLES])
        self.history = read_rows(folder / METRICS)
        self._progress = progress

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

    def marks(self) -> dict[str, Any]:
        """What the files hold by now, by name; all of it on disk."""
        return {METRICS: self._metrics.mark(), SAMPLES: self._samples.mark()}

    def sample(self, row: Mapping[str, Any]) -> None:
        """A completion worth keeping."""
        self._samples.write(row)

    def say(self, line: str) -> None:
        """A line for the person at the terminal."""
        self._progress.say(line)

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()
        self._samples.close()

    def _log(self, row: dict[str, Any]) -> None:
        self._metrics.write(row)
        self.history.append(row)


class Mute(Tracker):
    """Of a rank that has nothing to tell: another one tells it."""

    def __init__(self) -> None:
        self.history = []

    def train(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def ranks(self, step: int, ranks: Mapping[str, int]) -> None:
        pass

    def sample(self, row: Mapping[str, Any]) -> None:
        pass

    def say(self, line: str) -> None:
        pass

"""The records of a run while it trains: its files and its progress display."""

from collections.abc import Iterable, Mapping
from typing import Any

from rlsparse.storage.jsonl import JsonLines, read_rows
from rlsparse.storage.run_folder import RunFolder
from rlsparse.tracking.metrics import benchmark_row, rank_row
from rlsparse.tracking.progress import Progress


class Tracker:
    """Writes ``metrics.jsonl`` and ``samples.jsonl``, which W&B shows, and ``answers.jsonl``; shows the progress."""

    def __init__(self, folder: RunFolder, progress: Progress, saved: Mapping[str, Any] | None = None) -> None:
        """Open the files of a run.

        Args:
            folder: the folder of the run.
            progress: the progress display.
            saved: the ``fingerprints`` in the checkpoint that the run resumes from; None at the start of a run.

        Raises:
            ValueError: a file is shorter than at the time of the checkpoint.
        """
        files = (folder.metrics, folder.samples, folder.answers)
        kept = {name: mark["bytes"] for name, mark in (saved or {}).items()}
        self._files = {file.name: JsonLines(file, kept.get(file.name, 0)) for file in files}
        self._metrics, self._samples, self._answers = self._files.values()
        self.history = read_rows(folder.metrics)
        self._progress = progress

    def train(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a training step."""
        self._log({"step": step, "kind": "train", **metrics})
        self._progress.step(metrics["task/reward_mean"], metrics["rollout/tokens_per_second"])

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of an evaluation."""
        self._log({"step": step, "kind": "eval", **metrics})
        self._progress.evaluation(step, metrics["eval/accuracy_greedy"], metrics["eval/accuracy_sampled"])

    def benchmark(self, step: int, name: str, values: Mapping[str, float], seconds: float) -> None:
        """Write the metrics of an evaluation on a benchmark.

        Args:
            values: metrics without prefix.
        """
        self._log(benchmark_row(step, name, values, seconds))
        self._progress.benchmark(step, name, values["accuracy_greedy"], values["accuracy_sampled"])

    def answers(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the outcomes of held-out questions."""
        for row in rows:
            self._answers.write(row)

    def ranks(self, step: int, ranks: Mapping[str, int]) -> None:
        """Write the rank of the adapter on each module, by module name, at the start or after a rank update."""
        self._log(rank_row(step, ranks))

    def flush(self) -> None:
        """Flush the files to disk."""
        for file in self._files.values():
            file.flush()

    def fingerprints(self) -> dict[str, Any]:
        """Flush the files to disk and return length and hash of each, by file name."""
        return {name: file.fingerprint() for name, file in self._files.items()}

    def sample(self, row: Mapping[str, Any]) -> None:
        """Write a completion with its reward."""
        self._samples.write(row)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def _log(self, row: dict[str, Any]) -> None:
        self._metrics.write(row)
        self.history.append(row)


class NullTracker(Tracker):
    """Records nothing. All ranks except rank 0 use it."""

    def __init__(self) -> None:
        self.history = []

    def train(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def benchmark(self, step: int, name: str, values: Mapping[str, float], seconds: float) -> None:
        pass

    def answers(self, rows: Iterable[Mapping[str, Any]]) -> None:
        pass

    def ranks(self, step: int, ranks: Mapping[str, int]) -> None:
        pass

    def sample(self, row: Mapping[str, Any]) -> None:
        pass

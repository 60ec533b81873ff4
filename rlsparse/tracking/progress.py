"""The progress display: a progress bar on a terminal, otherwise plain lines."""

import logging
import sys
import time
from contextlib import suppress

from tqdm import tqdm

log = logging.getLogger(__name__)


class Progress:
    """Shows step, reward, accuracy, tokens/s and remaining time of a run.

    On a terminal it is a progress bar, otherwise one line for each evaluation.
    """

    def __init__(self, label: str, steps: int) -> None:
        self._label = label
        self._steps = steps
        self._live = sys.stderr.isatty()
        self._bar = tqdm(total=steps, desc=label, unit="step", disable=not self._live, dynamic_ncols=True)
        self._start, self._begun = time.monotonic(), 0
        self._shown = {"reward": "", "accuracy": "", "tokens/s": ""}

    def resume_after(self, step: int) -> None:
        """Start after the steps of earlier processes of the run."""
        self._begun = self._bar.initial = step
        self._bar.update(step)

    def step(self, reward: float, tokens_per_second: float) -> None:
        """Show a training step."""
        self._shown |= {"reward": f"{reward:.3f}", "tokens/s": f"{tokens_per_second:.0f}"}
        with suppress(OSError):
            self._bar.set_postfix(self._shown, refresh=False)
            self._bar.update()

    def evaluation(self, step: int, greedy: float, sampled: float) -> None:
        """Show an evaluation; accuracies are shares."""
        self._shown["accuracy"] = f"{100 * sampled:.1f}%"
        if not self._live:
            now = " ".join(f"{key} {value}" for key, value in self._shown.items() if value and key != "accuracy")
            done = step - self._begun
            left = (time.monotonic() - self._start) / done * (self._steps - step) if done > 0 else 0.0
            log.info(
                f"{self._label}: step {step}/{self._steps} accuracy {100 * greedy:.1f}% greedy, "
                f"{100 * sampled:.1f}% sampled {now}" + (f", {left:.0f} s left" if left else "")
            )

    def benchmark(self, step: int, name: str, greedy: float, sampled: float) -> None:
        """Show an evaluation on a benchmark; accuracies are shares."""
        log.info(
            f"{self._label}: step {step}/{self._steps} {name} {100 * greedy:.1f}% greedy, {100 * sampled:.1f}% sampled"
        )

    def close(self) -> None:
        """Close the progress bar."""
        with suppress(OSError):
            self._bar.close()

"""Saving a run while it trains, ending it where it was told to stop, and finding where it left off."""

from pathlib import Path

from rlsparse.runtime.distributed import ALONE, Ranks
from rlsparse.runtime.signals import Interrupted, StopRequest
from rlsparse.storage.checkpoints import Checkpoint, save_checkpoint
from rlsparse.tracking.profiling import Clock
from rlsparse.tracking.tracker import Tracker
from rlsparse.training.state import TrainState


class Keeper:
    """What the training loop tells of each step it has done.

    Attributes:
        saved: where the run goes on from; None at its start.
    """

    def __init__(
        self,
        folder: Path | None,
        every: int,
        tracker: Tracker,
        clock: Clock,
        stop: StopRequest,
        saved: Checkpoint | None,
        ranks: Ranks = ALONE,
    ) -> None:
        """
        Args:
            folder: for the checkpoints; None on a rank that writes none.
            every: steps between two checkpoints.
            ranks: stop together, whichever of them was told to.
        """
        self.saved = saved
        self._folder, self._every = folder, every
        self._tracker, self._clock, self._stop, self._ranks = tracker, clock, stop, ranks

    def after_step(self, state: TrainState) -> None:
        """Save where it is time to, or where the run was told to stop.

        Raises:
            Interrupted: it was; the checkpoint is written.
        """
        # looked at once: a signal that comes while saving is the next step's
        told = self._ranks.largest(self._stop.signal or 0)
        if self._folder is not None and (told or state.step % self._every == 0):
            checkpoint = state.checkpoint()
            checkpoint.state["files"] = self._tracker.marks()
            checkpoint.state["time"] = {"total": self._clock.elapsed(), **self._clock.total}
            save_checkpoint(self._folder, checkpoint)
        if told:
            raise Interrupted(told)

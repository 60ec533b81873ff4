"""Saving a run while it trains, and stopping it where a signal has asked for that."""

from dataclasses import dataclass

from rlsparse.runtime.distributed import World
from rlsparse.runtime.signals import Interrupted, StopRequest
from rlsparse.storage.checkpoints import save_checkpoint
from rlsparse.storage.run_folder import RunFolder
from rlsparse.tracking.profiling import Clock
from rlsparse.tracking.tracker import Tracker
from rlsparse.training.state import TrainState


@dataclass(frozen=True)
class Checkpointer:
    """Saves the state of training.

    Attributes:
        folder: of the run; None on a rank that writes nothing.
        every: steps between two checkpoints.
        benchmarks: whether an evaluation is long, so that the first one is saved, too.
        stop: whether a signal has asked this process to stop.
        world: the ranks, which stop together.
    """

    folder: RunFolder | None
    every: int
    benchmarks: bool
    tracker: Tracker
    clock: Clock
    stop: StopRequest
    world: World

    def after_first_evaluation(self, state: TrainState) -> None:
        """Save the state before the first step where the first evaluation took long, or where the run must stop.

        Raises:
            Interrupted: it was asked to stop; the checkpoint is written.
        """
        if self.benchmarks:
            self.after_step(state)

    def after_step(self, state: TrainState) -> None:
        """Save where a checkpoint is due, or where the run was asked to stop.

        Raises:
            Interrupted: it was asked to stop; the checkpoint is written.
        """
        # looked at once: a signal that comes while saving belongs to the next step
        asked = self.world.largest(self.stop.signal or 0)
        if self.folder is not None and (asked or state.step % self.every == 0):
            checkpoint = state.checkpoint()
            checkpoint.state["files"] = self.tracker.fingerprints()
            checkpoint.state["time"] = {"total": self.clock.elapsed(), **self.clock.total}
            save_checkpoint(self.folder.checkpoints, checkpoint)
        if asked:
            raise Interrupted(asked)

"""Saving a run while it trains, and stopping it where a signal has asked for that."""

from dataclasses import dataclass

from rlsparse.runtime.distributed import World
from rlsparse.runtime.signals import Interrupted, StopRequest
from rlsparse.storage.checkpoints import save_checkpoint
from rlsparse.storage.run_folder import RunFolder
from rlsparse.tracking.profiling import Clock
from rlsparse.tracking.tracker import Tracker
from rlsparse.training.evaluate import HELD_OUT, EvalSet
from rlsparse.training.state import TrainState


@dataclass(frozen=True)
class Checkpointer:
    """Saves the state of training.

    Attributes:
        folder: of the run; None on a rank that writes nothing.
        every: steps between two checkpoints.
        stop: whether a signal has asked this process to stop.
        world: the ranks, which stop together.
    """

    folder: RunFolder | None
    every: int
    tracker: Tracker
    clock: Clock
    stop: StopRequest
    world: World

    def before_evaluation(self, state: TrainState, questions: EvalSet) -> None:
        """Save before a benchmark is evaluated, which may take hours, and stop where a signal has asked for that.

        What is evaluated before it, and the training steps, need not be done again.

        Raises:
            Interrupted: the run was asked to stop; the checkpoint is written.
        """
        if questions.name != HELD_OUT:
            self._save(state, due=True)

    def after_step(self, state: TrainState) -> None:
        """Save where a checkpoint is due, or where the run was asked to stop.

        Raises:
            Interrupted: it was asked to stop; the checkpoint is written.
        """
        self._save(state, due=state.step % self.every == 0)

    def _save(self, state: TrainState, due: bool) -> None:
        # looked at once: a signal that comes while saving belongs to the next call
        asked = self.world.largest(self.stop.signal or 0)
        if self.folder is not None and (asked or due):
            checkpoint = state.checkpoint()
            checkpoint.state["files"] = self.tracker.fingerprints()
            checkpoint.state["time"] = {"total": self.clock.elapsed(), **self.clock.total}
            save_checkpoint(self.folder.checkpoints, checkpoint)
        if asked:
            raise Interrupted(asked)

"""The other ranks: they take part in each run of rank 0 and write no files."""

from contextlib import suppress

from rlsparse.algorithm import Algorithm
from rlsparse.batch import NonFiniteError
from rlsparse.model.cache import ModelCache
from rlsparse.runtime.distributed import World
from rlsparse.runtime.signals import Interrupted, StopRequest
from rlsparse.tracking.profiling import Clock
from rlsparse.tracking.tracker import NullTracker
from rlsparse.train import train
from rlsparse.training.setup import RunContext, device_of, training


def work(world: World) -> None:
    """Take part in the runs of rank 0 until it sends no more.

    Raises:
        RankLost: rank 0 has died.
        Exception: whatever fails here; it ends the run of the other ranks too.
    """
    models, stop = ModelCache(), StopRequest()
    with stop.listening():
        while (begun := world.receive()) is not None:
            config, saved = begun
            device = device_of(config, world)
            context = RunContext(device, world, None, saved, NullTracker(), Clock(device), stop, models)
            # rank 0 raises these errors in the same step and reports them
            with (
                suppress(Interrupted, NonFiniteError),
                training(config, Algorithm.build(config), context) as run,
            ):
                train(run)
    world.leave()

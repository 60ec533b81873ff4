"""What a rank other than 0 does: trains along in each run that rank 0 begins, and writes and says nothing."""

from contextlib import suppress

from rlsparse.batch import NonFiniteError
from rlsparse.model.cache import Loader
from rlsparse.runtime.distributed import Ranks
from rlsparse.runtime.signals import Interrupted, StopRequest
from rlsparse.tracking.profiling import Clock
from rlsparse.tracking.tracker import Mute
from rlsparse.train import train
from rlsparse.training.checkpointing import Keeper
from rlsparse.training.setup import device_of, workplace


def follow(ranks: Ranks) -> None:
    """Until rank 0 has nothing more to do.

    Raises:
        RankLost: it is gone.
        Exception: whatever breaks here, which ends the other ranks' run too.
    """
    loader, stop = Loader(), StopRequest()
    with stop.listening():
        while (begun := ranks.hear()) is not None:
            config, saved = begun
            device = device_of(config, ranks)
            tracker, clock = Mute(), Clock(device)
            # rank 0 meets these in the same step, and says so
            with suppress(Interrupted, NonFiniteError), workplace(config, device, loader) as place:
                train(config, place, tracker, clock, Keeper(None, 1, tracker, clock, stop, saved, ranks), ranks)
    ranks.part()

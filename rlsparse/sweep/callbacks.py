"""Before anything begins: bad input ends it with one message, and a sweep that would measure nothing is warned of."""

import logging
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from rlsparse.config.compose import run_config
from rlsparse.config.schema import ConfigError
from rlsparse.runtime.preload import import_all
from rlsparse.sweep.dry_run import Point, describe, nothing_made
from rlsparse.sweep.plan import sweep_points

log = logging.getLogger(__name__)


class SweepCallback(Callback):
    """Hydra calls this before it makes a folder or starts a job. A bad config ends the program with one message."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        import_all()
        from rlsparse.execution.preflight import preflight

        dry = config.hydra.sweeper.get("dry_run")
        with one_message():
            ours = run_config(config)
            with nothing_made([ours] if dry else []):
                checked = preflight([ours])
        warn(checked.warnings)
        (identity,) = checked.identities
        if dry:
            print(describe([Point(" ".join(config.hydra.overrides.task) or identity.id, ours, identity)]))
            sys.exit(0)


class WarmStartCallback(Callback):
    """The same for a sweep of warm starts."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        from rlsparse.model.policy import resolve_device
        from rlsparse.warm_start.run import preflight

        with one_message():
            points = sweep_points(config)
            for out, count in Counter(point.config.out for point in points).items():
                if count > 1:
                    raise ConfigError(
                        f"out={out}: {count} points of the sweep would write there; let it name what is swept, such as "
                        "'out=models/${adapter.name}-r${lora_rank}-s${seed}' (in quotes)"
                    )
            for point in points:
                preflight(point.config, resolve_device(point.config.device).type)


@contextmanager
def one_message() -> Iterator[None]:
    """End the program on bad input. Hydra would turn an error raised in a callback into a warning and go on."""
    try:
        yield
    except HydraException as error:  # ours, and what composing a point may raise
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        sys.exit(f"error: {error}{cause if not isinstance(error, ConfigError) else ''}")
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def warn(lines: Sequence[str]) -> None:
    """Log warnings."""
    for line in lines:
        log.warning("warning: %s", line)

"""Hydra callbacks that check the input before anything starts: an error ends the program with one message."""

import logging
import os
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
from rlsparse.config.hydra_errors import explained
from rlsparse.config.schema import ConfigError
from rlsparse.runtime.preload import import_all
from rlsparse.sweep.dry_run import PlannedRun, describe, remove_new_folders
from rlsparse.sweep.plan import sweep_points

log = logging.getLogger(__name__)


class SweepCallback(Callback):
    """Checks a single run before Hydra creates a folder or starts it. A sweep checks its own points."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the run; with ``--dry-run``, print its state and end the program."""
        import_all()
        from rlsparse.execution.preflight import preflight

        dry_run = config.hydra.sweeper.get("dry_run")
        with exit_on_error():
            ours = run_config(config)
            with remove_new_folders([ours] if dry_run else []):
                checked = preflight([ours])
            log_warnings(checked.warnings)
            (identity,) = checked.identities
            if dry_run:
                print(describe([PlannedRun(" ".join(config.hydra.overrides.task) or identity.id, ours, identity)]))
                sys.exit(0)


class WarmStartCallback(Callback):
    """Checks every point of a sweep of warm starts before the first one starts."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the points, and that each writes into a folder of its own."""
        from rlsparse.runtime.devices import resolve_device
        from rlsparse.warm_start.run import preflight

        with exit_on_error():
            points = sweep_points(config)
            for out, count in Counter(point.config.out for point in points).items():
                if count > 1:
                    raise ConfigError(
                        f"out={out}: {count} points of the sweep would write to this folder; put the swept keys into "
                        "its name, such as 'out=models/rank${lora_rank}-seed${seed}' (in quotes)"
                    )
            for point in points:
                preflight(point.config, resolve_device(point.config.device).type)


class EvaluateCallback(Callback):
    """Checks every point of a sweep of evaluations before the first one starts."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the points."""
        from rlsparse.execution.evaluate_model import preflight

        with exit_on_error():
            for point in sweep_points(config):
                preflight(point.config)


@contextmanager
def exit_on_error() -> Iterator[None]:
    """End the program if the context raises an error: Hydra would turn it into a warning and continue.

    Bad input and files that cannot be read or written give one line, any other error its traceback.
    """
    try:
        yield
    except HydraException as error:  # ConfigError, and the errors of Hydra from composing a point
        sys.exit(f"error: {explained(error)}")
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            sys.exit(f"error: {os.fsdecode(error.filename)}: cannot be read or written ({error.strerror})")
        traceback.print_exc()
        sys.exit(1)


def log_warnings(lines: Sequence[str]) -> None:
    """Log a warning for each line."""
    for line in lines:
        log.warning("warning: %s", line)

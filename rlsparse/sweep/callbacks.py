"""Before anything begins: bad input ends it with one message, and a sweep that would measure nothing is warned of."""

import json
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from rlsparse.config.checks import skips_layers
from rlsparse.config.compose import run_config
from rlsparse.config.schema import Config, ConfigError
from rlsparse.runtime.preload import import_all
from rlsparse.sweep.dry_run import Point, describe, nothing_made
from rlsparse.sweep.plan import sweep_points

SAME_AT_ONE_UPDATE = ("clipped_ratio", "ratio", "log_prob")


class SweepCallback(Callback):
    """Hydra calls this before it makes a folder or starts a job. A bad config ends the program with one message."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        import_all()
        from rlsparse.execution.preflight import preflight

        dry = config.hydra.sweeper.get("dry_run")
        with one_message():
            ours = run_config(config)
            with nothing_made([ours] if dry else []):
                (identity,) = preflight([ours])
        warn(idle_off_policy([ours]))
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
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)


def idle_clipping(configs: Sequence[Config]) -> list[str]:
    """The warning that an ablation of clipping would measure noise, where it would.

    With one optimizer step per rollout batch the ratio is 1, so that these surrogates have the same gradient.
    """
    surrogates: dict[str, set[str]] = {}
    for config in configs:
        if config.train.updates_per_rollout == 1 and config.clipping.surrogate in SAME_AT_ONE_UPDATE:
            rest = {k: v for k, v in asdict(config).items() if k not in ("clipping", "algorithm")}
            surrogates.setdefault(json.dumps(rest, sort_keys=True), set()).add(config.clipping.surrogate)
    swept = set().union(*(names for names in surrogates.values() if len(names) > 1))
    if not swept:
        return []
    return [
        f"clipping is swept ({', '.join(sorted(swept))}) with train.updates_per_rollout=1: the ratio is 1, so "
        "these have the same gradient and differ only by rounding; add train.updates_per_rollout=4 to compare them"
    ]


def idle_off_policy(configs: Sequence[Config]) -> list[str]:
    """The warning that a correction has nothing to correct, where the policy itself samples."""
    names = {one.off_policy.name for one in configs if not skips_layers(one.layer_skip)}
    idle = sorted(names - {"none"})
    if not idle:
        return []
    return [
        f"off_policy={','.join(idle)} corrects nothing where layer_skip=off: the policy itself samples, so such a run "
        "is that of off_policy=none; add layer_skip=r10, say, or leave off_policy out"
    ]

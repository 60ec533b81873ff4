"""A sweep before it starts: every point composed, checked and written down, so that nothing bad waits at its end."""

import json
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from rlsparse.checks import skips_layers
from rlsparse.compose import run_config
from rlsparse.config import Config, ConfigError

PLAN = "plan.json"
SAME_AT_ONE_UPDATE = ("clipped_ratio", "ratio", "log_prob")


@dataclass(frozen=True)
class Point:
    """A job of a sweep: what was asked for, and what it composes to."""

    overrides: list[str]
    config: Any  # Config or WarmStartConfig


class SweepCallback(Callback):
    """Hydra calls this before it makes a folder or starts a job. A bad config ends the program with one message."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        from rlsparse.preflight import preflight  # torch and transformers come with it

        with _one_message():
            ours = run_config(config)
            preflight([ours])
        _warn(idle_off_policy([ours]))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        from rlsparse.preflight import preflight

        with _one_message():
            points = sweep_points(config)
            everywhere = set.intersection(*(set(point.overrides) for point in points))
            names = [" ".join(o for o in point.overrides if o not in everywhere) for point in points]
            identities = preflight([point.config for point in points], names)
        _warn(idle_clipping(points) + idle_off_policy([point.config for point in points]))
        for name in dict.fromkeys(point.config.experiment.name for point in points):
            write_plan(
                Path(points[0].config.runs_dir) / name,
                {
                    identity.id: point.overrides
                    for identity, point in zip(identities, points, strict=True)
                    if point.config.experiment.name == name
                },
                [point.overrides for point in points],
            )


class WarmStartCallback(Callback):
    """The same for a sweep of warm starts."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        from rlsparse.policy import resolve_device
        from rlsparse.warm_start import preflight

        with _one_message():
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
def _one_message() -> Iterator[None]:
    """End the program on bad input. Hydra would turn an error raised in a callback into a warning and go on."""
    try:
        yield
    except HydraException as error:  # ours, and what composing a point may raise
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        sys.exit(f"error: {error}{cause if not isinstance(error, ConfigError) else ''}")
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _warn(lines: Sequence[str]) -> None:
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)


def sweep_points(config: DictConfig) -> list[Point]:
    """Every job of a multirun, in order: the grid of the sweeper's ``params`` and the command line's axes.

    Args:
        config: the multirun's master config, ``hydra`` node included.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # Hydra has no public name for this

    params = config.hydra.sweeper.get("params") or {}
    typed = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)  # an interpolation is each point's own
    assert isinstance(typed, list)
    arguments = [f"{key}={value}" for key, value in params.items()] + typed
    loader = GlobalHydra.instance().config_loader()
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
    jobs = [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
    return [Point(job, run_config(loader.load_sweep_config(config, job))) for job in jobs]


def write_plan(folder: Path, points: dict[str, list[str]], jobs: list[list[str]]) -> None:
    """Add a sweep's points to an experiment's plan, which tells the tables what is missing.

    A point planned before under another id (a default or a model has changed since) is replaced.

    Args:
        points: overrides by run id.
        jobs: the overrides of every job of the sweep, in order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    again = list(points.values())
    known = {run_id: overrides for run_id, overrides in read_plan(folder).items() if overrides not in again}
    text = json.dumps({"latest": jobs, "points": {**known, **points}}, indent=1)
    temporary = folder / f"{PLAN}.tmp"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(folder / PLAN)


def read_plan(folder: Path) -> dict[str, list[str]]:
    """Overrides by run id of every point ever planned in an experiment."""
    file = folder / PLAN
    return json.loads(file.read_text(encoding="utf-8"))["points"] if file.is_file() else {}


def latest_sweep(folder: Path) -> list[list[str]]:
    """The overrides of each job of the sweep that was planned last in an experiment; empty where none was."""
    file = folder / PLAN
    if not file.is_file():
        return []
    jobs: list[list[str]] = json.loads(file.read_text(encoding="utf-8"))["latest"]
    return jobs


def idle_clipping(points: Sequence[Point]) -> list[str]:
    """The warning that an ablation of clipping would measure noise, where it would.

    With one optimizer step per rollout batch the ratio is 1, so that these surrogates have the same gradient.
    """
    surrogates: dict[str, set[str]] = {}
    for point in points:
        if point.config.train.updates_per_rollout == 1 and point.config.clipping.surrogate in SAME_AT_ONE_UPDATE:
            rest = {k: v for k, v in asdict(point.config).items() if k not in ("clipping", "algorithm")}
            surrogates.setdefault(json.dumps(rest, sort_keys=True), set()).add(point.config.clipping.surrogate)
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

"""What runs that are to do will take, by the time that finished ones took: arithmetic over configs and summaries."""

import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

# how the runs of a basis are like a run, best first; what is not the same method goes by its work
LEVELS = (
    "of the same method",
    "with the same model, task, device, dtype and adapter layers",
    "with the same model and device",
)


@dataclass(frozen=True)
class Sized:
    """A run, as far as its time goes.

    Attributes:
        like: a key for each of ``LEVELS``: runs that have the same are alike.
        work: see ``work``.
    """

    like: tuple[str, ...]
    work: float


@dataclass(frozen=True)
class Finished(Sized):
    """A run with its time.

    Attributes:
        seconds: that it took, start-up not counted.
        memory: peak of its process (of a GPU: of its tensors), bytes; None where it is not known.
    """

    seconds: float
    memory: int | None


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        seconds: mean over its basis; least, most: by the basis' fastest and slowest run.
        level: index into ``LEVELS``.
        basis: the runs it goes by.
    """

    seconds: float
    least: float
    most: float
    level: int
    basis: tuple[Finished, ...]


def sized(config: Mapping[str, Any], method: str, device: str, after: int = 0) -> Sized:
    """A run by its config.

    Args:
        config: as in its ``config.yaml``.
        method: its ``method_hash``.
        device: kind of device that it is on.
        after: step after which it goes on.

    Raises:
        Exception: the config is not that of a run.
    """
    model, task = ([config[group].get("name"), config[group].get("path")] for group in ("model", "task"))
    alike = [model, device, task, config["dtype"], config["adapter"].get("layers")]
    return Sized((method, json.dumps(alike), json.dumps(alike[:2])), work(config, after))


def finished(config: Mapping[str, Any], summary: Mapping[str, Any]) -> Finished:
    """A finished run.

    Raises:
        Exception: they are not those of a finished run.
    """
    if summary.get("ranks", 1) != 1:
        raise ValueError("several ranks say little about the time of one")
    size = sized(config, summary["method_hash"], summary["device"].partition(":")[0])
    seconds, memory = float(summary["time"]["total"]), summary.get("peak_memory_bytes")
    if not (0 < seconds < 1e9 and size.work > 0 and isfinite(size.work)):
        raise ValueError(f"no run takes {seconds} s for {size.work} tokens")
    return Finished(size.like, size.work, seconds, memory if isinstance(memory, int) else None)


def work(config: Mapping[str, Any], after: int = 0) -> float:
    """Tokens of the completions that a run generates after a step, each taken as long as it may get.

    Replay counts as if every prompt had as many right and wrong completions as it asks for.
    """
    train, evaluation = config["train"], config["eval"]
    replay = config.get("replay") or config["token_sampler"]["replay"]  # the place of the keys in earlier versions
    groups = train["prompts_per_step"] * (1 + replay["successes"] + replay["failures"])
    rows = min(evaluation["max_rows"], config["task"].get("test_rows", evaluation["max_rows"]))
    trained = (train["steps"] - after) * groups * train["group_size"]
    evaluated = _evaluations(train["steps"], evaluation["every"], after) * rows * (1 + evaluation["samples"])
    return float((trained + evaluated) * config["rollout"]["max_new_tokens"])


def _evaluations(steps: int, every: int, after: int) -> int:
    """How many are left after a step: at step 0, every so many steps and at the end."""
    at_the_end = int(steps % every != 0 and after < steps)
    return int(after == 0) + steps // every - after // every + at_the_end


def estimate(run: Sized, done: Sequence[Finished]) -> Estimate | None:
    """By the finished runs that are most like it; None where none is."""
    for level, key in enumerate(run.like):
        basis = tuple(one for one in done if one.like[level] == key)
        if basis:
            seconds = [one.seconds * run.work / one.work for one in basis]
            return Estimate(sum(seconds) / len(seconds), min(seconds), max(seconds), level, basis)
    return None


def side_by_side(seconds: Sequence[float], places: int) -> float:
    """From first to last, where each run in turn takes the place that is free first."""
    ends = [0.0] * max(1, min(places, len(seconds)))
    for one in seconds:
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)

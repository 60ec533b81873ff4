"""Estimate the time of runs from the times of finished runs: arithmetic on configs and summaries."""

import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

# how similar the runs of a basis are to a run, best first; for other methods, times are scaled by tokens
LEVELS = (
    "of the same method",
    "with the same model, task, device, dtype and adapter layers",
    "with the same model and device",
)


@dataclass(frozen=True)
class Workload:
    """The properties of a run that determine its time.

    Attributes:
        keys: a key for each of ``LEVELS``; runs with the same key are similar at that level.
        tokens: see ``completion_tokens``.
    """

    keys: tuple[str, ...]
    tokens: float


@dataclass(frozen=True)
class FinishedRun(Workload):
    """A finished run.

    Attributes:
        seconds: its time without start-up.
        memory: peak memory of its process (on a GPU: of its tensors) in bytes; None if it is not known.
    """

    seconds: float
    memory: int | None


@dataclass(frozen=True)
class TimeEstimate:
    """The estimated time of a run.

    Attributes:
        seconds: mean over the runs of the basis.
        fastest, slowest: seconds according to the fastest and the slowest run of the basis.
        level: index into ``LEVELS``.
        basis: the finished runs that the estimate is made from.
    """

    seconds: float
    fastest: float
    slowest: float
    level: int
    basis: tuple[FinishedRun, ...]


def workload(config: Mapping[str, Any], method: str, device: str, after: int = 0) -> Workload:
    """Return the workload of a run.

    Args:
        config: the content of its ``config.yaml``.
        method: its ``method_hash``.
        device: the kind of device that it is on.
        after: the step that it resumes after.

    Raises:
        Exception: the config is not that of a run.
    """
    model, task = ([config[group].get("name"), config[group].get("path")] for group in ("model", "task"))
    setting = [model, device, task, config["dtype"], config["adapter"].get("layers")]
    return Workload((method, json.dumps(setting), json.dumps(setting[:2])), completion_tokens(config, after))


def finished_run(config: Mapping[str, Any], summary: Mapping[str, Any]) -> FinishedRun:
    """Return a finished run.

    Raises:
        Exception: config and summary are not those of a finished run with one rank.
    """
    if summary.get("ranks", 1) != 1:
        raise ValueError("the time of several ranks does not predict the time of one")
    work = workload(config, summary["method_hash"], summary["device"].partition(":")[0])
    seconds, memory = float(summary["time"]["total"]), summary.get("peak_memory_bytes")
    if not (0 < seconds < 1e9 and work.tokens > 0 and isfinite(work.tokens)):
        raise ValueError(f"no run takes {seconds} s for {work.tokens} tokens")
    return FinishedRun(work.keys, work.tokens, seconds, memory if isinstance(memory, int) else None)


def completion_tokens(config: Mapping[str, Any], after: int = 0) -> float:
    """Return the maximum number of completion tokens that a run samples after a step, evaluations included.

    Replay counts as if every prompt had as many right and wrong completions as it needs. The further rounds of a batch
    filter do not count, since their number depends on the answers.
    """
    train, evaluation = config["train"], config["eval"]
    replay = config.get("replay") or config["token_sampler"]["replay"]  # in configs of earlier versions
    groups = train["prompts_per_step"] * (1 + replay["successes"] + replay["failures"])
    rows = min(evaluation["max_rows"], config["task"].get("test_rows", evaluation["max_rows"]))
    trained = (train["steps"] - after) * groups * train["group_size"]
    evaluated = _evaluations(train["steps"], evaluation["every"], after) * rows * (1 + evaluation["samples"])
    return float((trained + evaluated) * config["rollout"]["max_new_tokens"])


def _evaluations(steps: int, every: int, after: int) -> int:
    """Return the number of evaluations after a step; one is at step 0, one every ``every`` steps and one at the end."""
    at_the_end = int(steps % every != 0 and after < steps)
    return int(after == 0) + steps // every - after // every + at_the_end


def estimate_time(run: Workload, done: Sequence[FinishedRun]) -> TimeEstimate | None:
    """Return the estimated time of a run, from the most similar finished runs; None if none is similar."""
    for level, key in enumerate(run.keys):
        basis = tuple(one for one in done if one.keys[level] == key)
        if basis:
            seconds = [one.seconds * run.tokens / one.tokens for one in basis]
            return TimeEstimate(sum(seconds) / len(seconds), min(seconds), max(seconds), level, basis)
    return None


def makespan(seconds: Sequence[float], parallel: int) -> float:
    """Return the time from the first start to the last end, if each run starts in turn as soon as there is room.

    Args:
        seconds: the times of the runs, in order.
        parallel: the number of runs at a time.
    """
    ends = [0.0] * max(1, min(parallel, len(seconds)))
    for one in seconds:
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)

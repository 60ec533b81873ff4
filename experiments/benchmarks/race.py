"""Contenders in processes of their own, a step each in turn, so that a noisy machine is noisy for all of them."""

import multiprocessing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from workload import Work


@dataclass(frozen=True)
class Contender:
    """What runs: ``side(pipe, work, settings)`` from contenders.py."""

    side: Callable[..., None]
    work: Work
    settings: Any


@dataclass
class Measured:
    """A contender's steps, the first ones left out, and its peak memory in bytes."""

    steps: list[dict[str, float]] = field(default_factory=list)
    peak: int = 0

    def median(self, key: str) -> float:
        return median(step[key] for step in self.steps)


def race(contenders: Mapping[str, Contender], warmup: int) -> dict[str, Measured]:
    """Run all contenders' steps in turns: A B C A B C …

    Args:
        warmup: steps that are run and not counted.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name, one in contenders.items():
        ours, theirs = context.Pipe()
        process = context.Process(target=one.side, args=(theirs, one.work, one.settings), name=name)
        process.start()
        theirs.close()  # so that a dead contender is an EOFError here
        pipes[name] = ours
        processes.append(process)
    measured = {name: Measured() for name in contenders}
    for step in range(next(iter(contenders.values())).work.steps):
        for name, pipe in pipes.items():
            pipe.send("go")
            reply = pipe.recv()
            print(f"step {step} {name}: {reply['wall']:.1f} s", flush=True)
            if step >= warmup:
                measured[name].steps.append(reply)
    for name, pipe in pipes.items():
        pipe.send("finish")
        measured[name].peak = int(pipe.recv()["peak"])
    for process in processes:
        process.join()
    return measured


def ratios(theirs: Measured, ours: Measured, key: str) -> list[float]:
    """Theirs over ours, of the steps that followed each other; ascending."""
    return sorted(t[key] / o[key] for t, o in zip(theirs.steps, ours.steps, strict=True))

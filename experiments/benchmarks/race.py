"""Run contenders in separate processes, one step each in turn, so that noise of the machine affects all of them."""

import multiprocessing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from workload import Work


@dataclass(frozen=True)
class Contender:
    """One side of a race: ``side(pipe, work, settings)`` from contenders.py."""

    side: Callable[..., None]
    work: Work
    settings: Any


@dataclass
class Measured:
    """The steps of a contender after the warm-up, and its peak memory, bytes."""

    steps: list[dict[str, float]] = field(default_factory=list)
    peak: int = 0

    def median(self, key: str) -> float:
        return median(step[key] for step in self.steps)


def race(contenders: Mapping[str, Contender], warmup: int) -> dict[str, Measured]:
    """Run the steps of all contenders in turns (A B C A B C) and return what was measured.

    Args:
        warmup: number of first steps that are not counted.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name, one in contenders.items():
        ours, theirs = context.Pipe()
        process = context.Process(target=one.side, args=(theirs, one.work, one.settings), name=name)
        process.start()
        theirs.close()  # so that the death of a contender raises EOFError here
        pipes[name] = ours
        processes.append(process)
    measured = {name: Measured() for name in contenders}
    try:
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
    except BaseException:
        for process in processes:  # the others would wait for their turn for ever
            process.kill()
        raise
    for process in processes:
        process.join()
    return measured


def ratios(theirs: Measured, ours: Measured, key: str) -> list[float]:
    """Return theirs over ours for each pair of consecutive steps, ascending."""
    return sorted(t[key] / o[key] for t, o in zip(theirs.steps, ours.steps, strict=True))

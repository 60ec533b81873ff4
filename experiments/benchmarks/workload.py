"""What both sides of the benchmark do: the same model, adapter, prompts, lengths and rewards, step by step."""

from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from resource import RUSAGE_SELF, getrusage
from time import perf_counter

import torch

LORA_RANK, LORA_SCALE, TARGETS = 16, 2.0, ["q_proj", "v_proj"]
REWARD_RATE = 0.4  # Bernoulli; a weak model's own rewards would leave it to luck which groups teach anything
LEARNING_RATE = 1e-5


@dataclass(frozen=True)
class Work:
    """One case of the benchmark.

    Attributes:
        model: folder or hub id.
        algorithm: our preset; TRL's trainer always does full-token GRPO.
        layers: which decoder layers carry the adapter, for both: all or last_third.
        prompts: P. group_size: G. new_tokens: T of every completion; none ends early.
        steps: optimizer steps, the first ones included that are not counted.
        threads: CPU threads of each side.
        device: cpu or cuda.
    """

    model: str
    algorithm: str
    layers: str = "all"
    prompts: int = 4
    group_size: int = 8
    new_tokens: int = 128
    steps: int = 4
    threads: int = 2
    device: str = "cpu"


def questions(work: Work) -> list[str]:
    """The prompts of every step: the first word problems of our own generator."""
    from rlsparse.components.task import load_task
    from rlsparse.config.compose import compose_config

    task = load_task(compose_config(["task=word_problems"]).task)
    return [problem.question for problem in task.train[: work.prompts]]


def rewards(work: Work) -> Iterator[list[float]]:
    """B rewards a step, from a seed, drawn again until no group is all equal."""
    generator = torch.Generator().manual_seed(0)
    while True:
        drawn = torch.rand(work.prompts, work.group_size, generator=generator) < REWARD_RATE
        if bool((drawn.any(dim=1) & ~drawn.all(dim=1)).all()):
            yield drawn.flatten().float().tolist()


class Gate:
    """Holds a contender between two steps until its turn comes, and measures the step.

    After the last one it is held too, so that what it does at its end falls in nobody's step.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def wait(self) -> None:
        """Before a step: wait to be told."""
        self._pipe.recv()
        self._wall, self._cpu = perf_counter(), _cpu_seconds()

    def report(self, **more: float) -> None:
        """After a step: seconds of it, and whatever else the contender knows."""
        self._pipe.send({"wall": perf_counter() - self._wall, "cpu": _cpu_seconds() - self._cpu, **more})


def _cpu_seconds() -> float:
    usage = getrusage(RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime

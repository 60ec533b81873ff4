"""The work of both sides of the benchmark: the same model, adapter, prompts, lengths and rewards in each step."""

from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from resource import RUSAGE_SELF, getrusage
from time import perf_counter

import torch

LORA_RANK, LORA_SCALE, TARGETS = 16, 2.0, ["q_proj", "v_proj"]
REWARD_RATE = 0.4  # Bernoulli; with the rewards of a weak model, chance would decide which groups have unequal rewards
LEARNING_RATE = 1e-5


@dataclass(frozen=True)
class Work:
    """Defines one case of the benchmark.

    Attributes:
        model: folder or hub id.
        algorithm: our preset; TRL's trainer always does full-token GRPO.
        layers: which decoder layers carry the adapter, for both: all or last_third.
        prompts: P. group_size: G. new_tokens: T of every completion; no completion ends early.
        steps: optimizer steps, warm-up included.
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
    """Return the prompts of every step: the first word problems of our generator."""
    from rlsparse.algorithm import Algorithm
    from rlsparse.config.compose import compose

    rows = Algorithm.build(compose(["task=word_problems"])).task.load()
    return [problem.question for problem in rows.train[: work.prompts]]


def rewards(work: Work) -> Iterator[list[float]]:
    """Yield the B rewards of each step, from a seed; drawn again until they differ in every group."""
    generator = torch.Generator().manual_seed(0)
    while True:
        drawn = torch.rand(work.prompts, work.group_size, generator=generator) < REWARD_RATE
        if bool((drawn.any(dim=1) & ~drawn.all(dim=1)).all()):
            yield drawn.flatten().float().tolist()


class Gate:
    """Holds a contender between two steps until its turn, and measures the step.

    It also waits after its last step, so that its clean-up does not fall into a step of another contender.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def wait(self) -> None:
        """Wait for the turn of this contender; called before a step."""
        self._pipe.recv()
        self._wall, self._cpu = perf_counter(), _cpu_seconds()

    def report(self, **more: float) -> None:
        """Send the seconds of the step, and other values of the contender; called after a step."""
        self._pipe.send({"wall": perf_counter() - self._wall, "cpu": _cpu_seconds() - self._cpu, **more})


def _cpu_seconds() -> float:
    usage = getrusage(RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime

"""Out of memory: half of the rows at a time, and the same numbers."""

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from rlsparse.batch import Rollout, ScoredBatch
from rlsparse.execution.self_check.children import RUN, do_runs, greatest_ratio, outcome
from rlsparse.execution.self_check.findings import Figure, Finding, Setting
from rlsparse.execution.self_check.scene import Scene, difference, distance, scene
from rlsparse.model.packing import PACKED
from rlsparse.model.policy import PLAIN, Policy, ScoringPath
from rlsparse.rollout import Request, RolloutEngine, RolloutSampler
from rlsparse.runtime.distributed import ALONE
from rlsparse.runtime.oom import MemoryLimits
from rlsparse.runtime.rng import stream
from rlsparse.training.microbatch import FitMicrobatches
from rlsparse.training.update import Updater

PROMPTS, GROUP, TOKENS = 2, 4, 12
FIT = 2  # rows that fit at a time, of 8
ERROR = "CUDA out of memory. Tried to allocate 2.00 GiB"
GRADIENT, LOG_PROBS = 1e-5, 1e-5  # relative; nats: tests/test_packed.py, tests/faults/test_memory.py
# one pass over all completions, which needs several times the memory of the rest of the run
LARGE = (
    "algorithm=sgrpo",
    "train.steps=1",
    "train.prompts_per_step=64",
    "train.group_size=16",
    "train.packing=off",
    "rollout.max_rows=4096",
    "train.microbatch=4096",
    "train.max_tokens_per_microbatch=1000000",
)
CPU_BYTES = 900_000_000  # of addresses that the process may add
GPU_SHARE = 0.6  # of the peak of the run without a limit
RELATIVE, ABSOLUTE = 1e-3, 1e-5  # of the metrics


def memory(setting: Setting) -> Iterator[Finding]:
    """Yield what happens at errors that are raised on purpose, and at those of torch in a process with little memory.

    Raises:
        ChildError: a run has failed.
    """
    embedded = replace(setting, model="tiny")
    with scene(embedded, PROMPTS, "dtype=float32", f"rollout.max_new_tokens={TOKENS}", "train.max_grad_norm=0") as one:
        yield _rollout(one)
        for path, name in ((PACKED, "packed"), (PLAIN, "plain")):
            yield _update(one, path, name)
    yield _run(setting)


def _rollout(one: Scene) -> Finding:
    request, sizes = Request(one.prompts, GROUP), list[int]()
    whole = one.algorithm.rollout.generate(one.policy, request, stream(0, "rollout"))
    engine = _with_little_memory(one.algorithm.rollout, sizes)
    sampler = RolloutSampler(one.policy, engine, MemoryLimits(engine.max_rows, 1, 1), ALONE)
    halved = sampler(request, stream(0, "rollout"))
    return Finding.of(
        f"rollout of {PROMPTS * GROUP} rows where {FIT} fit",
        Figure("halved until they fit", sizes == [8, 4, 2]),
        Figure("same completions", torch.equal(whole.completion_ids, halved.completion_ids)),
        difference("log-probabilities", halved.log_probs, whole.log_probs, LOG_PROBS),
    )


def _with_little_memory(engine: RolloutEngine, sizes: list[int]) -> RolloutEngine:
    """Return the engine with an error where more than ``FIT`` rows are sampled together; each size is noted."""
    kind: Any = type(engine)

    @dataclass(frozen=True)
    class Limited(kind):
        def generate(self, policy: Policy, request: Request, generator: Generator) -> Rollout:
            sizes.append(min(self.max_rows, len(request.prompts) * request.group_size))
            if sizes[-1] > FIT:
                raise torch.OutOfMemoryError(ERROR)
            rollout: Rollout = super().generate(policy, request, generator)
            return rollout

    limited: RolloutEngine = Limited(**asdict(engine))
    return limited


def _update(one: Scene, path: ScoringPath, name: str) -> Finding:
    rollout = one.algorithm.rollout.generate(one.policy, Request(one.prompts, GROUP), stream(0, "rollout"))
    batch, refused = one.batch(rollout), list[int]()

    def limited(policy: Policy, scored: Rollout, rows: Tensor, needed: Tensor, temperature: float) -> Tensor:
        if len(rows) > FIT:
            refused.append(len(rows))
            raise torch.OutOfMemoryError(ERROR)
        return path.log_probs(policy, scored, rows, needed, temperature)

    whole = _gradient(one, path, batch)
    halved = _gradient(one, replace(path, log_probs=limited), batch)
    return Finding.of(
        f"update of {PROMPTS * GROUP} rows where {FIT} fit, {name} path",
        Figure("halved until they fit", bool(refused)),
        Figure("gradient, relative", distance(halved, whole), most=GRADIENT),
    )


def _gradient(one: Scene, path: ScoringPath, batch: ScoredBatch) -> Tensor:
    """Return the gradient of an update in all trained parameters, (n,)."""
    train, optimizer = one.config.train, torch.optim.SGD(one.adapter.parameters(), lr=0.0)
    fit = FitMicrobatches(train, MemoryLimits.of(one.algorithm.rollout.max_rows, train))
    Updater(one.policy, path, optimizer, one.algorithm, train, fit, ALONE, one.policy.reference)([batch])
    return torch.cat([p.grad.flatten().clone() for p in one.adapter.parameters() if p.grad is not None])


def _run(setting: Setting) -> Finding:
    """Do a run with and without a limit of memory that torch itself enforces."""
    cuda = setting.device == "cuda"
    title = "run in a process with little memory"
    if not cuda and setting.quick:
        return Finding.skipped(title, "takes a minute on a CPU; run it without --quick")
    if not cuda and sys.platform != "linux":
        return Finding.skipped(title, "addresses can be limited on Linux only")
    whole, limited = (setting.scratch / f"memory-{name}" for name in ("whole", "limited"))

    def words(runs: Any) -> list[str]:
        return [*RUN, *LARGE, f"device={setting.device}", f"runs_dir={runs}"]

    do_runs(setting, [{"words": words(whole)}])
    expected = outcome(whole)
    allowed = int(GPU_SHARE * expected.peak) if cuda else CPU_BYTES
    log = do_runs(setting, [{"words": words(limited)}], memory=allowed).log
    found = outcome(limited)
    steps, expected_steps = ([row for row in one.rows if row["kind"] == "train"] for one in (found, expected))
    return Finding.of(
        title,
        Figure("memory has run out", "out of memory in" in log),
        Figure("finished", found.status == "finished"),
        greatest_ratio(steps, expected_steps, RELATIVE, ABSOLUTE),
        Figure("peak without the limit", expected.peak / 2**20, "MiB"),
        Figure("limit", allowed / 2**20, "MiB of GPU memory" if cuda else "MiB of further addresses"),
    )

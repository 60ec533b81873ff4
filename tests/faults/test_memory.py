"""Out of memory: half as many rows at a time, the same result, one message; with injected errors and with real ones."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from itertools import chain, repeat

import pytest
import torch

from rlsparse.algorithm import Algorithm
from rlsparse.batch import Problem, Prompt, ScoredBatch
from rlsparse.components.adapter import TrainedAdapter
from rlsparse.config.schema import Config
from rlsparse.model.packing import packed_log_probs
from rlsparse.model.policy import LogProbs, Policy, ScoringPath, token_log_probs
from rlsparse.rollout import Request, RolloutEngine, RolloutSampler
from rlsparse.runtime.distributed import ALONE
from rlsparse.runtime.oom import MemoryLimits, out_of_memory
from rlsparse.runtime.rng import stream
from rlsparse.training.microbatch import FitMicrobatches
from rlsparse.training.update import Updater
from tests.conftest import ROOT, built, composed, make_rollout
from tests.faults.killing import without_times


def batch_of_eight() -> ScoredBatch:
    """Return two prompts with four completions of four tokens each; every token has an advantage."""
    rollout = make_rollout([[5 + i, 6 + i, 7 + i, 8] for i in range(8)], prompts=2)
    generator = torch.Generator().manual_seed(0)
    return ScoredBatch(rollout, torch.randn(8, 4, generator=generator), torch.full((8, 4), 1 / 32))


class LittleMemory:
    """A scoring path that raises an error of torch for more rows than fit into memory.

    Attributes:
        refused: number of calls that had too many rows.
    """

    def __init__(self, path: LogProbs, rows: Iterable[int], error: Exception) -> None:
        """
        Args:
            path: computes the log-probabilities.
            rows: the most rows of each call in turn.
        """
        self.path, self.rows, self.error, self.refused = path, iter(rows), error, 0

    def __call__(self, policy, rollout, rows, needed, temperature):
        if len(rows) > next(self.rows):
            self.refused += 1
            raise self.error
        return self.path(policy, rollout, rows, needed, temperature)


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
    MemoryError("std::bad_alloc"),
]


def updated(
    policy: Policy,
    scoring: LittleMemory,
    adapter: TrainedAdapter,
    batch: ScoredBatch,
    config: Config,
    fit: FitMicrobatches,
):
    """Do the update of a batch with plain gradient descent and return its metrics; Adam would enlarge rounding errors."""
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    path = ScoringPath(scoring, None, packed=False)  # no entropy bonus here
    return Updater(policy, path, optimizer, Algorithm.build(config), config.train, fit, ALONE, policy.reference)(
        [batch]
    )


def limits_of(config: Config) -> MemoryLimits:
    return MemoryLimits.of(config.rollout["max_rows"], config.train)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("path", [token_log_probs, packed_log_probs])
@pytest.mark.parametrize("overrides", [["kl=on"], ["train.updates_per_rollout=3", "objective.l2=0.1"]])
def test_update_with_little_memory_equals_that_of_one_microbatch(error, path, overrides, tiny, logged):
    config = composed("algorithm=grpo", "train.lr=0.01", *overrides)
    results = []
    for rows in (8, 2):
        policy = dataclasses.replace(tiny)  # attaching an adapter changes the policy
        adapter = Algorithm.build(config).adapter.attach(policy, 4, 0)
        scoring, limits = LittleMemory(path, repeat(rows), error), limits_of(config)
        metrics = updated(policy, scoring, adapter, batch_of_eight(), config, FitMicrobatches(config.train, limits))
        results.append((metrics, [p.detach().clone() for p in adapter.parameters()]))
        adapter.remove()
        # 8 rows in one microbatch; 8 refused, 4 refused, 2 accepted
        assert (limits.microbatch, scoring.refused) == ((64, 0) if rows == 8 else (2, 2))
    (whole, parameters), (halved, again) = results
    assert len(logged) == 1
    assert "out of memory in training: microbatches of 4 rows" in logged[0]
    assert halved.updates == whole.updates
    assert halved.loss == pytest.approx(whole.loss, rel=1e-4, abs=1e-6)
    assert halved.grad_norm == pytest.approx(whole.grad_norm, rel=1e-4)
    assert halved.kl == pytest.approx(whole.kl, rel=1e-4, abs=1e-6)
    for one, two in zip(parameters, again, strict=True):
        assert torch.allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("path", [token_log_probs, packed_log_probs])
def test_pass_that_fails_half_way_does_not_count_twice(path, tiny):
    """The first microbatch has its gradient when the second has no room: rows and off-policy weights count once."""
    config = composed("algorithm=grpo", "layer_skip=r25", "off_policy=truncated", "train.microbatch=4")
    results = []
    for calls in (99, 1):
        policy = dataclasses.replace(tiny)
        adapter = Algorithm.build(config).adapter.attach(policy, 4, 0)
        scoring = LittleMemory(path, chain(repeat(4, calls), repeat(2)), ERRORS[0])
        batch = dataclasses.replace(batch_of_eight(), on_policy=False)
        fit = FitMicrobatches(config.train, limits_of(config))
        metrics = updated(policy, scoring, adapter, batch, config, fit)
        assert scoring.refused == (0 if calls == 99 else 1)
        results.append((metrics, [p.detach().clone() for p in adapter.parameters()]))
        adapter.remove()
    (whole, parameters), (halved, again) = results
    assert halved.mismatch.metrics() == pytest.approx(whole.mismatch.metrics(), rel=1e-4)
    assert halved.grad_norm == pytest.approx(whole.grad_norm, rel=1e-4)
    for one, two in zip(parameters, again, strict=True):
        assert torch.allclose(one, two, atol=1e-6)


def test_single_row_that_does_not_fit_raises_the_error(tiny):
    config = composed("algorithm=grpo")
    adapter = Algorithm.build(config).adapter.attach(tiny, 4, 0)
    fit = FitMicrobatches(config.train, limits_of(config))
    with pytest.raises(torch.OutOfMemoryError):
        updated(tiny, LittleMemory(token_log_probs, repeat(0), ERRORS[0]), adapter, batch_of_eight(), config, fit)


def test_other_error_is_not_taken_for_out_of_memory():
    assert all(out_of_memory(error) for error in ERRORS)
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("out of memory"))


def with_little_memory(engine: RolloutEngine, rows: int, sizes: list[int]) -> RolloutEngine:
    """Return the engine with an error for more than ``rows`` rows at a time; the rows of each call go into ``sizes``."""

    @dataclasses.dataclass(frozen=True)
    class Limited(type(engine)):
        def generate(self, policy, request, generator):
            sizes.append(min(self.max_rows, len(request.prompts) * request.group_size))
            if sizes[-1] > rows:
                generator.manual_seed(99)  # numbers that were drawn before the error must not count
                raise ERRORS[0]
            return super().generate(policy, request, generator)

    return Limited(**dataclasses.asdict(engine))


@pytest.mark.parametrize("name", ["fast", "plain"])
def test_rollout_with_little_memory_equals_that_of_all_rows_at_once(name, tiny, logged):
    engine = built(f"rollout={name}", "rollout.max_new_tokens=12").rollout
    prompts = [Prompt(Problem("", "", ""), ids) for ids in ((1, 2, 3), (4, 5), (6, 7, 8, 9))]
    request, sizes = Request(prompts, group_size=4), list[int]()
    limits = MemoryLimits(engine.max_rows, 1, 1)
    sampler = RolloutSampler(tiny, with_little_memory(engine, 3, sizes), limits, ALONE)
    whole = engine.generate(tiny, request, stream(0, "rollout"))
    halved = sampler(request, stream(0, "rollout"))
    assert sizes == [12, 6, 3]  # 3 prompts of 4 completions, halved twice
    assert len(logged) == 1
    assert "out of memory in the rollout: 6 rows at a time" in logged[0]
    assert torch.equal(whole.completion_ids, halved.completion_ids)
    assert torch.allclose(whole.log_probs, halved.log_probs, atol=1e-5)
    sampler(request, stream(1, "rollout"))
    assert sizes == [12, 6, 3, 3]  # the sampler does not try again what did not fit


LIMITED = """
import json, resource, sys
import torch
from rlsparse.config.compose import compose
from rlsparse.run import run
import rlsparse.train, peft, transformers
torch.set_num_threads(1)
with open("/proc/self/status") as file:
    now = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmSize"))
if int(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[1]), resource.RLIM_INFINITY))
run(compose(json.loads(sys.argv[2])))
"""


@pytest.mark.slow
def test_process_with_little_memory_ends_with_the_same_results(tmp_path, full):
    """One pass over 64 x 16 completions needs more than the 900 MB of address space that the second process may add."""
    if not full:
        pytest.skip("at full length only (make test-faults)")
    overrides = ["algorithm=sgrpo", "tracker=none", "train.steps=1", "eval.max_rows=16", "task.train_rows=200"]
    overrides += ["train.prompts_per_step=64", "train.group_size=16", "train.packing=off", "rollout.max_rows=4096"]
    overrides += ["train.microbatch=4096", "train.max_tokens_per_microbatch=1000000"]
    outputs, rows = [], []
    for limit in (0, 900_000_000):
        runs = tmp_path / str(limit)
        command = [sys.executable, "-c", LIMITED, str(limit), json.dumps([*overrides, f"runs_dir={runs}"])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        outputs.append(done.stderr)
        (file,) = runs.glob("default/*/metrics.jsonl")
        rows.append([without_times(json.loads(line)) for line in file.read_text().splitlines()])
    assert "out of memory" not in outputs[0]
    assert outputs[1].count("out of memory in training") == 1
    (whole,), (halved,) = ([row for row in one if row.pop("kind") == "train"] for one in rows)
    assert halved == pytest.approx(whole, rel=1e-3, abs=1e-5)

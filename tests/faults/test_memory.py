"""Out of memory: half as much at a time, the same result, said once; with errors raised on purpose and with real ones."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from itertools import chain, repeat

import pytest
import torch

from rlsparse.batch import ScoredBatch
from rlsparse.components.adapter import ADAPTERS
from rlsparse.model.packing import packed_log_probs
from rlsparse.model.policy import token_log_probs
from rlsparse.rollout import ENGINES, within_memory
from rlsparse.runtime.oom import MemoryLimits, out_of_memory
from rlsparse.runtime.rng import stream
from rlsparse.training.microbatch import FitMicrobatches
from rlsparse.training.update import update
from tests.conftest import ROOT, composed, make_rollout
from tests.faults.killing import without_times


def batch_of_eight() -> ScoredBatch:
    """Two prompts, four completions of four tokens each, every token with something to teach."""
    rollout = make_rollout([[5 + i, 6 + i, 7 + i, 8] for i in range(8)], prompts=2)
    generator = torch.Generator().manual_seed(0)
    return ScoredBatch(rollout, torch.randn(8, 4, generator=generator), torch.full((8, 4), 1 / 32))


class Small:
    """A scoring path that has memory for so many rows, call by call, and raises what torch does where there are more."""

    def __init__(self, path, rows: Iterable[int], error: Exception) -> None:
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


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("path", [token_log_probs, packed_log_probs])
@pytest.mark.parametrize("overrides", [["kl=on"], ["train.updates_per_rollout=3", "objective.l2=0.1"]])
def test_the_update_is_the_same_in_smaller_microbatches(error, path, overrides, tiny):
    config = composed("algorithm=grpo", "train.lr=0.01", *overrides)
    results, said = [], list[str]()
    for rows in (8, 2):
        policy = dataclasses.replace(tiny)  # the adapter puts itself into it
        adapter = ADAPTERS["lora"](policy, config.adapter, 4, 0)
        scoring = Small(path, repeat(rows), error)
        limits = MemoryLimits.of(config.rollout, config.train)
        fit = FitMicrobatches(config.train, limits, said.append)
        # Adam would blow up rounding to steps of its own size
        optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
        metrics = update(policy, scoring, optimizer, batch_of_eight(), config, fit)
        results.append((metrics, [p.detach().clone() for p in adapter.parameters()]))
        adapter.remove()
        # 8 rows in one microbatch; 8 refused, 4 refused, 2 taken
        assert (limits.microbatch, scoring.refused) == ((64, 0) if rows == 8 else (2, 2))
    (whole, parameters), (halved, again) = results
    assert len(said) == 1
    assert "out of memory in training: microbatches of 4 rows" in said[0]
    assert halved.updates == whole.updates
    assert halved.loss == pytest.approx(whole.loss, rel=1e-4, abs=1e-6)
    assert halved.grad_norm == pytest.approx(whole.grad_norm, rel=1e-4)
    assert halved.kl == pytest.approx(whole.kl, rel=1e-4, abs=1e-6)
    for one, two in zip(parameters, again, strict=True):
        assert torch.allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("path", [token_log_probs, packed_log_probs])
def test_a_pass_that_fails_half_way_leaves_nothing_behind(path, tiny):
    """The first microbatch of four has its gradient when the second finds no room; both count once, weights included."""
    config = composed("algorithm=grpo", "layer_skip=r25", "off_policy=truncated", "train.microbatch=4")
    results = []
    for calls in (99, 1):
        policy = dataclasses.replace(tiny)
        adapter = ADAPTERS["lora"](policy, config.adapter, 4, 0)
        scoring = Small(path, chain(repeat(4, calls), repeat(2)), ERRORS[0])
        batch = dataclasses.replace(batch_of_eight(), on_policy=False)
        fit = FitMicrobatches(config.train, say=lambda line: None)
        metrics = update(policy, scoring, torch.optim.SGD(adapter.parameters(), lr=0.1), batch, config, fit)
        assert scoring.refused == (0 if calls == 99 else 1)
        results.append((metrics, [p.detach().clone() for p in adapter.parameters()]))
        adapter.remove()
    (whole, parameters), (halved, again) = results
    assert halved.mismatch.metrics() == pytest.approx(whole.mismatch.metrics(), rel=1e-4)
    assert halved.grad_norm == pytest.approx(whole.grad_norm, rel=1e-4)
    for one, two in zip(parameters, again, strict=True):
        assert torch.allclose(one, two, atol=1e-6)


def test_one_row_that_does_not_fit_is_an_error(tiny):
    config = composed("algorithm=grpo")
    adapter = ADAPTERS["lora"](tiny, config.adapter, 4, 0)
    fit = FitMicrobatches(config.train, say=lambda line: None)
    scoring, optimizer = Small(token_log_probs, repeat(0), ERRORS[0]), adapter.optimizer(0.01, 0.0)
    with pytest.raises(torch.OutOfMemoryError):
        update(tiny, scoring, optimizer, batch_of_eight(), config, fit)


def test_another_error_is_not_taken_for_one_of_memory(tiny):
    assert all(out_of_memory(error) for error in ERRORS)
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize("name", ["fast", "plain"])
def test_the_rollout_is_the_same_with_fewer_rows(name, tiny):
    from rlsparse.batch import Problem, Prompt

    config = composed(f"rollout={name}", "rollout.max_new_tokens=12").rollout
    prompts = [Prompt(Problem("", "", ""), ids) for ids in ((1, 2, 3), (4, 5), (6, 7, 8, 9))]
    sizes = list[int]()

    def small(policy, prompts, config, group_size, generator, **how):
        sizes.append(min(config.max_rows, len(prompts) * group_size))
        if sizes[-1] > 3:
            generator.manual_seed(99)  # what was drawn before the error must not count
            raise ERRORS[0]
        return ENGINES[name](policy, prompts, config, group_size, generator, **how)

    limits, said = MemoryLimits(config.max_rows, 1, 1), list[str]()
    halving = within_memory(small, limits, said.append)
    whole = ENGINES[name](tiny, prompts, config, 4, stream(0, "rollout"))
    halved = halving(tiny, prompts, config, 4, stream(0, "rollout"))
    assert sizes == [12, 6, 3]  # 3 prompts of 4 completions, halved twice
    assert len(said) == 1
    assert torch.equal(whole.completion_ids, halved.completion_ids)
    assert torch.allclose(whole.log_probs, halved.log_probs, atol=1e-5)
    halving(tiny, prompts, config, 4, stream(1, "rollout"))
    assert sizes == [12, 6, 3, 3]  # it does not try again what did not fit


LIMITED = """
import json, resource, sys
import torch
from rlsparse.config.compose import compose_config
from rlsparse.run import run
import rlsparse.train, peft, transformers
torch.set_num_threads(1)
with open("/proc/self/status") as file:
    now = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmSize"))
if int(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[1]), resource.RLIM_INFINITY))
run(compose_config(json.loads(sys.argv[2])))
"""


@pytest.mark.slow
def test_a_process_with_little_memory_ends_with_the_same_results(tmp_path, full):
    """One pass over 64 x 16 completions needs more than the 900 MB of address space that the second process may add."""
    if not full:
        pytest.skip("at full length only (make test-faults)")
    overrides = ["algorithm=sgrpo", "tracker=none", "train.steps=1", "eval.max_rows=16", "task.train_rows=200"]
    overrides += ["train.prompts_per_step=64", "train.group_size=16", "train.packing=off", "rollout.max_rows=4096"]
    overrides += ["train.microbatch=4096", "train.max_tokens_per_microbatch=1000000"]
    said, rows = [], []
    for limit in (0, 900_000_000):
        runs = tmp_path / str(limit)
        command = [sys.executable, "-c", LIMITED, str(limit), json.dumps([*overrides, f"runs_dir={runs}"])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        said.append(done.stderr)
        (file,) = runs.glob("default/*/metrics.jsonl")
        rows.append([without_times(json.loads(line)) for line in file.read_text().splitlines()])
    assert "out of memory" not in said[0]
    assert said[1].count("out of memory in training") == 1
    (whole,), (halved,) = ([row for row in one if row.pop("kind") == "train"] for one in rows)
    assert halved == pytest.approx(whole, rel=1e-3, abs=1e-5)

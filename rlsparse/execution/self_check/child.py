"""The program of the processes that a self-check starts: ``python -m rlsparse.execution.self_check.child ORDER``.

The order is a JSON object; its ``kind`` names a function of this module.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from rlsparse.algorithm import Algorithm
from rlsparse.config.compose import compose
from rlsparse.execution.run_once import run
from rlsparse.model.cache import ModelCache
from rlsparse.runtime.distributed import join_world
from rlsparse.runtime.preload import import_all
from rlsparse.runtime.signals import Interrupted, StopRequest
from rlsparse.tracking.profiling import Clock
from rlsparse.tracking.tracker import NullTracker
from rlsparse.train import train
from rlsparse.training.setup import RunContext, device_of, training


def main() -> None:
    """Run the command line."""
    torch.set_num_threads(1)
    order = json.loads(sys.argv[1])
    {"runs": runs, "first_step": first_step}[order["kind"]](order)


def runs(order: Mapping[str, Any]) -> None:
    """Do runs one after the other; print whether each was finished or interrupted, as a JSON list.

    Args:
        order: ``runs``: for each its ``words`` (overrides) and ``stop_after``, the number of the optimizer step after
            which it gets SIGTERM, or 0; ``memory``: bytes that the process may use in addition (CPU: addresses; GPU:
            memory of torch), or 0; ``deterministic``: whether torch is asked for deterministic kernels.
    """
    import_all()
    if order.get("deterministic"):
        torch.use_deterministic_algorithms(True, warn_only=True)
    if order.get("memory"):
        _limit_memory(order["device"], order["memory"])
    ended = []
    for one in order["runs"]:
        try:
            with _terminated_after(one.get("stop_after", 0)):
                run(compose(one["words"]))
            ended.append("finished")
        except Interrupted as stopped:
            ended.append(str(stopped))
    print(json.dumps(ended))


@contextmanager
def _terminated_after(steps: int) -> Iterator[None]:
    """Within the context, send SIGTERM to this process after an optimizer step; 0 for never."""
    taken = 0

    def count(*_: Any) -> None:
        nonlocal taken
        taken += 1
        if taken == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    hook = register_optimizer_step_post_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _limit_memory(device: str, count: int) -> None:
    if device == "cuda":
        torch.cuda.set_per_process_memory_fraction(count / torch.cuda.get_device_properties(0).total_memory)
        return
    status = Path("/proc/self/status").read_text()
    now = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (now + count, resource.RLIM_INFINITY))


class _RowsInMemory(NullTracker):
    """Keeps the rows of metrics."""

    def train(self, step: int, metrics: Mapping[str, float]) -> None:
        self.history.append({"step": step, **metrics})

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self.history.append({"step": step, **metrics})


def first_step(order: Mapping[str, Any]) -> None:
    """Take part in a training step on each rank, and write what the rank has seen.

    Args:
        order: ``words``: overrides; ``out``: the folder, which gets the gradient of the step as
            ``RANK-of-RANKS.safetensors`` and the rows of metrics as ``RANK-of-RANKS.json``.
    """
    world = join_world()
    config = compose(order["words"])
    device = device_of(config, world)
    tracker, gradient = _RowsInMemory(), dict[str, torch.Tensor]()

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradient.update({str(i): p.grad.clone().cpu() for i, p in enumerate(parameters) if p.grad is not None})

    context = RunContext(device, world, None, None, tracker, Clock(device), StopRequest(), ModelCache())
    with training(config, Algorithm.build(config), context) as one:
        hook = register_optimizer_step_pre_hook(keep)
        train(one)
        hook.remove()
    out = Path(order["out"], f"{world.rank}-of-{world.size}")
    save_file(gradient, out.with_suffix(".safetensors"))
    out.with_suffix(".json").write_text(json.dumps(tracker.history))
    world.leave()


if __name__ == "__main__":
    main()

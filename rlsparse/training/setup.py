"""What training works with besides its config: model, adapter, encoded task, verifier; alike on every rank of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from rlsparse.components.adapter import ADAPTERS, Adapter
from rlsparse.components.reward.verifier import Verifier
from rlsparse.components.task import load_task
from rlsparse.config.schema import Config
from rlsparse.model.cache import Loader
from rlsparse.model.policy import Policy, cpu_threads, resolve_device
from rlsparse.runtime.distributed import Ranks
from rlsparse.runtime.rng import stream_seed
from rlsparse.tracking.profiling import free_memory, reuse_freed_memory
from rlsparse.training.data import TaskPrompts, encode_task


@dataclass(frozen=True)
class Workplace:
    """Everything is in place: the adapter in the policy's model, the verifier's worker at hand."""

    policy: Policy
    adapter: Adapter
    data: TaskPrompts
    verifier: Verifier


def device_of(config: Config, ranks: Ranks) -> torch.device:
    """The device of this process: where ranks share a machine with several GPUs, each takes its own.

    Raises:
        ConfigError: no such device here.
    """
    device = resolve_device(config.device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", ranks.local % torch.cuda.device_count())
    return device


@contextmanager
def workplace(config: Config, device: torch.device, loader: Loader) -> Iterator[Workplace]:
    """Set it up, and leave the loader's model as it was; where training breaks, the model is not used again.

    Raises:
        ConfigError: the model cannot be loaded, or no prompt fits it.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)  # what libraries allocate without being told where
    reuse_freed_memory()
    with loader.lend(config.model, device, config.dtype) as policy:
        free_memory(device)  # after the model is there, which an earlier run may have loaded
        with cpu_threads(config.threads, policy.model.num_parameters()), Verifier(config.task) as verifier:
            data = encode_task(policy, load_task(config.task), config.task, config.rollout, config.eval)
            seed = stream_seed(config.seed, "adapter")
            adapter = ADAPTERS[config.adapter.name](policy, config.adapter, config.lora_rank, seed)
            yield Workplace(policy, adapter, data, verifier)
        adapter.remove()

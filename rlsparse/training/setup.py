"""Everything that training works with, built from a config; the same on every rank of a run."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace

import torch

from rlsparse.algorithm import Algorithm
from rlsparse.components.adapter import TrainedAdapter
from rlsparse.config.schema import Config
from rlsparse.model.cache import ModelCache
from rlsparse.model.packing import PACKED, can_pack
from rlsparse.model.policy import PLAIN, Policy, ScoringPath
from rlsparse.rollout import RolloutSampler
from rlsparse.runtime.devices import cpu_threads, resolve_device
from rlsparse.runtime.distributed import World
from rlsparse.runtime.rng import stream_seed
from rlsparse.runtime.signals import StopRequest
from rlsparse.storage.checkpoints import Checkpoint
from rlsparse.storage.run_folder import RunFolder
from rlsparse.tracking.profiling import Clock, free_memory, reuse_freed_memory
from rlsparse.tracking.tracker import Tracker
from rlsparse.training.benchmarks import benchmark_set, build_benchmarks, held_out_set, judges
from rlsparse.training.checkpointing import Checkpointer
from rlsparse.training.collect import Collector
from rlsparse.training.data import TaskPrompts, encode_task
from rlsparse.training.evaluate import Evaluator, Examiner
from rlsparse.training.history import PolicyHistory
from rlsparse.training.metrics import Recorder
from rlsparse.training.microbatch import FitMicrobatches
from rlsparse.training.state import TrainState
from rlsparse.training.update import Updater

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunContext:
    """Holds device, ranks, files and caches of a process that trains.

    Attributes:
        folder: of the run; None on a rank that writes nothing.
        saved: the checkpoint to resume from; None at the start of a run.
        models: keeps the model between runs.
    """

    device: torch.device
    world: World
    folder: RunFolder | None
    saved: Checkpoint | None
    tracker: Tracker
    clock: Clock
    stop: StopRequest
    models: ModelCache


@dataclass(frozen=True)
class Training:
    """The parts of the training loop.

    Attributes:
        adapter: in the model of the policy.
        data: prompts of both splits.
        state: what a step changes.
        collect, update, evaluate: stages of the loop.
        record: records steps and evaluations.
        checkpoints: saves the state.
        resumed: whether the state is that of a checkpoint, which comes after the first row of its files.
    """

    config: Config
    algorithm: Algorithm
    policy: Policy
    adapter: TrainedAdapter
    data: TaskPrompts
    state: TrainState
    collect: Collector
    update: Updater
    evaluate: Evaluator
    record: Recorder
    checkpoints: Checkpointer
    resumed: bool


def device_of(config: Config, world: World) -> torch.device:
    """Return the device of this process: where ranks share a machine with several GPUs, each takes its own.

    Raises:
        ConfigError: there is no such device here.
    """
    device = resolve_device(config.device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", world.local_rank % torch.cuda.device_count())
    return device


@contextmanager
def training(config: Config, algorithm: Algorithm, context: RunContext) -> Iterator[Training]:
    """Build the parts, and leave the cached model as it was; where training fails, the model is not used again.

    Raises:
        ConfigError: the model cannot be loaded, or no prompt fits it.
    """
    if context.device.type == "cuda":
        torch.cuda.set_device(context.device)  # the default device for allocations in libraries
    reuse_freed_memory()
    task, clock, world = algorithm.task, context.clock, context.world
    keep = not algorithm.adapter.changes_weights
    with context.models.lend(config.model, context.device, config.dtype, keep) as policy:
        free_memory(context.device)  # after the model is there, which an earlier run may have loaded
        with (
            cpu_threads(config.threads, policy.model.num_parameters()),
            judges() as judging,
            ExitStack() as parts,
        ):
            score = judging.scorer(task)
            sampled = algorithm.rollout.max_new_tokens
            data = encode_task(policy, task, sampled, config.eval.max_rows, config.eval.max_new_tokens)
            adapter = algorithm.adapter.attach(policy, config.lora_rank, stream_seed(config.seed, "adapter"))
            if algorithm.kl.needs_base:
                adapter.keep_base()
            if algorithm.objective.l2 > 0:
                adapter.keep_start()
            # before a saved state is loaded: whether a model fits the fast paths is judged alike at start and on resume
            with adapter.perturbed():
                engine = parts.enter_context(closing(algorithm.rollout.fitting(policy)))
                path = scoring_path(policy, config.train.packing)
            benchmarks = [
                benchmark_set(policy, name, judging.scorer(one), config.eval)
                for name, one in build_benchmarks(config.eval).items()
            ]
            history = PolicyHistory.start(adapter, config.train.staleness, algorithm.kl.reference_update)
            state = TrainState.start(config, history, data.train, engine.max_rows, context.saved)
            sampler = RolloutSampler(policy, engine, state.memory, world)
            yield Training(
                config,
                algorithm,
                policy,
                adapter,
                data,
                state,
                collect=Collector(
                    algorithm,
                    sampler,
                    score,
                    config.train.group_size,
                    state.streams,
                    clock,
                    keep_states=path.packed,
                    history=history,
                    world=world,
                ),
                update=Updater(
                    policy,
                    path,
                    state.optimizer,
                    algorithm,
                    config.train,
                    # without packing, padding counts even where completions are cut short
                    FitMicrobatches(
                        replace(config.train, packing="auto" if path.packed else "off"),
                        state.memory,
                    ),
                    world,
                    history.reference_policy if algorithm.kl.reference_update else policy.reference,
                    adapter.penalty,
                ),
                evaluate=Evaluator(
                    Examiner(sampler, config.eval, config.seed, clock),
                    held_out_set(data, score, config.eval.max_new_tokens or sampled),
                    benchmarks,
                    config.eval,
                    config.train.steps,
                ),
                record=Recorder(context.tracker, clock, config, state.count),
                checkpoints=Checkpointer(
                    context.folder,
                    config.train.checkpoint_every,
                    context.tracker,
                    clock,
                    context.stop,
                    world,
                ),
                resumed=context.saved is not None,
            )
        adapter.remove()


def scoring_path(policy: Policy, packing: str) -> ScoringPath:
    """Return the packed path where it is wanted and the model allows it; else the plain one, and log the reason."""
    if packing == "off":
        return PLAIN
    obstacle = can_pack(policy)
    if obstacle is None:
        return PACKED
    log.info("train.packing: off for this model: %s", obstacle)
    return PLAIN

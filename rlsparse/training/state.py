"""The state of training: everything that changes from step to step, and its form in a checkpoint."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer

from rlsparse.batch import Prompt
from rlsparse.components.adapter import TrainedAdapter
from rlsparse.config.schema import Config
from rlsparse.runtime.oom import MemoryLimits
from rlsparse.runtime.rng import stream
from rlsparse.storage.checkpoints import Checkpoint
from rlsparse.training.data import PromptBatches
from rlsparse.training.evaluate import HELD_OUT
from rlsparse.training.history import PolicyHistory
from rlsparse.training.metrics import TokenCount

STREAMS = ("rollout", "token_sampler", "layer_skip", "replay", "reward", "minibatches")


@dataclass
class TrainState:
    """Holds everything that a training step changes.

    Attributes:
        adapter: the trained adapter.
        optimizer: the optimizer of its parameters.
        batches: batches of training prompts.
        streams: random stream of each stage, by name.
        history: the policies of earlier steps.
        count: numbers of tokens since the start of the run.
        memory: limits that are halved when memory runs out.
        step: the last completed step.
        evaluated: names of the sets of questions that have been asked after it.
    """

    adapter: TrainedAdapter
    optimizer: Optimizer
    batches: PromptBatches
    streams: dict[str, Generator]
    history: PolicyHistory
    count: TokenCount
    memory: MemoryLimits
    step: int = 0
    evaluated: list[str] = field(default_factory=list)

    def complete(self, step: int) -> None:
        """Note that a training step is done."""
        self.step, self.evaluated = step, []
        self.history.after_step(step)

    @classmethod
    def start(
        cls,
        config: Config,
        history: PolicyHistory,
        prompts: Sequence[Prompt],
        rollout_rows: int,
        saved: Checkpoint | None,
    ) -> "TrainState":
        """Return the state before the first step, or the state in a checkpoint.

        Args:
            config: the config of the run.
            history: of the adapter in the model; both take the state in the checkpoint.
            prompts: all training prompts.
            rollout_rows: number of completions that are sampled at a time, before memory runs out.
            saved: the checkpoint, whose tensors are freed; None at the start of a run.

        Raises:
            ValueError: the checkpoint belongs to another adapter.
        """
        adapter = history.adapter
        if saved is not None:
            adapter.load_state(_under("adapter", saved.tensors))
        state = cls(
            adapter=adapter,
            optimizer=adapter.optimizer(config.train.lr, config.train.weight_decay),
            batches=PromptBatches(prompts, config.train.prompts_per_step, stream(config.seed, "prompts")),
            streams={name: stream(config.seed, name) for name in STREAMS},
            history=history,
            count=TokenCount(),
            memory=MemoryLimits.of(rollout_rows, config.train),
        )
        if saved is not None:
            state._resume(saved)
            saved.release()
        return state

    def checkpoint(self) -> Checkpoint:
        """Return the state as a checkpoint."""
        moments = {
            f"{index}.{name}": torch.as_tensor(value)
            for index, values in self.optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        parts = {
            "adapter": self.adapter.state(),
            "optimizer": moments,
            "history": self.history.state(),
            "stream": {name: generator.get_state() for name, generator in self._generators().items()},
        }
        tensors = {f"{part}.{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
        state = {"pending": self.batches.pending, "count": asdict(self.count), "memory": asdict(self.memory)}
        state["evaluated"] = list(self.evaluated)
        return Checkpoint(self.step, tensors, state)

    def _resume(self, saved: Checkpoint) -> None:
        self.step = saved.step
        self.count = TokenCount(**saved.state["count"])
        self.memory = MemoryLimits(**saved.state["memory"])
        self.batches.pending = list(saved.state["pending"])
        self.evaluated = list(saved.state.get("evaluated", [HELD_OUT]))  # earlier versions saved after the evaluation
        for name, state in _under("stream", saved.tensors).items():
            self._generators()[name].set_state(state)
        self.history.load_state(_under("history", saved.tensors))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under("optimizer", saved.tensors).items():
            index, _, key = name.partition(".")
            moments.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})

    def _generators(self) -> dict[str, Generator]:
        return {**self.streams, "prompts": self.batches.generator}


def _under(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")}

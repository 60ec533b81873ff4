"""The two sides: our training loop and TRL's GRPOTrainer, each in its own process, one step at a time."""

import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from workload import LEARNING_RATE, LORA_RANK, LORA_SCALE, TARGETS, Gate, Work, questions, rewards

from rlsparse.batch import Problem
from rlsparse.components.reward import Score
from rlsparse.config.schema import ModelConfig
from rlsparse.model.cache import ModelCache
from rlsparse.model.policy import Policy
from rlsparse.tracking.profiling import Clock, free_memory, peak_memory, reuse_freed_memory
from rlsparse.tracking.tracker import NullTracker


def ours(pipe: Connection, work: Work, overrides: list[str]) -> None:
    """Run our training loop, with rewards from a seed in the context of the scorer."""
    from rlsparse.algorithm import Algorithm
    from rlsparse.config.compose import compose
    from rlsparse.runtime.devices import resolve_device
    from rlsparse.runtime.distributed import ALONE
    from rlsparse.runtime.signals import StopRequest
    from rlsparse.train import train
    from rlsparse.training.setup import RunContext, training

    torch.set_num_threads(work.threads)
    reuse_freed_memory()  # as in a run
    refuse_plain_paths()
    config = compose(our_overrides(work) + overrides)
    device = resolve_device(work.device)
    drawn: Any = _DrawnRewards(rewards(work))
    tracker = _StepTracker(Gate(pipe), drawn)
    # without a folder there are no checkpoints: the other side writes none either
    context = RunContext(device, ALONE, None, None, tracker, Clock(device), StopRequest(), _WithoutEos())
    with training(config, Algorithm.build(config), context) as run:
        free_memory(device)
        held_out = replace(run.evaluate.held_out, scorer=drawn)
        evaluate = replace(run.evaluate, held_out=held_out)
        train(replace(run, collect=replace(run.collect, score=drawn), evaluate=evaluate))
    pipe.send({"peak": peak_memory(device)})


def model_overrides(work: Work) -> list[str]:
    """Return the overrides that select the model, a folder or a hub id."""
    where = "path" if Path(work.model).is_dir() else "name"
    return ["model=smollm2", f"model.{where}={work.model}"]


def our_overrides(work: Work) -> list[str]:
    """Return the overrides of a run that does the work."""
    return [
        f"algorithm={work.algorithm}",
        f"adapter.layers={work.layers}",
        *model_overrides(work),
        f"device={work.device}",
        f"threads={work.threads}",
        "task=word_problems",
        f"task.train_rows={work.prompts}",
        f"lora_rank={LORA_RANK}",
        f"adapter.scale={LORA_SCALE}",
        f"adapter.target_modules=[{','.join(TARGETS)}]",
        f"train.prompts_per_step={work.prompts}",
        f"train.group_size={work.group_size}",
        f"train.steps={work.steps}",
        f"train.lr={LEARNING_RATE}",
        f"rollout.max_new_tokens={work.new_tokens}",
        f"eval.every={work.steps}",
        "eval.max_rows=1",
        "eval.samples=1",
        "tracker.samples=0",
    ]


class _DrawnRewards:
    """Takes the context of the scorer: its verdicts are drawn from a seed."""

    def __init__(self, steps: Iterator[list[float]]) -> None:
        self._steps = steps
        self._pending: Iterator[float] = iter(())

    def next_step(self) -> None:
        self._pending = iter(next(self._steps))

    def __call__(self, completion: str, problem: Problem) -> Score:
        return Score(correct=next(self._pending, 0.0) == 1.0, answered=True)  # in an evaluation nothing is pending


class _WithoutEos(ModelCache):
    """Lends a policy without end-of-sequence tokens, so that no completion ends early."""

    @contextmanager
    def lend(self, config: ModelConfig, device: torch.device, dtype: str, keep: bool = True) -> Iterator[Policy]:
        with super().lend(config, device, dtype, keep) as policy:
            yield replace(policy, eos_ids=())


class _StepTracker(NullTracker):
    """Takes the context of the tracker: a step ends when its metrics are recorded."""

    def __init__(self, gate: Gate, drawn: _DrawnRewards) -> None:
        super().__init__()
        self._gate, self._drawn = gate, drawn

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == 0:
            self._next()

    def train(self, step: int, metrics: Mapping[str, float]) -> None:
        self._gate.report(**{key: metrics[key] for key in ("time/rollout", "time/train")})
        self._next()

    def _next(self) -> None:
        self._gate.wait()
        self._drawn.next_step()


def refuse_plain_paths() -> None:
    """From now on, end the process on a message that the model uses a plain path, whose figures would not be ours."""
    logger = logging.getLogger("rlsparse")
    logger.setLevel(logging.INFO)  # of these messages
    logger.addHandler(_Refuse())


class _Refuse(logging.Handler):
    """Ends the process on any message, except those about a server that is waited for."""

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith("rlsparse.rollout.vllm"):
            sys.exit(record.getMessage())


def trl(pipe: Connection, work: Work, options: dict[str, Any]) -> None:
    """Run TRL's GRPOTrainer on the same work.

    Args:
        options: arguments of GRPOConfig, besides those that define the work.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoConfig, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(work.threads)
    gate, drawn = Gate(pipe), rewards(work)
    rows = work.prompts * work.group_size

    class OneStep(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            gate.wait()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            gate.report()
            if state.global_step == work.steps:
                gate.wait()

    def reward(completions: list[Any], **_: Any) -> list[float]:
        return next(drawn)

    config = AutoConfig.from_pretrained(work.model)
    third = max(1, config.num_hidden_layers // 3)
    layers = None if work.layers == "all" else list(range(config.num_hidden_layers - third, config.num_hidden_layers))
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            "output_dir": folder,
            "use_cpu": work.device == "cpu",
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "max_steps": work.steps,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": rows,
            "num_generations": work.group_size,
            "max_completion_length": work.new_tokens,
            "generation_kwargs": {"eos_token_id": [-1]},  # no completion ends early
            "temperature": 1.0,
            "beta": 0.0,
            "shuffle_dataset": False,
        }
        trainer = GRPOTrainer(
            model=work.model,
            args=GRPOConfig(**{**settings, **options}),
            reward_funcs=reward,
            train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": q}] for q in questions(work)]}),
            peft_config=LoraConfig(
                task_type="CAUSAL_LM",
                r=LORA_RANK,
                lora_alpha=LORA_SCALE * LORA_RANK,
                target_modules=TARGETS,
                layers_to_transform=layers,
            ),
            callbacks=[OneStep()],
        )
        trainer.eos_token_ids = [-1]  # the trainer would also cut completions at an end-of-sequence token
        free_memory(trainer.model.device)
        trainer.train()
    pipe.send({"peak": peak_memory(trainer.model.device)})

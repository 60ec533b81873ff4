"""The two sides: our training loop and TRL's GRPOTrainer, each in a process of its own, a step at a time."""

import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from workload import LEARNING_RATE, LORA_RANK, LORA_SCALE, TARGETS, Gate, Work, questions, rewards

from rlsparse.components.reward.verifier import Score
from rlsparse.tracking.profiling import Clock, free_memory, peak_memory, reuse_freed_memory


def ours(pipe: Connection, work: Work, overrides: list[str]) -> None:
    """Our loop, ``train.train``, with rewards from the seed in the verifier's place."""
    from rlsparse.components.adapter import ADAPTERS
    from rlsparse.components.task import load_task
    from rlsparse.config.compose import compose_config
    from rlsparse.model.policy import load_policy, resolve_device
    from rlsparse.runtime.signals import StopRequest
    from rlsparse.train import train
    from rlsparse.training.checkpointing import Keeper
    from rlsparse.training.data import encode_task
    from rlsparse.training.setup import Workplace

    torch.set_num_threads(work.threads)
    reuse_freed_memory()  # as run.py does
    config = compose_config(our_overrides(work) + overrides)
    device = resolve_device(work.device)
    policy = dataclasses.replace(load_policy(config.model, device, config.dtype), eos_ids=())  # none ends early
    task = load_task(config.task)
    task = dataclasses.replace(task, train=task.train[: work.prompts])
    data = encode_task(policy, task, config.task, config.rollout, config.eval)
    adapter = ADAPTERS[config.adapter.name](policy, config.adapter, config.lora_rank, 0)
    free_memory(device)
    drawn: Any = _DrawnRewards(rewards(work))
    tracker: Any = _StepTracker(Gate(pipe), drawn)
    clock = Clock(device)
    # no checkpoints: the other side writes none either
    keeper = Keeper(None, 1, tracker, clock, StopRequest(), None)
    train(config, Workplace(policy, adapter, data, drawn), tracker, clock, keeper)
    pipe.send({"peak": peak_memory(device)})


def model_overrides(work: Work) -> list[str]:
    """The model as our config names it: a folder or a hub id."""
    where = "path" if Path(work.model).is_dir() else "name"
    return ["model=smollm2", f"model.{where}={work.model}"]


def our_overrides(work: Work) -> list[str]:
    return [
        f"algorithm={work.algorithm}",
        f"adapter.layers={work.layers}",
        *model_overrides(work),
        f"device={work.device}",
        "task=word_problems",
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
    """Stands where the verifier does and says what was drawn."""

    def __init__(self, steps: Iterator[list[float]]) -> None:
        self._steps = steps
        self._pending: Iterator[float] = iter(())

    def next_step(self) -> None:
        self._pending = iter(next(self._steps))

    def score(self, completion: str, gold: str) -> Score:
        return Score(correct=next(self._pending, 0.0) == 1.0, answered=True)  # an evaluation finds nothing pending


class _StepTracker:
    """Stands where the tracker does: the end of a step's metrics is the end of the step."""

    def __init__(self, gate: Gate, drawn: _DrawnRewards) -> None:
        self._gate, self._drawn = gate, drawn

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == 0:
            self._next()

    def train(self, step: int, metrics: Mapping[str, float]) -> None:
        self._gate.report(**{key: metrics[key] for key in ("time/rollout", "time/train")})
        self._next()

    def ranks(self, step: int, ranks: Mapping[str, int]) -> None:
        """Nobody asks here."""

    def say(self, line: str) -> None:
        """What it says is that the model fell back to a plain path: its figures would not be those of ours."""
        sys.exit(line)

    def _next(self) -> None:
        self._gate.wait()
        self._drawn.next_step()


def trl(pipe: Connection, work: Work, options: dict[str, Any]) -> None:
    """TRL's GRPOTrainer on the same work.

    Args:
        options: of GRPOConfig, over those that define the work.
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
            "generation_kwargs": {"eos_token_id": [-1]},  # none ends early
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
        trainer.eos_token_ids = [-1]  # it would also cut what was generated at an end-of-sequence token
        free_memory(trainer.model.device)
        trainer.train()
    pipe.send({"peak": peak_memory(trainer.model.device)})

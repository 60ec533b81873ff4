"""Tokens a second of our engines against generate, in turns in one process."""

import dataclasses
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch
from contenders import our_overrides
from workload import Work

from rlsparse.batch import Prompt
from rlsparse.components.adapter import ADAPTERS
from rlsparse.components.task import load_task
from rlsparse.config.compose import compose_config
from rlsparse.config.schema import Config
from rlsparse.model.policy import Policy, load_policy, resolve_device
from rlsparse.rollout import ENGINES
from rlsparse.rollout.columns import left_pad
from rlsparse.runtime.rng import stream
from rlsparse.tracking.profiling import reuse_freed_memory
from rlsparse.training.data import encode_task


def sampler(work: Work) -> tuple[Config, Policy, list[Prompt]]:
    """The model with its adapter, none of whose completions ends early, and the prompts."""
    torch.set_num_threads(work.threads)
    reuse_freed_memory()
    config = compose_config(our_overrides(work))
    device = resolve_device(work.device)
    policy = dataclasses.replace(load_policy(config.model, device, config.dtype), eos_ids=())
    prompts = encode_task(policy, load_task(config.task), config.task, config.rollout, config.eval).train
    ADAPTERS[config.adapter.name](policy, config.adapter, config.lora_rank, 0)
    return config, policy, prompts[: work.prompts]


def rollout_speed(work: Work, repeats: int = 4) -> dict[str, Any]:
    """Tokens a second, and how many times those of generate: median, least, most. The first round is left out."""
    config, policy, prompts = sampler(work)
    device = policy.device
    ids, lengths = left_pad(prompts, policy)
    ids, lengths = (x.repeat_interleave(work.group_size, dim=0) for x in (ids, lengths))
    mask = torch.arange(ids.shape[1], 0, -1, device=device) <= lengths[:, None]

    def generate() -> None:
        policy.model.generate(
            input_ids=ids,
            attention_mask=mask.long(),
            do_sample=True,
            top_k=0,
            eos_token_id=[-1],  # none ends early
            max_new_tokens=work.new_tokens,
        )

    def generate_merged() -> None:
        with policy.merged():
            generate()

    def engine(name: str) -> Callable[[], Any]:
        rollout = dataclasses.replace(config.rollout, name=name)
        return lambda: ENGINES[name](policy, prompts, rollout, work.group_size, stream(0, "bench"))

    sides = {"ours": engine("fast"), "plain": engine("plain"), "generate": generate, "generate_merged": generate_merged}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(repeats):
        for name, run in sides.items():
            start = perf_counter()
            with torch.no_grad():
                run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_:
                seconds[name].append(perf_counter() - start)
    tokens = len(ids) * work.new_tokens
    report: dict[str, Any] = {name: round(tokens / median(times), 1) for name, times in seconds.items()}
    for name in ("generate", "generate_merged"):
        gains = [theirs / own for theirs, own in zip(seconds[name], seconds["ours"], strict=True)]
        report[f"over_{name}"] = [round(f(gains), 2) for f in (median, min, max)]
    return report

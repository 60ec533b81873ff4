"""Compare the tokens per second of our engines with those of generate, in turns in one process."""

import dataclasses
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch
from contenders import our_overrides
from workload import Work

from rlsparse.algorithm import Algorithm
from rlsparse.batch import Prompt
from rlsparse.config.compose import compose
from rlsparse.model.loading import load_policy
from rlsparse.model.policy import Policy
from rlsparse.rollout import Request, RolloutEngine
from rlsparse.rollout.columns import left_pad
from rlsparse.runtime.devices import resolve_device
from rlsparse.runtime.rng import stream
from rlsparse.tracking.profiling import reuse_freed_memory
from rlsparse.training.data import encode_task


def sampler(work: Work) -> tuple[RolloutEngine, Policy, list[Prompt]]:
    """Return the fast engine, the policy with an adapter and without end-of-sequence tokens, and the prompts."""
    torch.set_num_threads(work.threads)
    reuse_freed_memory()
    config = compose(our_overrides(work))
    algorithm = Algorithm.build(config)
    device = resolve_device(work.device)
    policy = dataclasses.replace(load_policy(config.model, device, config.dtype), eos_ids=())
    data = encode_task(policy, algorithm.task, work.new_tokens, config.eval.max_rows)
    algorithm.adapter.attach(policy, config.lora_rank, 0)
    return algorithm.rollout, policy, data.train[: work.prompts]


def rollout_speed(work: Work, repeats: int = 4) -> dict[str, Any]:
    """Return tokens per second, and the gain over generate: median, minimum, maximum, without the first round."""
    fast, policy, prompts = sampler(work)
    plain = Algorithm.build(compose([*our_overrides(work), "rollout=plain"])).rollout
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
            eos_token_id=[-1],  # no completion ends early
            max_new_tokens=work.new_tokens,
        )

    def generate_merged() -> None:
        with policy.merged():
            generate()

    def sampled(engine: RolloutEngine) -> Callable[[], Any]:
        return lambda: engine.generate(policy, Request(prompts, work.group_size), stream(0, "bench"))

    sides = {"ours": sampled(fast), "plain": sampled(plain), "generate": generate, "generate_merged": generate_merged}
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

"""The shortest possible time of a training step: its matrix products at the highest speed that the machine reaches."""

from time import perf_counter

import torch
from torch import nn
from workload import Work


def matrix_peak(device: str, threads: int) -> float:
    """Return the floating-point operations per second of a large bfloat16 product, the best of twenty."""
    torch.set_num_threads(threads)
    n = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(20):
        start = perf_counter()
        c = a @ b
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, perf_counter() - start)
    del c
    return 2 * n**3 / best


def step_operations(model: nn.Module, work: Work, prompt_tokens: int) -> float:
    """Return the floating-point operations of the products with the weights in one GRPO step on all tokens.

    Those of attention and of the adapter are left out.

    Rollout: every prompt token and every completion token once. Training: forward, and backward to the activations
    alone (the weights are frozen), of each completion token, and of each prompt once per group.
    """
    head = model.get_output_embeddings().weight.numel()
    layers = sum(m.weight.numel() for m in model.get_decoder().layers.modules() if isinstance(m, nn.Linear))
    completions = work.prompts * work.group_size * work.new_tokens
    rollout = 2 * (layers * (prompt_tokens + completions) + head * completions)
    training = 2 * 2 * (layers * (prompt_tokens + completions) + head * completions)
    return float(rollout + training)

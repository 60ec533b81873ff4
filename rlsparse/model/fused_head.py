"""Log-probabilities from hidden states without keeping the logits: in chunks, with the gradient made in the forward."""

from typing import Any

import torch
from torch import Tensor, nn

CHUNK = 2**22  # logits at a time: 16 MiB in float32, about what a CPU's cache holds


def chosen_log_probs(
    hidden: Tensor, head: nn.Linear, targets: Tensor, temperature: float, chunk: int = CHUNK
) -> Tensor:
    """log softmax(head(hidden) / temperature) at the targets, (n,) float32, nats.

    The gradient reaches ``hidden`` alone; the head is frozen.

    Args:
        hidden: (n, H) where the targets are predicted.
        targets: (n,) token ids.
        chunk: most logits at a time.
    """
    log_probs: Tensor = _ChosenLogProbs.apply(hidden, head.weight, head.bias, targets, temperature, chunk)
    return log_probs


class _ChosenLogProbs(torch.autograd.Function):
    """Each output depends on its own row: ∂ log p_t / ∂h = (W_t − Σ_v p_v W_v) / τ, (H,), is all the backward needs."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, chunk: int
    ) -> Tensor:
        wants_gradient = ctx.needs_input_grad[0]
        chosen = torch.empty(len(hidden), device=hidden.device)  # (n,)
        slope = torch.empty_like(hidden) if wants_gradient else None  # (n, H)
        size = max(1, min(len(hidden), chunk // len(weight)))
        # one workspace for all chunks: tensors this large, made and freed again, leave holes in the heap
        outputs = hidden.new_empty(size, len(weight))  # (c, V), the model's dtype
        numbers = torch.empty_like(outputs, dtype=torch.float32)  # (c, V)
        for start in range(0, len(hidden), size):
            rows = slice(start, start + size)
            target = targets[rows, None]  # (c, 1)
            output, logits = outputs[: len(target)], numbers[: len(target)]
            torch.mm(hidden[rows], weight.t(), out=output)
            logits.copy_(output)
            if bias is not None:
                logits += bias
            if temperature != 1:
                logits /= temperature
            # not log_softmax, whose sum over a large vocabulary is three times less accurate in float32
            logits -= logits.amax(dim=1, keepdim=True)
            of_target = logits.gather(1, target)  # (c, 1)
            unnormalised = logits.exp_()  # (c, V)
            total = unnormalised.sum(dim=1, keepdim=True)  # (c, 1)
            chosen[rows] = (of_target - total.log()).squeeze(1)
            if slope is not None:
                # p_t − 1 before the product: W_t − Σ p_v W_v would cancel where the policy is sure
                coefficients = unnormalised.scatter_add_(1, target, -total).div_(total)  # (c, V), p − 1 at the target
                slope[rows] = output.copy_(coefficients) @ weight / -temperature
        ctx.save_for_backward(slope)
        return chosen

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return (gradients[0][:, None] * slope).to(slope.dtype), None, None, None, None, None

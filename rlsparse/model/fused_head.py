"""Log-probabilities from hidden states, computed in chunks without keeping the logits for the backward pass."""

from typing import Any

import torch
from torch import Tensor, nn

CHUNK = 2**22  # logits per chunk: 16 MiB in float32, about the cache of a CPU


def chosen_log_probs(
    hidden: Tensor, head: nn.Linear, targets: Tensor, temperature: float, chunk: int = CHUNK
) -> Tensor:
    """Return log softmax(head(hidden) / temperature) at the targets, (n,) float32, nats.

    Only ``hidden`` gets a gradient, since the head is frozen.

    Args:
        hidden: (n, H), the hidden states that predict the targets.
        targets: (n,) token ids.
        chunk: maximum number of logits that are computed at a time.
    """
    log_probs: Tensor = _ChosenLogProbs.apply(hidden, head.weight, head.bias, targets, temperature, chunk)
    return log_probs


class _ChosenLogProbs(torch.autograd.Function):
    """Computes the gradient in the forward pass: ∂ log p_t / ∂h = (W_t − Σ_v p_v W_v) / τ for each row.

    Each output depends on one row only, so the backward pass needs this (H,) vector of the row, but not its logits.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, chunk: int
    ) -> Tensor:
        wants_gradient = ctx.needs_input_grad[0]
        chosen = torch.empty(len(hidden), device=hidden.device)  # (n,)
        slope = torch.empty_like(hidden) if wants_gradient else None  # (n, H)
        size = max(1, min(len(hidden), chunk // len(weight)))
        # one workspace for all chunks: allocating and freeing tensors of this size would fragment the heap
        outputs = hidden.new_empty(size, len(weight))  # (c, V), dtype of the model
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
            # log_softmax would be three times less accurate: its float32 sum over a large vocabulary rounds more
            logits -= logits.amax(dim=1, keepdim=True)
            of_target = logits.gather(1, target)  # (c, 1)
            unnormalised = logits.exp_()  # (c, V)
            total = unnormalised.sum(dim=1, keepdim=True)  # (c, 1)
            chosen[rows] = (of_target - total.log()).squeeze(1)
            if slope is not None:
                # p_t − 1 before the product: W_t − Σ p_v W_v loses digits where p_t is close to 1
                coefficients = unnormalised.scatter_add_(1, target, -total).div_(total)  # (c, V), p − 1 at the target
                slope[rows] = output.copy_(coefficients) @ weight / -temperature
        ctx.save_for_backward(slope)
        return chosen

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return (gradients[0][:, None] * slope).to(slope.dtype), None, None, None, None, None

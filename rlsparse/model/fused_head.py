"""Log-probabilities and entropies from hidden states, in chunks, without keeping the logits for the backward pass."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

CHUNK = 2**22  # logits per chunk: 16 MiB in float32, about the cache of a CPU


def chosen_log_probs(
    hidden: Tensor, head: nn.Linear, targets: Tensor, temperature: float, chunk: int = CHUNK
) -> Tensor:
    """Return log softmax(head(hidden) / temperature) at the targets, (n,) float32, nats; float64 for float64.

    Only ``hidden`` gets a gradient, since the head is frozen.

    Args:
        hidden: (n, H), the hidden states that predict the targets.
        targets: (n,) token ids.
        chunk: maximum number of logits that are computed at a time.
    """
    log_probs: Tensor = _ChosenLogProbs.apply(hidden, _Logits(head.weight, head.bias, temperature, chunk), targets)
    return log_probs


def chosen_log_probs_and_entropy(
    hidden: Tensor, head: nn.Linear, targets: Tensor, temperature: float, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Return log softmax(head(hidden) / temperature) at the targets and the entropy −Σ_v p_v log p_v, each (n,), nats.

    The log-probabilities are those of ``chosen_log_probs`` to the bit. Both outputs have a gradient with respect to
    ``hidden``.

    Args:
        hidden: (n, H), the hidden states that predict the targets.
        targets: (n,) token ids.
        chunk: maximum number of logits that are computed at a time; twice as many numbers are held.
    """
    logits = _Logits(head.weight, head.bias, temperature, chunk)
    log_probs, entropy = _ChosenLogProbsAndEntropy.apply(hidden, logits, targets)
    return log_probs, entropy


@dataclass(frozen=True)
class _Chunk:
    """Holds the logits of c consecutive rows.

    Attributes:
        rows: which of the n rows.
        output: (c, V) in the dtype of the model: workspace for factors of the head.
        logits: (c, V) float32: logits over the temperature, less the largest one of the row.
    """

    rows: slice
    output: Tensor
    logits: Tensor


@dataclass(frozen=True)
class _Logits:
    """Computes the logits of a frozen head in chunks.

    Attributes:
        weight: (V, H).
        bias: (V,) or None.
        chunk: maximum number of logits of a chunk.
    """

    weight: Tensor
    bias: Tensor | None
    temperature: float
    chunk: int

    def of(self, hidden: Tensor) -> Iterator[_Chunk]:
        """Yield the chunks of (n, H) hidden states; the next one overwrites the tensors of the one before."""
        size = max(1, min(len(hidden), self.chunk // len(self.weight)))
        # one workspace for all chunks: allocating and freeing tensors of this size would fragment the heap
        outputs = hidden.new_empty(size, len(self.weight))  # (c, V), dtype of the model
        numbers = torch.empty_like(outputs, dtype=_precise(hidden))  # (c, V)
        for start in range(0, len(hidden), size):
            rows = slice(start, min(start + size, len(hidden)))
            output, logits = outputs[: rows.stop - start], numbers[: rows.stop - start]
            torch.mm(hidden[rows], self.weight.t(), out=output)
            logits.copy_(output)
            if self.bias is not None:
                logits += self.bias
            if self.temperature != 1:
                logits /= self.temperature
            # log_softmax would be three times less accurate: its float32 sum over a large vocabulary rounds more
            logits -= logits.amax(dim=1, keepdim=True)
            yield _Chunk(rows, output, logits)

    def slope(self, coefficients: Tensor, chunk: _Chunk) -> Tensor:
        """Return −Σ_v c_v W_v / τ, (c, H), for coefficients c of (c, V): the gradient in the hidden states."""
        return chunk.output.copy_(coefficients) @ self.weight / -self.temperature


def _precise(hidden: Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)


class _ChosenLogProbs(torch.autograd.Function):
    """Computes the gradient in the forward pass: ∂ log p_t / ∂h = (W_t − Σ_v p_v W_v) / τ for each row.

    Each output depends on one row only, so the backward pass needs this (H,) vector of the row, but not its logits.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, logits: _Logits, targets: Tensor) -> Tensor:
        chosen = torch.empty(len(hidden), dtype=_precise(hidden), device=hidden.device)  # (n,)
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None  # (n, H)
        for chunk in logits.of(hidden):
            target = targets[chunk.rows, None]  # (c, 1)
            of_target = chunk.logits.gather(1, target)  # (c, 1)
            unnormalised = chunk.logits.exp_()  # (c, V)
            total = unnormalised.sum(dim=1, keepdim=True)  # (c, 1)
            chosen[chunk.rows] = (of_target - total.log()).squeeze(1)
            if slope is not None:
                slope[chunk.rows] = logits.slope(_less_target(unnormalised, target, total), chunk)
        ctx.save_for_backward(slope)
        return chosen

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return (gradients[0][:, None] * slope).to(slope.dtype), None, None


class _ChosenLogProbsAndEntropy(torch.autograd.Function):
    """Computes both gradients in the forward pass, as ``_ChosenLogProbs`` does.

    With z = logits / τ and m = Σ_v p_v z_v the entropy is H = log Σ_v exp z_v − m. Since log p_v + H = z_v − m, its
    gradient is ∂H/∂z_v = −p_v (log p_v + H) = −p_v (z_v − m), hence ∂H/∂h = −Σ_v p_v (z_v − m) W_v / τ.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, logits: _Logits, targets: Tensor) -> tuple[Tensor, Tensor]:
        chosen, entropy = torch.empty(2, len(hidden), dtype=_precise(hidden), device=hidden.device)  # (n,)
        slopes = hidden.new_empty(2, *hidden.shape) if ctx.needs_input_grad[0] else None  # (2, n, H)
        exponentials: Tensor | None = None
        for chunk in logits.of(hidden):
            if exponentials is None:  # the first chunk is the largest
                exponentials = torch.empty_like(chunk.logits)
            target = targets[chunk.rows, None]  # (c, 1)
            of_target = chunk.logits.gather(1, target)  # (c, 1)
            unnormalised = torch.exp(chunk.logits, out=exponentials[: len(target)])  # (c, V)
            total = unnormalised.sum(dim=1, keepdim=True)  # (c, 1)
            chosen[chunk.rows] = (of_target - total.log()).squeeze(1)
            # a logit of −inf has probability 0 and adds nothing: 0 · −inf would be NaN
            weighted = chunk.logits.clamp_(min=torch.finfo(chunk.logits.dtype).min).mul_(unnormalised)  # (c, V)
            mean = weighted.sum(dim=1, keepdim=True) / total  # (c, 1): m
            entropy[chunk.rows] = (total.log() - mean).squeeze(1)
            if slopes is not None:
                of_entropy = weighted.addcmul_(unnormalised, mean, value=-1).div_(total)  # (c, V): p_v (z_v − m)
                slopes[1, chunk.rows] = logits.slope(of_entropy, chunk)
                slopes[0, chunk.rows] = logits.slope(_less_target(unnormalised, target, total), chunk)
        ctx.save_for_backward(slopes)
        return chosen, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        of_log_probs, of_entropy = (g[:, None] * slope for g, slope in zip(gradients, slopes, strict=True))  # (n, H)
        return (of_log_probs + of_entropy).to(slopes.dtype), None, None


def _less_target(unnormalised: Tensor, target: Tensor, total: Tensor) -> Tensor:
    """Return the probabilities, less 1 at the target, (c, V), in place.

    The 1 is taken off before the product with the head: W_t − Σ p_v W_v loses digits where p_t is close to 1.
    """
    return unnormalised.scatter_add_(1, target, -total).div_(total)

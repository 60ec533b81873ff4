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

    ``hidden`` gets a gradient, and so do weight and bias of a head that is trained.

    Args:
        hidden: (n, H), the hidden states that predict the targets.
        targets: (n,) token ids.
        chunk: maximum number of logits that are computed at a time.
    """
    if _is_trained(head):
        return chosen_log_probs_and_entropy(hidden, head, targets, temperature, chunk)[0]
    log_probs: Tensor = _ChosenLogProbs.apply(hidden, _Logits(head.weight, head.bias, temperature, chunk), targets)
    return log_probs


def chosen_log_probs_and_entropy(
    hidden: Tensor, head: nn.Linear, targets: Tensor, temperature: float, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Return log softmax(head(hidden) / temperature) at the targets and the entropy −Σ_v p_v log p_v, each (n,), nats.

    The log-probabilities are those of ``chosen_log_probs`` to the bit. Both outputs have a gradient with respect to
    ``hidden``, and to weight and bias of a head that is trained.

    Args:
        hidden: (n, H), the hidden states that predict the targets.
        targets: (n,) token ids.
        chunk: maximum number of logits that are computed at a time; twice as many numbers are held.
    """
    logits = _Logits(head.weight, head.bias, temperature, chunk)
    if _is_trained(head):
        log_probs, entropy = _TrainedHead.apply(hidden, head.weight, head.bias, logits, targets)
        return log_probs, entropy
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
    """Computes the logits of a head in chunks, without a graph.

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
            torch.mm(hidden[rows], self.weight.detach().t(), out=output)
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
        return chunk.output.copy_(coefficients) @ self.weight.detach() / -self.temperature


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


class _TrainedHead(torch.autograd.Function):
    """Computes the logits again in the backward pass, since the gradient of the head is a sum over the rows.

    With dL/dz_v = g (1[v = t] − p_v) − g' p_v (z_v − m) =: −c_v, where g and g' are the gradients in log p_t and in the
    entropy, dL/dW_v = −Σ c_v h / τ over the rows, dL/db_v = −Σ c_v / τ, and dL/dh = −Σ_v c_v W_v / τ.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, logits: _Logits, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden, targets)
        ctx.logits = logits
        chosen, entropy = _ChosenLogProbsAndEntropy.apply(hidden.detach(), logits, targets)  # (n,)
        return chosen, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, targets = ctx.saved_tensors
        logits: _Logits = ctx.logits
        of_hidden = torch.empty_like(hidden)  # (n, H)
        of_weight = torch.zeros(logits.weight.shape, dtype=_precise(hidden), device=hidden.device)  # (V, H)
        of_bias = of_weight.new_zeros(len(of_weight))  # (V,)
        for chunk in logits.of(hidden):
            target = targets[chunk.rows, None]  # (c, 1)
            of_log_prob, of_entropy = (g[chunk.rows, None] for g in gradients)  # (c, 1)
            probabilities = chunk.logits.softmax(dim=1)  # (c, V)
            centred = chunk.logits.clamp_(min=torch.finfo(chunk.logits.dtype).min)  # (c, V): z_v − m, in place
            centred.sub_((probabilities * centred).sum(dim=1, keepdim=True))
            # first the probability, which is 0 where the logit is −inf: ∞ · 0 would be NaN
            coefficients = centred.mul_(probabilities).mul_(of_entropy).addcmul_(of_log_prob, probabilities)  # (c, V)
            coefficients.scatter_add_(1, target, -of_log_prob)
            of_hidden[chunk.rows] = logits.slope(coefficients, chunk)
            of_weight.sub_(chunk.output.t() @ hidden[chunk.rows], alpha=1 / logits.temperature)
            of_bias.sub_(coefficients.sum(dim=0), alpha=1 / logits.temperature)
        needs = ctx.needs_input_grad
        bias = of_bias.to(logits.weight.dtype) if logits.bias is not None and needs[2] else None
        return of_hidden, of_weight.to(logits.weight.dtype) if needs[1] else None, bias, None, None


def _is_trained(head: nn.Linear) -> bool:
    return torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (head.weight, head.bias))


def _less_target(unnormalised: Tensor, target: Tensor, total: Tensor) -> Tensor:
    """Return the probabilities, less 1 at the target, (c, V), in place.

    The 1 is taken off before the product with the head: W_t − Σ p_v W_v loses digits where p_t is close to 1.
    """
    return unnormalised.scatter_add_(1, target, -total).div_(total)

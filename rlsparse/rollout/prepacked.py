"""Weights in the layout of oneDNN while sampling; otherwise oneDNN would convert them in each step of few rows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def can_prepack() -> bool:
    """Return whether this version of torch has the linear operation of oneDNN on prepacked bfloat16 weights.

    torch.compile uses it on a CPU. It is not part of the public interface, so it is tried on a small example.
    """
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        linear = nn.Linear(16, 16, dtype=torch.bfloat16)
        return _multiply(linear)(torch.zeros(1, 16, dtype=torch.bfloat16)).shape == (1, 16)
    except (AttributeError, RuntimeError, TypeError):  # no such name, another signature, a build without oneDNN
        return False


@contextmanager
def prepacked(model: nn.Module) -> Iterator[None]:
    """Within the context, bfloat16 linear modules on the CPU multiply with copies of their weights in oneDNN's layout.

    The products are equal up to rounding and have no gradient. Without support in torch or the processor, nothing
    changes.
    """
    linears = [m for m in model.modules() if isinstance(m, nn.Linear) and _is_plain(m)] if can_prepack() else []
    try:
        for linear in linears:
            vars(linear)["forward"] = _multiply(linear)
        yield
    finally:
        for linear in linears:
            vars(linear).pop("forward", None)


def _is_plain(linear: nn.Linear) -> bool:
    """Return whether a module can be prepacked; not if it is a subclass or its ``forward`` is already replaced."""
    return (
        type(linear) is nn.Linear
        and "forward" not in vars(linear)
        and linear.weight.device.type == "cpu"
        and linear.weight.dtype == torch.bfloat16
    )


def _multiply(linear: nn.Linear) -> Callable[[Tensor], Tensor]:
    return packed_product(linear.weight.detach(), None if linear.bias is None else linear.bias.detach())


def packed_product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Return the function x → W x + bias with a copy of the weight in oneDNN's layout; see ``can_prepack``.

    Args:
        weight: (out, in) bfloat16, on the CPU; x is (…, in) bfloat16.
        bias: (out,), or None.
    """
    ops: Any = torch.ops.mkldnn
    return partial(_linear, ops._linear_pointwise, ops._reorder_linear_weight(weight), bias)


def packed_sum(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function x, residual → residual + W x + bias, likewise, in one operation; the residual is (…, out)."""
    ops: Any = torch.ops.mkldnn
    packed = ops._reorder_linear_weight(weight)
    return lambda x, residual: ops._linear_pointwise.binary(x, residual, packed, bias, "add")


def _linear(product: Any, weight: Tensor, bias: Tensor | None, input: Tensor) -> Tensor:
    out: Tensor = product(input, weight, bias, "none", [], "")
    return out

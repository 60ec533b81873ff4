"""Weights in the matrix library's own layout while sampling: each step of few rows would else lay them out anew."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def can_prepack() -> bool:
    """Whether this torch has oneDNN's linear on weights laid out beforehand, for bfloat16.

    What torch.compile calls on a CPU; these are not public names, so they are looked for and not relied on.
    """
    ops: Any = torch.ops.mkldnn
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(ops, "_linear_pointwise")
        and hasattr(ops, "_reorder_linear_weight")
        and hasattr(ops, "_is_mkldnn_bf16_supported")
        and bool(ops._is_mkldnn_bf16_supported())
    )


@contextmanager
def prepacked(model: nn.Module) -> Iterator[None]:
    """Inside, the model's bfloat16 linear modules on the CPU multiply copies of their weights in oneDNN's layout.

    The same products to rounding, without gradient. Where this torch or this processor cannot do it nothing changes.
    """
    linears = [module for module in model.modules() if _can_be_packed(module)] if can_prepack() else []
    try:
        for linear in linears:
            linear.forward = _multiply(linear)
        yield
    finally:
        for linear in linears:
            vars(linear).pop("forward", None)


def _can_be_packed(module: nn.Module) -> bool:
    """Plain linear modules alone: a subclass may do more, a hooked forward is someone else's."""
    return (
        type(module) is nn.Linear
        and "forward" not in vars(module)
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.bfloat16
    )


def _multiply(linear: nn.Linear) -> Callable[[Tensor], Tensor]:
    ops: Any = torch.ops.mkldnn
    weight = ops._reorder_linear_weight(linear.weight.detach())
    return partial(_linear, ops._linear_pointwise, weight, linear.bias)


def _linear(product: Any, weight: Tensor, bias: Tensor | None, input: Tensor) -> Tensor:
    out: Tensor = product(input, weight, bias, "none", [], "")
    return out

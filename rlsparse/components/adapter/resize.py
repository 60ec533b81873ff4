"""Giving a parameter other components while it is trained: in its module and in the optimizer at once."""

import torch
from torch import Tensor, nn


def replace_components(
    owner: nn.Module, name: str, dim: int, kept: Tensor, new: Tensor, optimizer: torch.optim.Optimizer | None
) -> None:
    """Put a parameter with some of the old components, and new ones after them, in the place of ``owner.name``.

    The moments of the kept components go along, bit for bit. A new component starts with no momentum, and with the mean
    second moment of the kept ones: the count of steps is the whole parameter's, so Adam no longer corrects a second
    moment that starts at 0, and would take its steps several times too long.

    Args:
        dim: along which the components lie.
        kept: (k,) indices of those that stay.
        new: the new ones, any number of them along ``dim``.
        optimizer: whose parameter groups and state follow; None before there is one.
    """
    old: nn.Parameter = getattr(owner, name)
    kept, new = kept.to(old.device), new.to(old)
    parameter = nn.Parameter(torch.cat([old.detach().index_select(dim, kept), new], dim=dim))
    setattr(owner, name, parameter)
    if optimizer is None:
        return
    for group in optimizer.param_groups:
        group["params"] = [parameter if p is old else p for p in group["params"]]
    state = optimizer.state.pop(old, None)
    if state is not None:
        optimizer.state[parameter] = {key: _moment(key, value, old, dim, kept, new) for key, value in state.items()}


def _moment(key: str, value: Tensor, old: Tensor, dim: int, kept: Tensor, new: Tensor) -> Tensor:
    if value.shape != old.shape:  # the count of steps
        return value
    survivors = value.index_select(dim, kept)
    if key == "exp_avg":
        return torch.cat([survivors, torch.zeros_like(new)], dim=dim)
    return torch.cat([survivors, survivors.mean(dim, keepdim=True).expand_as(new)], dim=dim)

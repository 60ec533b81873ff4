"""Replacement of components of a parameter during training, in its module and in the optimizer."""

import torch
from torch import Tensor, nn


def replace_components(
    owner: nn.Module, name: str, dim: int, kept: Tensor, new: Tensor, optimizer: torch.optim.Optimizer | None
) -> None:
    """Replace the parameter ``owner.name`` by one with some of its components and new ones after them.

    The moments of the kept components stay the same, bit for bit. A new component starts with a first moment of 0 and
    with the mean second moment of the kept components. A second moment of 0 would make its first steps several times
    too large: Adam counts steps for the whole parameter, so it would not correct the bias of that moment any more.

    Args:
        owner: the module of the parameter.
        name: name of the parameter in the module.
        dim: dimension along which the components are stacked.
        kept: (k,) indices of the components that stay.
        new: the new components, any number of them along ``dim``.
        optimizer: the optimizer with the parameter in its groups and state; None if there is none yet.
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
    """Return an entry of the state of Adam for the new parameter."""
    if value.shape != old.shape:  # the number of steps
        return value
    survivors = value.index_select(dim, kept)
    if key == "exp_avg":
        return torch.cat([survivors, torch.zeros_like(new)], dim=dim)
    return torch.cat([survivors, survivors.mean(dim, keepdim=True).expand_as(new)], dim=dim)

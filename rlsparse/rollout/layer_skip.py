"""Sampling from a part of the model: some decoder layers left out (Nested-ReFT, Heuillet et al. 2025, 2508.10123)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Generator, nn

from rlsparse.config.schema import ConfigError, LayerSkipConfig
from rlsparse.model.policy import Policy


def count_skipped(config: LayerSkipConfig, depth: int) -> int:
    """How many of the model's ``depth`` decoder layers are left out of a rollout.

    Raises:
        ConfigError: none although a share is asked for; more than leave the first and the last; or a list with a layer
            that is not an inner one.
    """
    if depth < 3 and (config.ratio > 0 or config.choice == "fixed"):
        raise ConfigError(f"layer_skip: this model has {depth} decoder layers, none between first and last; take off")
    inner = f"this model has {depth} decoder layers, of which the first and the last stay"
    if config.choice == "fixed":
        layers = config.layers or []
        if not layers or len(set(layers)) != len(layers) or not all(0 < layer < depth - 1 for layer in layers):
            raise ConfigError(
                f"layer_skip.layers={config.layers}: {inner}; with layer_skip.choice=fixed give some of "
                f"1 to {depth - 2}, each once"
            )
        return len(layers)
    count = round(config.ratio * depth)
    if config.ratio > 0 and count == 0:
        raise ConfigError(
            f"layer_skip.ratio={config.ratio}: skips nothing, since {inner}; give more than {0.5 / depth:.3f}, or "
            "layer_skip=off"
        )
    if count > max(0, depth - 2):
        raise ConfigError(
            f"layer_skip.ratio={config.ratio}: would skip {count} layers, but {inner}; give less than "
            f"{1 - 1.5 / depth:.3f}"
        )
    return count


def choose_layers(config: LayerSkipConfig, depth: int, generator: Generator) -> list[int]:
    """The numbers of the layers that the next rollout batch leaves out, ascending; the generator moves for random."""
    count = count_skipped(config, depth)
    if config.choice == "fixed":
        return sorted(config.layers)
    if config.choice == "last":
        return list(range(depth - 1 - count, depth - 1))
    return sorted((1 + torch.randperm(depth - 2, generator=generator)[:count]).tolist()) if count else []


@contextmanager
def without_layers(policy: Policy, layers: Sequence[int]) -> Iterator[None]:
    """Inside, the model is its other decoder layers: the ones left out neither compute nor remember anything."""
    decoder = policy.causal_lm.get_decoder()
    whole = decoder.layers
    if layers:
        decoder.layers = nn.ModuleList(layer for number, layer in enumerate(whole) if number not in layers)
    try:
        yield
    finally:
        decoder.layers = whole

"""Adapters beside the weights of a model: merging for the time of a rollout, and adapters of finished runs."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlsparse.model.integrity import MERGE
from rlsparse.model.loading import wrapped_with
from rlsparse.model.policy import Policy
from rlsparse.model.quantization import is_quantized
from rlsparse.model.source import ModelSource, reading

log = logging.getLogger(__name__)
EXACT = 1e-3  # differences that are allowed in float32, as a share of the spread; those of peft are up to 5e-5


@contextmanager
def merged(layers: Iterable[Any]) -> Iterator[None]:
    """Within the context, adapted weights are W + ΔW in the dtype of W; afterwards they are the same tensors W.

    Args:
        layers: the layers of peft.
    """
    changed = list(layers)
    with weights_kept([layer.get_base_layer() for layer in changed]):
        try:
            for layer in changed:
                layer.merge()
            yield
        finally:
            for layer in changed:
                layer.merged_adapters.clear()


@contextmanager
def weights_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within the context, the modules have copies of their weights; afterwards they have the same tensors as before."""
    kept = [(module, {name: (one, one.data) for name, one in _own_parameters(module).items()}) for module in modules]
    try:
        for _, parameters in kept:
            for parameter, data in parameters.values():
                parameter.data = data.clone()
        yield
    finally:
        for module, parameters in kept:
            for name in _own_parameters(module).keys() - parameters.keys():  # such as a bias that merging has added
                setattr(module, name, None)
            for name, (parameter, data) in parameters.items():
                parameter.data = data
                setattr(module, name, parameter)


def _own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters(recurse=False))


@torch.no_grad()
def merging_obstacle(layers: Iterable[Any]) -> str | None:
    """Return why adapters cannot be merged while completions are sampled; None if each layer computes the same merged.

    One layer at a time has a copy of its weights. Call this while the adapters are not zero.
    """
    generator = torch.Generator().manual_seed(0)
    for layer in layers:
        weight = layer.get_base_layer().weight
        x = torch.randn(4, weight.shape[1], generator=generator).to(weight)  # (4, in)
        expected: Tensor = layer(x)  # (4, out)
        try:
            with merged([layer]):
                got: Tensor = layer(x)  # (4, out)
        except Exception as error:  # of peft, which has its own reasons for each method
            return next(iter(str(error).splitlines()), type(error).__name__)
        bound = EXACT if weight.dtype == torch.float32 else MERGE
        if not float((got - expected).abs().max()) <= bound * float(expected.std()):  # also for NaN
            return "the merged weights compute something else"
    return None


def attach_saved(policy: Policy, source: ModelSource) -> None:
    """Put the adapter of a folder into the model of a policy, beside the weights, as it was while it was trained.

    Raises:
        ConfigError: it does not fit the model.
    """
    from peft import load_peft_weights, set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

    with reading(source):
        model = wrapped_with(source, policy.model)
        set_peft_model_state_dict(model, load_peft_weights(source.location, device=str(policy.device)))
    policy.model = model.eval()
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    # weights that are quantized are never merged into, except in a dequantized copy of the rollout engine
    reason = None if is_quantized(policy.causal_lm) else merging_obstacle(layers)
    if reason is not None:
        log.info("rollout: not merged into the weights for %s: %s", source.key, reason)
    policy.merged = partial(merged, layers) if reason is None else nullcontext
    policy.reference = model.disable_adapter
    config = model.peft_config["default"]
    plain = getattr(config.peft_type, "value", config.peft_type) == "LORA" and not config.use_dora
    policy.export_adapter = partial(_export, model) if plain else None


def _export(model: Any, folder: Path) -> None:
    model.save_pretrained(str(folder), save_embedding_layers=False)

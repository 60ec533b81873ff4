"""Adapters beside the weights of a model: merging for the time of a rollout, and adapters of finished runs."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from rlsparse.model.loading import wrapped_with
from rlsparse.model.policy import Policy
from rlsparse.model.source import ModelSource, reading


@contextmanager
def merged(layers: Iterable[Any]) -> Iterator[None]:
    """Within the context, adapted weights are W + ΔW in the dtype of W; afterwards they are the same tensors W.

    Args:
        layers: the layers of peft.
    """
    changed = list(layers)
    kept = [layer.base_layer.weight.data for layer in changed]
    try:
        for layer, weight in zip(changed, kept, strict=True):
            layer.base_layer.weight.data = weight.clone()
            layer.merge()
        yield
    finally:
        for layer, weight in zip(changed, kept, strict=True):
            layer.base_layer.weight.data = weight
            layer.merged_adapters.clear()


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
    policy.merged = partial(merged, layers)

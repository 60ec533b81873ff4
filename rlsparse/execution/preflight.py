"""What can be known to be wrong before any weights are loaded: keys, folders, data, adapter targets."""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

from rlsparse.components.adapter import check_adapter
from rlsparse.components.task import load_task
from rlsparse.config.checks import check, check_writable, skips_layers
from rlsparse.config.run_id import Identity, folder_digest, identify
from rlsparse.config.schema import Config, ConfigError, LayerSkipConfig, TrackerConfig
from rlsparse.model.policy import context_length, device_kind, local_folder, model_skeleton, resolve_device
from rlsparse.rollout.layer_skip import count_skipped


def preflight(configs: Sequence[Config], points: Sequence[str] = (), here: bool = True) -> list[Identity]:
    """Check every config of a sweep; the identity of each run. What points share is looked at once.

    Args:
        points: for a sweep, what tells each config from the others.
        here: whether the runs will be on this machine, so that it must have their device.

    Raises:
        ConfigError: all that is wrong, a line each: key, value and remedy.
    """
    digest = cache(folder_digest)
    seen: set[str] = set()
    problems: dict[str, str] = {}  # message -> first point that has it
    identities = []

    def once(what: object) -> bool:
        new = repr(what) not in seen
        seen.add(repr(what))
        return new

    for i, config in enumerate(configs):
        try:
            check(config)
            if once(("runs_dir", config.runs_dir)):
                check_writable("runs_dir", config.runs_dir)
            device = resolve_device(config.device).type if here else device_kind(config.device)
            if once(("tracker", config.tracker)):
                _check_tracker(config.tracker)
            if once(
                (config.model, config.adapter, config.lora_rank, config.train.steps, config.rollout, config.layer_skip)
            ):
                _check_model(config)
            if once(config.task):
                load_task(config.task)
            identities.append(identify(config, local_folder(config.model), device, digest))
        except ConfigError as error:
            if str(error) not in problems:
                problems[str(error)] = f" (point: {points[i]})" if points else ""
    if problems:
        raise ConfigError("\n".join(message + point for message, point in problems.items()))
    return identities


def _check_model(config: Config) -> None:
    model = config.model
    if model.name == "scratch" and model.path is None:
        raise ConfigError(
            "model=scratch: has random weights, which RL cannot mend; warm-start it first "
            "(python -m rlsparse.warm_start model=scratch task=arithmetic out=DIR), then model.path=DIR"
        )
    skeleton = model_skeleton(model)
    check_adapter(skeleton, config.adapter, config.lora_rank, config.train.steps)
    _check_layer_skip(skeleton, config.layer_skip)
    context = context_length(skeleton)
    if config.rollout.max_new_tokens >= context:
        raise ConfigError(
            f"rollout.max_new_tokens={config.rollout.max_new_tokens}: the model's context is {context} tokens, prompt "
            "included; lower it"
        )


def _check_layer_skip(skeleton: Any, config: LayerSkipConfig) -> None:
    if not skips_layers(config):
        return
    if not hasattr(skeleton.get_decoder(), "layers"):
        raise ConfigError("layer_skip: this model's decoder has no list of layers to skip from; take layer_skip=off")
    text = skeleton.config.get_text_config()
    kinds = sorted(set(getattr(text, "layer_types", None) or []))
    if len(kinds) > 1 or bool(getattr(text, "num_kv_shared_layers", None)):
        raise ConfigError(
            f"layer_skip: this model's layers are not alike ({', '.join(kinds) or 'some share keys and values'}), and "
            "transformers tells them apart by their place, which skipping changes; take layer_skip=off"
        )
    count_skipped(config, len(skeleton.get_decoder().layers))


def _check_tracker(config: TrackerConfig) -> None:
    if config.name != "wandb":
        return
    if find_spec("wandb") is None:
        raise ConfigError("tracker=wandb: wandb is not installed; pip install wandb, or tracker=none")

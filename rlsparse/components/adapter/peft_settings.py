"""The settings of a method of peft, checked against the configuration class of the method."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from inspect import isclass
from types import NoneType
from typing import Any, get_args, get_type_hints

from rlsparse.config.ranges import convert, shown

# peft's keys that have a key of ours
OURS = {
    "target_modules": "give adapter.target_modules=...",
    "exclude_modules": "give adapter.target_modules=... and adapter.layers=...",
    "layers_to_transform": "give adapter.layers=...",
    "layers_pattern": "give adapter.layers=...",
    "peft_type": "give adapter.method=...",
    "base_model_name_or_path": "give model.name=... or model.path=...",
    "revision": "give model.revision=...",
    "task_type": "is CAUSAL_LM",
    "inference_mode": "is set by rlsparse",
    "auto_mapping": "is set by peft",
    "peft_version": "is set by peft",
}
NEEDS_DATA = "its start values need data or gradients from before training; take another one, such as pissa"
NO_SUCH_LOSS = "it needs a term of the loss that only peft's own examples have; leave it out"
# peft's keys that would be wrong here
UNSUPPORTED = {
    "bias": "biases of the base model would be trained, which switching the adapter off does not undo; take none",
    "modules_to_save": "other modules are trained by adapter=full alone; leave it out",
    "trainable_token_indices": "the embedding is trained by adapter=full alone; leave it out",
    "target_parameters": "adapters are put on linear modules; leave it out",
    "ensure_weight_tying": "the embedding is trained by adapter=full alone; leave it out",
    "fan_in_fan_out": "the adapted modules are nn.Linear, which have no such layout; leave it out",
    "layer_replication": "it changes the layers of the model; leave it out",
    "alora_invocation_tokens": "prompts of a task hold no invocation tokens; leave it out",
    "arrow_config": "it routes between adapters that are trained already; leave it out",
    "velora_config": "its gradient depends on how completions are packed into rows; leave it out",
    "kasa_config": "it removes a part of the base weights; leave it out",
    "monteclora_config": NO_SUCH_LOSS,
    "use_asa": "it needs calls of its own in the training loop; leave it out",
    "sample_at_inference": "each forward pass would be another policy; leave it out",
    "use_qalora": "it is for weights that are quantized by GPTQ; leave it out",
    "use_bdlora": "it is for serving on several GPUs; leave it out",
    "megatron_config": "it is for models of Megatron; leave it out",
    "megatron_core": "it is for models of Megatron; leave it out",
    "runtime_config": "it is for adapters on another device than the model; leave it out",
    "loftq_config": "it quantizes the weights; take model.quantization=nf4 with adapter=lora",
    "eva_config": NEEDS_DATA,
    "corda_config": NEEDS_DATA,
    "lora_ga_config": NEEDS_DATA,
}
START_KEY = "init_lora_weights"
STARTS = ("gaussian", "orthogonal", "pissa", "olora", "mica")
FAST_PISSA = re.compile(r"pissa_niter_\d+")
UNSUPPORTED_STARTS = {
    "eva": NEEDS_DATA,
    "corda": NEEDS_DATA,
    "lora_ga": NEEDS_DATA,
    "loftq": UNSUPPORTED["loftq_config"],
}
HINTS: Mapping[str, Any] = {START_KEY: bool | str}  # that of peft has a placeholder among its texts
METHODS = {
    "LILY": "its routers read later tokens, so a token is sampled with another probability; take another method",
    "POLY": "it needs the number of a task with each input; take another method",
    "SHADOW": "it adds a second, smaller model; take another method",
    "TRAINABLE_TOKENS": "it trains rows of the embedding; take adapter=full",
    "LN_TUNING": "it trains norms; take adapter=full",
}
# settings that hold a seed; where they are not given, the seed of the run is taken
SEEDS = ("projection_prng_key", "projection_seed", "proj_seed", "random_loc_seed", "random_seed")


@cache
def linear_methods() -> list[str]:
    """Return the names of the methods of peft that put an adapter on linear modules, sorted."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTuner

    def fits(kind: Any) -> bool:
        tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(kind)
        keys = {one.name for one in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[kind])}
        return isclass(tuner) and issubclass(tuner, BaseTuner) and "target_modules" in keys

    return sorted(kind.name for kind in PEFT_TYPE_TO_CONFIG_MAPPING if fits(kind) and kind.name not in METHODS)


def method_problem(method: str) -> str | None:
    """Return why a method cannot be taken, ``method=NAME: reason and remedy``; None if it can."""
    from peft import PeftType

    known = linear_methods()
    if method in known:
        return None
    listed = f"take one of {', '.join(known)}"
    if method in METHODS:
        return f"method={method}: does not fit, since {METHODS[method]}"
    if method in PeftType.__members__:
        return f"method={method}: puts no adapter on linear modules; {listed}"
    close = get_close_matches(method.upper(), known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"method={shown(method)}: peft has no such method{hint}; {listed}"


def config_class(method: str) -> Any:
    """Return the configuration class of a method of ``linear_methods``."""
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[method]]


def keys_of_method(method: str) -> set[str]:
    """Return the names of all keys of a method, those included that are set by rlsparse."""
    return {one.name for one in dataclasses.fields(config_class(method))}


def for_quantized(method: str) -> bool:
    """Return whether a method has layers for quantized weights of bitsandbytes, and can be removed from them again."""
    # peft 0.21 cannot unload IA3 from weights in 4 bits, which the end of a run does
    return method != "IA3" and find_spec(f"peft.tuners.{method.lower()}.bnb") is not None


def converted(method: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the settings in the types of the method, and a line for each problem: ``settings.KEY=VALUE: remedy``.

    A key with the value null that does not take null is left out.
    """
    free, problems = {}, []
    hints = {**get_type_hints(config_class(method)), **HINTS}
    for key, value in settings.items():
        reason = _refusal(method, key, value)
        if reason is not None:
            problems.append(f"settings.{key}={shown(value)}: {reason}")
        elif value is not None or NoneType in get_args(hints[key]):
            free[key] = value
    typed = dataclasses.make_dataclass("Settings", [(key, hints[key]) for key in free])
    values, wrong = convert(typed, "settings", free)
    return values, [*problems, *wrong]


def _refusal(method: str, key: str, value: Any) -> str | None:
    """Return what is wrong with a key, or with one of its values; None if its type alone is left to be checked."""
    known = keys_of_method(method)
    if key not in known:
        free = sorted(known - OURS.keys() - UNSUPPORTED.keys())
        close = get_close_matches(str(key), free, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        return f"{method} of peft has no such key{hint}; it has {', '.join(free)}"
    if key in OURS:
        return OURS[key]
    default: Any = next(one for one in dataclasses.fields(config_class(method)) if one.name == key).default
    if key in UNSUPPORTED and value != default:
        return UNSUPPORTED[key]
    if key == START_KEY and isinstance(value, str) and value not in STARTS and not FAST_PISSA.fullmatch(value):
        return UNSUPPORTED_STARTS.get(value, f"must be true, or one of {', '.join(STARTS)}, pissa_niter_16")
    if key == "r" and isinstance(value, int) and value < 1 <= (default or 0):
        return "must be at least 1"
    if key.endswith("dropout") and value not in (0, None):
        return "completions are sampled without dropout, so the gradient would be that of another policy; leave it 0"
    return None


def refused_values(method: str, settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the configuration class of a method itself refuses, such as a rank below 1."""
    if method == "BOFT" and settings.get("boft_n_butterfly_factor", 1) != 1:
        yield (
            f"settings.boft_n_butterfly_factor={settings['boft_n_butterfly_factor']}: peft compiles a CUDA extension "
            "for it, and takes 1 without a word where that fails; give 1"
        )
    try:
        config_class(method)(**settings, target_modules=".*")
    except Exception as error:  # of peft, whose classes raise ValueError, TypeError, AssertionError and others
        yield blamed(method, settings, error)


def blamed(method: str, settings: Mapping[str, Any], error: Exception) -> str:
    """Return an error of peft as one line, ``settings.KEY=VALUE: text``, with the settings that its text names."""
    text = " ".join(str(error).split()) or type(error).__name__
    named = [f"{key}={shown(value)}" for key, value in settings.items() if re.search(rf"\b{re.escape(key)}\b", text)]
    return f"{'settings.' + ', '.join(named) if named else f'method={method}'}: peft refuses it: {text}"

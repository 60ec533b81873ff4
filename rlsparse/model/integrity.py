"""Whether a model is the one that its config describes: whole and finite weights, plain numbers, causal attention."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rlsparse.config.schema import ConfigError
from rlsparse.model.quantization import scales
from rlsparse.model.source import ModelSource, reading

NAMED = 3  # names of tensors in a message
PLAIN = {"F64", "F32", "F16", "BF16"}  # dtypes of weights that are not quantized, in the words of safetensors
# differences that are allowed, in shares of the spread of the logits; rounding in bfloat16 is below them
LEAK, MERGE = 0.02, 0.1
RECURRENT = ("linear", "conv", "mamba", "recurrent", "hybrid", "ssm")  # in the names of layer types


def check_stored(source: ModelSource, config: Any) -> None:
    """Refuse weights stored in a quantized format that transformers would take for plain numbers.

    Raises:
        ConfigError: a tensor of integers or 8-bit numbers without a known ``quantization_config``.
    """
    from safetensors import safe_open
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        about = quantization if isinstance(quantization, dict) else quantization.to_dict()
        method = str(about.get("quant_method"))
        known = {*AUTO_QUANTIZER_MAPPING, *(name.rsplit("_", 1)[0] for name in AUTO_QUANTIZER_MAPPING)}
        if method not in known:
            raise ConfigError(
                f"{source.key}: quantized by {method!r}, which this version of transformers does not know; give a "
                "checkpoint that is not quantized"
            )
        return
    for file in source.files():
        if file.suffix != ".safetensors":
            continue
        with reading(source), safe_open(file, "pt") as tensors:
            # other tensors may be masks or positions, which some models keep beside their weights
            names = [name for name in tensors.keys() if name.endswith("weight")]  # noqa: SIM118 (no dict)
            wrong = [name for name in names if tensors.get_slice(name).get_dtype() not in PLAIN]
        if wrong:
            raise ConfigError(
                f"{source.key}: {file.name} stores {some(wrong)} as integers or 8-bit numbers, and config.json "
                "has no quantization_config; give a checkpoint that is not quantized"
            )


def check_report(source: ModelSource, report: dict[str, Any]) -> None:
    """Refuse weights of which transformers has made, left out or resized some.

    Args:
        report: the loading report of ``from_pretrained``.

    Raises:
        ConfigError: a tensor is missing, unexpected or of another shape; with the names.
    """
    wrong = [f"{some(report['missing_keys'])} missing"] if report["missing_keys"] else []
    if report["unexpected_keys"]:
        wrong.append(f"{some(report['unexpected_keys'])} unknown to the model")
    for name, stored, expected in sorted(report["mismatched_keys"])[:NAMED]:
        wrong.append(f"{name} has the shape {list(stored)}, where the config says {list(expected)}")
    wrong += [str(line) for line in report["error_msgs"]]
    if wrong:
        raise ConfigError(
            f"{source.key}: the weights are not those of the model that config.json describes: {'; '.join(wrong)}. "
            "Save the model again with save_pretrained, with its whole weights and nothing else"
        )


def check_attends(source: ModelSource, model: Any) -> None:
    """Refuse models whose layers keep more than keys and values: a group of completions shares those of its prompt."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or []
    if getattr(model, "_is_stateful", False) or any(word in kind for kind in kinds for word in RECURRENT):
        raise ConfigError(
            f"{source.key}: {type(model).__name__} has layers with a recurrent or convolutional state, which the "
            "rollout engines cannot copy for a group; give a model whose layers all attend, such as Llama or Qwen3"
        )


@torch.no_grad()
def probe(model: Any) -> Tensor:
    """Return the logits of two short sequences that differ in their last token, (2, 3, V) float32."""
    ids = torch.tensor([[1, 2, 3], [1, 2, 0]], device=model.device)  # (2, 3)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits.float()
    return logits


def check_causal(source: ModelSource, model: Any) -> None:
    """Refuse a model whose prediction depends on later tokens, such as an encoder that is loaded as a decoder."""
    first, second = probe(model)[:, :2]  # (2, V) each, of the tokens that the sequences share
    if float((first - second).abs().max()) > LEAK * float(first.std()):
        raise ConfigError(
            f"{source.key}: {type(model).__name__} is not causal: its predictions depend on later tokens; give a "
            "decoder-only language model"
        )


def check_merged(source: ModelSource, expected: Tensor, got: Tensor) -> None:
    """Refuse an adapter that gives other logits once it is merged, such as one on an embedding that the head shares.

    Args:
        expected: logits with the adapter beside the weights. got: with the merged weights, of the same shape.
    """
    if not float((got - expected).abs().max()) <= MERGE * float(expected.std()):  # also for NaN
        raise ConfigError(
            f"{source.key}: the adapter cannot be merged, since the model computes something else afterwards; an "
            "adapter on an embedding that is tied to the output head is one case: merge it yourself with "
            "tie_word_embeddings=false, and give the merged model"
        )


def check_adapter(
    source: ModelSource, stored: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare the tensors of an adapter with those that its config describes, by name and shape.

    Raises:
        ConfigError: the first names that differ.
    """
    unknown, absent = sorted(stored.keys() - expected.keys()), sorted(expected.keys() - stored.keys())
    other = [name for name in stored.keys() & expected.keys() if stored[name] != expected[name]]
    if unknown:
        wrong = f"{some(unknown)} has no place in its base"
    elif absent:
        wrong = f"{some(absent)} missing for its base"
    elif other:
        name = min(other)
        wrong = f"{name} has the shape {list(stored[name])}, where its base needs {list(expected[name])}"
    else:
        return
    raise ConfigError(
        f"{source.key}: the adapter does not fit: {wrong}; check base_model_name_or_path in adapter_config.json, or "
        "merge the adapter yourself and give the merged model"
    )


def check_finite(source: ModelSource, model: nn.Module) -> None:
    """Refuse weights with NaN or infinity, which would make every later number NaN."""
    broken = [
        name
        for name, tensor in [*model.named_parameters(), *model.named_buffers(), *scales(model)]
        if tensor.is_floating_point() and tensor.numel() and not bool(torch.stack(tensor.aminmax()).isfinite().all())
    ]
    if broken:
        raise ConfigError(
            f"{source.key}: weights that are not finite numbers: {some(broken)}; give a checkpoint from before the "
            "training diverged, or dtype=float32 if the dtype is too small for them"
        )


def some(names: Iterable[str]) -> str:
    """Return the first names of a set, and how many more there are."""
    ordered = sorted(names)
    rest = f" and {len(ordered) - NAMED} more" if len(ordered) > NAMED else ""
    return ", ".join(ordered[:NAMED]) + rest

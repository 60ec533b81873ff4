"""Base weights in 4 or 8 bits through bitsandbytes: what is refused, how they are loaded, and copies in full precision.

``nf4`` is NF4 with double quantization as in QLoRA, Dettmers et al. 2023 (2305.14314); ``int8`` is LLM.int8(), Dettmers
et al. 2022 (2208.07339). The linear modules of the decoder layers are quantized; embeddings, norms and the output head
stay in the dtype of the run.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlsparse.config.schema import ConfigError, ModelConfig
from rlsparse.model.policy import Policy
from rlsparse.model.source import ModelSource, model_source

OFF, NF4, INT8 = "off", "nf4", "int8"
BLOCK = 64  # values of a weight that share a scale in NF4
# messages that say nothing to a user: the kernel serves a layout that is not used here (see ``prepare``), and LLM.int8
# quantizes its inputs from float16 in every call
NOISE = ("Failed to load CPU gemm_4bit_forward", "MatMul8bitLt: inputs will be cast")


@contextmanager
def _no_compiler() -> Iterator[None]:
    """Within the context, ``torch.compile`` returns functions as they are."""
    compiler: Any = torch.compile
    torch.compile = lambda function=None, **_: function or (lambda one: one)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiler


def _import_bitsandbytes() -> Any:
    """Return the module; None where it is not installed.

    peft imports it wherever it is installed, also for models that are not quantized. It decorates functions with
    ``torch.compile``, whose import takes longer than all of its own, and which these functions do not need.
    """
    for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
        logging.getLogger(name).addFilter(lambda record: not str(record.msg).startswith(NOISE))
    try:
        with _no_compiler():
            import bitsandbytes
    except ImportError:
        return None
    return bitsandbytes


bnb = _import_bitsandbytes()


def check_quantization(config: ModelConfig) -> None:
    """Refuse a quantization that cannot be, before weights are loaded.

    Raises:
        ConfigError: bitsandbytes is not installed, or the folder holds an adapter.
    """
    if config.quantization == OFF:
        return
    key = f"model.quantization={config.quantization}"
    if bnb is None:
        raise ConfigError(f'{key}: bitsandbytes is not installed; pip install "rlsparse[quantization]"')
    source = model_source(config)
    if source.base is not None:
        raise ConfigError(
            f"{key}: {source.key} is an adapter, which would be merged into quantized weights and rounded with them; "
            f"give its base model, {source.base.location} (rlsparse.evaluate takes the adapter as adapter=DIR), or "
            "merge it yourself and give the merged model"
        )


def check_not_quantized(source: ModelSource, config: Any, quantization: str) -> None:
    """Refuse to quantize weights that are stored in a quantized format.

    Args:
        config: of transformers, of the model.

    Raises:
        ConfigError: they are.
    """
    if quantization != OFF and getattr(config, "quantization_config", None) is not None:
        raise ConfigError(
            f"model.quantization={quantization}: {source.key} holds weights that are quantized already; take "
            "model.quantization=off, which keeps them as they are"
        )


def stored_by_bitsandbytes(config: Any) -> bool:
    """Return whether weights were quantized by bitsandbytes, and it is installed to read them.

    Args:
        config: of transformers, of the model.
    """
    about = getattr(config, "quantization_config", None)
    if about is None or bnb is None:
        return False
    method = about.get("quant_method") if isinstance(about, dict) else about.quant_method
    return str(getattr(method, "value", method)) == "bitsandbytes"


def loading_options(quantization: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return the arguments with which ``from_pretrained`` quantizes the weights while it reads them.

    Args:
        dtype: of the products, and of all weights that are not quantized.
    """
    from transformers import BitsAndBytesConfig

    if quantization == NF4:
        quantized = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    else:
        quantized = BitsAndBytesConfig(load_in_8bit=True)
    return {"quantization_config": quantized, "dtype": dtype, "device_map": {"": str(device)}}


def is_quantized(model: Any) -> bool:
    """Return whether a transformers model has weights that bitsandbytes quantized, or will have once it is loaded."""
    return stored_by_bitsandbytes(model.config)


def prepare(source: ModelSource, model: Any) -> None:
    """Make the products of a loaded model with quantized weights the same in a rollout and in an update.

    On processors with AVX512-BF16, bitsandbytes would bring the 4-bit weights of a model in evaluation mode into
    another layout at the first product without a gradient. Later products with them have no gradient, and no error says
    so; the layout is also less exact, and slower for more than a few rows. The products with 8-bit weights are those
    that bitsandbytes has for training on a CPU: they do not quantize the inputs, and are faster.

    Raises:
        ConfigError: bitsandbytes reads 4-bit weights of such a width wrongly on this device.
    """
    if not is_quantized(model):
        return
    widths = set()
    for linear in model.modules():
        if isinstance(linear, bnb.nn.Linear4bit):
            linear.support_avx512bf16_for_cpu = False
            widths.add(linear.in_features)
        elif isinstance(linear, bnb.nn.Linear8bitLt) and model.device.type == "cpu":
            linear.register_forward_pre_hook(_as_in_training)
    wrong = sorted(width for width in widths if not _reads_back(width, model.dtype, model.device))
    if wrong:
        raise ConfigError(
            f"{source.key}: bitsandbytes {bnb.__version__} reads 4-bit weights of {wrong[0]} columns wrongly on this "
            f"device, since that is no multiple of {BLOCK}; take model.quantization=int8 or off, or another device"
        )


def _as_in_training(linear: nn.Module, _: Any) -> None:
    linear.training = True


def scales(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the scales of quantized weights by module name; a weight that is not finite makes its scale so."""
    if not is_quantized(model):
        return
    for name, linear in model.named_modules():
        if isinstance(linear, bnb.nn.Linear4bit):
            state = linear.weight.quant_state
            yield name, state.offset if state.nested else state.absmax  # the offset is the mean of all scales
        elif isinstance(linear, bnb.nn.Linear8bitLt):
            yield name, _scale_of_int8(linear)


@contextmanager
def dequantized(policy: Policy, first: int, merge: bool) -> Iterator[None]:
    """Within the context, quantized modules are plain linear modules with dequantized weights.

    Their products differ from those of the quantized modules by rounding; of int8 on a GPU also by the rounding of the
    inputs, which LLM.int8 quantizes.

    Args:
        first: number of the first decoder layer that is changed.
        merge: add the adapter to these copies where it is a LoRA.
    """
    model = policy.causal_lm
    part = model.get_decoder().layers[first:] if first > 0 else model
    swapped: list[tuple[nn.Module, str, nn.Module]] = [
        (parent, name, child)
        for parent in part.modules()
        for name, child in parent.named_children()
        if isinstance(child, _kinds())
    ]
    merged: list[Any] = []
    try:
        for parent, name, child in swapped:
            setattr(parent, name, _plain(child, model.dtype))
            if merge and _is_lora(parent):
                _merge_lora(parent)
                merged.append(parent)
        yield
    finally:
        for layer in merged:
            layer.merged_adapters.clear()
        for parent, name, child in swapped:
            setattr(parent, name, child)


def _kinds() -> tuple[type[nn.Module], ...]:
    return (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)


def _scale_of_int8(linear: Any) -> Tensor:
    scale: Tensor = linear.weight.SCB if linear.weight.SCB is not None else linear.state.SCB  # moved by the first use
    return scale


def dequantized_weight(linear: Any) -> Tensor:
    """Return the weight of a quantized module as numbers, (out, in)."""
    if isinstance(linear, bnb.nn.Linear4bit):
        weight: Tensor = bnb.functional.dequantize_4bit(linear.weight.data, linear.weight.quant_state)
        return weight
    return linear.weight.data * (_scale_of_int8(linear) / 127)[:, None]


def _plain(linear: Any, dtype: torch.dtype) -> nn.Linear:
    plain = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(dequantized_weight(linear).to(dtype), requires_grad=False)
    plain.bias = linear.bias
    return plain.eval()


def _is_lora(layer: nn.Module) -> bool:
    from peft.tuners.lora import bnb as lora

    return isinstance(layer, lora.Linear4bit | lora.Linear8bitLt)


def _merge_lora(layer: Any) -> None:
    """Merge a LoRA layer for quantized modules whose base layer is a plain linear module.

    Its own ``merge`` expects a quantized one; that of LoRA layers for plain modules uses the same matrices.
    """
    from peft.tuners.lora import Linear

    Linear.merge(layer)


def _reads_back(width: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether quantizing a weight with this many columns and reading it gives its values.

    Those of the weight are the scales of their blocks, 1 and 4 in turn, which NF4 has exactly. The AVX512 kernel of
    bitsandbytes 0.50 takes the scales of other blocks where a block reaches over the end of a row.
    """
    rows = 2 * BLOCK
    blocks = torch.arange(rows * width, device=device) // BLOCK
    weight = torch.where(blocks % 2 == 0, 1.0, 4.0).to(dtype).view(rows, width)  # (rows, width)
    packed, state = bnb.functional.quantize_4bit(weight, blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
    read = bnb.functional.dequantize_4bit(packed, state)  # (rows, width)
    return bool(((read.float() - weight.float()).abs() <= 0.1 * weight.float()).all())  # NaN is not

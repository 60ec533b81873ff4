"""Loading a causal language model and its tokenizer from the package, a local folder or the hub."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from rlsparse.config.schema import ConfigError, ModelConfig
from rlsparse.model.endings import find_endings
from rlsparse.model.policy import Policy
from rlsparse.model.source import ModelSource, model_source

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NAMED = 3  # names of tensors in a message
UNLIMITED = 2**30  # tokens: the context of a model that declares no maximum, such as Mamba
LEAK = 0.02  # of the spread of the logits; rounding in bfloat16 is below it
LARGEST_DECLARED = 10**9  # tokens: tokenizers write 10^30 where they know no maximum
PLAIN = {"F64", "F32", "F16", "BF16"}  # formats of numbers in safetensors files that are weights as they stand

Read = TypeVar("Read")


def load_policy(config: ModelConfig, device: torch.device, dtype: str) -> Policy:
    """Load model and tokenizer. Only safetensors weights are read, and no remote code runs.

    The adapter in the folder of a finished run is added to its base model, in the dtype of the weights.

    Args:
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for the dtype of the stored weights.

    Raises:
        ConfigError: the model cannot be loaded, its weights are not those that its config describes, or not finite.
    """
    source = model_source(config)
    tokenizer = load_tokenizer(source)
    model = _load_model(source, device, dtype).eval()
    _check_finite(source, model)
    _check_causal(source, model)
    return wrap_policy(model, tokenizer, config.chat_template)


def wrap_policy(model: Any, tokenizer: Any, chat_template: bool) -> Policy:
    """Return a policy made from a loaded model and tokenizer.

    Args:
        chat_template: use the chat template of the tokenizer if it has one.

    Raises:
        ConfigError: the chat template cannot be used.
    """
    chat = chat_template and tokenizer.chat_template is not None
    vocabulary = model.get_input_embeddings().weight.shape[0]
    endings = find_endings(tokenizer, model.generation_config, vocabulary, chat)
    return Policy(
        model=model,
        tokenizer=tokenizer,
        device=next(model.parameters()).device,
        eos_ids=endings.ids,
        pad_id=pad_id(tokenizer, endings.ids, vocabulary),
        context=context_length(model.config, tokenizer),
        chat=chat,
        vocabulary=vocabulary,
        stop_texts=endings.texts,
        turn_end=endings.turn_end,
    )


def load_tokenizer(source: ModelSource) -> Any:
    """Return the tokenizer of a model.

    Raises:
        ConfigError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    return _from_source(AutoTokenizer, source.tokenizer)


def outline(config: ModelConfig) -> Policy:
    """Return a policy without weights (on the meta device), to check names, shapes and prompts.

    The weights of a local folder are compared with the modules by name and shape, without being read.

    Raises:
        ConfigError: config or tokenizer cannot be read, from the folder or from the hub; or the weights in the folder
            are not those that the config describes.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    source = model_source(config)
    full = source.root
    tokenizer = load_tokenizer(source)
    if full.folder is not None:
        model = _whole_model(full, device_map="meta")
    else:
        with torch.device("meta"):
            model = _from_source(AutoConfig, full, _then=AutoModelForCausalLM.from_config)
    _check_attends(source, model)
    return wrap_policy(model, tokenizer, config.chat_template)


def context_length(config: Any, tokenizer: Any) -> int:
    """Return the maximum length of prompt and completion together, in tokens; ``UNLIMITED`` if there is none."""
    text = config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")
    declared = next((n for name in names if isinstance(n := getattr(text, name, None), int) and n > 0), None)
    if declared is not None:
        return declared
    longest = tokenizer.model_max_length
    return int(longest) if longest < LARGEST_DECLARED else UNLIMITED


def pad_id(tokenizer: Any, end_ids: tuple[int, ...], vocabulary: int) -> int:
    """Return the id that fills rows up: the PAD token, an end token, or 0. It is always inside the embedding.

    Args:
        vocabulary: rows of the embedding.
    """
    wanted = tokenizer.pad_token_id
    if wanted is not None and 0 <= wanted < vocabulary:
        return int(wanted)
    return end_ids[0] if end_ids else 0


def _load_model(source: ModelSource, device: torch.device, dtype: str) -> Any:
    if source.base is None:
        model = _whole_model(source, dtype=DTYPES.get(dtype, "auto")).to(device)
    else:
        model = _with_adapter(source, _load_model(source.base, device, dtype))
    model.name_or_path = source.location  # what an exported adapter names as its base model
    return model


def _whole_model(source: ModelSource, **options: Any) -> Any:
    """Load a full model, or with ``device_map="meta"`` only its modules.

    Raises:
        ConfigError: it cannot be loaded, or a tensor is missing, unexpected or of another shape.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = _from_source(AutoConfig, source)
    _check_stored(source, config)
    text = config.get_text_config()
    padding, vocabulary = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if isinstance(padding, int) and isinstance(vocabulary, int) and not 0 <= padding < vocabulary:
        text.pad_token_id = None  # torch refuses to make such an embedding; the row has no other use in training
    with _quiet():
        # a mismatch is reported below, with both shapes
        model, report = _from_source(
            AutoModelForCausalLM,
            source,
            config=config,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ConfigError(
            f"{source.key}: is an adapter on the hub; download it and give its folder as model.path=DIR"
        )
    _check_report(source, report)
    return model


def _check_stored(source: ModelSource, config: Any) -> None:
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

        def plain(file: Path = file) -> list[str]:
            with safe_open(file, "pt") as tensors:
                # other tensors may be masks or positions, which some models keep beside their weights
                names = [name for name in tensors.keys() if name.endswith("weight")]
                return [name for name in names if tensors.get_slice(name).get_dtype() not in PLAIN]

        if wrong := _read(source, plain):
            raise ConfigError(
                f"{source.key}: {file.name} stores {_named(wrong)} as integers or 8-bit numbers, and config.json has no "
                "quantization_config; give a checkpoint that is not quantized"
            )


def _check_report(source: ModelSource, report: dict[str, Any]) -> None:
    wrong = [f"{_named(report['missing_keys'])} missing"] if report["missing_keys"] else []
    if report["unexpected_keys"]:
        wrong.append(f"{_named(report['unexpected_keys'])} unknown to the model")
    for name, stored, expected in sorted(report["mismatched_keys"])[:NAMED]:
        wrong.append(f"{name} has the shape {list(stored)}, where the config says {list(expected)}")
    wrong += [str(line) for line in report["error_msgs"]]
    if wrong:
        raise ConfigError(
            f"{source.key}: the weights are not those of the model that config.json describes: {'; '.join(wrong)}. "
            "Save the model again with save_pretrained, with its whole weights and nothing else"
        )


def _with_adapter(source: ModelSource, model: Any) -> Any:
    """Return a model with the adapter of a folder merged into its weights.

    Raises:
        ConfigError: the adapter does not fit the model, or cannot be merged.
    """
    from peft import PeftConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict

    def merged() -> Any:
        config = PeftConfig.from_pretrained(source.location)
        weights = load_peft_weights(source.location, device=str(model.device))
        wrapped = get_peft_model(model, config)
        loaded = set_peft_model_state_dict(wrapped, weights)
        unknown = list(loaded.unexpected_keys)
        absent = [name for name in loaded.missing_keys if wrapped.base_model.prefix in name]
        if unknown or absent:
            raise ValueError(f"{_named(unknown or absent)} {'has no place in' if unknown else 'missing for'} its base")
        return wrapped.merge_and_unload(safe_merge=True)

    return _read(source, merged)


def _check_attends(source: ModelSource, model: Any) -> None:
    """Refuse models whose layers keep more than keys and values: a group of completions shares those of its prompt."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or []
    if getattr(model, "_is_stateful", False) or any(not kind.endswith("attention") for kind in kinds):
        raise ConfigError(
            f"{source.key}: {type(model).__name__} has layers with a recurrent or convolutional state, which the rollout "
            "engines cannot copy for a group; give a model whose layers all attend, such as Llama, Qwen2, Qwen3 or Gemma"
        )


@torch.no_grad()
def _check_causal(source: ModelSource, model: Any) -> None:
    """Refuse a model whose prediction depends on later tokens, such as an encoder that is loaded as a decoder."""
    ids = torch.tensor([[1, 2, 3], [1, 2, 0]], device=model.device)  # (2, 3), they differ in the last token
    logits = model(input_ids=ids, use_cache=False).logits[:, :2].float()  # (2, 2, V)
    if float((logits[0] - logits[1]).abs().max()) > LEAK * float(logits.std()):
        raise ConfigError(
            f"{source.key}: {type(model).__name__} is not causal: its predictions depend on later tokens; give a "
            "decoder-only language model"
        )


def _check_finite(source: ModelSource, model: nn.Module) -> None:
    """Refuse weights with NaN or infinity, which would make every later number NaN."""
    broken = [
        name
        for name, tensor in model.named_parameters()
        if tensor.is_floating_point() and tensor.numel() and not bool(torch.stack(tensor.aminmax()).isfinite().all())
    ]
    if broken:
        raise ConfigError(
            f"{source.key}: weights that are not finite numbers: {_named(broken)}; give a checkpoint from before the "
            "training diverged, or dtype=float32 if the dtype is too small for them"
        )


def _named(names: Any) -> str:
    """Return the first names of a set, and how many more there are."""
    ordered = sorted(names)
    rest = f" and {len(ordered) - NAMED} more" if len(ordered) > NAMED else ""
    return ", ".join(ordered[:NAMED]) + rest


def _from_source(auto_class: Any, source: ModelSource, _then: Callable[[Any], Any] | None = None, **options: Any) -> Any:
    def read() -> Any:
        found = auto_class.from_pretrained(
            source.location, revision=source.revision or "main", trust_remote_code=False, **options
        )
        return found if _then is None else _then(found)

    return _read(source, read)


def _read(source: ModelSource, read: Callable[[], Read]) -> Read:
    """Return what a library reads; each of its many kinds of errors becomes one message.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return read()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ConfigError(_unreadable(source, error)) from error


def _unreadable(source: ModelSource, error: Exception) -> str:
    offline = " (the hub is off: HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # the first line of some errors only says where, and the next one what
    reason = " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1]).rstrip(".") or type(error).__name__
    if isinstance(error, ImportError):
        return f"{source.key}: cannot be loaded: {reason}. Install what it names, or give a checkpoint without it"
    if source.folder is None:
        remedy = "Give a hub id you can reach, or a local folder as model.path=DIR"
        return f"{source.key}: cannot be loaded{offline}: {reason}. {remedy}"
    kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
    return f"{source.key}: cannot be loaded: {kind}{reason}. Copy the folder again, or give another model"


@contextmanager
def _quiet() -> Iterator[None]:
    """Turn off the progress bar of loading, and the warnings about weights that the loading report holds."""
    from transformers.utils import logging as bars

    logger = logging.getLogger("transformers.modeling_utils")
    showed = bars.is_progress_bar_enabled()
    logger.addFilter(_nothing)
    bars.disable_progress_bar()
    try:
        yield
    finally:
        logger.removeFilter(_nothing)
        if showed:
            bars.enable_progress_bar()


def _nothing(record: logging.LogRecord) -> bool:
    return False

"""Loading a causal language model and its tokenizer from the package, a local folder or the hub."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from rlsparse.config.schema import ConfigError, ModelConfig
from rlsparse.model.endings import find_endings
from rlsparse.model.integrity import (
    check_adapter,
    check_attends,
    check_causal,
    check_finite,
    check_merged,
    check_report,
    check_stored,
    probe,
)
from rlsparse.model.policy import Policy
from rlsparse.model.prompts import check_arguments
from rlsparse.model.quantization import (
    OFF,
    check_not_quantized,
    check_quantization,
    loading_options,
    prepare,
    stored_by_bitsandbytes,
)
from rlsparse.model.source import ModelSource, model_source, reading

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNLIMITED = 2**30  # tokens: the context of a model that declares no maximum, such as BLOOM
LARGEST_DECLARED = 10**9  # tokens: tokenizers write 10^30 where they know no maximum


def load_policy(config: ModelConfig, device: torch.device, dtype: str) -> Policy:
    """Load model and tokenizer. Only safetensors weights are read, and no remote code runs.

    The adapter in the folder of a finished run is added to its base model, in the dtype of the weights.

    Args:
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for the dtype of the stored weights; where they are
            to be quantized, ``auto`` is bfloat16.

    Raises:
        ConfigError: the model cannot be loaded, its weights are not those that its config describes, or not finite.
    """
    check_quantization(config)
    source = model_source(config)
    tokenizer = load_tokenizer(source)
    if config.quantization == OFF:
        model = _load_model(source, device, dtype).eval()
    else:
        model = _load_quantized(source, device, dtype, config.quantization).eval()
    prepare(source, model)
    check_finite(source, model)
    check_causal(source, model)
    policy = wrap_policy(model, tokenizer, config.chat_template, config.template_arguments)
    location = source.location if source.base is None else None
    return replace(policy, key=source.key, revision=source.revision, location=location)


def wrap_policy(model: Any, tokenizer: Any, chat_template: bool, arguments: Mapping[str, Any] | None = None) -> Policy:
    """Return a policy made from a loaded model and tokenizer.

    Args:
        chat_template: use the chat template of the tokenizer if it has one.
        arguments: of the chat template.

    Raises:
        ConfigError: the chat template does not read one of the arguments.
    """
    chat = chat_template and tokenizer.chat_template is not None
    arguments = arguments or {}
    check_arguments(tokenizer, chat, arguments)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    endings = find_endings(tokenizer, model.generation_config, vocabulary, chat, arguments)
    return Policy(
        model=model,
        tokenizer=tokenizer,
        device=next(model.parameters()).device,
        eos_ids=endings.ids,
        pad_id=pad_id(tokenizer, endings.ids, vocabulary),
        context=context_length(model.config, tokenizer),
        chat=chat,
        vocabulary=vocabulary,
        stop_text=endings.text,
        before_end=endings.before_end,
        turn_end=endings.turn_end,
        template_arguments=arguments,
    )


def load_tokenizer(source: ModelSource) -> Any:
    """Return the tokenizer of a model.

    Raises:
        ConfigError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    tokenizer = _from_source(AutoTokenizer, source.tokenizer)
    if not isinstance(tokenizer.model_max_length, int | float):  # a text, for example
        tokenizer.model_max_length = UNLIMITED
    return tokenizer


def outline(config: ModelConfig) -> Policy:
    """Return a policy without weights (on the meta device), to check names, shapes and prompts.

    The weights of a local folder are compared with the modules by name and shape, without being read, unless
    bitsandbytes has quantized them.

    Raises:
        ConfigError: config or tokenizer cannot be read, from the folder or from the hub; the weights in the folder are
            not those that the config describes; or they cannot be quantized as the config says.
    """
    return outline_of(model_source(config), config)


def outline_of(source: ModelSource, config: ModelConfig) -> Policy:
    """Return a policy without weights, from another source than that of its config; see ``outline``."""
    from transformers import AutoModelForCausalLM

    check_quantization(config)
    full = source.root
    described = _config(full, config.quantization)
    if full.folder is not None and not stored_by_bitsandbytes(described):
        model = _whole_model(full, config.quantization, device_map="meta")
    else:
        with torch.device("meta"), reading(full):
            model = AutoModelForCausalLM.from_config(described)
    check_attends(full, model)
    for adapter in source.adapters:
        with reading(adapter):
            model = wrapped_with(adapter, model).unload()
    policy = wrap_policy(model, load_tokenizer(source), config.chat_template, config.template_arguments)
    return replace(policy, key=source.key)


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
        model = _whole_model(source, OFF, dtype=DTYPES.get(dtype, "auto")).to(device)
    else:
        model = _with_adapter(source, _load_model(source.base, device, dtype))
    model.name_or_path = source.location  # what an exported adapter names as its base model
    return model


def _load_quantized(source: ModelSource, device: torch.device, dtype: str, quantization: str) -> Any:
    options = loading_options(quantization, DTYPES.get(dtype, torch.bfloat16), device)
    model = _whole_model(source, quantization, **options)
    for parameter in model.parameters():
        if parameter.is_floating_point():  # on a CPU a part of the mapped file, which would keep all of it in memory
            parameter.data = parameter.data.clone()
    model.name_or_path = source.location
    return model


def _whole_model(source: ModelSource, quantization: str, **options: Any) -> Any:
    """Load a full model, or with ``device_map="meta"`` only its modules.

    Args:
        quantization: ``model.quantization``; what it needs to load the model is in ``options``.

    Raises:
        ConfigError: it cannot be loaded, a tensor is missing, unexpected or of another shape, or its weights should be
            quantized and are already.
    """
    from transformers import AutoModelForCausalLM

    config = _config(source, quantization)
    check_stored(source, config)
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
        raise ConfigError(f"{source.key}: is an adapter on the hub; download it and give its folder as model.path=DIR")
    check_report(source, report)
    return model


def _config(source: ModelSource, quantization: str) -> Any:
    """Return the config of a full model, without a PAD outside the embedding, which torch refuses to make.

    Raises:
        ConfigError: it cannot be read, or the weights should be quantized and are already.
    """
    from transformers import AutoConfig

    config = _from_source(AutoConfig, source)
    check_not_quantized(source, config, quantization)
    text = config.get_text_config()
    padding, vocabulary = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if isinstance(padding, int) and isinstance(vocabulary, int) and not 0 <= padding < vocabulary:
        text.pad_token_id = None  # the row of PAD has no use: padding is masked
    return config


def _with_adapter(source: ModelSource, model: Any) -> Any:
    """Return a model with the adapter of a folder merged into its weights.

    Raises:
        ConfigError: the adapter does not fit the model, or cannot be merged.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    with reading(source):
        wrapped = wrapped_with(source, model)
        set_peft_model_state_dict(wrapped, load_peft_weights(source.location, device=str(model.device)))
        wrapped.eval()
        expected = probe(wrapped)
        merged = wrapped.merge_and_unload(safe_merge=True)
    check_merged(source, expected, probe(merged))
    return merged


def wrapped_with(source: ModelSource, model: Any) -> Any:
    """Return a model with the modules of an adapter, whose names and shapes are those in the folder.

    Raises:
        ConfigError: they are not, or an adapter of this kind cannot be merged.
    """
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, load_peft_weights
    from peft.tuners.tuners_utils import BaseTuner

    config = PeftConfig.from_pretrained(source.location)
    if model.device.type == "meta" and hasattr(config, "init_lora_weights"):
        config.init_lora_weights = False  # some kinds of start values are made from the weights of the base
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about tied weights, which check_merged looks at
        wrapped = get_peft_model(model, config)
    if not isinstance(wrapped.base_model, BaseTuner):
        raise ConfigError(
            f"{source.key}: an adapter of the kind {config.peft_type} cannot be merged into the weights; give one that "
            "can, such as LORA"
        )
    stored = {name: tuple(tensor.shape) for name, tensor in load_peft_weights(source.location, device="cpu").items()}
    tensors = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    check_adapter(source, stored, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    return wrapped


def _from_source(auto_class: Any, source: ModelSource, **options: Any) -> Any:
    with reading(source):
        return auto_class.from_pretrained(
            source.location, revision=source.revision or "main", trust_remote_code=False, **options
        )


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

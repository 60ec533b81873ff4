"""Loading a causal language model and its tokenizer from the package, a local folder or the hub."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlsparse.config.schema import ConfigError, ModelConfig
from rlsparse.model.policy import Policy

EMBEDDED = {name: Path(__file__).parent / "embedded" / name for name in ("tiny", "tiny_deep")}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_policy(config: ModelConfig, device: torch.device, dtype: str) -> Policy:
    """Load model and tokenizer. Only safetensors weights are read, and no remote code runs.

    Args:
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for the dtype of the stored weights.

    Raises:
        ConfigError: the folder or the hub id cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_model_folder(config)
    try:
        tokenizer = _from_source(AutoTokenizer, config)
        model = _from_source(AutoModelForCausalLM, config, dtype=DTYPES.get(dtype, "auto"), use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ConfigError(_unreadable(config, error)) from error
    return wrap_policy(model.to(device).eval(), tokenizer, config.chat_template)


def wrap_policy(model: Any, tokenizer: Any, chat_template: bool) -> Policy:
    """Return a policy made from a loaded model and tokenizer.

    Args:
        chat_template: use the chat template of the tokenizer if it has one.
    """
    eos_ids = _eos_ids(model, tokenizer)
    pad = tokenizer.pad_token_id
    return Policy(
        model=model,
        tokenizer=tokenizer,
        device=next(model.parameters()).device,
        eos_ids=eos_ids,
        pad_id=eos_ids[0] if pad is None else pad,
        context=context_length(model),
        chat=chat_template and tokenizer.chat_template is not None,
    )


def model_source(config: ModelConfig) -> str:
    """Return the argument of ``from_pretrained``: ``model.path``, an embedded folder, or the hub id ``model.name``."""
    if config.path is not None:
        return config.path
    return str(EMBEDDED[config.name]) if config.name in EMBEDDED else config.name


def local_folder(config: ModelConfig) -> str | None:
    """Return the folder that the model is read from; None if it comes from the hub."""
    return model_source(config) if config.path is not None or config.name in EMBEDDED else None


def check_model_folder(config: ModelConfig) -> None:
    """Check, before anything is loaded, that ``model.path`` can be loaded.

    Raises:
        ConfigError: there is no such folder, or it has no config, no tokenizer or no safetensors weights.
    """
    if config.path is None:
        return
    folder = Path(config.path)
    if not folder.is_dir():
        raise ConfigError(f"model.path={config.path}: there is no such folder; give a Hugging Face model folder")
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model.path={config.path}: no config.json in it; give a Hugging Face model folder")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise ConfigError(f"model.path={config.path}: no tokenizer in it; save the tokenizer beside the model")
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"model.path={config.path}: no *.safetensors in it; only safetensors weights are read: save it again "
            "with save_pretrained"
        )


def model_skeleton(config: ModelConfig) -> nn.Module:
    """Return the modules of the model without weights (on the meta device), to check names and shapes.

    Raises:
        ConfigError: the config of the model cannot be read, from the folder or from the hub.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    check_model_folder(config)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(_from_source(AutoConfig, config))
    except (OSError, ValueError) as error:
        raise ConfigError(_unreadable(config, error)) from error


def context_length(model: Any) -> int:
    """Return the maximum length of prompt and completion together, in tokens."""
    return int(model.config.get_text_config().max_position_embeddings)


def _from_source(auto_class: Any, config: ModelConfig, **options: Any) -> Any:
    return auto_class.from_pretrained(
        model_source(config), revision=config.revision or "main", trust_remote_code=False, **options
    )


def _unreadable(config: ModelConfig, error: Exception) -> str:
    key = f"model.path={config.path}" if config.path else f"model.name={config.name}"
    offline = " (the hub is off: HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    reason = str(error).strip().splitlines()[0]
    return (
        f"{key}: cannot be loaded{offline}: {reason} Give a hub id you can reach, or a local folder as model.path=DIR"
    )


def _eos_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    declared = getattr(model.generation_config, "eos_token_id", None)
    ids = declared if isinstance(declared, list) else [declared]
    return tuple(sorted({i for i in [*ids, tokenizer.eos_token_id] if i is not None}))

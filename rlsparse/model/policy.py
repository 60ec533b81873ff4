"""The policy: loading a causal LM and its tokenizer, and its log-probabilities at chosen tokens (the plain path)."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlsparse.batch import Problem, Prompt, Rollout
from rlsparse.config.schema import ConfigError, ModelConfig

EMBEDDED = {name: Path(__file__).parent / "embedded" / name for name in ("tiny", "tiny_deep")}
TEMPLATE_DATE = "26 Jul 2024"  # Llama 3's templates print a date: the same one every day, or prompts would change
SMALL_MODEL = 10_000_000  # parameters
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# f(policy, rollout, rows (b,), needed (b, T), temperature) -> (b, T)
LogProbs = Callable[["Policy", Rollout, Tensor, Tensor, float], Tensor]


@dataclass
class Policy:
    """A model with what is needed to talk to it.

    Attributes:
        model: the causal LM, with or without a peft adapter.
        tokenizer: its tokenizer.
        device: where the model is.
        eos_ids: tokens that end a completion.
        pad_id: filler; may equal an EOS, so nothing is ever read from it.
        context: longest prompt and completion together, tokens.
        chat: whether prompts go through the tokenizer's chat template.
        first_adapted: number of the first decoder layer that training changes.
        merged: inside it, the adapter is part of the weights; afterwards the weights are what they were, bit for bit.
    """

    model: Any
    tokenizer: Any
    device: torch.device
    eos_ids: tuple[int, ...]
    pad_id: int
    context: int
    chat: bool
    first_adapted: int = 0
    merged: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def causal_lm(self) -> Any:
        """The transformers model, out of its peft wrapping; its modules carry the adapter all the same."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return int(self.causal_lm.config.get_text_config().num_hidden_layers)

    def reference(self) -> AbstractContextManager[None]:
        """Inside, the model is the base model: the adapter is off."""
        return self.model.disable_adapter()


def model_source(config: ModelConfig) -> str:
    """What ``from_pretrained`` gets: ``model.path``, the packaged folder, or the hub id ``model.name``."""
    if config.path is not None:
        return config.path
    return str(EMBEDDED[config.name]) if config.name in EMBEDDED else config.name


def local_folder(config: ModelConfig) -> str | None:
    """The folder the model is read from; None when the hub provides it."""
    return model_source(config) if config.path is not None or config.name in EMBEDDED else None


def check_model_folder(config: ModelConfig) -> None:
    """Refuse a local folder that could not be loaded, before anything is.

    Raises:
        ConfigError: no such folder, no config, no tokenizer, or no safetensors weights.
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
    """The model's modules without weights (meta device), to check names and shapes against.

    Raises:
        ConfigError: the model's config cannot be read, from the folder or the hub.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    check_model_folder(config)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(_from_source(AutoConfig, config))
    except (OSError, ValueError) as error:
        raise ConfigError(_unreadable(config, error)) from error


def context_length(model: Any) -> int:
    """Longest prompt and completion together, tokens."""
    return int(model.config.get_text_config().max_position_embeddings)


def resolve_device(name: str) -> torch.device:
    """The torch device of the key ``device``; auto takes a GPU if there is one.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ConfigError(f"device={name}: torch has no such device here; take auto, cpu, or cuda on a GPU") from error
    if device.type == "meta":
        raise ConfigError(f"device={name}: holds shapes without numbers; take auto, cpu, or cuda on a GPU")
    return device


def device_kind(name: str) -> str:
    """The kind of a device that another machine has: cpu, cuda, mps.

    Raises:
        ConfigError: torch knows no such kind.
    """
    try:
        return torch.device(name).type
    except RuntimeError as error:
        raise ConfigError(f"device={name}: torch has no such device; take auto, cpu, or cuda on a GPU") from error


@contextmanager
def cpu_threads(threads: int | None, parameters: int) -> Iterator[None]:
    """Inside, torch's CPU threads are as asked, else 1 for a model too small to share out, else this process's share.

    That is what SLURM gave it, or torch's own choice, which heeds OMP_NUM_THREADS (joblib, Ray and torchrun set it).
    """
    before = torch.get_num_threads()
    given = None if "OMP_NUM_THREADS" in os.environ else os.environ.get("SLURM_CPUS_PER_TASK")
    share = int(given) if given else before
    torch.set_num_threads(threads or (1 if parameters < SMALL_MODEL else share))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load_policy(config: ModelConfig, device: torch.device, dtype: str) -> Policy:
    """Load model and tokenizer: safetensors only, no remote code.

    Args:
        dtype: auto (the checkpoint's own), float32, bfloat16 or float16.

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
    """A policy around a model and tokenizer at hand."""
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


def encode_prompt(policy: Policy, problem: Problem, text: str) -> Prompt:
    """The prompt as token ids, in the chat template where the policy uses one."""
    if policy.chat:
        ids = policy.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            date_string=TEMPLATE_DATE,
        )
    else:
        ids = policy.tokenizer(text)["input_ids"]
    return Prompt(problem=problem, ids=tuple(ids))


def decode(policy: Policy, rollout: Rollout, prompts: Sequence[Prompt]) -> list[str]:
    """The B completions as text, special tokens left out; with what the prompts hold of them already.

    Args:
        prompts: the P prompts of the rollout.
    """
    begun = [prompt.ids[len(prompt.ids) - prompt.begun :] for prompt in prompts for _ in range(rollout.group_size)]
    rows = zip(begun, rollout.completion_ids.tolist(), rollout.lengths.tolist(), strict=True)
    return policy.tokenizer.batch_decode([[*start, *ids[:n]] for start, ids, n in rows], skip_special_tokens=True)


def positions(mask: Tensor) -> Tensor:
    """(b, L): each token's distance from the start of its row, padding left out.

    Args:
        mask: (b, L), 1 or True on tokens.
    """
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def token_log_probs(policy: Policy, rollout: Rollout, rows: Tensor, needed: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of chosen completion tokens, (b, T) float32, nats; 0 where they are not needed.

    The plain path, the reference of every faster one: each row is its prompt and its completion, forwarded whole.

    Args:
        rows: (b,) row numbers into the rollout.
        needed: (b, T) bool: tokens to score, none past a completion's end. T need not reach the longest completion.
        temperature: the logits are divided by it, as when the completions were sampled.
    """
    width = needed.shape[1]
    prompts = rows // rollout.group_size  # (b,)
    S = int(rollout.prompt_lengths[prompts].max())
    completion = rollout.completion_ids[rows, :width]  # (b, width)
    ids = torch.cat([rollout.prompt_ids[prompts, -S:], completion], dim=1)  # (b, S + width)
    in_prompt = torch.arange(S, 0, -1, device=ids.device) <= rollout.prompt_lengths[prompts, None]  # (b, S)
    mask = torch.cat([in_prompt, rollout.mask[rows, :width]], dim=1).long()  # (b, S + width)
    logits = policy.model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions(mask),
        use_cache=False,
        logits_to_keep=width + 1,
    ).logits[:, :-1]  # (b, width, V)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    log_probs = logits.gather(2, completion[:, :, None]).squeeze(2) - logits.logsumexp(dim=2)
    return torch.where(needed, log_probs, 0.0)


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

"""The policy: a model with its tokenizer, and its log-probabilities of chosen tokens by the plain path."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlsparse.batch import Problem, Prompt, Rollout
from rlsparse.config.schema import ConfigError
from rlsparse.model.prompts import check_known, hidden_ids, prompt_ids

# f(policy, rollout, rows (b,), needed (b, T), temperature) -> (b, T)
LogProbs = Callable[["Policy", Rollout, Tensor, Tensor, float], Tensor]


@dataclass
class Policy:
    """A model with everything that is needed to sample from it and to train it.

    Attributes:
        model: the causal language model, with or without a peft adapter.
        tokenizer: the tokenizer of the model.
        device: device of the model.
        eos_ids: tokens that end a completion.
        pad_id: the padding token. It may equal an EOS token, so padding is never recognised by its id.
        context: maximum length of prompt and completion together, tokens.
        chat: whether prompts go through the chat template of the tokenizer.
        vocabulary: V, rows of the embedding; no token id may reach it.
        stop_text: a text that ends a completion, too; see ``Endings``.
        before_end: what the chat template writes between an answer and the end token.
        turn_end: tokens that follow a solution in supervised training.
        template_arguments: of the chat template, such as ``enable_thinking``.
        key: where the model is from, ``model.path=DIR`` or ``model.name=NAME``, for messages.
        revision: of the model on the hub; None for the default one and for a folder.
        location: folder or hub id whose weights the model has without its adapter; None where no place has them.
        first_adapted: number of the first decoder layer that training changes.
        reference: context manager within which the adapter is off, so that the model is the base model.
        merged: context manager within which the adapter is added to the weights; afterwards the weights are the same
            as before, bit for bit.
        export_adapter: writes the adapter into a folder, in the format of peft; None without one, and where it is no
            plain LoRA on the unchanged weights.
    """

    model: Any
    tokenizer: Any
    device: torch.device
    eos_ids: tuple[int, ...]
    pad_id: int
    context: int
    chat: bool
    vocabulary: int
    stop_text: str | None
    before_end: str
    turn_end: tuple[int, ...]
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    key: str = "model"
    revision: str | None = None
    location: str | None = None
    first_adapted: int = 0
    reference: Callable[[], AbstractContextManager[None]] = nullcontext
    merged: Callable[[], AbstractContextManager[None]] = nullcontext
    export_adapter: Callable[[Path], None] | None = None

    @property
    def causal_lm(self) -> Any:
        """The transformers model without the wrapper of peft; the adapter stays in its modules."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return int(self.causal_lm.config.get_text_config().num_hidden_layers)


def encode_prompt(policy: Policy, problem: Problem, text: str) -> Prompt:
    """Return the token ids of a prompt, in the chat template if the policy uses one.

    Args:
        text: the question with its instructions, as the task formats it.

    Raises:
        ConfigError: see ``prompt_ids``; or the tokenizer has a token that the embedding of the model lacks.
    """
    try:
        ids = prompt_ids(policy.tokenizer, policy.chat, problem, text, policy.template_arguments)
        check_known(policy.tokenizer, ids, policy.vocabulary)
    except ConfigError as error:
        raise ConfigError(f"{policy.key}: {error}") from error
    return Prompt(problem=problem, ids=tuple(ids))


def decode(policy: Policy, rollout: Rollout, prompts: Sequence[Prompt]) -> list[str]:
    """Return the B completions as text: what stands before the token or text that ended them, without special tokens.

    What a prompt already holds of a completion is included.

    Args:
        prompts: the P prompts of the rollout.
    """
    begun = [prompt.ids[len(prompt.ids) - prompt.begun :] for prompt in prompts for _ in range(rollout.group_size)]
    hidden = hidden_ids(policy.tokenizer)
    rows, closed = [], []
    for start, ids, length in zip(begun, rollout.completion_ids.tolist(), rollout.lengths.tolist(), strict=True):
        ended = length > 0 and ids[length - 1] in policy.eos_ids
        rows.append([token for token in (*start, *ids[: length - ended]) if token not in hidden])
        closed.append(ended)
    # not cleaned up: that would change the spaces of what the model wrote
    texts = policy.tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)
    return [_answer(policy, text, ended) for text, ended in zip(texts, closed, strict=True)]


def _answer(policy: Policy, text: str, ended: bool) -> str:
    if policy.stop_text is not None:
        text = text.partition(policy.stop_text)[0]
    if ended and policy.before_end and text.rstrip().endswith(policy.before_end):
        text = text.rstrip().removesuffix(policy.before_end)
    return text


def positions(mask: Tensor) -> Tensor:
    """Return the position of each token in its row, (b, L), not counting padding; the first token has position 0.

    Args:
        mask: (b, L), 1 or True on tokens.
    """
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def token_log_probs(policy: Policy, rollout: Rollout, rows: Tensor, needed: Tensor, temperature: float) -> Tensor:
    """Return log-probabilities of chosen completion tokens, (b, T) float32, nats; 0 where they are not needed.

    This is the plain path, the reference for all faster ones: each row, prompt and completion, goes through the model.

    Args:
        rows: (b,) row numbers into the rollout.
        needed: (b, T) bool: the tokens to score, none after the end of a completion. T may be less than the length of
            the longest completion.
        temperature: divides the logits, as it did when the completions were sampled.
    """
    logits = _logits(policy, rollout, rows, needed.shape[1], temperature)  # (b, T, V)
    return torch.where(needed, _of_targets(logits, rollout, rows), 0.0)


def token_log_probs_and_entropy(
    policy: Policy, rollout: Rollout, rows: Tensor, needed: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and entropies at chosen completion tokens, each (b, T) float32, both with gradient.

    The entropy is that of the distribution which the token was sampled from, softmax(logits / temperature), without
    top-p and top-k. Both are in nats, and 0 where they are not needed.

    Args:
        rows: (b,), as for ``token_log_probs``.
        needed: (b, T) bool, as for ``token_log_probs``.
        temperature: as for ``token_log_probs``.
    """
    logits = _logits(policy, rollout, rows, needed.shape[1], temperature)  # (b, T, V)
    log_probs = _of_targets(logits, rollout, rows)  # (b, T)
    # a token of probability 0 adds nothing to the entropy: 0 · log 0 would be NaN
    everything = logits.log_softmax(dim=2).clamp(min=torch.finfo(logits.dtype).min)  # (b, T, V)
    entropy = -(everything.exp() * everything).sum(dim=2)  # (b, T)
    return torch.where(needed, log_probs, 0.0), torch.where(needed, entropy, 0.0)


def _logits(policy: Policy, rollout: Rollout, rows: Tensor, width: int, temperature: float) -> Tensor:
    """Return the logits that predict the first ``width`` completion tokens, over the temperature, (b, width, V)."""
    prompts = rows // rollout.group_size  # (b,)
    S = int(rollout.prompt_lengths[prompts].max())
    ids = torch.cat([rollout.prompt_ids[prompts, -S:], rollout.completion_ids[rows, :width]], dim=1)  # (b, S + width)
    in_prompt = torch.arange(S, 0, -1, device=ids.device) <= rollout.prompt_lengths[prompts, None]  # (b, S)
    mask = torch.cat([in_prompt, rollout.mask[rows, :width]], dim=1).long()  # (b, S + width)
    logits: Tensor = policy.model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions(mask),
        use_cache=False,
        logits_to_keep=width + 1,
    ).logits[:, :-1]  # (b, width, V)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


def _of_targets(logits: Tensor, rollout: Rollout, rows: Tensor) -> Tensor:
    """Return the log-probabilities of the completion tokens, (b, T), from the logits that predict them, (b, T, V)."""
    targets = rollout.completion_ids[rows, : logits.shape[1], None]  # (b, T, 1)
    return logits.gather(2, targets).squeeze(2) - logits.logsumexp(dim=2)


@dataclass(frozen=True)
class ScoringPath:
    """A way through the model that scores tokens of a rollout.

    Attributes:
        log_probs: returns the log-probabilities of chosen tokens.
        log_probs_and_entropy: takes the same arguments and returns the entropies too; it costs more.
        packed: whether a prompt and its completions share one forward pass, so that padding can be left out.
    """

    log_probs: LogProbs
    log_probs_and_entropy: Callable[..., tuple[Tensor, Tensor]]
    packed: bool


PLAIN = ScoringPath(token_log_probs, token_log_probs_and_entropy, packed=False)

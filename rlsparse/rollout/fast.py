"""The fast engine: adapter merged, each prompt read once for its group, keys and values in place."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from rlsparse.batch import FrozenStates, Problem, Prompt, Rollout
from rlsparse.config.schema import ConfigError
from rlsparse.model.attention import obstacle, use_attention
from rlsparse.model.frozen_layers import Capture, captured
from rlsparse.model.policy import Policy, positions
from rlsparse.model.quantization import dequantized, is_quantized
from rlsparse.model.self_check import TOKENS, differs_from_plain
from rlsparse.rollout.cache import ATTENTION, GroupCache
from rlsparse.rollout.engine import LocalEngine, Part, Request, RolloutEngine
from rlsparse.rollout.fused import fused
from rlsparse.rollout.plain import Plain
from rlsparse.rollout.prepacked import prepacked

Forward = Callable[[Tensor, Tensor, GroupCache], Tensor]  # ids (b, L), positions (b, L), cache -> logits (b, V)
PREFILL = 16  # prompts that a CPU reads in one forward pass; more at once do not fit its caches
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fast(LocalEngine):
    """Samples with an attention and a cache of our own in the modules of the model.

    Attributes:
        merge_adapter: add the adapter to a copy of the weights that it changes, rounded to their dtype. Quantized
            weights have no such copy, except with ``dequantize``.
        fuse: compute the layers of models of the Llama family with fewer and larger products; see ``FusedDecoder``.
        prepack_weights: bfloat16 on a CPU: copy weights into the layout of the matrix library; in float32, copy small
            ones alone.
        dequantize: sample from a dequantized copy of quantized weights.
    """

    neutral: ClassVar[Mapping[str, Any]] = {"dequantize": False, "fuse": True}
    shares_prompts: ClassVar[bool] = True
    keeps_states: ClassVar[bool] = True

    merge_adapter: bool
    fuse: bool
    prepack_weights: bool
    dequantize: bool

    @property
    def merges(self) -> bool:
        return self.merge_adapter

    @property
    def prepacks(self) -> bool:
        return self.prepack_weights

    @property
    def dequantizes(self) -> bool:
        return self.dequantize

    def check(self, quantized: bool) -> None:
        if self.dequantize and not quantized:
            raise ConfigError(
                "rollout.dequantize=true: the weights of this model are not quantized; take rollout.dequantize=false, "
                "or quantize them with model.quantization=nf4"
            )

    def fitting(self, policy: Policy) -> RolloutEngine:
        """Return this engine; or the plain one where the model does not allow it, and log the reason."""
        reason = self._obstacle(policy)
        if reason is not None and self.fuse:
            unfused = replace(self, fuse=False).fitting(policy)
            if isinstance(unfused, Fast):
                log.info("rollout.fuse: off for this model: %s", reason)
            return unfused
        unmerged = is_quantized(policy.causal_lm) and not self.dequantize
        if reason is None and unmerged and self.merge_adapter and policy.merged is not nullcontext:
            log.info(
                "rollout.merge_adapter: off for this model: merging would round the adapter with the quantized weights;"
                " rollout.dequantize=true merges it into a dequantized copy"
            )
        if reason is None:
            return self
        # such as DoRA: it computes norms of weights, whose rounding differs from one path to the other
        hint = "" if policy.causal_lm.dtype == torch.float32 else "; with dtype=float32 it may take the fast engine"
        log.info("rollout: plain for this model: %s%s", reason, hint)
        return Plain(**{field.name: getattr(self, field.name) for field in fields(Plain)})

    @contextmanager
    def session(self, policy: Policy, request: Request) -> Iterator["FastSession"]:
        with ExitStack() as changed:
            quantized = is_quantized(policy.causal_lm)
            if quantized and self.dequantize:
                # frozen layers stay as they are where their outputs are kept: training goes on from these
                first = policy.first_adapted if request.keep_states else 0
                changed.enter_context(dequantized(policy, first, self.merge_adapter))
            elif self.merge_adapter and not quantized:
                changed.enter_context(policy.merged())
            capture = Capture() if request.keep_states and policy.first_adapted > 0 else None
            forward: Forward | None = fused(policy, self.prepack_weights, capture) if self.fuse else None
            if forward is None:
                if self.prepack_weights:
                    changed.enter_context(prepacked(policy.causal_lm))
                changed.enter_context(use_attention(policy.model, ATTENTION))
                if capture is not None:
                    decoder = policy.causal_lm.get_decoder()
                    changed.enter_context(captured(decoder, policy.first_adapted, capture))
                forward = partial(_by_modules, policy.model)
            recorder = None
            if capture is not None:
                recorder = _Recorder.empty(policy, request, self.max_new_tokens, capture)
            yield FastSession(policy, forward, self.max_new_tokens, recorder)

    def _obstacle(self, policy: Policy) -> str | None:
        """Return why the model needs the plain engine; None where its modules allow this one and a trial is right."""

        def attempt() -> tuple[Rollout, Tensor]:
            prompts = [Prompt(Problem("", "", ""), ids) for ids in ((1, 2, 3), (4, 5))]
            short = replace(self, max_new_tokens=TOKENS, temperature=1.0)
            request, generator = Request(prompts, group_size=2), Generator().manual_seed(0)
            rollout = short.generate(replace(policy, eos_ids=(), stop_text=None), request, generator)
            return rollout, rollout.log_probs

        reason = obstacle(policy.model)
        if reason is None:
            difference = differs_from_plain(policy, attempt)
            reason = difference and f"with our cache, {difference}"
        return reason


def _by_modules(model: Any, ids: Tensor, positions: Tensor, cache: GroupCache) -> Tensor:
    """Return the logits after the last token of each row, (b, V), by the modules of a model."""
    logits: Tensor = model(
        input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=1, cache=cache
    ).logits[:, -1]
    return logits


class FastSession:
    """See ``Session``."""

    _cache: GroupCache
    _rows: Tensor  # (b,) row numbers into the rollout
    _column: int

    def __init__(self, policy: Policy, forward: Forward, max_new_tokens: int, recorder: "_Recorder | None") -> None:
        self._policy, self._forward = policy, forward
        self._max_new_tokens, self._recorder = max_new_tokens, recorder

    def prefill(self, part: Part) -> Tensor:
        self._rows, self._column = part.rows, 0
        self._cache = GroupCache(part.in_prompt, part.per_prompt, self._max_new_tokens, self._policy.causal_lm.dtype)
        p = len(part.prompt_ids)
        most = PREFILL if part.prompt_ids.device.type == "cpu" else p
        logits = [self._read(part, slice(start, min(start + most, p))) for start in range(0, p, most)]
        return torch.cat(logits).repeat_interleave(part.per_prompt, dim=0)  # (b, V)

    def _read(self, part: Part, some: slice) -> Tensor:
        """Read some prompts of a part; return the logits of the next token of each, (q, V)."""
        in_prompt = part.in_prompt[some]  # (q, S)
        S = int(in_prompt.sum(dim=1).max())
        in_prompt = in_prompt[:, -S:]  # (q, S), without columns of padding alone
        self._cache.read(some, in_prompt)
        logits = self._forward(part.prompt_ids[some, -S:], positions(in_prompt), self._cache)  # (q, V)
        if self._recorder is not None:
            first = part.prompts.start
            self._recorder.read_prompts(slice(first + some.start, first + some.stop))
        return logits

    def keep(self, rows: Tensor) -> None:
        self._cache.keep(rows)
        self._rows = self._rows[rows]

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        self._cache.next_column()
        logits = self._forward(tokens[:, None], positions[:, None], self._cache)  # (b, V)
        if self._recorder is not None:
            self._recorder.read_column(self._rows, self._column)
        self._column += 1
        return logits

    def states(self) -> FrozenStates | None:
        return None if self._recorder is None else self._recorder.states


@dataclass
class _Recorder:
    """The states of the frozen layers while they are written."""

    states: FrozenStates
    capture: Capture

    @classmethod
    def empty(cls, policy: Policy, request: Request, max_new_tokens: int, capture: Capture) -> "_Recorder":
        H = policy.causal_lm.config.get_text_config().hidden_size
        P, S = len(request.prompts), max(len(prompt.ids) for prompt in request.prompts)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, H, dtype=policy.causal_lm.dtype, device=policy.device)

        return cls(FrozenStates(zeros(P, S), zeros(P * request.group_size, max_new_tokens)), capture)

    def read_prompts(self, prompts: slice) -> None:
        self.states.prompt[prompts, -self.capture.hidden.shape[1] :] = self.capture.hidden

    def read_column(self, rows: Tensor, t: int) -> None:
        self.states.completion[rows, t] = self.capture.hidden[:, 0]

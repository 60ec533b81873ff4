"""The base classes of rollout engines, with the one loop that samples token by token."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import torch
from torch import Generator, Tensor

from rlsparse.batch import FrozenStates, Prompt, Rollout
from rlsparse.components.component import Component, Range
from rlsparse.model.policy import Policy
from rlsparse.model.quantization import is_quantized
from rlsparse.rollout.columns import Columns, completion_limits, left_pad
from rlsparse.rollout.sampling import sample
from rlsparse.rollout.stopping import stopping

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What to sample.

    Attributes:
        prompts: P prompts. What a prompt holds of a completion counts towards its ``max_new_tokens``.
        group_size: G, completions of each prompt.
        greedy: take the likeliest token at each step; no random numbers are drawn.
        keep_states: keep the outputs of the frozen layers, where the engine can.
        needs_entropy: whether a token sampler reads the entropies, so that an engine without them computes them.
    """

    prompts: Sequence[Prompt]
    group_size: int
    greedy: bool = False
    keep_states: bool = False
    needs_entropy: bool = False


@dataclass(frozen=True)
class Part:
    """Rows that are sampled together: the same number of completions of each of p prompts.

    Attributes:
        prompts: which of the request's prompts.
        rows: (b,) row numbers into the rollout, b = p · per_prompt.
        prompt_ids: (p, S), padded on the left. in_prompt: (p, S) bool, False at padding.
    """

    prompts: slice
    rows: Tensor
    prompt_ids: Tensor
    in_prompt: Tensor

    @property
    def per_prompt(self) -> int:
        return len(self.rows) // len(self.prompt_ids)


class Session(Protocol):
    """A model that is being sampled from: it holds the keys and values of the rows that still grow."""

    def prefill(self, part: Part) -> Tensor:
        """Read the prompts of a part; return the logits of the first token of each row, (b, V)."""

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows alone; (b',) ascending places among the current rows."""

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Read a token of each row; return the logits of the next ones, (b, V).

        Args:
            tokens: (b,). positions: (b,) their distances from the start of the prompt.
        """

    def states(self) -> FrozenStates | None:
        """Return the outputs of the frozen layers for the whole request; None where they were not kept."""


@dataclass(frozen=True)
class RolloutEngine(Component, ABC):
    """Samples completions.

    Traits, by which memory is estimated:
        shares_prompts: keys and values of a prompt are in memory once for its group.
        keeps_states: can keep the outputs of the layers below the first adapted one for training.
        merges: samples with the adapter added to a copy of the weights.
        prepacks: copies weights into the layout of the matrix library.
        dequantizes: samples from a dequantized copy of quantized weights.

    Further traits:
        uses_policy: samples with the modules of the policy. Otherwise, the engine has a copy of the base model, cannot
            leave out layers, and serves adapters of the trait ``Adapter.exports_lora`` alone.

    Attributes:
        max_new_tokens: the longest completion, EOS included.
        max_rows: completions that are sampled together at most; more are sampled one part after the other.
        temperature: of sampling; the policy that is trained is the tempered one, as in TRL.
        top_p: nucleus sampling: the smallest set of tokens with this probability; 1 is off.
        top_k: the k likeliest tokens; 0 is off.
    """

    shares_prompts: ClassVar[bool] = False
    keeps_states: ClassVar[bool] = False
    uses_policy: ClassVar[bool] = True

    max_new_tokens: Annotated[int, Range(1)]
    max_rows: Annotated[int, Range(1)]
    temperature: Annotated[float, Range(0, above=True)]
    top_p: Annotated[float, Range(0, 1, above=True)]
    top_k: Annotated[int, Range(0)]

    @property
    def merges(self) -> bool:
        return False

    @property
    def prepacks(self) -> bool:
        return False

    @property
    def dequantizes(self) -> bool:
        return False

    def check(self, quantized: bool) -> None:
        """Refuse what a model does not allow, before its weights are loaded.

        Args:
            quantized: whether its weights are quantized.

        Raises:
            ConfigError: key, value and remedy.
        """
        return

    def versions(self) -> dict[str, str]:
        """Return the versions of sampling programs outside of this environment, by name; a run records them.

        Raises:
            ConfigError: such a program cannot be asked.
        """
        return {}

    def fitting(self, policy: Policy) -> "RolloutEngine":
        """Return this engine, or another one where it cannot serve the model of this policy. Call its ``close`` later.

        Raises:
            ConfigError: neither can.
        """
        return self

    def close(self) -> None:
        """Free what ``fitting`` has acquired."""
        return

    def is_exact(self, policy: Policy) -> bool:
        """Return whether completions have the probabilities that training computes, up to the rounding of float32."""
        return False

    @abstractmethod
    def generate(self, policy: Policy, request: Request, generator: Generator) -> Rollout:
        """Sample the completions of a request, at most ``max_rows`` rows together.

        The random numbers of a row depend neither on the other rows nor on the split. Where memory runs out, the
        stream is set back and this method is called again with a smaller ``max_rows``.

        Args:
            policy: the model, with its adapter as it is now.
            generator: CPU stream of the random numbers.

        Returns:
            P · G completions, those of a prompt one after the other. Log-probabilities are in nats, at the temperature
            and before top-p and top-k. The entropy may be None unless ``request.needs_entropy``.

        Raises:
            torch.OutOfMemoryError: memory has run out.
        """

    @abstractmethod
    def pass_over(self, request: Request, count: int, generator: Generator) -> None:
        """Draw the random numbers of ``count`` prompts of a request, which another rank samples."""


@dataclass(frozen=True)
class LocalEngine(RolloutEngine, ABC):
    """Samples with the modules of the policy. A subclass supplies a session: how the model reads prompts and tokens."""

    @abstractmethod
    def session(self, policy: Policy, request: Request) -> AbstractContextManager[Session]:
        """Open a session on the model of a policy, and leave the model as it was afterwards."""

    def is_exact(self, policy: Policy) -> bool:
        return bool(policy.causal_lm.dtype == torch.float32) and not is_quantized(policy.causal_lm)

    def pass_over(self, request: Request, count: int, generator: Generator) -> None:
        if not request.greedy:
            torch.rand(count * request.group_size, self.max_new_tokens, generator=generator)

    @torch.no_grad()
    def generate(self, policy: Policy, request: Request, generator: Generator) -> Rollout:
        prompt_ids, prompt_lengths = left_pad(request.prompts, policy)  # (P, S), (P,)
        B, T = len(request.prompts) * request.group_size, self.max_new_tokens
        uniform = torch.zeros(B, T) if request.greedy else torch.rand(B, T, generator=generator)  # (B, T)
        out = Columns.empty(B, T, policy)
        limits = completion_limits(request.prompts, T, request.group_size, policy)  # (B,)
        draw = _Draw(self, uniform.to(policy.device), limits, request.greedy, policy)
        with self.session(policy, request) as session:
            for part in self._parts(request, prompt_ids, prompt_lengths):
                draw.complete(session, part, out)
            states = session.states()
        return out.rollout(prompt_ids, prompt_lengths, states)

    def _parts(self, request: Request, prompt_ids: Tensor, prompt_lengths: Tensor) -> Iterator[Part]:
        """Yield rows that fit together: whole groups, or a piece of one where a group alone is too large."""
        G, groups = request.group_size, max(1, self.max_rows // request.group_size)
        for start in range(0, len(request.prompts), groups):
            prompts = slice(start, min(start + groups, len(request.prompts)))
            lengths = prompt_lengths[prompts]  # (p,)
            S = int(lengths.max())
            in_prompt = torch.arange(S, 0, -1, device=lengths.device) <= lengths[:, None]  # (p, S)
            rows = torch.arange(prompts.start * G, prompts.stop * G, device=lengths.device)
            for piece in rows.split(self.max_rows if groups == 1 else groups * G):
                yield Part(prompts, piece, prompt_ids[prompts, -S:], in_prompt)


@dataclass(frozen=True)
class _Draw:
    """The loop over tokens.

    Attributes:
        uniform: (B, T) random numbers in [0, 1). limits: (B,) most tokens of each completion.
    """

    engine: LocalEngine
    uniform: Tensor
    limits: Tensor
    greedy: bool
    policy: Policy

    def complete(self, session: Session, part: Part, out: Columns) -> None:
        """Sample the rows of a part into ``out``; a row that has ended leaves the session."""
        logits = session.prefill(part)  # (b, V)
        rows = part.rows  # (b,) rows that still grow; all tensors below hold these only
        position = part.in_prompt.sum(dim=1).repeat_interleave(part.per_prompt)  # (b,) of the next token
        has_ended = stopping(self.policy)
        for t in range(self.engine.max_new_tokens):
            tokens, log_probs, entropy = sample(logits, self.uniform[rows, t], self.engine, self.greedy)  # (b,) each
            ended = has_ended(out.ids, rows, t, tokens)  # (b,)
            out.write(rows, t, tokens, log_probs, entropy, ended)
            done = ended | (self.limits[rows] <= t + 1)  # (b,)
            if bool(done.all()):
                break
            if bool(done.any()):
                kept = (~done).nonzero().squeeze(1)
                session.keep(kept)
                rows, tokens, position = rows[kept], tokens[kept], position[kept]
            logits = session.step(tokens, position)  # (b, V)
            position = position + 1

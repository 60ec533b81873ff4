"""The engine: adapter merged, each prompt read once for its group, keys and values in place, finished rows dropped."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from rlsparse.batch import Prompt, Rollout, TrunkStates
from rlsparse.config.schema import FastRolloutConfig
from rlsparse.model.attention import attending_by
from rlsparse.model.frozen_layers import Capture, captured
from rlsparse.model.policy import Policy, positions
from rlsparse.rollout.cache import ATTENTION, GroupCache
from rlsparse.rollout.columns import Columns, completion_limits, left_pad, parts
from rlsparse.rollout.prepacked import prepacked
from rlsparse.rollout.sampling import sample


@torch.no_grad()
def generate(
    policy: Policy,
    prompts: Sequence[Prompt],
    config: FastRolloutConfig,
    group_size: int,
    generator: Generator,
    greedy: bool = False,
    keep_trunk: bool = False,
) -> Rollout:
    """Sample ``group_size`` completions of each prompt, ``rollout.max_rows`` rows at a time.

    A row's random numbers depend neither on the other rows nor on the split. What a prompt holds of a completion counts
    towards its ``max_new_tokens``.

    Args:
        generator: CPU stream of the uniform numbers; not drawn from when greedy.
        greedy: take the likeliest token at each step.
        keep_trunk: return what the layers below the first adapted one gave out.
    """
    prompt_ids, prompt_lengths = left_pad(prompts, policy)  # (P, S), (P,)
    B, T = len(prompts) * group_size, config.max_new_tokens
    uniform = torch.zeros(B, T) if greedy else torch.rand(B, T, generator=generator)
    uniform = uniform.to(policy.device)
    out = Columns.empty(B, T, policy)
    limits = completion_limits(prompts, config, group_size, policy)  # (B,)
    trunk: _Trunk | None = None
    with ExitStack() as changed:
        if config.merge_adapter:
            changed.enter_context(policy.merged())
        if config.prepack_weights:
            changed.enter_context(prepacked(policy.causal_lm))
        changed.enter_context(attending_by(policy.model, ATTENTION))
        if keep_trunk and policy.first_adapted > 0:
            capture = changed.enter_context(captured(policy.causal_lm.get_decoder(), policy.first_adapted))
            trunk = _Trunk.empty(policy, prompt_ids, B, T, capture)
        for part, rows in parts(len(prompts), group_size, config.max_rows):
            _complete(policy, prompt_ids, prompt_lengths, part, rows, uniform, limits, config, greedy, out, trunk)
    return out.rollout(prompt_ids, prompt_lengths, None if trunk is None else trunk.states)


def _complete(
    policy: Policy,
    prompt_ids: Tensor,
    prompt_lengths: Tensor,
    part: slice,
    rows: range,
    uniform: Tensor,
    limits: Tensor,
    config: FastRolloutConfig,
    greedy: bool,
    out: Columns,
    trunk: "_Trunk | None",
) -> None:
    """Sample the rows of some prompts, the same number of each, into ``out`` and ``trunk``."""
    lengths = prompt_lengths[part]  # (p,)
    S, T, per_prompt = int(lengths.max()), config.max_new_tokens, len(rows) // len(lengths)
    in_prompt = torch.arange(S, 0, -1, device=policy.device) <= lengths[:, None]  # (p, S)
    cache = GroupCache(in_prompt, per_prompt, T, policy.causal_lm.dtype)
    logits = policy.model(
        input_ids=prompt_ids[part, -S:],
        position_ids=positions(in_prompt),
        use_cache=False,
        logits_to_keep=1,
        cache=cache,
    ).logits[:, -1]  # (p, V)
    if trunk is not None:
        trunk.read_prompts(part)
    logits = logits.repeat_interleave(per_prompt, dim=0)  # (b, V)
    position = lengths.repeat_interleave(per_prompt)  # (b,) of the next token
    alive = torch.tensor(list(rows), device=policy.device)  # rows that still grow; the tensors above hold these only
    eos = torch.tensor(policy.eos_ids, device=policy.device)

    for t in range(T):
        tokens, log_probs, entropy = sample(logits, uniform[alive, t], config, greedy)
        ended = torch.isin(tokens, eos)
        out.write(alive, t, tokens, log_probs, entropy, ended)
        done = ended | (limits[alive] <= t + 1)
        if bool(done.all()):
            break
        if bool(done.any()):
            keep = (~done).nonzero().squeeze(1)
            cache.keep(keep)
            alive, tokens, position = alive[keep], tokens[keep], position[keep]
        cache.next_column()
        logits = policy.model(
            input_ids=tokens[:, None], position_ids=position[:, None], use_cache=False, cache=cache
        ).logits[:, -1]  # (alive, V)
        if trunk is not None:
            trunk.read_column(alive, t)
        position = position + 1


@dataclass
class _Trunk:
    """The trunk's states while they are written."""

    states: TrunkStates
    capture: Capture

    @classmethod
    def empty(cls, policy: Policy, prompt_ids: Tensor, B: int, T: int, capture: Capture) -> "_Trunk":
        H = policy.causal_lm.config.get_text_config().hidden_size

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, H, dtype=policy.causal_lm.dtype, device=policy.device)

        return cls(TrunkStates(zeros(*prompt_ids.shape), zeros(B, T)), capture)

    def read_prompts(self, part: slice) -> None:
        self.states.prompt[part, -self.capture.hidden.shape[1] :] = self.capture.hidden

    def read_column(self, rows: Tensor, t: int) -> None:
        self.states.completion[rows, t] = self.capture.hidden[:, 0]

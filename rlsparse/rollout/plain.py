"""The reference engine: transformers' own cache, repeated for the group after the prompt, then one token a step."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from rlsparse.batch import Prompt, Rollout
from rlsparse.config.schema import RolloutConfig
from rlsparse.model.policy import Policy, positions
from rlsparse.rollout.columns import Columns, completion_limits, left_pad, parts
from rlsparse.rollout.sampling import sample


@torch.no_grad()
def generate(
    policy: Policy,
    prompts: Sequence[Prompt],
    config: RolloutConfig,
    group_size: int,
    generator: Generator,
    greedy: bool = False,
    keep_trunk: bool = False,
) -> Rollout:
    """Sample ``group_size`` completions of each prompt, ``rollout.max_rows`` rows at a time.

    A row's random numbers do not depend on the other rows; finished rows leave the batch. What a prompt holds of a
    completion counts towards its ``max_new_tokens``.

    Args:
        generator: CPU stream of the uniform numbers; not drawn from when greedy.
        greedy: take the likeliest token at each step.
        keep_trunk: of no effect here; whoever asks computes it again.
    """
    prompt_ids, prompt_lengths = left_pad(prompts, policy)  # (P, S), (P,)
    B, T = len(prompts) * group_size, config.max_new_tokens
    uniform = torch.zeros(B, T) if greedy else torch.rand(B, T, generator=generator)
    uniform = uniform.to(policy.device)
    out = Columns.empty(B, T, policy)
    limits = completion_limits(prompts, config, group_size, policy)  # (B,)
    for part, rows in parts(len(prompts), group_size, config.max_rows):
        _complete(policy, prompt_ids, prompt_lengths, part, rows, uniform, limits, config, greedy, out)
    return out.rollout(prompt_ids, prompt_lengths)


def _complete(
    policy: Policy,
    prompt_ids: Tensor,
    prompt_lengths: Tensor,
    part: slice,
    rows: range,
    uniform: Tensor,
    limits: Tensor,
    config: RolloutConfig,
    greedy: bool,
    out: Columns,
) -> None:
    """Sample the rows of some prompts, the same number of each, into ``out``."""
    lengths = prompt_lengths[part]  # (p,)
    S, T, per_prompt = int(lengths.max()), config.max_new_tokens, len(rows) // len(lengths)
    mask = torch.arange(S, 0, -1, device=policy.device) <= lengths[:, None]  # (p, S)
    reply = policy.model(
        input_ids=prompt_ids[part, -S:],
        attention_mask=mask.long(),
        position_ids=positions(mask),
        use_cache=True,
        logits_to_keep=1,
    )
    cache = reply.past_key_values
    cache.batch_repeat_interleave(per_prompt)
    logits = reply.logits[:, -1].repeat_interleave(per_prompt, dim=0)  # (b, V)
    mask = mask.long().repeat_interleave(per_prompt, dim=0)  # (b, S), grows by a column a step
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
            cache.batch_select_indices(keep)
            alive, tokens, mask, position = alive[keep], tokens[keep], mask[keep], position[keep]
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        logits = policy.model(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=position[:, None],
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]  # (alive, V)
        position = position + 1

"""Replay: sampling on from the middle of completions, since deep tokens rarely branch (T-SPMO, Lee & Tong 2025)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from rlsparse.batch import Prompt, Rollout, TrunkStates
from rlsparse.config.schema import ReplayConfig


def cut_completions(
    prompts: Sequence[Prompt], rollout: Rollout, correct: Tensor, config: ReplayConfig, generator: Generator
) -> tuple[list[Prompt], list[int]]:
    """Some right and some wrong completions of each prompt, cut at a random place, as prompts to go on from.

    As many of either as asked for, drawn without replacement, or all there are. A cut leaves at least one token and
    takes at least one away, each place alike; a completion of one token has none.

    Args:
        correct: (P, G) bool.

    Returns:
        the prompts, and for each the number of the one that it goes on with.
    """
    lengths = rollout.lengths.view(correct.shape).tolist()
    ids = rollout.completion_ids.view(*correct.shape, -1).tolist()
    found, origins = [], []
    for p, prompt in enumerate(prompts):
        for kind, count in ((True, config.successes), (False, config.failures)):
            rows = [g for g, right in enumerate(correct[p].tolist()) if right is kind and lengths[p][g] > 1]
            for i in torch.randperm(len(rows), generator=generator)[:count].tolist():
                g = rows[i]
                kept = 1 + int(torch.randint(lengths[p][g] - 1, (1,), generator=generator))
                found.append(replace(prompt, ids=(*prompt.ids, *ids[p][g][:kept]), begun=kept))
                origins.append(p)
    return found, origins


def joined(rollouts: Sequence[Rollout]) -> Rollout:
    """All rollouts' groups in one, padded to the longest; what is padding stays padding."""
    trunks = [one.trunk for one in rollouts if one.trunk is not None]
    trunk = None
    if len(trunks) == len(rollouts):
        trunk = TrunkStates(_left([one.prompt for one in trunks]), _right([one.completion for one in trunks]))
    return Rollout(
        prompt_ids=_left([one.prompt_ids for one in rollouts]),
        prompt_lengths=torch.cat([one.prompt_lengths for one in rollouts]),
        completion_ids=_right([one.completion_ids for one in rollouts]),
        lengths=torch.cat([one.lengths for one in rollouts]),
        ended=torch.cat([one.ended for one in rollouts]),
        log_probs=_right([one.log_probs for one in rollouts]),
        entropy=_right([one.entropy for one in rollouts]),
        trunk=trunk,
    )


def _right(parts: Sequence[Tensor]) -> Tensor:
    """(n, L, …), (m, L', …), … → (n + m + …, max(L, L', …), …), zeros on the right."""
    longest = max(x.shape[1] for x in parts)
    return torch.cat([_widened(x, (0, longest - x.shape[1])) for x in parts])


def _left(parts: Sequence[Tensor]) -> Tensor:
    longest = max(x.shape[1] for x in parts)
    return torch.cat([_widened(x, (longest - x.shape[1], 0)) for x in parts])


def _widened(x: Tensor, by: tuple[int, int]) -> Tensor:
    return pad(x, (*(0, 0) * (x.ndim - 2), *by))

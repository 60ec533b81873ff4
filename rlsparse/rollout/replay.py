"""Replay: sampling again from the middle of completions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from rlsparse.batch import FrozenStates, Prompt, Rollout
from rlsparse.components.component import Component, Range


@dataclass(frozen=True)
class Replay(Component):
    """Samples again from the middle of completions, since deep tokens rarely branch. T-SPMO, Lee & Tong 2025.

    Attributes:
        successes, failures: how many right and how many wrong completions of each prompt are cut.
    """

    successes: Annotated[int, Range(0)]
    failures: Annotated[int, Range(0)]

    @property
    def active(self) -> bool:
        """Whether anything is replayed."""
        return self.successes + self.failures > 0

    def cut(
        self, prompts: Sequence[Prompt], rollout: Rollout, correct: Tensor, generator: Generator
    ) -> tuple[list[Prompt], list[int]]:
        """Cut completions at a random place and return them as prompts, with the number of the prompt of each.

        As many as asked for, drawn without replacement, or all that there are. A cut leaves at least one token and
        takes at least one away, each place with equal chance; a completion of one token cannot be cut.

        Args:
            correct: (P, G) bool.
            generator: CPU stream of the draws of this stage.
        """
        lengths = rollout.lengths.view(correct.shape).tolist()
        ids = rollout.completion_ids.view(*correct.shape, rollout.completion_ids.shape[1]).tolist()
        found, origins = [], []
        for p, prompt in enumerate(prompts):
            for kind, count in ((True, self.successes), (False, self.failures)):
                rows = [g for g, right in enumerate(correct[p].tolist()) if right is kind and lengths[p][g] > 1]
                for i in torch.randperm(len(rows), generator=generator)[:count].tolist():
                    g = rows[i]
                    kept = 1 + int(torch.randint(lengths[p][g] - 1, (1,), generator=generator))
                    found.append(replace(prompt, ids=(*prompt.ids, *ids[p][g][:kept]), begun=kept))
                    origins.append(p)
        return found, origins


def joined(rollouts: Sequence[Rollout]) -> Rollout:
    """Return the groups of all rollouts in one, padded to the longest; padding stays padding.

    With P the sum of their prompts, B that of their completions, and S and T the longest of each, the result has
    prompts (P, S) and completions (B, T). Entropies and the outputs of frozen layers are None if one rollout has none.
    """
    kept = [one.frozen_states for one in rollouts if one.frozen_states is not None]
    states = None
    if len(kept) == len(rollouts):
        states = FrozenStates(_left([one.prompt for one in kept]), _right([one.completion for one in kept]))
    entropies = [one.entropy for one in rollouts if one.entropy is not None]
    return Rollout(
        prompt_ids=_left([one.prompt_ids for one in rollouts]),
        prompt_lengths=torch.cat([one.prompt_lengths for one in rollouts]),
        completion_ids=_right([one.completion_ids for one in rollouts]),
        lengths=torch.cat([one.lengths for one in rollouts]),
        ended=torch.cat([one.ended for one in rollouts]),
        log_probs=_right([one.log_probs for one in rollouts]),
        entropy=_right(entropies) if len(entropies) == len(rollouts) else None,
        frozen_states=states,
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

"""Rollouts over several ranks: each samples its share of the prompts, with the random numbers they have on one."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Generator

from rlsparse.batch import Prompt, Rollout
from rlsparse.config.schema import RolloutConfig
from rlsparse.model.policy import Policy
from rlsparse.rollout.replay import joined
from rlsparse.runtime.distributed import Ranks


def over_ranks(generate: Any, ranks: Ranks) -> Any:
    """The engine, its prompts shared out; every rank gets the whole rollout.

    What the trunk gave out is not exchanged, so training computes it again.
    """
    if ranks.size == 1:
        return generate

    def generate_share(
        policy: Policy,
        prompts: Sequence[Prompt],
        config: RolloutConfig,
        group_size: int,
        generator: Generator,
        greedy: bool = False,
        keep_trunk: bool = False,
    ) -> Rollout:
        start, end = ranks.bounds(len(prompts))
        own = prompts[start:end]

        def pass_over(count: int) -> None:
            """Draw what other ranks' rows take from the stream."""
            if not greedy:
                torch.rand(count * group_size, config.max_new_tokens, generator=generator)

        pass_over(start)
        rollouts = [generate(policy, own, config, group_size, generator, greedy=greedy)] if own else []
        pass_over(len(prompts) - end)
        parts = ranks.gathered([_moved(one, torch.device("cpu")) for one in rollouts])
        return _moved(joined(parts), policy.device)

    return generate_share


def _moved(rollout: Rollout, device: torch.device) -> Rollout:
    tensors = {field.name: getattr(rollout, field.name) for field in fields(rollout) if field.name != "trunk"}
    return Rollout(**{name: tensor.to(device) for name, tensor in tensors.items()})

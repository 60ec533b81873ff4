"""Rollouts: completions sampled from the policy, with the behaviour model's log-probabilities.

Every engine is ``f(policy, prompts, config, group_size, generator, greedy) -> Rollout``.
"""

from collections.abc import Callable

from rlsparse.batch import Rollout
from rlsparse.rollout import plain

ENGINES: dict[str, Callable[..., Rollout]] = {"plain": plain.generate}

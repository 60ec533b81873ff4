"""Rollouts: completions sampled from the policy, with the behaviour model's log-probabilities.

Every engine is ``f(policy, prompts, config, group_size, generator, greedy) -> Rollout``.
"""

from collections.abc import Callable

from rlsparse.attention import obstacle
from rlsparse.batch import Rollout
from rlsparse.config import RolloutConfig
from rlsparse.policy import Policy
from rlsparse.rollout import fast, plain

Engine = Callable[..., Rollout]
ENGINES: dict[str, Engine] = {"fast": fast.generate, "plain": plain.generate}


def engine(policy: Policy, config: RolloutConfig, say: Callable[[str], None]) -> Engine:
    """The engine of ``rollout.name``, or the plain one with a line that says why the model needs it."""
    reason = obstacle(policy.model) if config.name == "fast" else None
    if reason is None:
        return ENGINES[config.name]
    say(f"rollout: plain for this model: {reason}")
    return plain.generate

"""Rollouts: completions sampled from the policy, with the behaviour model's log-probabilities.

Every engine is ``f(policy, prompts, config, group_size, generator, greedy, keep_trunk) -> Rollout``.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Generator, Tensor

from rlsparse.batch import Problem, Prompt, Rollout
from rlsparse.config.schema import FastRolloutConfig, RolloutConfig
from rlsparse.model.attention import obstacle
from rlsparse.model.policy import Policy
from rlsparse.model.self_check import TOKENS, differs_from_plain
from rlsparse.rollout import fast, plain
from rlsparse.runtime.oom import MemoryLimits, until_it_fits

Engine = Callable[..., Rollout]
ENGINES: dict[str, Engine] = {"fast": fast.generate, "plain": plain.generate}


def engine(policy: Policy, config: RolloutConfig, say: Callable[[str], None]) -> Engine:
    """The engine of ``rollout.name``, or the plain one with a line that says why the model needs it."""
    reason = _obstacle(policy, config) if isinstance(config, FastRolloutConfig) else None
    if reason is None:
        return ENGINES[config.name]
    say(f"rollout: plain for this model: {reason}")
    return plain.generate


def within_memory(generate: Engine, limits: MemoryLimits, say: Callable[[str], None]) -> Engine:
    """The engine, with half the rows at a time, and again half, where memory runs out; the same completions.

    Args:
        limits: of which ``rollout_rows`` is halved, for good.
        say: told so, once.
    """
    said = False

    def generate_in_parts(
        policy: Policy,
        prompts: Sequence[Prompt],
        config: RolloutConfig,
        group_size: int,
        generator: Generator,
        **how: Any,
    ) -> Rollout:
        drawn = generator.get_state()

        def once() -> Rollout:
            generator.set_state(drawn)
            fewer = replace(config, max_rows=min(config.max_rows, limits.rollout_rows))
            return generate(policy, prompts, fewer, group_size, generator, **how)

        def halve() -> bool:
            nonlocal said
            rows = min(config.max_rows, limits.rollout_rows, len(prompts) * group_size)
            if rows == 1:
                return False
            limits.rollout_rows = rows // 2
            if not said:
                say(
                    f"out of memory in the rollout: {limits.rollout_rows} rows at a time from here on, and fewer where "
                    "need be; the completions do not depend on it"
                )
            said = True
            return True

        return until_it_fits(once, halve)

    return generate_in_parts


def _obstacle(policy: Policy, config: FastRolloutConfig) -> str | None:
    """Why the model needs the plain engine; None where its modules allow the fast one and tokens come out right."""

    def attempt() -> tuple[Rollout, Tensor]:
        prompts = [Prompt(Problem("", "", ""), ids) for ids in ((1, 2, 3), (4, 5))]
        short = replace(config, max_new_tokens=TOKENS, temperature=1.0)
        rollout = fast.generate(replace(policy, eos_ids=()), prompts, short, 2, Generator().manual_seed(0))
        return rollout, rollout.log_probs

    reason = obstacle(policy.model)
    if reason is None:
        difference = differs_from_plain(policy, attempt)
        reason = difference and f"with our cache, {difference}"
    return reason

"""Sampling within memory limits, divided over the ranks of a run."""

import logging
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Generator

from rlsparse.batch import NonFiniteError, Rollout
from rlsparse.model.policy import Policy
from rlsparse.rollout.engine import Request, RolloutEngine
from rlsparse.rollout.replay import joined
from rlsparse.runtime.distributed import World
from rlsparse.runtime.oom import MemoryLimits, until_it_fits

log = logging.getLogger(__name__)


@dataclass
class RolloutSampler:
    """Samples completions of a policy with an engine.

    Attributes:
        limits: ``rollout_rows`` is halved where memory runs out, for the rest of the run.
        world: the ranks that share the prompts; each gets the whole rollout.
    """

    policy: Policy
    engine: RolloutEngine
    limits: MemoryLimits
    world: World
    _warned: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether completions have the probabilities that training computes; see ``RolloutEngine.is_exact``."""
        return self.engine.is_exact(self.policy)

    def __call__(self, request: Request, generator: Generator) -> Rollout:
        """Return the completions of a request, with the random numbers that a single rank would draw.

        Args:
            generator: CPU stream of the uniform numbers; it advances equally on every rank.

        Raises:
            NonFiniteError: the log-probabilities of the policy are not finite.
            ServerError: of ``rollout=vllm``: no server has answered.
        """
        rollout = self._sample(request, generator) if self.world.size == 1 else self._share(request, generator)
        rollout.require_finite()
        return rollout

    def _sample(self, request: Request, generator: Generator) -> Rollout:
        """Sample here: with half the rows at a time, and half again, where memory runs out; the same completions."""
        drawn = generator.get_state()

        def once() -> Rollout:
            generator.set_state(drawn)
            engine = replace(self.engine, max_rows=min(self.engine.max_rows, self.limits.rollout_rows))
            return engine.generate(self.policy, request, generator)

        return until_it_fits(once, lambda: self._halve(len(request.prompts) * request.group_size))

    def _halve(self, rows: int) -> bool:
        rows = min(self.engine.max_rows, self.limits.rollout_rows, rows)
        if rows == 1:
            return False
        self.limits.rollout_rows = rows // 2
        if not self._warned:
            log.info(
                "out of memory in the rollout: %d rows at a time from now on, and fewer if necessary; the completions "
                "do not depend on it",
                self.limits.rollout_rows,
            )
        self._warned = True
        return True

    def _share(self, request: Request, generator: Generator) -> Rollout:
        """Sample the share of this rank and exchange.

        The states of frozen layers are not exchanged, so training computes them again.
        """
        prompts = request.prompts
        start, end = self.world.bounds(len(prompts))
        own = replace(request, prompts=prompts[start:end], keep_states=False)

        self.engine.pass_over(request, start, generator)
        found: list[Rollout | NonFiniteError] = []
        if own.prompts:
            try:
                found = [moved(self._sample(own, generator), torch.device("cpu"))]
            except NonFiniteError as error:  # raised by every rank below: one alone would leave the others waiting
                found = [error]
        self.engine.pass_over(request, len(prompts) - end, generator)
        parts = []
        for one in self.world.gathered(found):
            if isinstance(one, NonFiniteError):
                raise one
            parts.append(one)
        return moved(joined(parts), self.policy.device)


def moved(rollout: Rollout, device: torch.device) -> Rollout:
    """Return a rollout on another device, without the outputs of the frozen layers."""
    parts: dict[str, Any] = {
        field.name: getattr(rollout, field.name) for field in fields(rollout) if field.name != "frozen_states"
    }
    moved: dict[str, Any] = {name: None if part is None else part.to(device) for name, part in parts.items()}
    return Rollout(**moved)

"""A model with an adapter that is not zero, and prompts for it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from rlsparse.algorithm import Algorithm
from rlsparse.batch import Prompt, Rollout, ScoredBatch, TokenBatch
from rlsparse.components.adapter import TrainedAdapter
from rlsparse.config.compose import compose
from rlsparse.config.schema import Config
from rlsparse.execution.self_check.findings import Figure, Setting
from rlsparse.model.loading import load_policy
from rlsparse.model.policy import Policy
from rlsparse.rollout import RolloutEngine
from rlsparse.runtime.devices import cpu_threads, resolve_device
from rlsparse.runtime.rng import stream
from rlsparse.tracking.profiling import free_memory
from rlsparse.training.data import encode_task

RELATIVE = 1e-5  # of log-probabilities and entropies, besides an absolute bound
NOISE = 0.01  # standard deviation of what is added to the adapter, whose product is zero at the start


@dataclass(frozen=True)
class Scene:
    """What is compared.

    Attributes:
        prompts: P prompts.
        words: the overrides of the config.
    """

    config: Config
    algorithm: Algorithm
    policy: Policy
    adapter: TrainedAdapter
    prompts: list[Prompt]
    words: list[str]

    def engine(self, name: str) -> RolloutEngine:
        """Return an option of the group ``rollout`` with the settings of the config."""
        return Algorithm.build(compose([*self.words, f"rollout={name}"])).rollout

    def batch(self, rollout: Rollout) -> ScoredBatch:
        """Return a rollout with rewards that differ within each group, and everything up to the loss."""
        rows = torch.arange(len(rollout.lengths), device=self.policy.device)
        rewards = (rows % 3 == 0).float().view(-1, rollout.group_size)  # (P, G); no group has equal rewards
        advantages = self.algorithm.token_advantages(rewards, rollout)  # (B, T)
        selection = self.algorithm.select(advantages, rollout, stream(0, "token_sampler"))
        return self.algorithm.scored(TokenBatch(rollout, advantages, selection, range(len(rewards))))[0]


@contextmanager
def scene(setting: Setting, prompts: int, *words: str) -> Iterator[Scene]:
    """Load the model of a setting within the context, and use as many CPU threads as a run would.

    Args:
        prompts: P, word problems.
        words: overrides.
    """
    words = ("task=word_problems", f"task.train_rows={prompts}", "lora_rank=8", *setting.words(), *words)
    config = compose(words)
    algorithm = Algorithm.build(config)
    device = resolve_device(config.device)
    free_memory(device)  # of the model of an earlier scene
    policy = load_policy(config.model, device, config.dtype)
    with cpu_threads(config.threads, policy.model.num_parameters()):
        data = encode_task(policy, algorithm.task, algorithm.rollout.max_new_tokens, 1)
        adapter = algorithm.adapter.attach(policy, config.lora_rank, 0)
        with torch.no_grad():
            for number, p in enumerate(adapter.parameters()):
                p.add_((NOISE * torch.randn(p.shape, generator=stream(number, "adapter"))).to(p.device))
        yield Scene(config, algorithm, policy, adapter, data.train[:prompts], list(words))


def difference(name: str, found: Tensor, expected: Tensor, absolute: float) -> Figure:
    """Return the difference in nats of two tensors of the same shape where it is greatest for what is allowed there.

    ``absolute`` + ``RELATIVE`` · abs(expected) is allowed, as in ``torch.testing.assert_close``. Without any number to
    compare, the difference is NaN.
    """
    found, expected = (x.detach().double().cpu().flatten() for x in (found, expected))  # (n,) each
    apart, allowed = (found - expected).abs(), absolute + RELATIVE * expected.abs()  # (n,) each
    if not len(found):
        return Figure(name, math.nan, "nats", absolute)
    worst = int((apart / allowed).argmax())
    return Figure(name, float(apart[worst]), "nats", float(allowed[worst]))


def distance(a: Tensor, b: Tensor) -> float:
    """Return the length of a − b relative to that of b."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).norm() / b.norm())

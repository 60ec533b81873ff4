"""The gradient of an update depends neither on the microbatches, the path, the ranks, nor on the order of the prompts."""

import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from torch.optim import Optimizer

from rlsparse.algorithm import Algorithm
from rlsparse.batch import Problem, Rollout, ScoredBatch, TokenBatch
from rlsparse.config.compose import config_dir
from rlsparse.config.schema import Config
from rlsparse.model.packing import PACKED
from rlsparse.model.policy import PLAIN, Policy, encode_prompt
from rlsparse.rollout import Request
from rlsparse.runtime.distributed import ALONE, World
from rlsparse.runtime.oom import MemoryLimits
from rlsparse.runtime.rng import stream, stream_seed
from rlsparse.training.microbatch import FitMicrobatches
from rlsparse.training.update import UpdateMetrics, Updater
from tests.conftest import built, composed
from tests.test_config import yaml_of
from tests.test_objective import assert_same

P, G, T = 5, 3, 18
SAMPLERS = {
    "random": "token_sampler=random token_sampler.budget=6 token_sampler.reweight=true",
    "high_entropy": "token_sampler=high_entropy token_sampler.scope=batch token_sampler.share=0.4 token_sampler.budget=null",
    "low_first": "token_sampler=low_probability_first token_sampler.alpha=0.3",
    "prefix_tree": "token_sampler=prefix_tree advantage=prefix_tree",
}
PENALTIES = {
    "off": "kl=off",
    "k3": "kl=on kl.beta=0.5",
    "k3_ratio": "kl=on kl.beta=0.5 kl.estimator=k3_ratio",
    "reward": "kl=on kl.beta=0.5 kl.estimator=k1 kl.place=reward",
}
CLIPPED = ("on", "clip_higher", "dual_clip", "gspo", "gmpo", "dppo")  # those whose bounds these batches exceed


composed_once = cache(composed)


def quickly_composed(*overrides: str) -> Config:
    """Return what ``composed`` does for options of components and keys, without Hydra, which takes 0.1 s each time."""
    config = composed_once()
    for name, value in (override.split("=", 1) for override in overrides):
        group, _, key = name.partition(".")
        if not key:
            is_option = isinstance(getattr(config, group), dict)
            config = replace(config, **{group: yaml_of(group, value) if is_option else yaml.safe_load(value)})
            continue
        node = getattr(config, group)
        changes = {key: yaml.safe_load(value)}
        assert key in (node if isinstance(node, dict) else vars(node)), name
        config = replace(config, **{group: node | changes if isinstance(node, dict) else replace(node, **changes)})
    return config


def test_config_that_is_composed_without_hydra_is_the_same():
    overrides = ("seed=3", "clipping=gspo", "off_policy=geometric", "kl=off", "kl.beta=0.5", "train.minibatches=2")
    assert quickly_composed(*overrides) == composed(*overrides)


class Case(NamedTuple):
    """A point in the space of components, and how its update is cut.

    The cuts differ from those of the reference: plain rows, microbatches of 64 rows, one rank.
    """

    clipping: str
    sampler: str
    kl: str
    entropy: str
    objective: str
    behaviour: str  # an option of off_policy, or "policy": the policy itself has sampled
    steps: str
    microbatch: str
    path: str
    ranks: str
    order: str

    @property
    def config(self) -> Config:
        """The config of the run."""
        overrides = (
            f"rollout.max_new_tokens={T}",
            f"clipping={self.clipping}",
            *SAMPLERS.get(self.sampler, f"token_sampler={self.sampler}").split(),
            *PENALTIES[self.kl].split(),
            f"entropy.coefficient={'0.05' if self.entropy == 'on' else '0.0'}",
            f"objective={self.objective}",
            f"off_policy={'none' if self.behaviour == 'policy' else self.behaviour}",
            f"train.updates_per_rollout={2 if self.steps == 'passes' else 1}",
            "train.max_grad_norm=0.0",
        )
        return quickly_composed(*overrides)


# Each option occurs, and 4 of 5 pairs of options of different columns do.
TABLE = """
on          random       k3_ratio on  constant      none          passes      3  packed 1 same
clip_higher full         off      off prompt_mean   truncated     minibatches 1  plain  2 same
dual_clip   prefix_cut   reward   off sequence_mean geometric     minibatches 64 packed 1 other
cispo       high_entropy k3_ratio on  token_mean    policy        passes      64 plain  2 other
gspo        random       k3       off sequence_sum  sequence_mask passes      3  plain  2 other
gmpo        full         k3       on  prompt_mean   importance    passes      1  packed 1 same
sapo        high_entropy reward   on  sequence_sum  retrace       minibatches 1  packed 2 same
dppo        prefix_cut   off      on  token_mean    masked        minibatches 3  packed 1 same
ratio_only  prefix_cut   k3       off constant      none          minibatches 1  plain  2 other
self_ratio  high_entropy off      off sequence_mean retrace       passes      3  plain  1 other
off         full         k3_ratio off sequence_mean masked        passes      1  packed 2 other
prob        prefix_cut   k3_ratio on  prompt_mean   sequence_mask minibatches 64 packed 1 same
on          random       off      off sequence_mean importance    minibatches 64 plain  2 other
clip_higher prefix_cut   reward   on  sequence_sum  policy        passes      3  plain  1 other
dual_clip   high_entropy k3       on  token_mean    geometric     passes      3  plain  2 same
cispo       random       k3       off prompt_mean   policy        minibatches 1  packed 1 same
gspo        high_entropy reward   on  constant      truncated     minibatches 64 packed 1 same
gmpo        random       reward   off sequence_sum  masked        minibatches 64 plain  2 other
sapo        prefix_cut   k3_ratio off constant      truncated     passes      3  plain  1 other
dppo        full         reward   off prompt_mean   none          passes      64 plain  1 other
ratio_only  full         reward   on  token_mean    sequence_mask passes      3  packed 1 same
self_ratio  random       k3_ratio off token_mean    importance    minibatches 1  packed 2 same
off         prefix_cut   k3       on  prompt_mean   retrace       minibatches 64 plain  2 same
prob        full         k3       off constant      importance    passes      3  plain  2 other
on          full         k3_ratio on  sequence_sum  geometric     passes      3  packed 1 other
clip_higher high_entropy k3       on  sequence_mean masked        passes      64 packed 2 same
gspo        low_first    k3       on  sequence_mean truncated     minibatches 3  packed 2 other
on          low_first    reward   off token_mean    policy        passes      3  packed 2 other
prob        prefix_tree  off      off prompt_mean   policy        minibatches 3  packed 2 other
prob        prefix_tree  k3_ratio on  prompt_mean   none          passes      1  packed 2 same
"""
CASES = [Case(*line.split()) for line in TABLE.split("\n") if line]


@dataclass(frozen=True)
class Sampled:
    """A policy with an adapter for each of two ranks, the start of the adapter, and a rollout of the policy without it.

    A copy of the policy would take as long as an update, so each update puts the start into the adapter.
    """

    policies: list[Policy]
    adapters: list[Any]
    start: list[torch.Tensor]
    rollout: Rollout

    def at_start(self, rank: int) -> tuple[Policy, Any]:
        """Return policy and adapter of a rank before the first step."""
        with torch.no_grad():
            for p, value in zip(self.adapters[rank].parameters(), self.start, strict=True):
                p.copy_(value)
        return self.policies[rank], self.adapters[rank]


def two_ranks(loaded_tiny: Policy) -> Sampled:
    """Return completions of 1 to 18 tokens, sampled without an end token and cut at random."""
    prompts = [encode_prompt(loaded_tiny, Problem(q, "", ""), q) for q in ("57*4=", "1*3=", "98*7=", "105*26=", "7*7=")]
    engine, endless = built(f"rollout.max_new_tokens={T}").rollout, replace(loaded_tiny, eos_ids=(), stop_text=None)
    rollout = engine.generate(endless, Request(prompts, G), stream(0, "rollout"))
    lengths = torch.randint(1, T + 1, (P * G,), generator=stream(0, "lengths"))
    lengths[3] = T
    rollout = replace(rollout, lengths=lengths)
    rollout = replace(rollout, log_probs=rollout.log_probs * rollout.mask, entropy=rollout.entropy * rollout.mask)
    policies = [copy.deepcopy(loaded_tiny) for _ in range(2)]
    adapters = [built().adapter.attach(policy, 4, stream_seed(0, "adapter")) for policy in policies]
    generator = torch.Generator().manual_seed(7)
    start = [p.detach() + 0.05 * torch.randn(p.shape, generator=generator) for p in adapters[0].parameters()]
    return Sampled(policies, adapters, start, rollout)


@pytest.fixture(scope="module")
def sampled(loaded_tiny: Policy) -> Sampled:
    return two_ranks(loaded_tiny)


def token_batch(algorithm: Algorithm, rollout: Rollout, behaviour: str, seed: int) -> TokenBatch:
    """Return a batch with random rewards, of which one group has equal ones."""
    if behaviour != "policy":
        noise = 0.4 * torch.randn(rollout.log_probs.shape, generator=stream(seed, "noise"))
        rollout = replace(rollout, log_probs=(rollout.log_probs + noise).clamp(max=0) * rollout.mask)
    rewards = torch.randint(0, 2, (P, G), generator=stream(seed, "rewards")).float()
    rewards[:, 0], rewards[:, 1], rewards[2] = 1.0, 0.0, 1.0
    advantages = algorithm.token_advantages(rewards, rollout)
    selection = algorithm.select(advantages, rollout, stream(seed, "token_sampler"))
    return TokenBatch(rollout, advantages, selection, range(P), on_policy=behaviour == "policy")


def reordered(batch: TokenBatch, groups: torch.Tensor) -> TokenBatch:
    """Return the groups of a batch in another order; each is of a prompt of its own."""
    rows = batch.rollout.rows_of(groups)
    return replace(
        batch,
        rollout=batch.rollout.take(groups),
        advantages=batch.advantages[rows],
        selection=batch.selection.take(rows),
    )


def scored(algorithm: Algorithm, minibatches: Sequence[TokenBatch], order: str) -> list[ScoredBatch]:
    """Return the minibatches with their scales, in the same or another order of their prompts."""
    found = []
    for number, one in enumerate(minibatches):
        if order == "other":
            one = reordered(one, torch.randperm(len(one.origins), generator=stream(number, "order")))
        found += algorithm.scored(one)
    return found


class Descent(Optimizer):
    """Moves by a fixed distance along the gradient, which it keeps. AdamW would make large steps of rounding errors."""

    def __init__(self, parameters: list[torch.nn.Parameter], distance: float) -> None:
        super().__init__([{"params": parameters}], {})
        self.distance, self.gradients = distance, []

    def step(self, closure: Any = None) -> None:
        parameters = self.param_groups[0]["params"]
        gradient = torch.cat([p.grad.flatten() for p in parameters])
        self.gradients.append(gradient)
        with torch.no_grad():
            for p in parameters:
                p.sub_(self.distance / gradient.norm() * p.grad)


@dataclass
class Meeting:
    """What the ranks of a world, here threads, bring to an exchange."""

    barrier: threading.Barrier
    parts: list[list] = field(default_factory=list)


@dataclass(frozen=True)
class ThreadWorld(World):
    """A world whose ranks are threads of one process."""

    meeting: Meeting | None = None

    def gathered(self, part: list) -> list:
        self.meeting.parts[self.rank] = part
        self.meeting.barrier.wait()
        found = [item for one in self.meeting.parts for item in one]
        self.meeting.barrier.wait()
        return found

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        parts = self.gathered([[torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]])
        for parameter, grads in zip(parameters, zip(*parts, strict=True), strict=True):
            parameter.grad = sum(grads)


def on_ranks(count: int, work: Callable[[World], Any]) -> list[Any]:
    """Return what each of some ranks computes."""
    meeting = Meeting(threading.Barrier(count, timeout=60), [[] for _ in range(count)])

    def of_rank(rank: int) -> Any:
        try:
            return work(ThreadWorld(rank, count, meeting=meeting))
        except BaseException:
            meeting.barrier.abort()  # so that the others do not wait for it
            raise

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(of_rank, range(count)))


def descended(
    sampled: Sampled, config: Config, case: Case, batches: Sequence[ScoredBatch], world: World = ALONE
) -> tuple[list[torch.Tensor], UpdateMetrics]:
    """Return the gradient of each step on some batches, and the metrics."""
    policy, adapter = sampled.at_start(world.rank)
    algorithm, optimizer = Algorithm.build(config), Descent(adapter.parameters(), 1.0)
    path = {"plain": PLAIN, "packed": PACKED}[case.path]
    train = replace(config.train, packing="auto" if path.packed else "off", microbatch=int(case.microbatch))
    fit = FitMicrobatches(train, MemoryLimits.of(P * G, train))
    update = Updater(policy, path, optimizer, algorithm, train, fit, world, policy.reference)
    metrics = update(batches)
    return optimizer.gradients, metrics


def numbers(metrics: UpdateMetrics) -> dict[str, float]:
    """Return the metrics without the mismatch; an entropy that is not computed counts as 0."""
    found = {name: value for name, value in vars(metrics).items() if name != "mismatch"}
    return {**found, "entropy": metrics.entropy or 0.0}


@pytest.mark.parametrize("number", range(len(CASES)), ids=["-".join(case) for case in CASES])
def test_gradients_of_an_update_cut_in_another_way_are_the_same(sampled, number):
    case = CASES[number]
    config = case.config
    algorithm = Algorithm.build(config)
    batch = token_batch(algorithm, sampled.rollout, case.behaviour, seed=number)
    minibatches = batch.minibatches(2 if case.steps == "minibatches" else 1, stream(number, "minibatches"))
    whole = case._replace(microbatch="64", path="plain", ranks="1", order="same")
    expected, expected_metrics = descended(sampled, config, whole, scored(algorithm, minibatches, "same"))
    batches = scored(algorithm, minibatches, case.order)
    if case.ranks == "1":
        results = [descended(sampled, config, case, batches)]
    else:
        results = on_ranks(int(case.ranks), lambda world: descended(sampled, config, case, batches, world))
    assert len(expected) == expected_metrics.updates >= 2
    for gradients, metrics in results:
        for one, other in zip(gradients, expected, strict=True):
            assert_same(one, other, 1e-4)
        assert numbers(metrics) == pytest.approx(numbers(expected_metrics), rel=1e-4, abs=1e-6)
        assert vars(metrics.mismatch) == pytest.approx(vars(expected_metrics.mismatch), rel=1e-4, abs=1e-5)
    # the cases see what they are there for
    assert (expected_metrics.frac_clipped > 0) == (case.clipping in CLIPPED)
    assert (expected_metrics.mismatch.tokens > 0) == (case.behaviour != "policy")
    assert (expected_metrics.kl != 0) == (case.kl != "off")


def test_cases_hold_each_shipped_option_of_their_groups():
    for column, group in (("clipping", "clipping"), ("objective", "objective"), ("behaviour", "off_policy")):
        options = {file.stem for file in (Path(config_dir()) / group).glob("*.yaml")}
        assert {getattr(case, column) for case in CASES} - {"policy"} == options, group


@pytest.mark.parametrize(
    "advantage",
    [file.stem for file in sorted((Path(config_dir()) / "advantage").glob("*.yaml")) if file.stem != "gdpo"],
)
def test_advantages_of_reordered_groups_are_the_advantages_of_the_groups_reordered(sampled, advantage):
    keys = ("advantage.k=2",) if advantage == "pass_at_k" else ()
    token_sampler = "prefix_tree" if advantage == "prefix_tree" else "full"
    overrides = (f"advantage={advantage}", *keys, f"token_sampler={token_sampler}", "clipping=off")
    algorithm = Algorithm.build(quickly_composed(*overrides))
    rewards, groups = torch.rand(P, G, generator=stream(1, "rewards")), torch.tensor([3, 0, 4, 2, 1])
    first = algorithm.token_advantages(rewards, sampled.rollout)
    other = algorithm.token_advantages(rewards[groups], sampled.rollout.take(groups))
    assert first.abs().sum() > 0
    torch.testing.assert_close(other, first[sampled.rollout.rows_of(groups)])


@pytest.mark.parametrize("sampler", ["full", "first", "high_entropy", "low_probability", "low_first"])
def test_selection_of_reordered_groups_by_a_sampler_that_draws_nothing_is_that_of_the_groups_reordered(
    sampled, sampler
):
    config = quickly_composed(*SAMPLERS.get(sampler, f"token_sampler={sampler}").split())
    token_sampler = Algorithm.build(config).token_sampler
    groups, advantages = torch.tensor([3, 0, 4, 2, 1]), torch.ones(P * G, T) * sampled.rollout.mask
    rows = sampled.rollout.rows_of(groups)
    first = token_sampler(advantages, sampled.rollout, torch.Generator())
    other = token_sampler(advantages[rows], sampled.rollout.take(groups), torch.Generator())
    torch.testing.assert_close(vars(other), vars(first.take(rows)))

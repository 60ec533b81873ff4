"""The example in one file, held against the package: rewards, constants, gradients; and that it learns."""

import ast
import copy
import importlib.util
import re
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from rlsparse.batch import Problem, Rollout, ScoredBatch
from rlsparse.components.objective import ScoredTokens
from rlsparse.components.reward import Verifier
from rlsparse.model.policy import PLAIN, Policy, encode_prompt
from rlsparse.rollout import Request
from rlsparse.runtime.distributed import ALONE
from rlsparse.runtime.oom import MemoryLimits
from rlsparse.runtime.rng import stream, stream_seed
from rlsparse.training.microbatch import FitMicrobatches
from rlsparse.training.update import Updater
from tests.commands import run_command
from tests.conftest import ROOT, built, composed

EXAMPLE = ROOT / "examples" / "minimal_grpo.py"
METHODS = ["grpo", "sgrpo", "tspmo"]
QUESTIONS = ("57*4=", "12*3=", "98*7=", "40*6=")
GROUP = 6  # completions of each question
BUDGET = 8  # k of S-GRPO here: small enough that completions reach it


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minimal_grpo", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def options(method: str) -> list[str]:
    """Return the overrides of a method: its preset, without gradient clipping, and for S-GRPO a small budget."""
    budget = [f"token_sampler.budget={BUDGET}"] if method == "sgrpo" else []
    return [f"algorithm={method}", "rollout=plain", "train.max_grad_norm=0", *budget]


def adapted(policy: Policy) -> tuple[Policy, list[torch.nn.Parameter], torch.optim.Optimizer]:
    """Return a policy whose adapter has non-zero B, the parameters, and an optimizer that does not move them."""
    policy = copy.deepcopy(policy)
    adapter = built().adapter.attach(policy, 8, stream_seed(0, "adapter"))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    return policy, adapter.parameters(), adapter.optimizer(0.0, 0.0)


def sampled(policy: Policy) -> tuple[Rollout, Tensor]:
    """Return a rollout of the package and random rewards (P, G); all completions of one question are right."""
    prompts = [encode_prompt(policy, Problem(question, "", ""), question) for question in QUESTIONS]
    rollout = built("rollout=plain").rollout.generate(policy, Request(prompts, GROUP), stream(0, "rollout"))
    rewards = torch.randint(0, 2, (len(QUESTIONS), GROUP), generator=stream(0, "rewards")).float()
    rewards[1] = 1.0
    return rollout, rewards


def scored(method: str, rollout: Rollout, rewards: Tensor) -> ScoredBatch:
    """Return everything up to the loss, as train.py makes it."""
    algorithm = built(*options(method))
    advantages = algorithm.token_advantages(rewards, rollout)
    selection = algorithm.token_sampler(advantages, rollout, stream(0, "token_sampler"))
    return ScoredBatch(rollout, advantages, algorithm.token_scales(selection, advantages, range(len(rewards))))


def credited(example: ModuleType, method: str, rollout: Rollout, rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Return the advantages and the chosen tokens of the example, (P, G, T) each, with the random numbers of the package."""
    shape = (*rewards.shape, -1)
    mask = rollout.mask.view(shape)
    advantage = example.advantages(method, rewards, rollout.completion_ids.view(shape), mask)
    uniform = torch.rand(rollout.mask.shape, generator=stream(0, "token_sampler")).view(shape)
    return advantage, example.select(method, advantage, mask, uniform)


def gradient(parameters: list[torch.nn.Parameter]) -> list[Tensor]:
    """Return copies of the gradients, and clear them."""
    found = []
    for parameter in parameters:
        assert parameter.grad is not None
        found.append(parameter.grad.clone())
        parameter.grad = None
    return found


@pytest.mark.parametrize("method", METHODS)
def test_gradient_of_the_example_equals_that_of_the_package(example, tiny, method, monkeypatch):
    monkeypatch.setattr(example, "K", BUDGET)
    policy, parameters, optimizer = adapted(tiny)
    rollout, rewards = sampled(policy)

    batch = scored(method, rollout, rewards)
    config = composed(*options(method))
    algorithm = built(*options(method))
    fit = FitMicrobatches(config.train, MemoryLimits.of(algorithm.rollout.max_rows, config.train))
    metrics = Updater(policy, PLAIN, optimizer, algorithm, config.train, fit, ALONE, policy.reference)([batch])
    expected = gradient(parameters)

    advantage, chosen = credited(example, method, rollout, rewards)
    prompts = rollout.prompt_ids.repeat_interleave(GROUP, dim=0)
    log_probs = example.token_log_probs(policy.model, prompts, rollout.completion_ids).view(advantage.shape)
    loss = example.loss(method, log_probs, log_probs.detach(), advantage, chosen, parameters)
    loss.backward()
    found = gradient(parameters)

    assert loss.item() == pytest.approx(metrics.loss, rel=1e-5, abs=1e-7)
    assert len(found) == 2 * 7 * policy.depth  # A and B of seven linear layers in each decoder layer
    for ours, theirs in zip(found, expected, strict=True):
        assert float(theirs.norm()) > 1e-3
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_advantages_and_chosen_tokens_of_the_example_equal_those_of_the_package(example, tiny, method, monkeypatch):
    monkeypatch.setattr(example, "K", BUDGET)
    rollout, rewards = sampled(tiny)
    batch = scored(method, rollout, rewards)
    advantage, chosen = credited(example, method, rollout, rewards)
    torch.testing.assert_close(advantage.view(batch.advantages.shape), batch.advantages)
    teaches = (chosen & (advantage != 0)).view(batch.scales.shape)
    assert torch.equal(teaches, batch.scales != 0)
    assert teaches.any()
    if method == "sgrpo":
        counts = chosen.sum(dim=2)
        assert int(counts.max()) == BUDGET
        assert int(counts.min()) < BUDGET


@pytest.mark.parametrize("method", METHODS)
def test_loss_of_the_example_away_from_ratio_1_equals_that_of_the_package(example, tiny, method, monkeypatch):
    """After the first of several updates on a batch, old log-probabilities differ and GRPO clips."""
    monkeypatch.setattr(example, "L2", 0.0)  # the package adds it outside this part of the loss
    monkeypatch.setattr(example, "K", BUDGET)
    rollout, rewards = sampled(tiny)
    batch = scored(method, rollout, rewards)
    advantage, chosen = credited(example, method, rollout, rewards)
    log_probs = rollout.log_probs.clone().requires_grad_()
    old = rollout.log_probs + 0.3 * torch.randn(log_probs.shape, generator=torch.Generator().manual_seed(1))

    part = built(*options(method)).token_objective(ScoredTokens(log_probs, old, batch.advantages, batch.scales))
    (expected,) = torch.autograd.grad(part.loss, log_probs)
    shape = advantage.shape
    loss = example.loss(method, log_probs.view(shape), old.view(shape), advantage, chosen, [torch.zeros(1)])
    (found,) = torch.autograd.grad(loss, log_probs)

    assert (part.clipped > 0) == (method == "grpo")
    assert float(loss.detach()) == pytest.approx(float(part.loss.detach()), rel=1e-5, abs=1e-7)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_constants_of_the_example_are_the_defaults_of_the_package(example):
    config, algorithm = composed("algorithm=grpo"), built("algorithm=grpo")
    sgrpo, tspmo = built("algorithm=sgrpo").token_sampler, built("algorithm=tspmo").objective
    assert (config.train.prompts_per_step, config.train.group_size) == (example.P, example.G)
    assert algorithm.rollout.max_new_tokens == example.MAX_NEW_TOKENS
    assert algorithm.rollout.temperature == 1.0
    assert config.train.updates_per_rollout == example.UPDATES
    assert (config.train.lr, config.train.weight_decay) == (example.LEARNING_RATE, 0.0)
    assert config.train.max_grad_norm == example.MAX_GRAD_NORM
    assert (config.lora_rank, algorithm.adapter.scale) == (example.LORA_RANK, example.LORA_SCALE)
    assert algorithm.advantage.epsilon == example.EPSILON
    assert (algorithm.clipping.epsilon_low, algorithm.clipping.epsilon_high) == (example.CLIP, example.CLIP)
    assert (sgrpo.always_first, sgrpo.probability, sgrpo.budget) == (example.ALPHA, example.PROBABILITY, example.K)
    assert not sgrpo.reweight
    assert tspmo.l2 == example.L2
    assert algorithm.objective.l2 == 0.0


@pytest.mark.parametrize("text", ["50*4+7*4=200+28=228", "228", "456-228", "=-228", "228=", "22 8", "227", "no", ""])
def test_reward_of_the_example_is_the_verdict_of_the_verifier(example, text):
    with Verifier("last_number", 2.0) as verifier:
        assert example.reward(text, 228) == float(verifier.score(text, "228").correct)


def test_example_has_at_most_150_lines_and_imports_nothing_of_the_package():
    source = EXAMPLE.read_text()
    assert len(source.splitlines()) <= 150
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules.add(str(node.module).split(".")[0])
    assert modules <= sys.stdlib_module_names | {"torch", "transformers", "peft"}


def rewards_of_run(method: str, steps: int) -> list[float]:
    """Return the mean reward of each step of a run from the command line."""
    done = run_command(str(EXAMPLE), method, steps, cwd=EXAMPLE.parent, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    rewards = [float(reward) for reward in re.findall(r"^step +\d+ +reward ([\d.]+)", done.stdout, re.MULTILINE)]
    assert len(rewards) == steps
    return rewards


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sgrpo", "tspmo"])
def test_short_run_of_the_example_finishes(method):
    assert all(0 <= reward <= 1 for reward in rewards_of_run(method, 3))


@pytest.mark.slow
def test_example_run_with_grpo_for_20_steps_learns():
    """The mean reward rises from about 0.25 (steps 1 to 5) to about 0.85 (steps 16 to 20)."""
    rewards = rewards_of_run("grpo", 20)
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.25

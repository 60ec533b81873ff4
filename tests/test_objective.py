"""Surrogates, KL and aggregation: by hand, as equivalences, and against TRL on the same tensors."""

import math

import pytest
import torch

from rlsparse.batch import ScoredBatch, Selection
from rlsparse.components.objective import token_loss
from rlsparse.components.objective.aggregation import token_scales
from rlsparse.config.schema import ClippedRatioConfig, ClippingConfig, KLConfig, ObjectiveConfig
from rlsparse.model.policy import Policy, token_log_probs
from rlsparse.runtime.rng import stream_seed
from rlsparse.training.microbatch import FitMicrobatches
from rlsparse.training.update import learning_rate, update
from tests.conftest import composed, make_rollout

CLIP = ClippedRatioConfig("clipped_ratio", 0.2, 0.2)
NO_KL, KL = KLConfig(0.0), KLConfig(0.04)


def loss_of(ratio, advantage, clipping):
    """Loss and its gradient in log pi of one token with pi / pi_old = ratio."""
    log_prob = torch.tensor([[math.log(0.5 * ratio)]], requires_grad=True)
    old = torch.tensor([[math.log(0.5)]])
    part = token_loss(log_prob, old, None, torch.tensor([[advantage]]), torch.ones(1, 1), clipping, NO_KL)
    part.loss.backward()
    return float(part.loss.detach()), float(log_prob.grad), part.clipped


def test_surrogates_by_hand():
    # ratio 1.5, A = 2: unclipped -3, clipped at 1.2 -> -2.4, and no gradient
    assert loss_of(1.5, 2.0, ClippingConfig("ratio"))[:2] == pytest.approx((-3.0, -3.0))
    assert loss_of(1.5, 2.0, CLIP) == pytest.approx((-2.4, 0.0, 1))
    # ratio 0.5, A = -1: min(-0.5, -0.8) = -0.8, clipped; with A = +1 the low side is not clipped
    assert loss_of(0.5, -1.0, CLIP) == pytest.approx((0.8, 0.0, 1))
    assert loss_of(0.5, 1.0, CLIP) == pytest.approx((-0.5, -0.5, 0))
    # A log pi and A pi, pi = 0.75
    assert loss_of(1.5, 2.0, ClippingConfig("log_prob"))[:2] == pytest.approx((-2 * math.log(0.75), -2.0))
    assert loss_of(1.5, 2.0, ClippingConfig("prob"))[:2] == pytest.approx((-1.5, -1.5))


def test_kl_by_hand():
    # d = log(0.2 / 0.5); k3 = 0.4 - log(0.4) - 1
    log_prob, reference = torch.tensor([[math.log(0.5)]]), torch.tensor([[math.log(0.2)]])
    part = token_loss(log_prob, log_prob, reference, torch.zeros(1, 1), torch.ones(1, 1), CLIP, KLConfig(2.0))
    k3 = 0.4 - math.log(0.4) - 1
    assert float(part.loss) == pytest.approx(2.0 * k3)
    assert part.kl == pytest.approx(k3)


def scales(aggregation, advantages, kl=NO_KL):
    # two prompts, two completions each; selected tokens: 2, 1 | 3, 0
    weights = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 0]])
    selection = Selection(weights, weights.sum(dim=1))
    return token_scales(selection, advantages, ObjectiveConfig(aggregation, 0.0), range(2), 10, kl)


def test_aggregations_by_hand():
    ones = torch.ones(4, 3)
    # rows / 4, and within a row / selected tokens
    assert scales("sequence_mean", ones).tolist() == [
        [1 / 8, 0, 1 / 8],
        [0, 1 / 4, 0],
        pytest.approx([1 / 12] * 3),
        [0, 0, 0],
    ]
    assert scales("token_mean", ones).sum() == pytest.approx(1.0)
    assert scales("token_mean", ones)[0, 0] == pytest.approx(1 / 6)
    # prompt 0 has 3 selected tokens, prompt 1 has 3; two prompts
    assert scales("prompt_mean", ones)[1, 1] == pytest.approx(1 / 3 / 2)
    # B = 4 rows of at most 10 new tokens
    assert scales("constant", ones)[2, 1] == pytest.approx(1 / 40)


def test_a_token_without_advantage_costs_nothing_without_kl_and_a_degenerate_group_not_even_with_it():
    advantages = torch.tensor([[1.0, 0, 0], [0, -1, 0], [0, 0, 0], [0, 0, 0]])
    assert (scales("sequence_mean", advantages) != 0).nonzero().tolist() == [[0, 0], [1, 1]]
    assert (scales("sequence_mean", advantages, KL) != 0).nonzero().tolist() == [[0, 0], [0, 2], [1, 1]]


def test_learning_rate_by_hand():
    train = composed("train.steps=10", "train.lr=1", "train.warmup_steps=2", "train.schedule=linear").train
    # warm-up 1/3, 2/3; then 8 steps from 1 down by 1/8
    assert [learning_rate(s, train) for s in (1, 2, 3, 4, 10)] == pytest.approx([1 / 3, 2 / 3, 1, 7 / 8, 1 / 8])
    train = composed("train.steps=4", "train.lr=2", "train.schedule=cosine").train
    assert [learning_rate(s, train) for s in (1, 3)] == pytest.approx([2.0, 1.0])
    train = composed("train.steps=4", "train.lr=2").train
    assert [learning_rate(s, train) for s in (1, 4)] == [2.0, 2.0]


# --- whole updates on the embedded model ---------------------------------------------------------------------------


def batch_for(policy: Policy, config, seed=0):
    """A rollout, random rewards, and everything up to the loss, as train.py makes it."""
    from rlsparse.batch import Problem
    from rlsparse.components.advantage import token_advantages
    from rlsparse.components.token_sampler import TOKEN_SAMPLERS
    from rlsparse.model.policy import encode_prompt
    from rlsparse.rollout import ENGINES
    from rlsparse.runtime.rng import stream

    prompts = [encode_prompt(policy, Problem(q, "", ""), q) for q in ("57*4=", "12*3=", "98*7=")]
    rollout = ENGINES[config.rollout.name](policy, prompts, config.rollout, 4, stream(seed, "rollout"), keep_states=True)
    rewards = torch.randint(0, 2, (3, 4), generator=stream(seed, "rewards")).float()
    rewards[1] = 1.0  # a degenerate group
    advantages = token_advantages(rewards, rollout, config.advantage, config.negative_feedback)
    selection = TOKEN_SAMPLERS[config.token_sampler.name](advantages, rollout, config.token_sampler, stream(0, "t"))
    scale = token_scales(selection, advantages, config.objective, range(3), config.rollout.max_new_tokens, config.kl)
    return ScoredBatch(rollout, advantages, scale)


def updated(tiny: Policy, *overrides: str, lr: float = 1e-2, path=token_log_probs):
    """Gradient of the last update and the parameters after it, from an adapter that has left its zero start."""
    import copy

    from rlsparse.components.adapter import ADAPTERS

    config = composed("train.max_grad_norm=0", "rollout.max_new_tokens=16", *overrides)
    policy = copy.deepcopy(tiny)
    adapter = ADAPTERS[config.adapter.name](policy, config.adapter, 4, stream_seed(0, "adapter"))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    optimizer = adapter.optimizer(lr, weight_decay=0.0)
    metrics = update(policy, path, optimizer, batch_for(policy, config), config, FitMicrobatches(config.train))
    gradient = torch.cat([p.grad.flatten() for p in adapter.parameters()])
    after = torch.cat([p.detach().flatten() for p in adapter.parameters()])
    return gradient, after, metrics


def assert_same(a, b, relative=1e-5):
    assert float((a - b).norm() / b.norm()) < relative


def test_sgrpo_that_keeps_all_tokens_is_grpo_at_one_update(tiny):
    keep_all = ("token_sampler.probability=1.0", "token_sampler.budget=99")
    assert_same(updated(tiny, "algorithm=sgrpo", *keep_all)[0], updated(tiny, "algorithm=grpo")[0])


def test_grpo_is_rgra_at_one_update_and_not_at_two(tiny):
    grpo, rgra = updated(tiny, "algorithm=grpo"), updated(tiny, "algorithm=rgra")
    assert_same(grpo[0], rgra[0])
    two = "train.updates_per_rollout=2"
    grpo, rgra = updated(tiny, "algorithm=grpo", two), updated(tiny, "algorithm=rgra", two)
    assert float((grpo[0] - rgra[0]).norm() / rgra[0].norm()) > 0.01
    assert grpo[2].updates == 2


@pytest.mark.parametrize("algorithm", ["grpo", "rgra", "sgrpo", "tspmo", "reinforce", "dr_grpo", "rloo"])
@pytest.mark.parametrize("kl", ["off", "on"])
def test_the_gradient_does_not_depend_on_the_microbatch(tiny, algorithm, kl):
    whole = updated(tiny, f"algorithm={algorithm}", f"kl={kl}", "train.microbatch=64")
    split = updated(tiny, f"algorithm={algorithm}", f"kl={kl}", "train.microbatch=3")
    assert_same(split[0], whole[0])
    assert split[2].loss == pytest.approx(whole[2].loss, rel=1e-5, abs=1e-7)


def test_kl_pulls_towards_the_base_model(tiny):
    """Rewards switched off by a huge beta, repeated updates bring the policy back to the base model."""
    near, far = (updated(tiny, "kl=on", "kl.beta=1e4", f"train.updates_per_rollout={n}", lr=1e-3)[2] for n in (60, 1))
    assert far.kl > 1e-3
    assert near.kl < 0.7 * far.kl  # a mean over the 60 updates


def test_tspmos_whole_objective_on_the_worked_example():
    """(1/|U|) sum of pi A over U = {b|a +1/6, e|a -1/3, c|ab +1/2, d|ab -1/2}, loss and gradient in log pi."""
    from rlsparse.components.advantage import token_advantages
    from rlsparse.components.token_sampler import TOKEN_SAMPLERS

    config = composed("algorithm=tspmo")
    rollout = make_rollout([[5, 6, 7], [5, 6, 8], [5, 9]])
    advantages = token_advantages(torch.tensor([[1.0, 0.0, 0.0]]), rollout, config.advantage, config.negative_feedback)
    selection = TOKEN_SAMPLERS["prefix_tree"](advantages, rollout, config.token_sampler, torch.Generator())
    scale = token_scales(selection, advantages, config.objective, range(1), 8, config.kl)
    probs = torch.tensor([[0.9, 0.6, 0.7], [0.9, 0.6, 0.2], [0.9, 0.3, 1.0]])  # shared transitions agree
    log_probs = probs.log().requires_grad_()
    part = token_loss(log_probs, log_probs.detach(), None, advantages, scale, config.clipping, config.kl)
    part.loss.backward()
    expected = (0.6 / 6 - 0.3 / 3 + 0.7 / 2 - 0.2 / 2) / 4
    assert float(part.loss.detach()) == pytest.approx(-expected)
    # d(pi A)/d log pi = pi A, for each transition once
    gradient = torch.tensor([[0, -0.6 / 6, -0.7 / 2], [0, 0, 0.2 / 2], [0, 0.3 / 3, 0]]) / 4
    torch.testing.assert_close(log_probs.grad, gradient)
    assert part.tokens == 4


def test_l2_adds_twice_the_weights(tiny):
    plain, l2 = updated(tiny, "objective.l2=0"), updated(tiny, "objective.l2=0.5")
    # the gradient of 0.5 x sum of squares is the weight itself; the weights before the step are those after it
    # plus the step, so compare through the difference of the two gradients
    start = l2_start(tiny)
    torch.testing.assert_close(l2[0] - plain[0], start, atol=1e-5, rtol=1e-4)


def l2_start(tiny):
    import copy

    from rlsparse.components.adapter import Lora

    policy = copy.deepcopy(tiny)
    adapter = Lora(policy, composed().adapter, 4, stream_seed(0, "adapter"))
    generator = torch.Generator().manual_seed(7)
    return torch.cat(
        [(p + 0.05 * torch.randn(p.shape, generator=generator)).detach().flatten() for p in adapter.parameters()]
    )


@pytest.mark.parametrize(
    ("loss_type", "aggregation"), [("grpo", "sequence_mean"), ("bnpo", "token_mean"), ("dr_grpo", "constant")]
)
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_our_loss_equals_trls_on_the_same_tensors(tiny, tmp_path, loss_type, aggregation, beta):
    """TRL's own GRPOTrainer computes the loss from its own forward pass over the same model, tokens and advantages."""
    pytest.importorskip("trl", reason="trl is in the test extra")
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from rlsparse.components.adapter import Lora

    config = composed(
        "rollout.max_new_tokens=16",
        f"objective.aggregation={aggregation}",
        f"kl.beta={beta}",
        "rollout.temperature=0.8",
    )
    adapter = Lora(tiny, config.adapter, 4, 0)
    batch = batch_for(tiny, config)
    rollout, mask = batch.rollout, batch.rollout.mask
    advantage = torch.randn(12, generator=torch.Generator().manual_seed(0))  # no degenerate group: TRL keeps all rows
    advantages = advantage[:, None] * mask
    selection = Selection(mask.float(), rollout.lengths.float())
    scale = token_scales(selection, advantages, config.objective, range(3), 16, config.kl)
    width = rollout.completion_ids.shape[1]
    log_probs = token_log_probs(tiny, rollout, torch.arange(12), mask, 0.8)
    noise = torch.randn(12, width, generator=torch.Generator().manual_seed(1))
    old, reference = (log_probs + 0.3 * noise).detach(), (log_probs - 0.2 * noise).detach()
    ours = token_loss(log_probs, old, reference if beta else None, advantages, scale, config.clipping, config.kl)
    ours.loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in adapter.parameters()])
    assert ours.clipped > 0

    trainer = GRPOTrainer(
        model=tiny.model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=str(tmp_path),
            loss_type=loss_type,
            beta=beta,
            epsilon=0.2,
            temperature=0.8,
            max_completion_length=16,
            num_generations=4,
            per_device_train_batch_size=12,
            report_to="none",
            use_bias_correction_kl=False,  # TRL's default multiplies the KL term by the ratio; the paper's does not
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["57*4="]}),
        processing_class=tiny.tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    tiny.model.zero_grad()
    S = rollout.prompt_ids.shape[1]
    in_prompt = torch.arange(S, 0, -1) <= rollout.prompt_lengths[:, None]
    theirs = trainer._compute_loss(
        trainer.model,
        {
            "prompt_ids": rollout.prompt_ids.repeat_interleave(4, dim=0),
            "prompt_mask": in_prompt.long().repeat_interleave(4, dim=0),
            "completion_ids": rollout.completion_ids,
            "completion_mask": mask.long(),
            "advantages": advantage,
            "old_per_token_logps": old,
            "ref_per_token_logps": reference,
        },
    )
    theirs.backward()
    expected = torch.cat([p.grad.flatten() for p in adapter.parameters()])
    assert float(ours.loss.detach()) == pytest.approx(float(theirs.detach()), rel=1e-4, abs=1e-6)
    assert_same(gradient, expected, 1e-4)


@pytest.mark.parametrize(
    "clipping", [CLIP, ClippingConfig("ratio"), ClippingConfig("prob"), ClippingConfig("log_prob")]
)
def test_a_token_outside_the_selection_reaches_neither_loss_nor_gradient(clipping):
    # outside, the ratio overflows (exp(200)) and so does k3 (exp(300)); 0 x inf would be NaN
    log_probs = torch.tensor([[-1.0, 100.0]], requires_grad=True)
    old, reference, scale = torch.tensor([[-1.0, -100.0]]), torch.tensor([[-1.0, 400.0]]), torch.tensor([[1.0, 0.0]])
    part = token_loss(log_probs, old, reference, torch.ones(1, 2), scale, clipping, KLConfig(0.1))
    part.loss.backward()
    inside = token_loss(
        log_probs[:, :1], old[:, :1], reference[:, :1], torch.ones(1, 1), scale[:, :1], clipping, KLConfig(0.1)
    )
    assert float(part.loss.detach()) == float(inside.loss.detach())
    assert part.kl == 0
    assert math.isfinite(float(log_probs.grad[0, 0]))
    assert float(log_probs.grad[0, 1]) == 0

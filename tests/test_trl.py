"""Loss and gradient against TRL on the same random tensors, in float64.

The policy is a table: a module whose parameters are the log-probabilities of the tokens themselves. All else is TRL's
own ``GRPOTrainer``: from completions and rewards to the loss, and from log-probabilities to the loss. The last test has
a model in the place of the table.
"""

import copy
import re
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

from rlsparse.batch import Rollout, Selection
from rlsparse.components.advantage.group import GroupMean, GroupZscore
from rlsparse.components.advantage.group_mean_batch_std import GroupMeanBatchStd
from rlsparse.components.component import build
from rlsparse.components.objective import Aggregation, ScoredTokens, Surrogate, TokenObjective
from rlsparse.components.objective.aggregation import Constant, SequenceMean, SequenceSum, TokenMean
from rlsparse.components.objective.cispo import Cispo
from rlsparse.components.objective.dual_clip import DualClip
from rlsparse.components.objective.gmpo import Gmpo
from rlsparse.components.objective.gspo import Gspo
from rlsparse.components.objective.kl import SampledKL
from rlsparse.components.objective.sapo import Sapo
from rlsparse.components.objective.surrogate import ClippedRatio
from rlsparse.components.off_policy.weights import Masked, Truncated
from rlsparse.components.token_sampler.budget import HighEntropy
from rlsparse.config.compose import config_dir
from rlsparse.model.policy import token_log_probs
from tests.conftest import built
from tests.test_objective import assert_same, batch_for, gradient

pytest.importorskip("trl", reason="trl is in the test extra")

PROMPTS, GROUP, WIDTH = 3, 4, 9
ROWS = PROMPTS * GROUP
CLIP = ClippedRatio(epsilon_low=0.2, epsilon_high=0.2)
SEQUENCE_MEAN, TOKEN_MEAN = SequenceMean(l2=0.0), TokenMean(l2=0.0)
CONSTANT, SEQUENCE_SUM = Constant(l2=0.0), SequenceSum(l2=0.0)


def sampled_kl(beta=0.0, estimator="k3") -> SampledKL:
    return SampledKL(beta, estimator, "loss", "base", reference_every=1, reference_share=1.0)


class Table(nn.Module):
    """A policy whose parameters are the log-probabilities of the tokens of some completions, (B, T)."""

    is_gradient_checkpointing = False

    def __init__(self, log_probs, entropy):
        super().__init__()
        self.log_probs, self.entropy = nn.Parameter(log_probs.clone()), entropy

    def forward(self, input_ids, attention_mask, labels, fused_lm_head):
        assert input_ids.shape == attention_mask.shape == labels.shape
        assert fused_lm_head
        return SimpleNamespace(log_probs=self.log_probs, entropy=self.entropy)


class Tensors:
    """Random completions of 1 to 9 tokens with all that a loss needs, float64.

    Attributes:
        mask: (B, T) bool. ended: (B,) bool: whether the last token is EOS.
        new, old, reference, behaviour: (B, T) log-probabilities. entropy: (B, T) float32.
        advantages: (B,). rewards: (B,) float32.
    """

    def __init__(self, spread=0.3):
        generator = torch.Generator().manual_seed(0)

        def noise():
            return torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)

        self.lengths = torch.randint(1, WIDTH + 1, (ROWS,), generator=generator)
        self.lengths[:3] = torch.tensor([1, WIDTH, 4])
        self.mask = torch.arange(WIDTH) < self.lengths[:, None]
        self.ended = torch.rand(ROWS, generator=generator) < 0.6
        self.old = -0.1 - 2 * torch.rand(ROWS, WIDTH, generator=generator, dtype=torch.float64)
        self.new = self.old + spread * noise()
        self.reference = self.old + 0.3 * noise()
        self.behaviour = (self.old + 0.4 * noise()).float().double()  # TRL holds it in float32
        self.entropy = torch.rand(ROWS, WIDTH, generator=generator)
        self.advantages = torch.randn(ROWS, generator=generator, dtype=torch.float64)
        self.rewards = torch.randn(ROWS, generator=generator).float()

    @property
    def everything(self) -> Selection:
        return Selection(self.mask.double(), self.lengths.double())

    def rollout(self) -> Rollout:
        return Rollout(
            prompt_ids=torch.ones(PROMPTS, 1, dtype=torch.long),
            prompt_lengths=torch.ones(PROMPTS, dtype=torch.long),
            completion_ids=torch.zeros(ROWS, WIDTH, dtype=torch.long),
            lengths=self.lengths,
            ended=self.ended,
            log_probs=self.behaviour,
            entropy=self.entropy,
        )


def ours(tensors, objective, aggregation, selection=None, advantages=None, weights=1.0):
    """Return our loss and its gradient in the log-probabilities.

    Args:
        advantages: (B, T). weights: for the model that sampled, (B, T).
    """
    log_probs = tensors.new.clone().requires_grad_()
    selection = tensors.everything if selection is None else selection
    part = objective(
        ScoredTokens(
            log_probs=log_probs,
            old_log_probs=tensors.old,
            advantages=tensors.advantages[:, None] * tensors.mask if advantages is None else advantages,
            scales=aggregation(selection, torch.arange(PROMPTS), WIDTH) * weights,
            reference=tensors.reference if objective.kl.beta else None,
            entropy=log_probs * tensors.entropy if objective.entropy else None,
            mask=tensors.mask if objective.surrogate.needs_whole_rows else None,
        )
    )
    part.loss.backward()
    return part.loss.detach(), log_probs.grad


@pytest.fixture(scope="module")
def built_trainer(loaded_tiny, tmp_path_factory):
    """The trainer of TRL; tests change its attributes."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    trainer = GRPOTrainer(
        model=copy.deepcopy(loaded_tiny).model,
        reward_funcs=lambda completions, **_: trainer.given_rewards,
        args=GRPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            loss_type="grpo",
            beta=0.0,
            max_completion_length=WIDTH,
            num_generations=GROUP,
            per_device_train_batch_size=ROWS,
            num_iterations=2,  # so that it keeps the log-probabilities of the rollout
            use_bias_correction_kl=False,
            report_to="none",
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["57*4="]}),
        processing_class=loaded_tiny.tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


@pytest.fixture
def trainer(built_trainer, monkeypatch):
    """Return a function that sets attributes of the trainer for one test, ``args__NAME`` for those of its arguments."""

    def with_settings(**settings):
        for name, value in settings.items():
            args, _, key = name.rpartition("__")
            monkeypatch.setattr(built_trainer.args if args else built_trainer, key, value, raising=args != "args")
        return built_trainer

    return with_settings


def loss_and_gradient(compute_loss, tensors, inputs):
    """Return TRL's loss and its gradient in the log-probabilities."""
    table = Table(tensors.new, tensors.entropy)
    loss = compute_loss(table, inputs)
    loss.backward()
    return loss.detach(), table.log_probs.grad


def inputs_of(tensors):
    """Return what TRL computes its loss from."""
    return {
        "prompt_ids": torch.ones(ROWS, 1, dtype=torch.long),
        "prompt_mask": torch.ones(ROWS, 1, dtype=torch.long),
        "completion_ids": torch.zeros(ROWS, WIDTH, dtype=torch.long),
        "completion_mask": tensors.mask.long(),
        "advantages": tensors.advantages,
        "old_per_token_logps": tensors.old,
        "ref_per_token_logps": tensors.reference,
        "num_items_in_batch": tensors.mask.sum(),
    }


def scored_by_trl(trainer, tensors, monkeypatch):
    """Return what TRL computes its loss from, made by TRL from the completions and rewards."""
    monkeypatch.setattr(trainer, "given_rewards", tensors.rewards.tolist(), raising=False)
    monkeypatch.setattr(trainer, "model", Table(tensors.old, tensors.entropy))
    eos = trainer.eos_token_ids[0]
    other = next(i for i in range(10) if i not in (*trainer.eos_token_ids, trainer._tokenizer.pad_token_id))
    completions = [
        [other] * (length - 1) + [eos if ended else other]
        for length, ended in zip(tensors.lengths.tolist(), tensors.ended.tolist(), strict=True)
    ]
    behaviour = [row[:length].tolist() for row, length in zip(tensors.behaviour, tensors.lengths, strict=True)]
    generated = ([[other]] * ROWS, completions, None, ["text"] * ROWS, behaviour, {}, None, None)
    monkeypatch.setattr(trainer, "_generate", lambda prompts: generated)
    return trainer._generate_and_score_completions([{"prompt": "text"}] * ROWS)


def assert_equal(found, expected, tolerance=1e-10):
    """Compare loss and gradient; where TRL holds a number in float32, the tolerance is that of float32."""
    loss, gradient = found
    torch.testing.assert_close(loss, expected[0], rtol=tolerance, atol=tolerance)
    assert float((gradient - expected[1]).norm() / expected[1].norm()) < tolerance


SEQUENCE = {"importance_sampling_level": "sequence"}
BOUNDS = {"epsilon_low": 0.02, "epsilon_high": 0.03}
LOSSES = {  # name: loss_type of TRL, its settings, surrogate, aggregation
    "grpo": ("grpo", {}, CLIP, SEQUENCE_MEAN),
    "bnpo": ("bnpo", {}, CLIP, TOKEN_MEAN),
    "dr_grpo": ("dr_grpo", {}, CLIP, CONSTANT),
    "dapo": ("dapo", {"epsilon_high": 0.28}, ClippedRatio(0.2, 0.28), TOKEN_MEAN),
    "cispo": ("cispo", {"epsilon_high": 1.3}, Cispo(epsilon_high=0.3), TOKEN_MEAN),
    "sapo": ("sapo", {}, Sapo(tau_pos=1.0, tau_neg=1.05), SEQUENCE_MEAN),
    "sapo of other temperatures": (
        "sapo",
        {"args__sapo_temperature_pos": 0.7, "args__sapo_temperature_neg": 2.0},
        Sapo(tau_pos=0.7, tau_neg=2.0),
        SEQUENCE_MEAN,
    ),
    "luspo of token ratios": ("luspo", {}, CLIP, SEQUENCE_SUM),
    "luspo": ("luspo", {**SEQUENCE, **BOUNDS}, Gspo(0.02, 0.03), SEQUENCE_SUM),
    "gspo": ("grpo", {**SEQUENCE, **BOUNDS}, Gspo(0.02, 0.03), SEQUENCE_MEAN),
    "delta": ("grpo", {"args__delta": 1.4}, DualClip(0.2, 0.2, delta=1.4), SEQUENCE_MEAN),
    "delta and dapo": ("dapo", {"args__delta": 1.5}, DualClip(0.2, 0.2, delta=1.5), TOKEN_MEAN),
}
UNLIKE = {"vespo"}  # a weight of the product of the ratios of a completion: no surrogate of ours
KLS = {"no KL": (sampled_kl(), {})}
KLS["k3"] = (sampled_kl(0.5), {"beta": 0.5})
KLS["k3_ratio"] = (sampled_kl(0.5, "k3_ratio"), {"beta": 0.5, "args__use_bias_correction_kl": True})


# for luspo and gspo TRL multiplies the KL term by the ratio of the completion; k3_ratio takes that of the token
CASES = [(name, kl) for name in LOSSES for kl in KLS if not (kl == "k3_ratio" and LOSSES[name][2].needs_whole_rows)]


@pytest.mark.parametrize(("name", "kl"), CASES)
def test_loss_type_of_trl_equals_surrogate_and_aggregation(trainer, name, kl):
    loss_type, settings, surrogate, aggregation = LOSSES[name]
    penalty, kl_settings = KLS[kl]
    tensors = Tensors()
    theirs = trainer(loss_type=loss_type, **{"epsilon_low": 0.2, "epsilon_high": 0.2, **settings}, **kl_settings)
    expected = loss_and_gradient(theirs._compute_loss, tensors, inputs_of(tensors))
    tolerance = 1e-6 if loss_type == "sapo" else 1e-10  # its temperatures are float32
    assert_equal(ours(tensors, TokenObjective(surrogate, penalty), aggregation), expected, tolerance)


def test_every_loss_type_of_trl_is_compared_or_known_to_be_unlike():
    from trl import GRPOConfig

    text = GRPOConfig.__dataclass_fields__["loss_type"].metadata["help"]
    named = set(re.findall(r"'(\w+)'", text.partition("Supported values are ")[2].partition(".")[0]))
    assert {"grpo", "cispo", "luspo"} <= named  # the help still begins with them
    assert named == {loss_type for loss_type, *_ in LOSSES.values()} | UNLIKE


def test_compared_tokens_lie_on_both_sides_of_every_bound():
    tensors = Tensors()
    advantages = tensors.advantages[:, None].expand(ROWS, WIDTH)
    log_ratio = torch.where(tensors.mask, tensors.new - tensors.old, 0.0)
    rho = log_ratio.exp()[tensors.mask]
    for bound in (0.8, 1.2, 1.28, 1.3, 1.4, 1.5):
        assert 2 < int((rho > bound).sum()) < len(rho) - 2
    clipped = Gspo(0.02, 0.03).clipped_in_rows(log_ratio, advantages, tensors.mask).any(dim=1)
    assert 2 <= int(clipped.sum()) <= ROWS - 2


def test_defaults_of_the_options_are_those_that_trl_recommends():
    def of(option, base, group="clipping"):
        with open(f"{config_dir()}/{group}/{option}.yaml") as file:
            return build(group, yaml.safe_load(file), base)

    from trl import GRPOConfig

    help_of = {name: field.metadata.get("help", "") for name, field in GRPOConfig.__dataclass_fields__.items()}
    assert "recommended value is `5.0`" in help_of["epsilon_high"]
    assert 1 + of("cispo", Surrogate).epsilon_high == 5.0
    assert "recommends `0.28`" in help_of["epsilon_high"]
    assert of("clip_higher", Surrogate).epsilon_high == 0.28
    fields = GRPOConfig.__dataclass_fields__
    assert of("sapo", Surrogate) == Sapo(fields["sapo_temperature_pos"].default, fields["sapo_temperature_neg"].default)
    assert of("sequence_sum", Aggregation, "objective") == SEQUENCE_SUM


@pytest.mark.parametrize("kl", ["no KL", "k3"])
def test_gmpo_equals_that_of_trl(trainer, kl):
    from trl.experimental.gmpo import GMPOTrainer

    tensors = Tensors(spread=0.5)
    theirs = trainer(epsilon_low=0.4, epsilon_high=0.3, **KLS[kl][1])
    expected = loss_and_gradient(lambda *args: GMPOTrainer._compute_loss(theirs, *args), tensors, inputs_of(tensors))
    assert_equal(ours(tensors, TokenObjective(Gmpo(0.4, 0.3), KLS[kl][0]), SEQUENCE_MEAN), expected)


@pytest.mark.parametrize(("loss_type", "aggregation"), [("grpo", SEQUENCE_MEAN), ("dapo", TOKEN_MEAN)])
@pytest.mark.parametrize("share", [0.2, 0.6])
def test_top_entropy_quantile_equals_high_entropy_over_the_batch(trainer, loss_type, aggregation, share):
    tensors = Tensors()
    theirs = trainer(loss_type=loss_type, top_entropy_quantile=share, epsilon_low=0.2, epsilon_high=0.2)
    expected = loss_and_gradient(theirs._compute_loss, tensors, inputs_of(tensors))
    sampler = HighEntropy(budget=None, share=share, scope="batch")
    chosen = sampler(torch.ones(ROWS, WIDTH), tensors.rollout(), torch.Generator())
    assert 0 < int(chosen.weights.sum()) < int(tensors.mask.sum())
    assert_equal(ours(tensors, TokenObjective(CLIP, sampled_kl()), aggregation, chosen), expected, 1e-6)


SCALES = {"group": GroupZscore(epsilon=1e-4), "batch": GroupMeanBatchStd(epsilon=1e-4), "none": GroupMean()}


@pytest.mark.parametrize("scale_rewards", SCALES)
@pytest.mark.parametrize("mask_truncated", [False, True], ids=["all completions", "without truncated ones"])
def test_loss_from_rewards_equals_that_of_trl(trainer, monkeypatch, scale_rewards, mask_truncated):
    """TRL makes advantages, masks and log-probabilities of the rollout itself, with ``scale_rewards``."""
    tensors = Tensors()
    theirs = trainer(
        loss_type="dapo" if mask_truncated else "grpo",
        scale_rewards=scale_rewards,
        mask_truncated_completions=mask_truncated,
    )
    expected = loss_and_gradient(theirs._compute_loss, tensors, scored_by_trl(theirs, tensors, monkeypatch))
    rollout, selection = tensors.rollout(), tensors.everything
    advantages = SCALES[scale_rewards](tensors.rewards.view(PROMPTS, GROUP), rollout)
    if mask_truncated:
        assert 0 < int((~tensors.ended).sum()) < ROWS
        selection = selection.without(~tensors.ended)
    aggregation = TOKEN_MEAN if mask_truncated else SEQUENCE_MEAN
    assert_equal(ours(tensors, TokenObjective(CLIP, sampled_kl()), aggregation, selection, advantages), expected, 1e-6)


MODES = {
    "token_truncate": (Truncated("token", cap=1.2), 1.2, None),
    "token_mask": (Masked("token", low=0.7, high=1.3), 1.3, 0.7),
    "sequence_truncate": (Truncated("sequence", cap=1.5), 1.5, None),
    "sequence_mask": (Masked("sequence", low=0.2, high=1.5), 1.5, 0.2),
}


@pytest.mark.parametrize(
    ("mode", "level"),
    [*((mode, "token") for mode in MODES), ("sequence_truncate", "sequence"), ("sequence_mask", "sequence")],
)
def test_off_policy_weight_equals_vllm_importance_sampling_mode(trainer, monkeypatch, mode, level):
    """With one ratio for the completion, TRL gives all its tokens the mean of token weights; here each has its own."""
    correction, high, low = MODES[mode]
    tensors = Tensors()
    theirs = trainer(
        importance_sampling_level=level,
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_max=high,
        vllm_importance_sampling_clip_min=low,
        epsilon_low=0.2,
        epsilon_high=0.2,
    )
    expected = loss_and_gradient(theirs._compute_loss, tensors, scored_by_trl(theirs, tensors, monkeypatch))
    ratio = correction.ratio(tensors.old, tensors.behaviour, tensors.mask)
    cut = correction.cut(ratio)[tensors.mask]
    assert 0 < int(cut.sum()) < len(cut)
    advantages = GroupZscore(epsilon=1e-4)(tensors.rewards.view(PROMPTS, GROUP), tensors.rollout())
    surrogate = CLIP if level == "token" else Gspo(0.2, 0.2)
    found = ours(tensors, TokenObjective(surrogate, sampled_kl()), SEQUENCE_MEAN, None, advantages, correction(ratio))
    assert_equal(found, expected, 1e-6)


def test_entropy_bonus_with_token_mean_equals_that_of_trl(trainer):
    """TRL takes the mean entropy of all tokens whatever the loss type, so the two are equal with token_mean."""
    tensors = Tensors()
    theirs = trainer(loss_type="bnpo", _entropy_bonus_enabled=True, use_adaptive_entropy=False, entropy_coef=0.3)
    table = Table(tensors.new, None)
    table.entropy = table.log_probs * tensors.entropy  # a function of the parameters, so that it has a gradient
    loss = theirs._compute_loss(table, inputs_of(tensors))
    loss.backward()
    found = ours(tensors, TokenObjective(CLIP, sampled_kl(), entropy=0.3), TOKEN_MEAN)
    assert_equal(found, (loss.detach(), table.log_probs.grad))


@pytest.mark.parametrize(
    ("loss_type", "aggregation", "beta"), [("grpo", "sequence_mean", 0.5), ("dr_grpo", "constant", 0.0)]
)
def test_loss_of_a_model_equals_that_of_trl(tiny, tmp_path, loss_type, aggregation, beta):
    """The GRPOTrainer of TRL computes its loss from a forward pass of its own over model, tokens and advantages."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    algorithm = built(
        "rollout.max_new_tokens=16", f"objective={aggregation}", f"kl.beta={beta}", "rollout.temperature=0.8"
    )
    adapter = algorithm.adapter.attach(tiny, 4, 0)
    batch = batch_for(tiny, algorithm)
    rollout, mask = batch.rollout, batch.rollout.mask
    advantage = torch.randn(12, generator=torch.Generator().manual_seed(0))  # no equal rewards: TRL keeps all rows
    advantages = advantage[:, None] * mask
    scale = algorithm.token_scales(Selection(mask.float(), rollout.lengths.float()), advantages, range(3))
    width = rollout.completion_ids.shape[1]
    log_probs = token_log_probs(tiny, rollout, torch.arange(12), mask, 0.8)
    noise = torch.randn(12, width, generator=torch.Generator().manual_seed(1))
    old, reference = (log_probs + 0.3 * noise).detach(), (log_probs - 0.2 * noise).detach()
    ours = algorithm.token_objective(ScoredTokens(log_probs, old, advantages, scale, reference if beta else None))
    ours.loss.backward()
    got = gradient(adapter)
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
    assert float(ours.loss.detach()) == pytest.approx(float(theirs.detach()), rel=1e-4, abs=1e-6)
    assert_same(got, gradient(adapter), 1e-4)

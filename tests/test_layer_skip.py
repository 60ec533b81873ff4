"""Rollouts that skip layers: which ones, what they cost, and that training and evaluation use the whole model."""

import copy
import dataclasses
import json
import math
import shutil

import pandas as pd
import pytest
import torch

from rlsparse.batch import NonFiniteError, Problem, ScoredBatch
from rlsparse.config.schema import ConfigError
from rlsparse.execution.point_warnings import idle_off_policy
from rlsparse.execution.preflight import preflight
from rlsparse.model.policy import encode_prompt, token_log_probs
from rlsparse.model.source import EMBEDDED
from rlsparse.results.collect import collect
from rlsparse.results.figures.speed import speed_figure
from rlsparse.results.figures.style import save
from rlsparse.results.table import markdown
from rlsparse.results.tables import cost_table
from rlsparse.rollout import Request
from rlsparse.rollout.cache import GroupCache
from rlsparse.rollout.layer_skip import SkipLayers, without_layers
from rlsparse.run import run
from rlsparse.runtime.rng import stream
from tests.conftest import built, composed
from tests.test_objective import assert_same, gradient, updater
from tests.test_packed import FAMILIES, family, with_adapter
from tests.test_rollout import engine
from tests.test_run import SHORT, folder_of, rows, without_times

MIDDLE = ("layer_skip.choice=fixed", "layer_skip.layers=[1]")  # of the embedded model's three


OFF = SkipLayers(ratio=0.0, choice="random", layers=None)
QUARTER = SkipLayers(ratio=0.25, choice="random", layers=None)


def test_share_of_layers_is_rounded_and_leaves_the_first_and_the_last():
    assert OFF.choose(1, stream(0, "layer_skip")) == []  # a model of one layer can train
    assert [built(f"layer_skip=r{n}").layer_skip.count(30) for n in ("05", "10", "15", "25")] == [2, 3, 4, 8]
    assert OFF.count(30) == 0
    generator = stream(0, "layer_skip")
    drawn = [QUARTER.choose(12, generator) for _ in range(300)]
    assert all(len(set(layers)) == 3 and layers == sorted(layers) for layers in drawn)
    assert {layer for layers in drawn for layer in layers} == set(range(1, 11))  # each inner one, never 0 or 11
    assert SkipLayers(ratio=0.25, choice="last", layers=None).choose(12, generator) == [8, 9, 10]
    assert SkipLayers(ratio=0.0, choice="fixed", layers=[7, 2]).choose(12, generator) == [2, 7]


def test_layer_skip_is_active_where_a_layer_is_skipped():
    assert built().layer_skip == OFF
    assert built("layer_skip=r25").layer_skip == QUARTER
    assert not OFF.active
    assert QUARTER.active
    assert SkipLayers(ratio=0.0, choice="fixed", layers=[1]).active


def test_layer_skip_off_draws_nothing():
    generator = stream(0, "layer_skip")
    before = generator.get_state()
    assert OFF.choose(12, generator) == []
    assert torch.equal(generator.get_state(), before)


def shallower(policy, layers):
    """Return an independent model that never had these layers."""
    copied = copy.deepcopy(policy)
    decoder = copied.model.get_decoder()
    decoder.layers = torch.nn.ModuleList(layer for i, layer in enumerate(decoder.layers) if i not in layers)
    for i, layer in enumerate(decoder.layers):
        layer.self_attn.layer_idx = i
    copied.model.config.num_hidden_layers = len(decoder.layers)
    return copied


@pytest.mark.parametrize("engine_name", ["fast", "plain"])
@pytest.mark.parametrize("name", ["tiny", *FAMILIES])
def test_rollout_without_layers_is_that_of_a_model_that_never_had_them(tiny, name, engine_name):
    """Tokens and log-probabilities equal those of the other model; these also equal a plain forward of it."""
    policy = tiny if name == "tiny" else family(tiny, name, num_hidden_layers=6)
    left_out = [1] if name == "tiny" else [1, 3, 4]
    prompts = [encode_prompt(policy, Problem(q, "", ""), q) for q in ("57*4=", "12*3=")]
    short, request = "rollout.max_new_tokens=8", Request(prompts, 3)
    with without_layers(policy, left_out):
        rollout = engine(engine_name, short).generate(policy, request, stream(0, "r"))
    reference = shallower(policy, left_out)
    expected = engine("plain", short).generate(reference, request, stream(0, "r"))
    assert torch.equal(rollout.completion_ids, expected.completion_ids)
    with torch.no_grad():
        plain = token_log_probs(reference, rollout, torch.arange(6), rollout.mask, 1.0)
        whole = token_log_probs(policy, rollout, torch.arange(6), rollout.mask, 1.0)
    assert float((rollout.log_probs - plain).abs().max()) < 1e-5
    assert float((rollout.log_probs - whole).abs().max()) > 1e-3  # the whole model gives others


@pytest.mark.parametrize("fuse", ["true", "false"])
def test_skipped_layers_cost_neither_compute_nor_cache(tiny, monkeypatch, fuse):
    policy = family(tiny, "Llama", num_hidden_layers=6)
    calls = dict.fromkeys(range(6), 0)
    for i, layer in enumerate(policy.model.get_decoder().layers):
        layer.register_forward_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
    caches = []
    original = GroupCache.__init__
    monkeypatch.setattr(GroupCache, "__init__", lambda self, *a: (original(self, *a), caches.append(self))[0])
    prompts = [encode_prompt(policy, Problem("57*4=", "", ""), "57*4=")]
    fast, request = engine("fast", "rollout.max_new_tokens=4", f"rollout.fuse={fuse}"), Request(prompts, 2)
    with without_layers(policy, [2, 3]):
        fast.generate(policy, request, stream(0, "r"))
    of_modules = fuse == "false"  # fused products do not call the modules of a layer
    assert [calls[i] > 0 for i in range(6)] == [of_modules and i not in (2, 3) for i in range(6)]
    assert set(caches[0]._layers) == {0, 1, 4, 5}
    fast.generate(policy, request, stream(0, "r"))
    assert all(calls.values()) == of_modules
    assert set(caches[1]._layers) == set(range(6))  # the model is whole again


def scored(policy, overrides, left_out, tokens=99):
    """Return a batch sampled without some layers, with random advantages; the first tokens alone are in the loss."""
    prompts = [encode_prompt(policy, Problem(q, "", ""), q) for q in ("57*4=", "12*3=")]
    with without_layers(policy, left_out):
        rollout = engine("fast", *overrides).generate(policy, Request(prompts, 3), stream(0, "r"))
    mask = rollout.mask.float()
    advantages = torch.randn(rollout.mask.shape, generator=stream(0, "a")) * mask
    chosen = mask * (torch.arange(mask.shape[1]) < tokens)
    return ScoredBatch(rollout, advantages, chosen / chosen.sum(), on_policy=not left_out)


@pytest.mark.parametrize(
    "off_policy",
    [
        ["off_policy=none"],
        ["off_policy=importance"],
        ["off_policy=importance", "off_policy.level=sequence"],
        ["off_policy=truncated", "off_policy.cap=1.1"],
        ["off_policy=truncated", "off_policy.cap=1.1", "off_policy.level=sequence"],
        ["off_policy=retrace", "off_policy.trace=0.7"],
    ],
    ids=lambda o: " ".join(o),
)
@pytest.mark.parametrize("microbatch", [6, 1])
@pytest.mark.parametrize("tokens", [1024, 12])  # 12: whole completions go through in pieces
@pytest.mark.parametrize("in_loss", [99, 3])  # 3: a weight of the whole completion sees more than the loss
def test_gradient_of_an_off_policy_batch_is_that_of_the_weighted_terms(tiny, off_policy, microbatch, tokens, in_loss):
    """The loss written out is -sum of scale x weight x A x log pi, with weights from the whole model and mu."""
    setting = ["clipping=off", "train.max_grad_norm=0", "rollout.max_new_tokens=10", f"train.microbatch={microbatch}"]
    overrides = [*setting, f"train.max_tokens_per_microbatch={tokens}", *off_policy]
    adapter = with_adapter(tiny)
    batch = scored(tiny, overrides, [1], in_loss)
    metrics = updater(tiny, adapter, *overrides)([batch])
    got = gradient(adapter)

    tiny.model.zero_grad()
    mask = batch.rollout.mask
    log_probs = token_log_probs(tiny, batch.rollout, torch.arange(6), mask, 1.0)
    ratio = torch.where(mask, (log_probs.detach() - batch.rollout.log_probs).exp(), torch.ones(()))
    if "off_policy.level=sequence" in off_policy:
        ratio = ratio.prod(dim=1, keepdim=True)
    weight = {
        "off_policy=none": torch.ones_like(ratio),
        "off_policy=importance": ratio,
        "off_policy=truncated": ratio.clamp(max=1.1),
        "off_policy=retrace": 0.7 * ratio.clamp(max=1.0),
    }[off_policy[0]]
    (-batch.scales * weight * batch.advantages * log_probs).sum().backward()
    assert_same(got, gradient(adapter))
    assert metrics.mismatch.tokens == int((batch.scales != 0).sum())
    assert metrics.mismatch.kl > 0


@pytest.mark.parametrize(
    "off_policy",
    [["importance"], ["truncated"], ["retrace"]]
    + [[f"{n}", "off_policy.level=sequence"] for n in ("importance", "truncated")],
)
def test_run_with_a_correction_and_no_layer_skipped_is_the_on_policy_run(off_policy, tmp_path):
    plain, corrected = (
        composed(*SHORT, "train.updates_per_rollout=2", f"off_policy={name}", *more, f"runs_dir={tmp_path / name}")
        for name, *more in (["none"], off_policy)
    )
    assert run(plain)["status"] == run(corrected)["status"] == "finished"
    assert [without_times(r) for r in rows(folder_of(plain))] == [without_times(r) for r in rows(folder_of(corrected))]


def test_run_with_layers_skipped_logs_the_mismatch_and_evaluates_the_whole_model(tmp_path):
    skipping = composed(
        *SHORT, *MIDDLE, "off_policy=truncated", f"runs_dir={tmp_path}", "advantage=raw_reward", "reward.wrong=-1"
    )
    whole = composed(*SHORT, f"runs_dir={tmp_path}")
    summary, other = run(skipping), run(whole)
    assert summary["base"] == other["base"]
    for row in rows(folder_of(skipping)):
        if row["kind"] == "train":
            assert row["rollout/layers_skipped"] == 1
            assert row["off_policy/kl"] > 0
            assert 0 < row["off_policy/effective_sample_size"] <= 1
            assert 0 < row["off_policy/weight_max"] <= 2
    assert all("off_policy/kl" not in row for row in rows(folder_of(whole)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["layer_skip=r05"], r"layer_skip.ratio=0.05: skips nothing, since this model has 3 decoder layers"),
        (["layer_skip.ratio=0.7"], r"layer_skip.ratio=0.7: would skip 2 layers, but this model has 3"),
        (["layer_skip.ratio=1"], r"layer_skip.ratio=1.0: must be in \[0, 1\)"),
        (["layer_skip.choice=fixed", "layer_skip.layers=[2]"], r"layer_skip.layers=\[2\]: .* some of 1 to 1"),
        (["layer_skip.choice=fixed", "layer_skip.layers=[1,1]"], "each once"),
        (["layer_skip.choice=fixed"], "layer_skip.choice=fixed needs a list"),
        (["layer_skip.layers=[1]"], "only layer_skip.choice=fixed takes a list"),
        (["off_policy=truncated", "off_policy.cap=0.5"], "off_policy.cap=0.5: must be at least 1"),
        (["off_policy=truncated", "off_policy.cap=nan"], "off_policy.cap=nan: must be a finite number"),
        (["off_policy=retrace", "layer_skip=r25", "rollout.top_p=0.9"], "off_policy=retrace: its ratios need"),
        (["layer_skip.choice=last"], "layer_skip.choice=last: skips nothing with layer_skip.ratio=0"),
        (["off_policy=importance", "off_policy.level=word"], "off_policy.level=word: must be one of token, sequence"),
        (["off_policy=importance", "algorithm=tspmo"], r"off_policy=importance: the term of a transition \(T-SPMO\)"),
    ],
)
def test_preflight_of_bad_input_refuses_it(overrides, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        preflight([composed(f"runs_dir={tmp_path}", *overrides)])


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("shift", [200.0, -200.0])
def test_truncated_weights_beyond_float32_leave_the_loss_finite(tiny, level, shift):
    """A ratio that underflows takes its tokens out of the loss; one that overflows is truncated."""
    overrides = ["clipping=off", "rollout.max_new_tokens=10", "off_policy=truncated", f"off_policy.level={level}"]
    adapter = with_adapter(tiny)
    batch = scored(tiny, overrides, [1])
    shifted = dataclasses.replace(batch.rollout, log_probs=batch.rollout.log_probs + shift * batch.rollout.mask)
    batch = dataclasses.replace(batch, rollout=shifted)
    metrics = updater(tiny, adapter, *overrides)([batch])
    assert math.isfinite(metrics.loss)
    assert metrics.mismatch.largest == pytest.approx(2.0 if shift < 0 else 0.0, abs=1e-6)


def test_importance_weights_that_overflow_are_reported_as_a_broken_loss(tiny):
    overrides = ["clipping=off", "rollout.max_new_tokens=10", "off_policy=importance"]
    adapter = with_adapter(tiny)
    batch = scored(tiny, overrides, [1])
    shifted = dataclasses.replace(batch.rollout, log_probs=batch.rollout.log_probs - 200 * batch.rollout.mask)
    with pytest.raises(NonFiniteError):
        updater(tiny, adapter, *overrides)([dataclasses.replace(batch, rollout=shifted)])


def test_layer_skip_in_a_model_of_unlike_layers_is_refused(tmp_path):
    """transformers picks the mask of a layer by its place, so layers after a gap would get the mask of another."""
    folder = shutil.copytree(EMBEDDED["tiny"], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    mixed = ["full_attention", "sliding_attention", "full_attention"]
    (folder / "config.json").write_text(json.dumps({**config, "layer_types": mixed, "use_sliding_window": True}))
    overrides = [f"model.path={folder}", f"runs_dir={tmp_path}"]
    preflight([composed(*overrides)])
    with pytest.raises(ConfigError, match=r"layers are not alike \(full_attention, sliding_attention\)"):
        preflight([composed(*overrides, "layer_skip=r25")])


def test_correction_with_nothing_to_correct_gives_a_warning():
    def points(*runs):
        return [(composed(*overrides), built(*overrides)) for overrides in runs]

    (line,) = idle_off_policy(points(["off_policy=retrace"], ["off_policy=importance", "layer_skip=r25"]))
    assert "off_policy=retrace corrects nothing where layer_skip=off" in line
    assert not idle_off_policy(points([], ["off_policy=importance", *MIDDLE]))


def test_preflight_of_an_idle_correction_returns_the_warning(tmp_path):
    (line,) = preflight([composed("off_policy=retrace", f"runs_dir={tmp_path}")]).warnings
    assert "off_policy=retrace corrects nothing" in line


def test_summary_and_tables_of_a_run_with_layers_skipped_say_so(tmp_path):
    config = composed(*SHORT, *MIDDLE, f"runs_dir={tmp_path}", "advantage=raw_reward", "reward.wrong=-1")
    summary = run(config)
    logged = [row for row in rows(folder_of(config)) if row["kind"] == "train"]
    assert summary["layers_skipped"] == 1
    for name in ("kl", "effective_sample_size", "frac_truncated"):
        assert summary["off_policy"][name] == pytest.approx(sum(row[f"off_policy/{name}"] for row in logged) / 3)
    assert summary["off_policy"]["weight_max"] == 1  # off_policy=none
    run(composed(*SHORT, f"runs_dir={tmp_path}"))
    found = collect(tmp_path / "default").runs
    table = markdown(cost_table(found, pd.DataFrame()))
    assert "off-policy KL, nats" in table
    assert "tokens replayed" not in table  # there were none
    for file in ("a", "b"):
        save(speed_figure(found), tmp_path / file)
    figure = (tmp_path / "a.svg").read_text()
    assert figure == (tmp_path / "b.svg").read_text()
    assert "rollout, tokens/s" in figure

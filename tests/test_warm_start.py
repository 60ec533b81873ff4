"""The supervised stage: it learns, writes a model that the RL stage takes, and refuses what cannot work."""

import random

import pytest
import torch
from hydra import compose, initialize_config_dir

from rlsparse.batch import Problem
from rlsparse.compose import config_dir, run_config
from rlsparse.config import ConfigError, NoiseConfig
from rlsparse.policy import load_policy
from rlsparse.run import run
from rlsparse.supervised import IGNORED, Example, collate
from rlsparse.task.noise import spoil
from rlsparse.warm_start import warm_start
from tests.conftest import composed

PROBLEM = Problem("57*4=", "228", "50*4+7*4=200+28=228")


def composed_warm_start(*overrides):
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return run_config(compose("warm_start", list(overrides)))


@pytest.mark.slow
def test_from_nothing_to_a_model_that_rl_takes(tmp_path):
    out = tmp_path / "model"
    report = warm_start(
        composed_warm_start(
            f"out={out}",
            "model=scratch",
            "task=multiplication",
            "task.train_rows=400",
            "warm_start=clean",
            "warm_start.epochs=3",
            "dtype=float32",
            "eval.max_rows=8",
        )
    )
    assert report["loss"][-1] < 0.8 * report["loss"][0]
    policy = load_policy(composed(f"model.path={out}").model, torch.device("cpu"), "auto")
    assert sum(p.numel() for p in policy.model.parameters()) < 1_000_000
    assert policy.tokenizer.decode(policy.tokenizer("57*4=228")["input_ids"]) == "57*4=228"
    summary = run(
        composed(
            f"model.path={out}",
            f"runs_dir={tmp_path}",
            "train.steps=1",
            "eval.every=1",
            "eval.max_rows=4",
            "tracker=none",
        )
    )
    assert summary["status"] == "finished"
    with pytest.raises(ConfigError, match=r"out=.*: holds a model already"):
        warm_start(composed_warm_start(f"out={out}", "model=scratch", "task=multiplication"))


def test_labels_cover_the_solution_and_eos_only(tiny):
    config = composed_warm_start("out=x", "model=scratch").warm_start
    prompt = tuple(tiny.tokenizer("57*4=")["input_ids"])
    short = Problem("1", "2", "2")
    ids, mask, labels = collate(tiny, [Example(prompt, PROBLEM), Example(prompt[:1], short)], config, random.Random(0))
    solution = tiny.tokenizer(PROBLEM.solution)["input_ids"] + [tiny.tokenizer.eos_token_id]
    assert labels[0].tolist() == [IGNORED] * 5 + solution
    assert ids[0].tolist() == [*prompt, *solution]
    # one prompt token, "2" and EOS, then padding that carries neither label nor attention
    assert labels[1, 1:3].tolist() == [*tiny.tokenizer("2")["input_ids"], tiny.tokenizer.eos_token_id]
    assert mask[1].tolist() == [1, 1, 1] + [0] * (len(solution) + 2)
    assert (labels[1, 3:] == IGNORED).all()


def test_noise_comes_in_the_shares_asked_for():
    rng = random.Random(0)
    drawn = [spoil(PROBLEM, NoiseConfig(direct=0.6, direct_wrong=0.8, slip=0.5), rng) for _ in range(4000)]
    direct = [text for text in drawn if "=" not in text]
    worked = [text for text in drawn if "=" in text]
    assert len(direct) / 4000 == pytest.approx(0.6, abs=0.03)
    assert sum(text != "228" for text in direct) / len(direct) == pytest.approx(0.8, abs=0.03)
    assert sum(text != PROBLEM.solution for text in worked) / len(worked) == pytest.approx(0.5, abs=0.05)
    assert spoil(PROBLEM, NoiseConfig(0, 0, 0), rng) == PROBLEM.solution


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("warm_start.epochs=0", "warm_start.epochs=0: must be at least 1"),
        ("warm_start.noise.slip=2", r"warm_start.noise.slip=2.0: must be in \[0, 1\]"),
        ("model.path=/nowhere", "model.path=/nowhere: there is no such folder"),
    ],
)
def test_bad_input(override, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        warm_start(composed_warm_start(f"out={tmp_path / 'o'}", "task=multiplication", override))

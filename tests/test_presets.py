"""The presets: each is what the tables of the docs say, and takes a step; which of them, and which parts, are equal."""

import json
import math
import re
from collections import defaultdict
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from rlsparse.algorithm import Algorithm
from rlsparse.batch import Rollout
from rlsparse.components.component import build
from rlsparse.components.objective import Surrogate
from rlsparse.components.token_sampler import TokenSampler
from rlsparse.config.compose import config_dir
from rlsparse.config.schema import Config
from rlsparse.run import run
from tests.conftest import ROOT, composed

METHODS = ROOT / "docs" / "methods"
CONF = Path(config_dir())
PRESETS = sorted(file.stem for file in (CONF / "algorithm").glob("*.yaml"))
OF_PAPERS = ["grpo", "rgra", "sgrpo", "tspmo", "reinforce", "dr_grpo", "rloo"]  # test_run.py trains these


def rows_of(page: str, *header: str) -> list[list[str]]:
    """Return the rows of the table of a page whose first columns are these, without the marks of code."""
    tables = re.findall(r"(?:^\|.*\n)+", (METHODS / page).read_text(), re.MULTILINE)
    split = [
        [[cell.strip().strip("`") for cell in line.strip("|\n").split("|")] for line in t.splitlines()] for t in tables
    ]
    (rows,) = (rows[2:] for rows in split if tuple(rows[0][: len(header)]) == header)
    return rows


@cache
def of_preset(preset: str) -> Config:
    return composed(f"algorithm={preset}")


def point(config: Config) -> dict:
    """Return all that a config says but the name of its algorithm."""
    return {key: value for key, value in asdict(config).items() if key != "algorithm"}


TABLE = {row[0]: row[1:] for row in rows_of("README.md", "preset", "advantage")}


def test_table_of_presets_names_every_preset():
    assert sorted(TABLE) == PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_is_grpo_with_the_parts_that_the_table_names(preset):
    *options, others = TABLE[preset]
    parts = zip(("advantage", "token_sampler", "clipping", "objective"), options, strict=True)
    named = [f"{group}={option}" for group, option in parts] + re.findall(r"[\w.]+=[\w.-]+", others)
    assert point(of_preset(preset)) == point(composed("algorithm=grpo", *named))


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_sets_neither_learning_rate_nor_steps_nor_minibatches(preset):
    found, default = asdict(of_preset(preset).train), asdict(of_preset("grpo").train)
    assert found == default | {"mask_truncated": found["mask_truncated"]}


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset not in OF_PAPERS])
def test_preset_takes_a_step_with_finite_numbers(preset, tmp_path):
    batch = ("train.steps=1", "train.prompts_per_step=8", "train.group_size=4", "train.minibatches=2")
    quiet = ("eval.max_rows=1", "eval.samples=1", "tracker=none", f"runs_dir={tmp_path}")
    summary = run(composed(f"algorithm={preset}", *batch, *quiet))
    assert summary["status"] == "finished"
    assert summary["algorithm"] == preset
    (file,) = tmp_path.rglob("metrics.jsonl")
    (row,) = (row for row in map(json.loads, file.read_text().splitlines()) if row["kind"] == "train")
    assert all(math.isfinite(value) for value in row.values() if isinstance(value, (int, float)))
    assert row["train/updates"] == 2
    assert row["train/grad_norm"] > 0
    assert ("rollout/kept_groups" in row) == ("batch_filter=" in TABLE[preset][-1])


# --- what is equal ----------------------------------------------------------------------------------------------------


def test_table_of_surrogates_says_the_traits_of_every_option():
    traits = ("same_gradient_at_ratio_1", "bounds_ratio", "uses_old_policy", "needs_whole_rows")
    said = {
        row[0]: row[1:] for row in rows_of("surrogates.md", "option", r"gradient $A \nabla \log \pi$ at $\rho = 1$")
    }
    found = {}
    for file in (CONF / "clipping").glob("*.yaml"):
        surrogate = build("clipping", yaml.safe_load(file.read_text()), Surrogate)
        found[file.stem] = ["yes" if getattr(surrogate, trait) else "no" for trait in traits]
    assert said == found


def test_table_of_equal_presets_is_what_the_traits_say():
    same = defaultdict(set)
    for preset in PRESETS:
        config = of_preset(preset)
        algorithm = Algorithm.build(config)
        if algorithm.clipping.same_gradient_at_ratio_1 and not algorithm.token_sampler.makes_passes:
            rest = {key: value for key, value in point(config).items() if key != "clipping"}
            same[json.dumps(rest, sort_keys=True)].add(preset)
    equal = [group for group in same.values() if len(group) > 1]
    said = [
        set(re.findall(r"\w+", row[0]))
        for row in rows_of("surrogates.md", "presets with the same gradient at one optimizer step")
    ]
    assert sorted(map(sorted, equal)) == sorted(map(sorted, said))
    assert equal


UNBIASED = {row[0]: row[1] for row in rows_of("token_controls.md", "sampler", "objective=sequence_mean")}
LEAVES_OUT = {"share": 0.5, "low": -100, "high": 100}  # half of the tokens instead of a few


def sampler_of(words: str) -> TokenSampler:
    """Return the sampler of an option and keys of the command line."""
    option, *others = (word.partition("=")[2] for word in words.split())
    keys = re.findall(r"token_sampler\.(\w+)=", words)
    given = dict(zip(keys, map(yaml.safe_load, others), strict=True))
    node = yaml.safe_load((CONF / "token_sampler" / f"{option}.yaml").read_text())
    return build("token_sampler", node | given | (LEAVES_OUT if option == "covariance" else {}), TokenSampler)


def test_table_of_unbiased_samplers_has_every_option_but_that_of_tspmo():
    options = {file.stem for file in (CONF / "token_sampler").glob("*.yaml")} - {"prefix_tree"}
    assert {re.match(r"token_sampler=(\w+)", words)[1] for words in UNBIASED} == options


@pytest.mark.parametrize("words", UNBIASED)
def test_sampler_is_unbiased_exactly_where_the_table_says_so(words):
    """The expected share of each token in the mean over a completion, over 20,000 draws, is 1/12 for each of 12."""
    sampler = sampler_of(words)
    count, T = 20_000, 12
    one = torch.linspace(0.05, 0.95, T).expand(count, T)
    rollout = Rollout(
        prompt_ids=torch.ones(count, 1, dtype=torch.long),
        prompt_lengths=torch.ones(count, dtype=torch.long),
        completion_ids=torch.ones(count, T, dtype=torch.long),
        lengths=torch.full((count,), T),
        ended=torch.ones(count, dtype=torch.bool),
        log_probs=one.log(),
        entropy=one,
    )
    selection = sampler(
        torch.linspace(-1, 1, count)[:, None].expand(count, T), rollout, torch.Generator().manual_seed(0)
    )
    share = (selection.weights / selection.counts.clamp(min=1)[:, None]).mean(dim=0)  # (T,)
    unbiased = bool((share * T - 1).abs().max() < 0.05) and selection.passes is None
    assert unbiased == (UNBIASED[words] == "yes")

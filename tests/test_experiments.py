"""The experiments: each composes over its grid, each study has three sizes, and the published one names its sources."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from rlsparse.config.compose import config_dir, register_schemas, run_config
from rlsparse.config.schema import COMPONENT_GROUPS, SCHEMAS, Config
from rlsparse.results.claims import matching_methods
from rlsparse.results.claims_file import read_claims
from rlsparse.results.names import method_names, method_overrides
from rlsparse.sweep.plan import sweep_axes, sweep_jobs, sweep_tuning
from tests.conftest import ROOT, composed
from tests.test_config import check

FOLDER = Path(config_dir()) / "experiment"
EXPERIMENTS = sorted(file.stem for file in FOLDER.glob("*.yaml") if file.stem != "default")
GROUPS = {*SCHEMAS, *COMPONENT_GROUPS, "algorithm", "experiment"}
STUDIES = ("token_efficiency", "grpo_components", "rank_allocation", "nested_rollouts")
FEW = 8  # choices of options in a grid: it takes a tenth of a second to compose one
Job = tuple[str, ...]
PAGE = ROOT / "docs" / "published_settings.md"


def without_seed(job: Job) -> Job:
    return tuple(word for word in job if not word.startswith("seed="))


def options(job: Job) -> Job:
    """Its words that choose an option of a group, which is what takes time to compose."""
    return tuple(word for word in job if word.partition("=")[0] in GROUPS)


def covering(jobs: list[Job]) -> list[Job]:
    """Some of them, in which each word of theirs comes up."""
    chosen, missing = [], set().union(*jobs)
    while missing:
        chosen.append(max(jobs, key=lambda job: len(missing & set(job))))
        missing -= set(chosen[-1])
    return chosen


def with_values(config: DictConfig, job: Job) -> Config:
    """A config with a job's options, and now with its values too."""
    own = config.copy()
    for override in OverridesParser.create().parse_overrides([word for word in job if word not in options(job)]):
        OmegaConf.update(own, override.key_or_group, override.value())
    return run_config(own)


@cache
def grid_of(experiment: str, everything: bool) -> tuple[list[list[str]], list[list[str]], list[Config]]:
    """Its jobs, its trials, and the configs of both; of many choices of options, those of some."""
    register_schemas()
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = compose("config", [f"experiment={experiment}"], return_hydra_config=True)
        assert config.hydra.mode.name == "MULTIRUN"
        jobs = sweep_jobs(config)
        tuned = sweep_tuning(config, jobs)
        trials = tuned.all_trials(jobs) if tuned else []
        methods = list(dict.fromkeys(map(without_seed, jobs)))
        methods += map(without_seed, trials[: len(trials) // len(methods)])  # what is tuned, at the first of them
        choices = list(dict.fromkeys(map(options, methods)))
        load = GlobalHydra.instance().config_loader().load_sweep_config
        all_of_them = everything or len(choices) <= FEW
        chosen = {choice: load(config, list(choice)) for choice in (choices if all_of_them else covering(choices))}
        return jobs, trials, [with_values(chosen[options(m)], m) for m in methods if options(m) in chosen]


@cache
def raw(experiment: str) -> dict:
    return yaml.safe_load((FOLDER / f"{experiment}.yaml").read_text())


def axes(experiment: str) -> dict[str, set[str]]:
    """Key → its values, over all grids and the tuning; the trials' seeds are left out."""
    sweeper = raw(experiment)["hydra"]["sweeper"]
    every = {key: words for key, words in (sweeper.get("tune") or {}).items() if key != "seed"}
    found: dict[str, set[str]] = {}
    for grid in (*(sweeper.get("grids") or []), sweeper.get("params") or {}, every):
        for key, words in grid.items():
            found.setdefault(key, set()).update(re.findall(r"\{[^}]*\}|[^,]+", str(words)))
    return found


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_points_of_a_grid_are_valid_runs(experiment, full):
    """Each option comes up, with every value of the keys beside it; with --full each choice of options does."""
    jobs, _, configs = grid_of(experiment, everything=full)
    assert len(jobs) > 1
    for config in configs:
        check(config)
        assert config.experiment.name == experiment


@pytest.mark.parametrize("size", ["", "_svamp", "_paper"])
@pytest.mark.parametrize("study", STUDIES)
def test_study_has_three_sizes(study, size):
    assert f"{study}{size}" in EXPERIMENTS


def names(jobs: list[list[str]], algorithm: str, axes: Sequence[str] = ()) -> list[str]:
    """The grid's methods as a table would name them."""
    overrides = [method_overrides(job) for job in jobs]
    words = [next((w.partition("=")[2] for w in job if w.startswith("algorithm=")), algorithm) for job in jobs]
    runs = pd.DataFrame({"algorithm": words, "overrides": overrides})
    runs["method_hash"] = [" ".join([a, *sorted(o)]) for a, o in zip(words, overrides, strict=True)]
    return list(dict.fromkeys(method_names(runs, [set(own) for own in overrides], axes)))


@pytest.mark.parametrize(
    ("typed", "left"),
    [
        (["kl=off"], 3 * 2 + 3 + 2),
        (["kl=off", "advantage=group_zscore"], 3 * 2),
        (["kl=off", "advantage=group_zscore", "clipping=on"], 2),
    ],
)
def test_narrowed_grid_names_its_methods_as_the_whole_grid_does(typed, left):
    whole = names(grid_of("grpo_components", False)[0], "grpo")
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = compose("config", ["experiment=grpo_components", *typed], return_hydra_config=True)
        few = names(sweep_jobs(config), "grpo", sweep_axes(config))
    assert (len(whole), len(few)) == (3 * 2 * 2 + 3 * 2 + 2, left)
    assert set(few) < set(whole)


@pytest.mark.parametrize("size", ["", "_svamp", "_paper"])
@pytest.mark.parametrize("study", STUDIES)
def test_claims_name_methods_of_the_grid(study, size, full):
    jobs, _, configs = grid_of(f"{study}{size}", everything=full)
    methods = names(jobs, configs[0].algorithm)
    claims = read_claims(ROOT / "experiments" / f"{study}{size}" / "claims.yaml")
    assert claims.baseline in methods
    for claim in claims.claims:
        for patterns in (claim.of, claim.versus):
            assert patterns is None or matching_methods(patterns, methods), (patterns, methods)


@pytest.mark.parametrize("study", STUDIES)
def test_published_size_varies_what_the_embedded_size_varies(study):
    paper, embedded = ({key.split(".")[0] for key in axes(name)} for name in (f"{study}_paper", study))
    assert embedded <= paper
    assert len(axes(f"{study}_paper")["seed"]) >= 6
    assert len(axes(f"{study}_paper")["train.lr"]) == 3
    assert raw(f"{study}_paper")["train"]["max_tokens_per_microbatch"] == 8192


@pytest.mark.parametrize("study", STUDIES)
def test_line_of_the_published_size_names_its_source(study, full):
    text = (FOLDER / f"{study}_paper.yaml").read_text()
    for line in text.splitlines():
        setting = re.match(r"\s*(?:- )?(?:override )?/?([\w.]+): +(?!#)\S", line)
        if setting and setting[1] not in ("name", "mode"):
            assert "  # " in line or " # " in line, line
    assert re.search(r"arXiv \d{4}\.\d{5}", text.split("\ndefaults:")[0])
    jobs, trials, _ = grid_of(f"{study}_paper", everything=full)
    said = re.search(r"^# (\d+) methods x \(6 seeds \+ (\d+) trials\): (\d+) runs", text, re.MULTILINE)
    methods = len(set(map(without_seed, jobs)))
    assert list(map(int, said.groups())) == [methods, len(trials) // methods, len(jobs) + len(trials)]


@pytest.mark.parametrize("study", STUDIES)
def test_the_page_says_what_the_published_size_composes_to(study):
    """What stands in the last column of its table is what the experiment has: as overrides it changes nothing."""
    (section,) = (part for part in PAGE.read_text().split("\n## ") if f"experiment/{study}_paper.yaml" in part)
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    settings = [span for row in rows for span in re.findall(r"`([\w.]+=[^`]+)`", row.strip("| ").split(" | ")[-1])]
    swept = axes(f"{study}_paper")
    fixed = [span for span in settings if span.partition("=")[0] not in swept]
    assert len(fixed) >= 7
    assert composed(f"experiment={study}_paper", *fixed) == composed(f"experiment={study}_paper")
    for span in settings:
        key, _, values = span.partition("=")
        if key in swept:
            assert {as_number(value) for value in values.split(",")} <= {as_number(value) for value in swept[key]}


def as_number(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word

"""Composition: everything shipped composes, who beats whom, and what is refused."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from rlsparse.components.objective.aggregation import AGGREGATIONS
from rlsparse.components.objective.surrogate import SURROGATES
from rlsparse.components.reward.answer import ANSWER_FORMATS
from rlsparse.config.checks import check, check_warm_start, check_writable
from rlsparse.config.compose import config_dir, run_config
from rlsparse.config.schema import ConfigError
from rlsparse.sweep.callbacks import idle_clipping
from tests.conftest import composed

CONF = Path(config_dir())
OPTIONS = sorted(
    (file.parent.name, file.stem) for file in CONF.glob("*/*.yaml") if file.parent.name not in ("warm_start", "hydra")
)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_shipped_option_composes_into_a_typed_config(group, option):
    if (group, option) in (("model", "scratch"), ("adapter", "none")):
        pytest.skip("for warm_start, which has a test of its own below")
    config = composed(f"{group}={option}")
    if group not in ("advantage", "token_sampler", "clipping"):  # these change a part that others must match
        check(config)


@pytest.mark.parametrize("option", sorted(file.stem for file in (CONF / "warm_start").glob("*.yaml")))
def test_every_warm_start_composes(option):
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = run_config(compose("warm_start", [f"warm_start={option}", "model=scratch", "out=x"]))
    assert config.out == "x"
    assert config.eval.samples == 1


def test_algorithms_are_points_in_the_space():
    points = {
        name: (c.advantage.name, c.token_sampler.name, c.clipping.surrogate, c.objective.aggregation, c.kl.beta)
        for name in ("grpo", "rgra", "sgrpo", "tspmo", "reinforce", "dr_grpo", "rloo")
        for c in [composed(f"algorithm={name}")]
    }
    assert points == {
        "grpo": ("group_zscore", "full", "clipped_ratio", "sequence_mean", 0),
        "rgra": ("group_zscore", "full", "log_prob", "sequence_mean", 0),
        "sgrpo": ("group_zscore", "stochastic", "ratio", "sequence_mean", 0),
        "tspmo": ("prefix_tree", "prefix_tree", "prob", "prompt_mean", 0),
        "reinforce": ("raw_reward", "full", "log_prob", "sequence_mean", 0),
        "dr_grpo": ("group_mean", "full", "clipped_ratio", "constant", 0),
        "rloo": ("leave_one_out", "full", "log_prob", "sequence_mean", 0),
    }


def test_the_mandated_overrides():
    assert composed("algorithm=grpo", "token_sampler=stochastic").token_sampler.name == "stochastic"
    config = composed("clipping=off", "negative_feedback=off", "lora_rank=4")
    assert (config.clipping.surrogate, config.negative_feedback.enabled, config.lora_rank) == ("log_prob", False, 4)
    assert composed("lora_rank=5").lora_rank == 5


def test_preset_beats_group_default():
    assert composed().objective.l2 == 0
    assert composed("algorithm=tspmo").objective.l2 > 0


@pytest.fixture
def with_experiment(tmp_path):
    """Compose with a user's own experiment from another config folder, as --config-dir adds it."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults: [{override /token_sampler: random}, {override /clipping: 'on'}]\n"
        "experiment: {name: mine}\nobjective: {l2: 0.5}\ntrain: {steps: 7}\n"
    )

    def compose_it(*overrides):
        with initialize_config_dir(config_dir(), version_base="1.3"):
            search = f"hydra.searchpath=[file://{tmp_path}]"
            return run_config(compose("config", [search, "experiment=mine", *overrides]))

    return compose_it


def test_experiment_beats_preset(with_experiment):
    config = with_experiment("algorithm=tspmo")
    assert (config.objective.l2, config.token_sampler.name, config.clipping.surrogate, config.train.steps) == (
        0.5,
        "random",
        "clipped_ratio",
        7,
    )


def test_command_line_beats_experiment(with_experiment):
    config = with_experiment("token_sampler=first", "objective.l2=0.25", "train.steps=3", "clipping=off")
    assert (config.objective.l2, config.token_sampler.name, config.clipping.surrogate, config.train.steps) == (
        0.25,
        "first",
        "log_prob",
        3,
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm=nope", "Could not find 'algorithm/nope'"),
        ("token_sampler.k=3", "token_sampler.k: no such key; here there are"),
        ("train.steps=many", "could not be converted to Integer"),
        ("+train.setps=3", "train.setps: no such key; here there are checkpoint_every, group_size, lr"),
        ("+newkey=3", "newkey: no such key"),
        ("token_sampler=full token_sampler.budget=3", "Could not override 'token_sampler.budget'"),
        ("=3", "=3: names no key; write KEY=VALUE"),
        ("hydra=3", "hydra=3: names no key"),
        ("task=null", "task=null: task is a config group; choose one of arithmetic"),
        ("train.lr=" + "9" * 5000, "train.lr=99999999999999999999...: a number of so many digits"),
        ("seed=range(0)", "seed=range(0): a sweep without points"),
        ("seed=range(1,2,0)", "seed=range(1,2,0): range() arg 3 must not be zero"),
        ("train.steps=glob(*)", "train.steps=glob(*): glob chooses among the options of a config group"),
        ("~model", "train.lr: MissingMandatoryValue while resolving interpolation: Missing mandatory value: model"),
        ("~experiment", "experiment.name: has no value; give experiment.name=..."),
        ("train.lr=${train.lr}", "train.lr: Recursive interpolation detected"),
        ("train.lr=${oc.env:NO_SUCH}", "train.lr: KeyError raised while resolving interpolation"),
        ("task.reward=${token_sampler.replay}", "task.reward=${token_sampler.replay}: stands for several keys"),
    ],
)
def test_unknown_names_and_wrong_types_are_refused(override, message):
    with pytest.raises((HydraException, ConfigError)) as error:
        composed(*override.split())
    assert message in f"{error.value} {error.value.__cause__}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("train.group_size=1", "train.group_size=1: advantage=group_zscore .* group of at least 2"),
        ("train.group_size=1 algorithm=rloo", "advantage=leave_one_out"),
        ("algorithm=sgrpo token_sampler.budget=3", r"token_sampler.budget=3: the first token_sampler.always_first=4"),
        ("algorithm=sgrpo token_sampler.probability=0", r"token_sampler.probability=0.0: must be in \(0, 1\]"),
        ("algorithm=sgrpo token_sampler.probability=1.5", r"token_sampler.probability=1.5: must be in \(0, 1\]"),
        ("algorithm=tspmo clipping=on", "clipping=on: .* take clipping=prob"),
        ("algorithm=tspmo token_sampler=full", "token_sampler=full: .* take token_sampler=prefix_tree"),
        ("token_sampler=prefix_tree", "advantage=group_zscore: .* take both or neither"),
        ("lora_rank=0", "lora_rank=0: must be at least 1"),
        ("train.updates_per_rollout=0", "train.updates_per_rollout=0: must be at least 1"),
        ("rollout.temperature=0", "rollout.temperature=0.0: must be above 0"),
        ("rollout.top_p=0", r"rollout.top_p=0.0: must be in \(0, 1\]"),
        ("eval.pass_at=[0]", "each k must be at least 1"),
        ("advantage.name=nope", "advantage.name=nope: choose one of group_zscore"),
        ("token_sampler.name=stochastic", "the other keys of token_sampler are another option's"),
        ("adapter.name=vera", "adapter.name=vera: choose one of none, lora, l1ra"),
        ("adapter.name=l1ra", "adapter.name=l1ra: the other keys of adapter are another option's"),
        ("adapter=none", "adapter=none: trains all weights, which only a warm start does"),
        ("adapter=l1ra adapter.l1=-1", "adapter.l1=-1.0: must be 0 or more"),
        ("adapter=l1ra adapter.gate_lr=0", "adapter.gate_lr=0.0: must be above 0"),
        ("adapter=l1ra adapter.threshold=1", r"adapter.threshold=1.0: must be in \[0, 1\)"),
        ("adapter=l1ra adapter.threshold=-0.1", r"adapter.threshold=-0.1: must be in \[0, 1\)"),
        ("adapter=l1ra adapter.update_every=0", r"adapter.update_every=0.0: must be in \(0, 1\]"),
        ("adapter=l1ra adapter.min_rank=0", "adapter.min_rank=0: must be at least 1"),
        ("tracker.name=mlflow", "tracker.name=mlflow: choose one of none, wandb"),
        ("tracker.mode=sometimes", "tracker.mode=sometimes: choose one of auto, online, offline"),
        ("train.lr=nan", "train.lr=nan: must be a finite number"),
        ("task.train_rows=0", "task.train_rows=0: must be at least 1"),
        ("clipping.epsilon_low=2", r"clipping.epsilon_low=2.0: must be in \[0, 1\]"),
        ("experiment.name=../x", "experiment.name=../x: it names a folder"),
        ("train.schedule=step", "train.schedule=step: choose one of constant, linear, cosine"),
        ("task.answer_format=xml", "task.answer_format=xml: choose one of hash"),
        ("adapter.layers=first", "adapter.layers=first: give all, last_third"),
        ("adapter.target_modules=q_proj", "adapter.target_modules=q_proj: give all-linear, or a list"),
        ("task.prompt=hello", "task.prompt='hello': must contain {question}"),
        ("kl.beta=-1", "kl.beta=-1.0: must be 0 or more"),
        ("model.lr=inf train.lr=1", "model.lr=inf: must be a finite number"),
        ("objective.l2=1e300", r"objective.l2=1e\+300: must be between -1e\+30 and 1e\+30"),
        ("task.reward.wrong=-1e300", r"task.reward.wrong=-1e\+300: must be between"),
        ("tracker.samples=1" + "0" * 30, "tracker.samples=10+: must be a whole number of at most 18 digits"),
        ("adapter.layers=[1" + "0" * 30 + "]", "adapter.layers=10+: must be a whole number"),
        ("train.group_size=1000000000", "train.group_size=1000000000: must be at most 1000000"),
        ("train.group_size=10000 train.prompts_per_step=1000", "prompts_per_step=1000: .* a step has 10000000 compl"),
        ("eval.samples=1000000000", "eval.samples=1000000000: must be at most 1000000"),
        ("task.test_rows=1000000000", "task.test_rows=1000000000: must be at most 1000000"),
        ("threads=1000000000", "threads=1000000000: must be at most 1024"),
        ("task.verifier_time_limit=1e30", r"task.verifier_time_limit=1e\+30: must be in \(0, 3600\]"),
        ("eval.pass_at=${seed}", r"eval.pass_at=0: must be a list such as \[1,2\]"),
        ("eval.pass_at=${adapter.layers} adapter.layers=[0,x]", r"eval.pass_at=\[0, 'x'\]: must be a list"),
        ("experiment.name=" + "x" * 300, "experiment.name=x+: it names a folder; use at most 200"),
        ("runs_dir=''", "runs_dir=: names no folder"),
        ("task.prompt='{question}\udcff'", "task.prompt='{question}.udcff': must be text that UTF-8 can write"),
    ],
)
def test_combinations_that_cannot_be_meant_are_refused(overrides, message):
    with pytest.raises(ConfigError) as error:
        check(composed(*overrides.split()))
    assert re.search(message, str(error.value))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.hidden_size=0", "model.hidden_size=0: must be at least 1"),
        ("model.hidden_size=100 model.heads=3", "model.hidden_size=100: each of model.heads=3 takes an even part"),
        ("model.kv_heads=3", "model.kv_heads=3: must divide model.heads=4"),
        ("model.vocabulary=-1", r"model.vocabulary=-1: must be in \[256"),
        ("out=''", "out=: names no folder"),
    ],
)
def test_a_new_model_that_cannot_be_made_is_refused(override, message):
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = run_config(compose("warm_start", ["model=scratch", "task=arithmetic", "out=x", *override.split()]))
    with pytest.raises(ConfigError, match=message):
        check_warm_start(config)


def test_raw_reward_needs_no_group():
    check(composed("algorithm=reinforce", "train.group_size=1"))


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ConfigError) as error:
        check(composed("lora_rank=0", "train.steps=0"))
    assert len(str(error.value).splitlines()) == 2


def test_a_runs_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"runs_dir=.*file/runs: cannot be written"):
        check_writable("runs_dir", str(tmp_path / "file" / "runs"))
    check_writable("runs_dir", str(tmp_path / "new" / "runs"))


def configs(*overrides_lists):
    return [composed(*overrides) for overrides in overrides_lists]


def test_clipping_swept_with_one_update_is_warned_of():
    (line,) = idle_clipping(configs(["clipping=on"], ["clipping=off"]))
    assert "clipping is swept (clipped_ratio, log_prob) with train.updates_per_rollout=1" in line
    assert idle_clipping(configs(["algorithm=grpo"], ["algorithm=rgra"]))
    four = "train.updates_per_rollout=4"
    assert not idle_clipping(configs(["clipping=on", four], ["clipping=off", four]))
    assert not idle_clipping(configs(["algorithm=grpo"], ["algorithm=sgrpo"], ["algorithm=tspmo"]))


def test_the_lists_of_choices_are_those_of_the_code():
    from rlsparse.components import advantage
    from rlsparse.components.adapter import ADAPTERS
    from rlsparse.components.off_policy import OFF_POLICY
    from rlsparse.components.task import TASKS
    from rlsparse.components.token_sampler import TOKEN_SAMPLERS
    from rlsparse.config import ranges as values
    from rlsparse.rollout import ENGINES

    assert set(values.CHOICES["objective.aggregation"]) == set(AGGREGATIONS)
    assert set(values.SCHEMA_OF["clipping"]) == set(SURROGATES)
    assert set(values.SCHEMA_OF["advantage"]) == set(advantage.NAMES)
    for group, table in {
        "token_sampler": TOKEN_SAMPLERS,
        "adapter": {"none", *ADAPTERS},
        "task": TASKS,
        "rollout": ENGINES,
        "off_policy": OFF_POLICY,
    }.items():
        assert set(values.SCHEMA_OF[group]) == set(table)
    for group, option in OPTIONS:  # what each yaml declares is what the checks expect
        if group in values.SCHEMA_OF:
            part = getattr(composed(f"{group}={option}"), group)
            assert type(part) is values.SCHEMA_OF[group][part.surrogate if group == "clipping" else part.name]
    assert set(values.CHOICES["task.answer_format"]) == set(ANSWER_FORMATS)


def test_every_key_is_commented():
    """Each key of each yaml has a comment, its own or that of the line above; names of options explain themselves."""
    for file in CONF.rglob("*.yaml"):
        text = file.read_text().split("\nhydra:")[0]
        for line in text.splitlines():
            key = re.match(r"\s*([a-z_0-9]+):( |$)", line)
            structural = (
                "defaults",
                "name",
                "reward",
                "experiment",
                "objective",
                "algorithm",
                "surrogate",
                "eval",
                "override",
                "ray",
                "init",
                "remote",
            )
            if key and key[1] not in structural and not line.lstrip().startswith("-") and "[" not in line[:12]:
                # an experiment or a variant sets keys that are explained where they are defined
                variant = re.search(r'defaults: \["?\w+"?, _self_\]', text)  # of another option of its group
                inherits = variant or "warm_start_schema" in text or "/experiment/" in str(file)
                assert "#" in line or inherits, f"{file.relative_to(CONF)}: {line.strip()} has no comment"

"""Composition: everything shipped composes, who beats whom, and what is refused."""

import os
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict

from rlsparse.algorithm import Algorithm
from rlsparse.components.advantage.group import GroupMean, GroupZscore, LeaveOneOut, RawReward
from rlsparse.components.advantage.prefix_tree import PrefixTree
from rlsparse.components.component import build
from rlsparse.components.objective.aggregation import Constant, PromptMean, SequenceMean
from rlsparse.components.objective.surrogate import ClippedRatio, LogProb, Prob, SelfRatio
from rlsparse.components.reward.answer import ANSWER_FORMATS
from rlsparse.components.task import Task
from rlsparse.components.token_sampler.full import Full
from rlsparse.components.token_sampler.prefix_tree import BranchPoints
from rlsparse.components.token_sampler.stochastic import Stochastic
from rlsparse.config.checks import check_writable, problems, refuse
from rlsparse.config.compose import as_yaml, check_group_options, config_dir, run_config
from rlsparse.config.compose import compose as compose_config
from rlsparse.config.hydra_errors import explained, one_line_errors
from rlsparse.config.paths import expand_all
from rlsparse.config.ranges import keys_of
from rlsparse.config.schema import COMPONENT_GROUPS, Config, ConfigError, WarmStartConfig
from rlsparse.config.words import keys_of_swept_groups, read_words
from rlsparse.execution.point_warnings import idle_clipping
from rlsparse.sweep.plan import sweep_jobs
from rlsparse.warm_start.run import Parts
from tests.commands import run_command
from tests.conftest import composed, composed_warm_start

CONF = Path(config_dir())
OPTIONS = sorted(
    (file.parent.name, file.stem) for file in CONF.glob("*/*.yaml") if file.parent.name not in ("warm_start", "hydra")
)
COMPONENTS = [(group, option) for group, option in OPTIONS if group in COMPONENT_GROUPS]
BASES = get_type_hints(Algorithm)  # base class of each group
NEEDED = {  # words that an option is used with
    ("adapter", "peft"): ["adapter.method=LOHA"],
    ("replay", "on"): ["algorithm=tspmo"],
    ("reward", "terms"): ["+reward@reward.terms.answer=answer"],
}


def check(config: Config | WarmStartConfig) -> None:
    """Refuse a config for all that is wrong with it and with its components, as preflight does."""
    found = problems(config)
    try:
        (Algorithm if isinstance(config, Config) else Parts).build(config)
    except ConfigError as error:
        found += str(error).split("\n")
    refuse(found)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_shipped_option_composes_into_a_typed_config(group, option):
    if (group, option) in (("model", "scratch"), ("adapter", "none")):
        pytest.skip("for warm_start, which has a test of its own below")
    config = composed(f"{group}={option}", *NEEDED.get((group, option), []))
    if group not in ("advantage", "token_sampler", "clipping"):  # these change a part that others must match
        check(config)


@pytest.mark.parametrize("option", sorted(file.stem for file in (CONF / "warm_start").glob("*.yaml")))
def test_warm_start_option_composes(option):
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = run_config(compose("warm_start", [f"warm_start={option}", "model=scratch", "out=x"]))
    assert config.out == "x"
    assert config.eval.samples == 1


def test_algorithm_presets_are_points_in_the_space_of_components():
    points = {
        name: (*map(type, (a.advantage, a.token_sampler, a.clipping, a.objective)), a.kl.beta)
        for name in ("grpo", "rgra", "sgrpo", "tspmo", "reinforce", "dr_grpo", "rloo")
        for a in [Algorithm.build(composed(f"algorithm={name}"))]
    }
    assert points == {
        "grpo": (GroupZscore, Full, ClippedRatio, SequenceMean, 0),
        "rgra": (GroupZscore, Full, LogProb, SequenceMean, 0),
        "sgrpo": (GroupZscore, Stochastic, SelfRatio, SequenceMean, 0),
        "tspmo": (PrefixTree, BranchPoints, Prob, PromptMean, 0),
        "reinforce": (RawReward, Full, LogProb, SequenceMean, 0),
        "dr_grpo": (GroupMean, Full, ClippedRatio, Constant, 0),
        "rloo": (LeaveOneOut, Full, LogProb, SequenceMean, 0),
    }


def test_overrides_of_several_parts_change_the_parts_that_they_name():
    both = Algorithm.build(composed("algorithm=grpo", "token_sampler=stochastic"))
    assert (type(both.token_sampler), type(both.clipping)) == (Stochastic, ClippedRatio)
    config = composed("clipping=off", "negative_feedback=off", "lora_rank=4")
    algorithm = Algorithm.build(config)
    assert type(algorithm.clipping) is LogProb
    assert algorithm.negative_feedback.negative == 0
    assert config.lora_rank == 4
    assert composed("lora_rank=5").lora_rank == 5


def test_preset_and_group_default_together_take_the_preset():
    assert composed().objective["l2"] == 0
    assert composed("algorithm=tspmo").objective["l2"] > 0


MINE = """# @package _global_
defaults: [{override /token_sampler: random}, {override /clipping: 'on'}]
experiment: {name: mine}
objective: {l2: 0.5}
train: {steps: 7}
"""


@pytest.fixture
def with_experiment(tmp_path):
    """Compose with a user's own experiment from another config folder, as --config-dir adds it."""

    def compose_it(*overrides, text=MINE):
        (tmp_path / "experiment").mkdir(exist_ok=True)
        (tmp_path / "experiment" / "mine.yaml").write_text(text)
        with initialize_config_dir(config_dir(), version_base="1.3"):
            search = f"hydra.searchpath=[file://{tmp_path}]"
            return run_config(compose("config", [search, "experiment=mine", *overrides]))

    return compose_it


def parts(config):
    classes = [group["_target_"].rpartition(".")[2] for group in (config.token_sampler, config.clipping)]
    return (config.objective["l2"], *classes, config.train.steps)


def test_experiment_and_preset_together_take_the_experiment(with_experiment):
    assert parts(with_experiment("algorithm=tspmo")) == (0.5, "Random", "ClippedRatio", 7)


def test_command_line_and_experiment_together_take_the_command_line(with_experiment):
    config = with_experiment("token_sampler=first", "objective.l2=0.25", "train.steps=3", "clipping=off")
    assert parts(config) == (0.25, "First", "LogProb", 3)


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
        ("task=null", "task=null: task is a config group; choose one of aime24"),
        ("train.lr=" + "9" * 5000, "train.lr=99999999999999999999...: a number of so many digits"),
        ("seed=range(0)", "seed=range(0): a sweep without points"),
        ("seed=range(1,2,0)", "seed=range(1,2,0): range() arg 3 must not be zero"),
        ("train.steps=glob(*)", "train.steps=glob(*): glob chooses among the options of a config group"),
        ("~model", "train.lr: MissingMandatoryValue while resolving interpolation: Missing mandatory value: model"),
        ("~experiment", "experiment.name: has no value; give experiment.name=..."),
        ("train.lr=${train.lr}", "train.lr: Recursive interpolation detected"),
        ("train.lr=${oc.env:NO_SUCH}", "train.lr: KeyError raised while resolving interpolation"),
        ("~advantage", "advantage: has no value; give advantage=..."),
        ("sweep=${experiment}", "sweep=${experiment}: stands for several keys"),
        ("import_path=${seed}", "import_path=0: must be a list such as [mine]"),
        (
            "task.prompt=${question}",
            r"task.prompt: Interpolation key 'question' not found; where the text itself has ${",
        ),
        (
            "tracker.tags=[${nope}]",
            r"tracker.tags[0]: Interpolation key 'nope' not found; where the text itself has ${",
        ),
        ("experiment.name=${a:1}", r"experiment.name: Unsupported interpolation type a; where the text itself has ${"),
        (
            "task.prompt='{question}${5'",
            r"task.prompt='{question}${5': cannot be read (mismatched input '<EOF>' expecting",
        ),
        ("task.prompt='{question}${}'", r"'); where the text itself has ${, write \${"),
        ("tracker.tags=[${seed", "tracker.tags=[${seed: cannot be read (no viable alternative at input '[${')"),
        (
            "task.prompt={question}A,{question}B",
            "cannot be read (no viable alternative at input '{question}'); put a text",
        ),
        ("task.name=a~b", "task.name=a~b: cannot be read (token recognition error at: '~'); put a text into quotes"),
    ],
)
def test_unknown_name_or_wrong_type_is_refused(override, message):
    with pytest.raises((HydraException, ConfigError)) as error:
        composed(*override.split())
    assert message in f"{error.value} {error.value.__cause__}"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("eval=nope", "eval=nope: Could not find 'eval/nope'; choose one of default, "),
        ("task=gsm8k task.max_rows=[1]", "task.max_rows=[1]: must be a mapping; write {KEY:VALUE}"),
        ("model.template_arguments=false", "model.template_arguments=false: must be a mapping; write"),
        ("reward=terms reward.terms=[answer]", "reward.terms=[answer]: must be a mapping; write"),
        (
            "reward=signed reward.cache=1",
            "reward.cache=1: reward as chosen has no key cache; it has correct, format, w",
        ),
        ("reward=terms reward.correct=1", "reward.correct=1: reward as chosen has no key correct; it has terms"),
        (
            "reward@reward.terms.a=answer",
            "reward@reward.terms.a=answer: there is no such option to replace; write +rew",
        ),
        ("train.steps=many", "train.steps=many: Value 'many' of type 'str' could not be converted to Integer"),
        ("+train.steps=3", "+train.steps=3: the key exists; write train.steps=3, without +"),
        ("~nothing", "~nothing: there is no such key or option to leave out"),
        ("+algorithm=grpo", "algorithm appears more than once in the final defaults list"),
    ],
)
def test_error_of_hydra_is_one_line_with_key_value_and_remedy(words, line):
    with pytest.raises(HydraException) as error:
        composed(*words.split())
    assert explained(error.value).startswith(line)
    assert len(explained(error.value).splitlines()) == 1


def test_error_of_hydra_ends_the_program_unless_its_user_wants_the_traceback(monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit, match=r"^error: one two$"), one_line_errors():
        raise HydraException("one\ntwo")
    assert "HYDRA_FULL_ERROR" not in os.environ
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(HydraException), one_line_errors():
        raise HydraException("one")
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


AXES_TWICE = [
    ("seed=0,1", "seed=2,3"),
    ("seed=0,1", "seed=2"),
    ("seed=2", "seed=0,1"),
    ("seed=range(3)", "seed=range(5)"),
    ("algorithm=grpo,rgra", "algorithm=sgrpo"),
    ("seed=0,1", "+seed=2"),
    ("++seed=choice(1,2)", "seed=0,1"),
    ("train.lr=1e-3,1e-4", "train.lr=1e-5"),
]


@pytest.mark.parametrize("words", AXES_TWICE, ids=" ".join)
def test_axis_that_is_given_twice_is_refused_with_both_words(words):
    with pytest.raises(ConfigError) as error:
        composed("lora_rank=4", *words)
    key = words[0].partition("=")[0].lstrip("+")
    assert str(error.value).startswith(
        f"{words[0]} and {words[1]}: the axis {key} is given 2 times on the command line"
    )


def test_key_without_an_axis_that_is_given_twice_has_its_last_value():
    assert composed("train.steps=5", "train.steps=10").train.steps == 10


@pytest.mark.parametrize(
    ("grid", "typed", "words"),
    [
        ("params: {seed: '0,1', ++seed: '2,3'}", [], "seed=0,1 and ++seed=2,3"),
        ("grids: [{algorithm: grpo, seed: '0,1'}], params: {seed: 5}", [], "seed=0,1 and seed=5"),
        ("params: {seed: '0,1'}", ["++seed=5"], "seed=0,1 and ++seed=5"),
    ],
)
def test_axis_that_a_grid_has_twice_is_refused(grid, typed, words, with_sweep):
    with pytest.raises(ConfigError) as error:
        with_sweep(grid, *typed)
    assert str(error.value).startswith(f"{words}: the axis seed is given 2 times in hydra.sweeper")


def test_axis_of_the_command_line_takes_the_place_of_that_of_a_grid(with_sweep):
    assert with_sweep("params: {seed: '0,1'}", "seed=2,3") == [["seed=2"], ["seed=3"]]


@pytest.fixture
def with_sweep(tmp_path):
    """Return the jobs of an experiment whose sweeper has the given keys."""

    def jobs_of(sweeper, *typed):
        (tmp_path / "experiment").mkdir()
        text = f"# @package _global_\nhydra: {{mode: MULTIRUN, sweeper: {{{sweeper}}}}}\n"
        (tmp_path / "experiment" / "mine.yaml").write_text(text)
        with initialize_config_dir(config_dir(), version_base="1.3"):
            words = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine", *typed]
            plain = [word for word in words if "," not in word]
            config = compose("config", plain, return_hydra_config=True)
            with open_dict(config):
                config.hydra.overrides.task = list(typed)
            return sweep_jobs(config)

    return jobs_of


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder whose name Hydra cannot read without quotes."""
    folder = tmp_path / "höme, of a user"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(
    ("words", "read"),
    [
        (["runs_dir=~/x"], ["runs_dir='HOME/x'"]),
        (["runs_dir=~"], ["runs_dir='HOME'"]),
        (["out=~/m/${seed}"], ["out='HOME/m/${seed}'"]),
        (["task.path=~/a,~/b"], ["task.path='HOME/a','HOME/b'"]),
        (["import_path=[~/a, ~/b]"], ["import_path=['HOME/a', 'HOME/b']"]),
        (["import_path=[~/a,'~/b']"], ["import_path=['HOME/a','HOME/b']"]),
        (["hydra.run.dir=~/x"], ["hydra.run.dir='HOME/x'"]),
        (["hydra.searchpath=[file://~/x]"], ["hydra.searchpath=['file://HOME/x']"]),
        (["--config-dir=~/x"], ["--config-dir=HOME/x"]),
        (["--config-dir", "~/x"], ["--config-dir", "HOME/x"]),
        (["~tracker.tags"], ["~tracker.tags"]),
        (["reward.note=a ~/b"], ["reward.note='a ~/b'"]),
        (["reward.note='a, ~/b'"], ["reward.note='a, ~/b'"]),
        (["task.path=/höme/x"], ["task.path='/höme/x'"]),
        ([r"task.prompt={question}\nGo, it's"], [r"task.prompt='{question}\nGo, it\'s'"]),
        ([r'task.prompt="{question}\nA","{question}"'], [r'task.prompt="{question}\nA","{question}"']),
        (["task.prompt='~/ {question}'"], ["task.prompt='~/ {question}'"]),
        (["seed=0,1", "algorithm=grpo"], ["seed=0,1", "algorithm=grpo"]),
        (["a=1", "--config-dir", "~/x", "b=2", "-m", "~c"], ["--config-dir", "HOME/x", "-m", "a=1", "b=2", "~c"]),
        (["a=1", "--config-dir=/x=y", "b=2"], ["--config-dir=/x=y", "a=1", "b=2"]),
        (["a=1", "-cd", "x=y", "b=2", "--cfg", "job"], ["-cd", "x=y", "--cfg", "job", "a=1", "b=2"]),
        (["a=1", "--info", "b=2"], ["--info", "a=1", "b=2"]),
        (["a=1", "--info", "defaults", "b=2"], ["--info", "defaults", "a=1", "b=2"]),
    ],
)
def test_word_of_a_command_line_is_read_as_a_person_writes_it(words, read, home):
    assert read_words(words) == [word.replace("HOME", str(home)) for word in read]


def test_home_folder_is_expanded_in_every_value_but_the_prompt(home):
    config = composed(
        "runs_dir='~/runs'",
        "model.path=~/model",
        "model.name=~/name",
        "task=gsm8k",
        "task.path=~",
        "task.hub=~/hub",
        "task.prompt='~/ {question}'",
        "import_path=[~/mine]",
    )
    assert config.runs_dir == f"{home}/runs"
    assert (config.model.path, config.model.name) == (f"{home}/model", f"{home}/name")
    assert (config.task["path"], config.task["hub"], config.task["prompt"]) == (
        str(home),
        f"{home}/hub",
        "~/ {question}",
    )
    # a lone ~ is a path in keys of paths only
    files = {"files": ["~/a", {"b": "~", "path": "~"}, "~5", 3]}
    assert expand_all(files) == {"files": [f"{home}/a", {"b": "~", "path": str(home)}, "~5", 3]}
    assert config.import_path == [f"{home}/mine"]
    assert composed_warm_start("out='~/m'").out == f"{home}/m"


def test_home_folder_of_a_yaml_file_reaches_the_folders_that_hydra_makes(home, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    for name, node in (("runs", "runs_dir: ~/runs"), ("run", "hydra: {run: {dir: ~/x}}")):
        (tmp_path / "mine" / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{node}\n")
    search = f"hydra.searchpath=[file://{tmp_path}/mine]"
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = compose("config", [search, "experiment=runs"], return_hydra_config=True)
        assert config.hydra.run.dir.startswith(f"{home}/runs/.hydra/")
        assert config.hydra.sweep.dir.startswith(f"{home}/runs/.hydra/")
    with pytest.raises(ConfigError, match=r"hydra.run.dir=~/x: Hydra does not know ~ .* write \${oc.env:HOME}"):
        compose_config(["experiment=run"], [str(tmp_path / "mine")])


@pytest.mark.slow
def test_no_folder_is_named_after_the_home_sign(home, tmp_path):
    words = ["-m", "train.steps=1", "train.prompts_per_step=1", "train.group_size=2", "eval.max_rows=1", "tracker=none"]
    words += ["device=cpu", "task.max_new_tokens=4", "runs_dir=~/runs", "seed=0", "hydra.sweep.dir=~/hydra"]
    assert run_command("rlsparse.run", *words, cwd=tmp_path).returncode == 0
    assert [path.name for path in tmp_path.rglob("~*")] == []
    assert sorted(path.name for path in home.iterdir() if not path.name.startswith(".")) == ["hydra", "runs"]
    assert len(list(home.glob("runs/default/*/summary.json"))) == 1


def test_yaml_file_that_cannot_be_read_is_refused_with_file_and_line(tmp_path):
    (tmp_path / "task").mkdir()
    for name, text in (("twice", "a: 1\nb: 1\na: 2\n"), ("open", "prompt: '{question} ${5'\n"), ("bad", "a: [1\n")):
        (tmp_path / "task" / f"{name}.yaml").write_text(text)
    for name, said in (
        ("twice", r"twice.yaml, line 3 cannot be read \(found duplicate key a\)"),
        ("open", r"open.yaml, key prompt: mismatched input .*; where the text itself has \$\{, write"),
        ("bad", r"bad.yaml, line 2 cannot be read"),
    ):
        with pytest.raises(ConfigError, match=rf"task={name}: .*{said}"):
            compose_config([f"task={name}"], [str(tmp_path)])


def test_folder_of_config_dir_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="--config-dir=/nowhere: there is no such folder; give one with yaml files"):
        check_group_options(["--config-dir=/nowhere"])


@pytest.mark.parametrize("text", [r"{question} \${5", r"{question} \${question}", r"{question} \boxed{}", "{question}"])
def test_config_as_yaml_is_read_as_the_same_config(text):
    config = composed(f"task.prompt='{text}'")
    assert config.task["prompt"] == text.replace(r"\$", "$")
    assert OmegaConf.to_container(OmegaConf.create(as_yaml(config)), resolve=True) == asdict(config)


MOVED = [
    ("task.reward.correct=2", "reward.correct=2"),
    ("token_sampler.replay.successes=1", "replay.successes=1"),
    ("objective.aggregation=constant", "objective=constant"),
]


@pytest.mark.parametrize(
    ("override", "new"), [*MOVED, ("task.reward={correct:2,wrong:1}", "reward={correct:2,wrong:1}")]
)
def test_moved_key_on_the_command_line_is_refused_with_its_new_name(override, new):
    for word in (override, f"+{override}"):
        with pytest.raises(ConfigError) as error:
            composed(word)
        assert str(error.value) == f"{word}: this key has moved; write {new}"


@pytest.mark.parametrize(("override", "new"), MOVED)
def test_moved_key_in_an_experiment_is_refused_with_its_new_name(override, new, with_experiment):
    key, _, value = override.partition("=")
    node = value
    for one in reversed(key.split(".")):
        node = {one: node}
    with pytest.raises(ConfigError) as error:
        with_experiment(text="# @package _global_\nexperiment: {name: mine}\n" + yaml.safe_dump(node))
    assert str(error.value) == f"{override}: this key has moved; write {new}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("train.group_size=1", "train.group_size=1: advantage=group_zscore .* group of at least 2"),
        ("train.group_size=1 algorithm=rloo", "advantage=leave_one_out"),
        ("algorithm=sgrpo token_sampler.budget=3", r"token_sampler.budget=3: the first token_sampler.always_first=4"),
        ("algorithm=sgrpo token_sampler.probability=0", r"token_sampler.probability=0.0: must be in \(0, 1\]"),
        ("algorithm=sgrpo token_sampler.probability=1.5", r"token_sampler.probability=1.5: must be in \(0, 1\]"),
        ("algorithm=tspmo clipping=on", r"clipping \(clipped_ratio\): .* take clipping=prob"),
        (
            "algorithm=tspmo token_sampler=full",
            "token_sampler=full: .* take one that does, such as token_sampler=prefix_tree",
        ),
        ("token_sampler=prefix_tree", "advantage=group_zscore: .* take both or neither"),
        ("lora_rank=0", "lora_rank=0: must be at least 1"),
        ("train.updates_per_rollout=0", "train.updates_per_rollout=0: must be at least 1"),
        ("rollout.temperature=0", "rollout.temperature=0.0: must be above 0"),
        ("rollout.top_p=0", r"rollout.top_p=0.0: must be in \(0, 1\]"),
        ("eval.pass_at=[0]", "each k must be at least 1"),
        ("adapter=none", "adapter=none: is for warm starts; take adapter=full"),
        ("adapter=l1ra adapter.l1=-1", "adapter.l1=-1.0: must be at least 0"),
        ("adapter=l1ra adapter.gate_lr=0", "adapter.gate_lr=0.0: must be above 0"),
        ("adapter=l1ra adapter.threshold=1", r"adapter.threshold=1.0: must be in \[0, 1\)"),
        ("adapter=l1ra adapter.threshold=-0.1", r"adapter.threshold=-0.1: must be in \[0, 1\)"),
        ("adapter=l1ra adapter.update_every=0", r"adapter.update_every=0.0: must be in \(0, 1\]"),
        ("adapter=l1ra adapter.min_rank=0", "adapter.min_rank=0: must be at least 1"),
        ("tracker.name=mlflow", "tracker.name=mlflow: must be one of none, wandb"),
        ("tracker.mode=sometimes", "tracker.mode=sometimes: must be one of auto, online, offline"),
        ("train.lr=nan", "train.lr=nan: must be a finite number"),
        ("task.train_rows=0", r"task.train_rows=0: must be in \[1, 1000000\]"),
        ("clipping.epsilon_low=2", r"clipping.epsilon_low=2.0: must be in \[0, 1\]"),
        ("experiment.name=../x", "experiment.name=../x: it names a folder"),
        ("train.schedule=step", "train.schedule=step: must be one of constant, linear, cosine"),
        ("task.answer_format=xml", "task.answer_format=xml: must be one of hash, boxed"),
        ("adapter.layers=first", "adapter.layers=first: give all, last_third"),
        ("adapter.target_modules=q_proj", "adapter.target_modules=q_proj: give all-linear, or a list"),
        ("task.prompt=hello", "task.prompt='hello': must contain {question}"),
        ("kl.beta=-1", "kl.beta=-1.0: must be at least 0"),
        ("model.lr=inf train.lr=1", "model.lr=inf: must be a finite number"),
        ("objective.l2=1e300", r"objective.l2=1e\+300: must be between -1e\+30 and 1e\+30"),
        ("reward.wrong=-1e300", r"reward.wrong=-1e\+300: must be between"),
        ("tracker.samples=1" + "0" * 30, "tracker.samples=10+: must be a whole number of at most 18 digits"),
        ("adapter.layers=[1" + "0" * 30 + "]", "adapter.layers=10+: must be a whole number"),
        ("train.group_size=1000000000", r"train.group_size=1000000000: must be in \[1, 1000000\]"),
        ("train.group_size=10000 train.prompts_per_step=1000", "prompts_per_step=1000: .* a step has 10000000 compl"),
        ("eval.samples=1000000000", r"eval.samples=1000000000: must be in \[1, 1000000\]"),
        ("task.test_rows=1000000000", r"task.test_rows=1000000000: must be in \[1, 1000000\]"),
        ("threads=1000000000", r"threads=1000000000: must be auto or a whole number in \[1, 1024\]"),
        ("task.verifier_time_limit=1e30", r"task.verifier_time_limit=1e\+30: must be in \(0, 3600\]"),
        ("eval.pass_at=${seed}", r"eval.pass_at=0: must be a list such as \[1,2\]"),
        ("eval.pass_at=${adapter.layers} adapter.layers=[0,x]", r"eval.pass_at=\[0, 'x'\]: must be a list"),
        ("experiment.name=" + "x" * 300, "experiment.name=x+: it names a folder; use at most 200"),
        ("runs_dir=''", "runs_dir=: names no folder"),
        ("task.prompt='{question}\udcff'", "task.prompt='{question}.udcff': must be text that UTF-8 can write"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(overrides, message):
    with pytest.raises(ConfigError) as error:
        check(composed(*overrides.split()))
    assert re.search(message, str(error.value))


GROUPS = "rlsparse.components.advantage.group"


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        ("advantage._target_=nope", ["advantage._target_=nope: must be MODULE.CLASS, such as brevity.Brief"]),
        ("advantage._target_=null", ["advantage._target_=null: must be MODULE.CLASS, such as brevity.Brief"]),
        (
            "advantage._target_=nowhere.Nope",
            ["advantage._target_=nowhere.Nope: there is no module nowhere; put nowhere.py into the folder that --conf"],
        ),
        (
            f"advantage._target_={GROUPS}.Nope",
            [f"advantage._target_={GROUPS}.Nope: .*group.py has no class Nope; it has GroupMean, GroupZscore, Leave"],
        ),
        (
            "advantage._target_=rlsparse.components.token_sampler.full.Full",
            [
                "advantage._target_=.*: Full in .*full.py is no subclass of rlsparse.components.advantage.base.Advantage;"
            ],
        ),
        (
            "advantage._target_=collections.Counter",
            ["advantage._target_=collections.Counter: Counter in .* is no subclass of rlsparse.components.advantage."],
        ),
        (
            "advantage._target_=rlsparse.components.advantage.base.GroupBaseline",
            ["advantage._target_=.*: GroupBaseline in .*base.py lacks per_completion; define it"],
        ),
        ("advantage=raw_reward +advantage.epsilon=1", ["advantage.epsilon: no such key; here there are none"]),
        (f"advantage._target_={GROUPS}.GroupMean", ["advantage.epsilon: no such key; here there are none"]),
        (
            "~advantage.epsilon",
            [
                r"advantage.epsilon: has no value; give \+advantage.epsilon=..., or a line in the yaml file of the option"
            ],
        ),
        ("advantage.epsilon=much", ["advantage.epsilon=much: must be a number"]),
        ("advantage.epsilon=${train}", ["advantage.epsilon=.*steps.*: must be a number"]),
        ("reward.correct=${replay}", ["reward.correct=.*successes.*: must be a number"]),
        ("reward=format reward.answer=1", ["reward.answer=1: must be true or false"]),
        ("replay.successes=0.5", ["replay.successes=0.5: must be a whole number"]),
        ("replay.successes=true", ["replay.successes=true: must be a whole number"]),
        ("task.prompt=3", ["task.prompt=3: must be text"]),
        ("adapter.layers=[0,x]", [r"adapter.layers=\[0, 'x'\]: must be text or a list of whole numbers"]),
        ("adapter.layers=[]", [r"adapter.layers=\[\]: must be text or a list of whole numbers"]),
        ("adapter=l1ra adapter.budget=many", ["adapter.budget=many: must be a whole number or null"]),
        ("advantage.epsilon=-1", ["advantage.epsilon=-1.0: must be at least 0"]),
        (
            "algorithm=sgrpo advantage._target_=nowhere.Nope token_sampler.budget=0 token_sampler.probability=x "
            "~kl.beta reward.correct=inf lora_rank=0",
            [
                "lora_rank=0: must be at least 1",
                "reward.correct=inf: must be a finite number",
                "advantage._target_=nowhere.Nope: there is no module",
                "token_sampler.budget=0: must be at least 1",
                "token_sampler.probability=x: must be a number",
                "kl.beta: has no value",
            ],
        ),
    ],
)
def test_component_that_cannot_be_built_is_refused_with_key_value_and_remedy(overrides, lines):
    with pytest.raises(ConfigError) as error:
        check(composed(*overrides.split()))
    said = str(error.value).splitlines()
    assert len(said) == len(lines), said
    for line, pattern in zip(said, lines, strict=True):
        assert re.match(pattern, line), line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.hidden_size=0", r"model.hidden_size=0: must be in \[1, 100000\]"),
        ("model.hidden_size=100 model.heads=3", "model.hidden_size=100: each of model.heads=3 takes an even part"),
        ("model.kv_heads=3", "model.kv_heads=3: must divide model.heads=4"),
        ("model.vocabulary=-1", r"model.vocabulary=-1: must be in \[256"),
        ("out=''", "out=: names no folder"),
    ],
)
def test_new_model_that_cannot_be_made_is_refused(override, message):
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = run_config(compose("warm_start", ["model=scratch", "task=arithmetic", "out=x", *override.split()]))
    with pytest.raises(ConfigError, match=message):
        check(config)


def test_raw_reward_with_a_group_of_one_is_allowed():
    check(composed("algorithm=reinforce", "train.group_size=1"))


def test_two_wrong_values_are_two_lines_of_one_message():
    with pytest.raises(ConfigError) as error:
        check(composed("lora_rank=0", "train.steps=0"))
    assert len(str(error.value).splitlines()) == 2


def test_runs_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"runs_dir=.*file/runs: cannot be written"):
        check_writable("runs_dir", str(tmp_path / "file" / "runs"))
    check_writable("runs_dir", str(tmp_path / "new" / "runs"))


def test_keys_of_a_swept_group_are_set_in_each_point():
    """Hydra would set them in the default option, which may not have them."""
    words = ["-m", "token_sampler=random,first", "token_sampler.share=0.5", "token_sampler.budget=null", "seed=0,1"]
    axes = "hydra.sweeper.params={token_sampler.share:'0.5',token_sampler.budget:'null'}"
    assert keys_of_swept_groups(words) == ["-m", "token_sampler=random,first", "seed=0,1", axes]
    # an axis stays one, a group with one option keeps its keys, and without -m nothing is swept
    for same in (["-m", "kl=on,off", "kl.beta=0.1,0.2"], ["-m", "kl=on", "kl.beta=0.1", "seed=0,1"], words[1:]):
        assert keys_of_swept_groups(same) == same


def configs(*overrides_lists):
    every = [composed(*overrides) for overrides in overrides_lists]
    return [(config, Algorithm.build(config)) for config in every]


def test_clipping_swept_with_one_update_per_rollout_gets_a_warning():
    (line,) = idle_clipping(configs(["clipping=on"], ["clipping=off"]))
    assert "clipping is swept (clipped_ratio, log_prob) with train.updates_per_rollout=1" in line
    assert idle_clipping(configs(["algorithm=grpo"], ["algorithm=rgra"]))
    four = "train.updates_per_rollout=4"
    assert not idle_clipping(configs(["clipping=on", four], ["clipping=off", four]))
    assert not idle_clipping(configs(["algorithm=grpo"], ["algorithm=sgrpo"], ["algorithm=tspmo"]))


def yaml_of(group: str, option: str) -> dict:
    """The keys of an option with their values, those that it inherits included."""
    node = yaml.safe_load((CONF / group / f"{option}.yaml").read_text())
    inherited = {}
    for other in node.pop("defaults", ["_self_"]):
        if other != "_self_":
            inherited |= yaml_of(group, other)
    return inherited | node


@pytest.mark.parametrize(("group", "option"), COMPONENTS)
def test_option_of_a_component_group_has_exactly_the_fields_of_its_class(group, option):
    node = getattr(composed(f"{group}={option}", *NEEDED.get((group, option), [])), group)
    component = build(group, node, BASES[group])
    keys = {field.name for field in fields(component)}
    assert keys == set(node) - {"_target_"} == set(yaml_of(group, option)) - {"_target_"}
    assert f"{type(component).__module__}.{type(component).__qualname__}" == node["_target_"]


def test_component_groups_are_the_fields_of_an_algorithm_and_have_options():
    assert COMPONENT_GROUPS == set(BASES) == {group for group, _ in COMPONENTS}


def test_answer_formats_of_the_key_are_those_of_the_verifier():
    assert keys_of(Task)["answer_format"].bounds.options == tuple(ANSWER_FORMATS)


def test_yaml_key_has_a_comment():
    """Each key of each yaml has a comment, its own or that of the line above; names of options explain themselves."""
    for file in CONF.rglob("*.yaml"):
        text = file.read_text().split("\nhydra:")[0]
        for line in text.splitlines():
            key = re.match(r"\s*([a-z_0-9]+):( |$)", line)
            structural = (
                "_target_",
                "defaults",
                "name",
                "experiment",
                "objective",
                "algorithm",
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


@pytest.mark.parametrize(
    "words",
    [["train.lr=0.1,0.2", "train={lr:0.3}"], ["task={seed:5},{seed:6}", "task.seed=7"]],
    ids=["inside", "whole"],
)
def test_axis_that_a_mapping_covers_is_refused_with_both_words(words):
    with pytest.raises(ConfigError, match="one by one") as refused:
        check_group_options(words)
    assert all(word in str(refused.value) for word in words)
    check_group_options(["task=svamp,gsm8k", "task.path=/x"])  # an option and a key of it

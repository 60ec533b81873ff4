"""Components of a user's own: the files of docs/extending.md, verbatim, in a folder outside the checkout."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlsparse.algorithm import Algorithm
from rlsparse.batch import Problem
from rlsparse.components.component import ComponentError
from rlsparse.components.reward import Completion, Score
from rlsparse.config.compose import compose
from rlsparse.config.schema import ConfigError
from rlsparse.execution.point_warnings import idle_clipping
from rlsparse.execution.preflight import identity_of
from rlsparse.training.rewards import checked_reward
from tests.commands import run_command
from tests.conftest import ROOT, make_rollout

PAGE = ROOT / "docs" / "extending.md"
SHORT = ["train.steps=2", "eval.max_rows=4", "eval.every=2", "tracker=none", "threads=1"]
ALL = [
    "advantage=median",
    "token_sampler=last",
    "clipping=soft",
    "off_policy=bounded",
    "adapter=gaussian",
    "task=doubling",
    "reward=brief",
]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def write_page(folder: Path) -> Path:
    """Write the files that the page shows and run its commands that make files; the folder ``mine`` with them."""
    for language, block in re.findall(r"```(python|yaml|sh)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        if language == "sh" and "mkdir" in block:
            subprocess.run(["sh", "-e", "-c", block], cwd=folder, check=True)
        elif language != "sh":
            file = folder / block.splitlines()[0].removeprefix("# ")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block)
    return folder / "mine"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The page's folder. What is imported from it is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield write_page(tmp_path)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def run(mine: Path, *arguments: str, start: list[str] | None = None, check: bool = True):
    command = ["rlsparse.run", "--config-dir", "mine", *arguments, *SHORT]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if start is None:
        done = run_command(*command, cwd=mine.parent, OMP_NUM_THREADS="1")
    else:
        command = [*start, "-m", *command]
        done = subprocess.run(command, cwd=mine.parent, env=environment, capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stderr
    return done


def summaries(mine: Path) -> dict[str, dict]:
    files = mine.parent.glob("runs/default/*/summary.json")
    return {" ".join(one["overrides"]): one for one in (json.loads(file.read_text()) for file in files)}


def identity(mine: Path, *overrides: str) -> str:
    config = compose(overrides, [str(mine)])
    return identity_of(config, Algorithm.build(config), "cpu").id


def completion() -> Completion:
    return Completion("228", 4, True, Problem("57*4=", "228", ""), Score(True, True))


def test_page_has_under_80_lines_and_a_file_for_each_kind(mine):
    assert len(PAGE.read_text().splitlines()) < 80
    groups = {file.parent.name for file in mine.glob("*/*.yaml")}
    assert groups == {"advantage", "token_sampler", "clipping", "off_policy", "adapter", "task", "reward"}


def test_own_components_compose_into_an_algorithm(mine):
    algorithm = Algorithm.build(compose(ALL, [str(mine)]))
    assert [algorithm.advantage.label, algorithm.token_sampler.budget, algorithm.reward.price] == ["median", 8, 0.01]
    assert (algorithm.task.label, algorithm.adapter.scale) == ("doubling", 2.0)
    assert (algorithm.clipping.label, algorithm.off_policy.bound) == ("soft", 2.0)


@pytest.mark.slow
def test_own_components_of_all_kinds_train_together(mine):
    run(mine, *ALL, "model=tiny_deep", "layer_skip=r15")
    (summary,) = summaries(mine).values()
    assert summary["status"] == "finished"
    assert (summary["setting"]["task"], summary["adapter"]["name"]) == ("doubling", "gaussian_lora")
    # 8 tokens of each completion at most
    assert 0 < summary["tokens"]["frac_updated"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", pytest.param("joblib", marks=pytest.mark.full)])
def test_own_reward_in_a_sweep_is_named_by_the_tables(mine, launcher):
    run(mine, "-m", "reward=correctness,brief", f"hydra/launcher={launcher}")
    assert {one["status"] for one in summaries(mine).values()} == {"finished"}
    assert len(summaries(mine)) == 2
    shown = run_command("rlsparse.results", "--runs", "runs", "--show", cwd=mine.parent)
    assert "grpo reward=brief" in shown.stdout


@pytest.mark.full
def test_own_reward_with_two_ranks_gives_the_results_of_one(mine):
    run(mine, "reward=brief")
    (alone,) = summaries(mine).values()
    (mine.parent / "runs").rename(mine.parent / "alone")
    run(mine, "reward=brief", start=TORCHRUN)
    (both,) = summaries(mine).values()
    assert both["ranks"] == 2
    assert both["id"] == alone["id"]
    assert both["final"] == alone["final"]


@pytest.mark.full
def test_own_reward_runs_as_a_ray_task(mine):
    pytest.importorskip("ray")
    words = ["-m", "reward=brief", "hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=1"]
    run(mine, *words, start=[sys.executable])
    assert [one["status"] for one in summaries(mine).values()] == ["finished"]


def test_run_id_changes_with_the_file_and_with_nothing_else(mine):
    before = identity(mine, "reward=brief")
    (mine / "notes.txt").write_text("a note")
    assert identity(mine, "reward=brief") == before
    (mine / "brevity.py").write_text((mine / "brevity.py").read_text() + "\n# changed\n")
    assert identity(mine, "reward=brief") != before
    assert identity(mine) == identity(mine, "reward=correctness")


def test_run_id_changes_with_a_file_that_the_component_imports(mine):
    (mine / "prices.py").write_text("FACTOR = 1.0")
    file = mine / "brevity.py"
    file.write_text("from prices import FACTOR\n" + file.read_text().replace("self.price *", "FACTOR * self.price *"))
    before = identity(mine, "reward=brief")
    (mine / "prices.py").write_text("FACTOR = 2.0")
    assert identity(mine, "reward=brief") != before


def test_changed_file_is_imported_again_in_the_same_process(mine):
    def reward() -> float:
        return Algorithm.build(compose(["reward=brief"], [str(mine)])).reward(completion())

    assert reward() == pytest.approx(1 - 4 * 0.01)
    (mine / "brevity.py").write_text((mine / "brevity.py").read_text().replace("- self.price", "+ self.price"))
    assert reward() == pytest.approx(1 + 4 * 0.01)


def test_module_name_that_python_has_already_is_refused(mine):
    (mine / "json.py").write_text((mine / "brevity.py").read_text())
    with pytest.raises(
        ConfigError, match=r"Python imports another module of this name, .*json.*; rename .*mine/json.py"
    ):
        Algorithm.build(compose(["reward=brief", "reward._target_=json.Brief"], [str(mine)]))


def test_advantage_of_a_wrong_shape_names_its_file(mine):
    file = mine / "parts.py"
    page = (
        file.read_text().replace("import GroupBaseline", "import Advantage").replace("(GroupBaseline)", "(Advantage)")
    )
    formula = "def per_completion(self, rewards): return rewards - rewards.median(dim=1, keepdim=True).values"
    assert formula in page
    file.write_text(page.replace(formula, "def __call__(self, rewards, rollout): return rewards"))
    algorithm = Algorithm.build(compose(["advantage=median"], [str(mine)]))
    expected = r"advantage \(.*parts.py\): returned shape \(1, 2\); it must be a tensor of shape \(2, 2\)"
    with pytest.raises(ComponentError, match=expected):
        algorithm.token_advantages(torch.ones(1, 2), make_rollout([[5, 6], [7]]))


def test_run_id_does_not_depend_on_where_the_folder_lies(mine, tmp_path):
    before = identity(mine, "reward=brief")
    moved = mine.rename(tmp_path / "moved")
    assert identity(moved, "reward=brief") == before


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("", "nowhere.Brief", r"reward._target_=nowhere.Brief: there is no module nowhere; put nowhere.py into"),
        ("def f(:", "bad.Brief", r"reward._target_=bad.Brief: .*/bad.py, line 1: SyntaxError"),
        (
            "import no_such_package",
            "bad.Brief",
            r"bad.py, line 1: ModuleNotFoundError: No module named 'no_such_package'",
        ),
        ("\n1 / 0", "bad.Brief", r"/bad.py, line 2: ZeroDivisionError"),
        ("class Other: pass", "bad.Brief", r"/bad.py has no class Brief; it has Other"),
        (
            "class Brief: pass",
            "bad.Brief",
            r"Brief in .*/bad.py is no subclass of rlsparse.components.reward.base.Reward",
        ),
        (
            "from rlsparse.components.reward import Reward\nclass Brief(Reward): pass",
            "bad.Brief",
            r"Brief in .*/bad.py lacks __call__; define it",
        ),
        (
            "from rlsparse.components.reward import Reward\nclass Brief(Reward):\n    def __call__(self, c): return 1.0",
            "bad.Brief",
            r"Brief in .*/bad.py is no dataclass; write @dataclass\(frozen=True\)",
        ),
    ],
)
def test_own_file_that_cannot_be_used_is_refused_with_its_name(mine, source, target, message):
    (mine / "bad.py").write_text(source)
    (mine / "reward" / "bad.yaml").write_text(f"_target_: {target}\n")
    with pytest.raises(ConfigError) as error:
        Algorithm.build(compose(["reward=bad"], [str(mine)]))
    assert re.search(message, str(error.value))
    assert len(str(error.value).splitlines()) == 1


def test_own_keys_are_checked_all_at_once(mine):
    config = compose(["reward=brief", "reward.price=-1", "token_sampler=last", "token_sampler.budget=x"], [str(mine)])
    with pytest.raises(ConfigError) as error:
        Algorithm.build(config)
    assert str(error.value).splitlines() == [
        "reward.price=-1.0: must be at least 0",
        "token_sampler.budget=x: must be a whole number",
    ]


@pytest.mark.slow
def test_exception_in_a_formula_fails_its_run_and_the_sweep_continues(mine):
    file = mine / "brevity.py"
    file.write_text(file.read_text().replace("return float", "return completion.no_such_field or float"))
    line = file.read_text().splitlines().index(next(one for one in file.read_text().splitlines() if "no_such" in one))
    done = run(mine, "-m", "reward=brief,correctness", check=False)
    assert done.returncode == 1
    by_name = summaries(mine)
    broken = next(one for name, one in by_name.items() if "reward=brief" in name)
    assert broken["status"] == "failed"
    assert f"reward: {file}, line {line + 1}: AttributeError" in broken["error"]
    assert {one["status"] for name, one in by_name.items() if "reward=correctness" in name} == {"finished"}
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("returned", ["None", "float('nan')", "True", "'1'"])
def test_own_reward_that_returns_no_number_fails_with_its_file(mine, returned):
    file = mine / "brevity.py"
    file.write_text(file.read_text().replace("return float", f"return {returned}; float"))
    reward = Algorithm.build(compose(["reward=brief"], [str(mine)])).reward
    with pytest.raises(ComponentError, match=r"reward \(.*brevity.py\): returned .*; return a finite number, float"):
        checked_reward(reward, completion())


def test_own_reward_may_return_a_number_of_numpy(mine):
    file = mine / "brevity.py"
    file.write_text("import numpy\n" + file.read_text().replace("return float", "return numpy.float32(0.5) or float"))
    reward = Algorithm.build(compose(["reward=brief"], [str(mine)])).reward
    assert checked_reward(reward, completion()) == 0.5


def test_dataclass_that_is_not_frozen_is_refused_with_its_file(mine):
    (mine / "brevity.py").write_text((mine / "brevity.py").read_text().replace("(frozen=True)", ""))
    with pytest.raises(ConfigError, match=r"mine/brevity.py, line \d+: .*; write @dataclass\(frozen=True\)"):
        Algorithm.build(compose(["reward=brief"], [str(mine)]))


def test_own_field_without_a_line_in_the_yaml_is_given_with_a_plus(mine):
    (mine / "reward" / "brief.yaml").write_text("_target_: brevity.Brief\n")
    with pytest.raises(ConfigError, match=r"reward.price: has no value; give \+reward.price="):
        Algorithm.build(compose(["reward=brief"], [str(mine)]))
    assert Algorithm.build(compose(["reward=brief", "+reward.price=0.5"], [str(mine)])).reward.price == 0.5


def test_option_with_the_name_of_one_of_the_package_is_refused(mine):
    """Hydra would take the option of the package without a word."""
    (mine / "off_policy" / "truncated.yaml").write_text("{_target_: parts.Masked, bound: 2.0}")
    with pytest.raises(ConfigError, match=r"^off_policy=truncated: rlsparse has .* rename that file$") as error:
        compose(["layer_skip=r10", "off_policy=truncated"], [str(mine)])
    assert str(mine / "off_policy" / "truncated.yaml") in str(error.value)
    compose(["layer_skip=r10", "off_policy=retrace"], [str(mine)])  # another option of the package


def test_long_value_or_path_beside_a_yaml_file_is_no_option_of_the_package(mine, tmp_path):
    (tmp_path / "runs.yaml").write_text("")
    assert compose([f"runs_dir={tmp_path}/runs"], [str(mine)]).runs_dir == f"{tmp_path}/runs"
    with pytest.raises(ConfigError, match=r"^reward=aaaa"):  # longer than the name of a file can be
        compose(["reward=" + "a" * 300], [str(mine)])


def test_own_surrogate_with_a_list_among_its_keys_is_told_apart_from_others_in_the_warning(mine):
    (mine / "bounded.py").write_text(
        "from dataclasses import dataclass\n"
        "from rlsparse.components.objective.surrogate import Ratio\n"
        "@dataclass(frozen=True)\n"
        "class Listed(Ratio):\n"
        "    bounds: list[float]\n"
    )
    (mine / "clipping" / "listed.yaml").write_text("{_target_: bounded.Listed, bounds: [0.5, 2.0]}")
    configs = [compose(["clipping=listed", *more], [str(mine)]) for more in ([], ["clipping.bounds=[0.1]"], ["seed=1"])]
    first, other, seed = ((config, Algorithm.build(config)) for config in configs)
    (line,) = idle_clipping([first, other])
    assert line.startswith("clipping is swept (listed) ")
    assert idle_clipping([first, seed]) == []

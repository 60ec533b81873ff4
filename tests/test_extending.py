"""Components of a user's own: the files of docs/extending.md, verbatim, in a folder outside the checkout."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlsparse.algorithm import Algorithm
from rlsparse.config.compose import compose
from rlsparse.config.schema import ConfigError
from rlsparse.execution.preflight import identity_of
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "extending.md"
SHORT = ["train.steps=2", "eval.max_rows=4", "eval.every=2", "tracker=none", "threads=1"]
ALL = [
    "advantage=median",
    "token_sampler=last",
    "clipping=soft",
    "off_policy=masked",
    "adapter=rslora",
    "task=doubling",
    "reward=brief",
]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def write_page(folder: Path) -> Path:
    """Write the files that the page shows; the folder ``mine`` with them."""
    for block in re.findall(r"```(?:python|yaml)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        for first, rest in re.findall(r"^# (mine/\S+?):? *(\{.*\})?\n", block, re.MULTILINE):
            file = folder / first
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(rest or block)
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
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*(start or [sys.executable]), "-m", "rlsparse.run", "--config-dir", "mine", *arguments, *SHORT]
    done = subprocess.run(command, cwd=mine.parent, env=environment, capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stderr
    return done


def summaries(mine: Path) -> dict[str, dict]:
    files = mine.parent.glob("runs/default/*/summary.json")
    return {" ".join(one["overrides"]): one for one in (json.loads(file.read_text()) for file in files)}


def identity(mine: Path, *overrides: str) -> str:
    config = compose(overrides, [str(mine)])
    return identity_of(config, Algorithm.build(config), "cpu").id


def test_page_has_under_80_lines_and_a_file_for_each_kind(mine):
    assert len(PAGE.read_text().splitlines()) < 80
    groups = {file.parent.name for file in mine.glob("*/*.yaml")}
    assert groups == {"advantage", "token_sampler", "clipping", "off_policy", "adapter", "task", "reward"}


def test_own_components_compose_into_an_algorithm(mine):
    algorithm = Algorithm.build(compose(ALL, [str(mine)]))
    assert [algorithm.advantage.label, algorithm.token_sampler.budget, algorithm.reward.price] == ["median", 8, 0.01]
    assert (algorithm.task.label, algorithm.adapter.scale) == ("doubling", 2.0)


@pytest.mark.slow
def test_own_components_of_all_kinds_train_together(mine):
    run(mine, *ALL, "model=tiny_deep", "layer_skip=r15")
    (summary,) = summaries(mine).values()
    assert summary["status"] == "finished"
    assert (summary["setting"]["task"], summary["adapter"]["name"]) == ("doubling", "rs_lora")
    # 8 tokens of each completion at most
    assert 0 < summary["tokens"]["frac_updated"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "joblib"])
def test_own_reward_in_a_sweep_is_named_by_the_tables(mine, launcher):
    run(mine, "-m", "reward=correctness,brief", f"hydra/launcher={launcher}")
    assert {one["status"] for one in summaries(mine).values()} == {"finished"}
    assert len(summaries(mine)) == 2
    tables = [sys.executable, "-m", "rlsparse.results", "--runs", "runs", "--show"]
    shown = subprocess.run(tables, cwd=mine.parent, capture_output=True, text=True, check=True).stdout
    assert "grpo reward=brief" in shown


@pytest.mark.slow
def test_own_reward_with_two_ranks_gives_the_results_of_one(mine):
    run(mine, "reward=brief")
    (alone,) = summaries(mine).values()
    (mine.parent / "runs").rename(mine.parent / "alone")
    run(mine, "reward=brief", start=TORCHRUN)
    (both,) = summaries(mine).values()
    assert both["ranks"] == 2
    assert both["id"] == alone["id"]
    assert both["final"] == alone["final"]


@pytest.mark.slow
def test_own_reward_runs_as_a_ray_task(mine):
    pytest.importorskip("ray")
    run(mine, "-m", "reward=brief", "hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=1")
    assert [one["status"] for one in summaries(mine).values()] == ["finished"]


def test_run_id_changes_with_the_file_and_with_nothing_else(mine):
    before = identity(mine, "reward=brief")
    (mine / "notes.txt").write_text("a note")
    assert identity(mine, "reward=brief") == before
    (mine / "brevity.py").write_text((mine / "brevity.py").read_text() + "\n# changed\n")
    assert identity(mine, "reward=brief") != before
    assert identity(mine) == identity(mine, "reward=correctness")


def test_run_id_does_not_depend_on_where_the_folder_lies(mine, tmp_path):
    before = identity(mine, "reward=brief")
    moved = mine.rename(tmp_path / "moved")
    del sys.modules["brevity"]
    sys.path.remove(str(mine))
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
    assert broken["error"].startswith(f"{file}, line {line + 1}: AttributeError")
    assert {one["status"] for name, one in by_name.items() if "reward=correctness" in name} == {"finished"}
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("returned", ["None", "float('nan')", "True", "'1'"])
def test_own_reward_that_returns_no_number_fails_with_its_file(mine, returned):
    from rlsparse.batch import Problem
    from rlsparse.components.reward import Completion, Score
    from rlsparse.training.collect import RewardError, checked_reward

    (mine / "brevity.py").write_text(
        (mine / "brevity.py").read_text().replace("return float", f"return {returned}; float")
    )
    reward = Algorithm.build(compose(["reward=brief"], [str(mine)])).reward
    completion = Completion("228", 4, True, Problem("57*4=", "228", ""), Score(True, True))
    with pytest.raises(RewardError, match=r"reward \(.*brevity.py\): returned"):
        checked_reward(reward, completion)

"""Grids of methods, and keys tuned for each method before it is compared."""

import json

import pytest
from hydra import compose, initialize_config_dir

from rlsparse.config.compose import check_keys, config_dir, register_schemas
from rlsparse.config.schema import ConfigError
from rlsparse.results.collect import collect
from rlsparse.sweep import trials
from rlsparse.sweep.plan import PlanUpdate, _jobs, _narrow_grids, sweep_points
from rlsparse.sweep.status import RunState
from rlsparse.sweep.trials import wait_for_trials
from rlsparse.sweep.tuning import Tuning, build_tuning
from tests.test_cli import FAST, call
from tests.test_results import put

JOBS = [[f"algorithm={name}", f"seed={seed}"] for name in ("a", "b") for seed in (0, 1)]
TUNE = Tuning({"train.lr": ("1", "2")}, ("100", "101"))


def test_trials_of_two_jobs_of_a_method_are_listed_once():
    assert TUNE.all_trials(JOBS) == [
        [f"algorithm={name}", f"train.lr={rate}", f"seed={seed}"]
        for name in ("a", "b")
        for rate in ("1", "2")
        for seed in ("100", "101")
    ]


def score(table):
    """(algorithm, rate) → scores by seed."""

    def of(job):
        words = dict(word.split("=") for word in job)
        return table[words["algorithm"], words["train.lr"]][("100", "101").index(words["seed"])]

    return of


def test_method_gets_the_value_with_its_best_mean_score():
    # a: means 0.5 and 0.45; b: 0.3 and 0.6
    table = {("a", "1"): (0.2, 0.8), ("a", "2"): (0.45, 0.45), ("b", "1"): (0.3, 0.3), ("b", "2"): (0.5, 0.7)}
    chosen = TUNE.choose(JOBS, score(table))
    assert chosen == [
        ["algorithm=a", "seed=0", "train.lr=1"],
        ["algorithm=a", "seed=1", "train.lr=1"],
        ["algorithm=b", "seed=0", "train.lr=2"],
        ["algorithm=b", "seed=1", "train.lr=2"],
    ]


def test_value_without_all_its_trials_is_not_chosen_and_a_tie_takes_the_first():
    table = {("a", "1"): (0.9, None), ("a", "2"): (0.1, 0.1), ("b", "1"): (0.5, 0.5), ("b", "2"): (0.25, 0.75)}
    chosen = TUNE.choose(JOBS, score(table))
    assert chosen[0] == ["algorithm=a", "seed=0", "train.lr=2"]
    assert chosen[2] == ["algorithm=b", "seed=0", "train.lr=1"]
    nothing = {("a", "1"): (0.9, None), ("a", "2"): (None, 0.1), ("b", "1"): (0.3, 0.3), ("b", "2"): (0.2, 0.4)}
    assert TUNE.choose(JOBS, score(nothing))[:2] == [None, None]


def test_two_tuned_keys_are_tried_in_all_combinations():
    both = Tuning({"train.lr": ("1", "2"), "kl.beta": ("0", "3")}, ("9",))
    assert both.combinations() == [
        ["train.lr=1", "kl.beta=0"],
        ["train.lr=1", "kl.beta=3"],
        ["train.lr=2", "kl.beta=0"],
        ["train.lr=2", "kl.beta=3"],
    ]


def test_typed_key_is_not_tuned_and_trials_on_compared_seeds_are_refused():
    axes = {"train.lr": ["1", "2"], "seed": ["100"]}
    assert build_tuning(axes, ["train.lr=1"], {"0", "1"}) is None
    assert build_tuning(axes, ["seed=0"], {"0", "1"}) == Tuning({"train.lr": ("1", "2")}, ("100",))
    with pytest.raises(ConfigError, match=r"tune.seed=0,100: seed 0 is also compared"):
        build_tuning({**axes, "seed": ["0", "100"]}, [], {"0", "1"})
    with pytest.raises(ConfigError, match=r"tune.train.lr=1,2: train.lr is also an axis of the comparison"):
        build_tuning(axes, [], {"0"}, {"train.lr", "seed"})
    with pytest.raises(ConfigError, match=r"tune.train.lr=1: leaves nothing to choose"):
        build_tuning({**axes, "train.lr": ["1", "1"]}, [], {"0"})
    with pytest.raises(ConfigError, match="has no seed"):
        build_tuning({"train.lr": ["1", "2"]}, [], {"0", "1"})


def test_runs_of_an_earlier_choice_or_default_do_not_count(tmp_path):
    """Tuned to 0.1 at first, to 0.2 by a later sweep; the trial's id changes with a default in between."""
    trial = ["algorithm=grpo", "train.lr=0.1", "seed=100"]
    first, second = (["algorithm=grpo", "seed=0", f"train.lr={rate}"] for rate in (0.1, 0.2))
    for run_id, seed, final, words in (
        ("trial-old", 100, 0.9, trial),
        ("trial-new", 100, 0.8, trial),
        ("first", 0, 0.3, first),
        ("second", 0, 0.5, second),
    ):
        put(tmp_path, run_id, "grpo", seed, final, overrides=words[1:2], method=run_id)
    PlanUpdate({"trial-old": trial}, [trial], trial_keys=["train.lr"]).write(tmp_path)
    PlanUpdate({"first": first}, [first], tuned_keys=["train.lr"]).write(tmp_path)
    PlanUpdate({"trial-new": trial}, [trial], trial_keys=["train.lr"]).write(tmp_path)
    PlanUpdate({"second": second}, [second], tuned_keys=["train.lr"]).write(tmp_path)
    found = collect(tmp_path)
    assert (found.runs["id"].tolist(), found.trials["id"].tolist()) == (["second"], ["trial-new"])
    assert [line.split(" is ")[0] for line in found.not_counted] == [
        "algorithm=grpo seed=0 train.lr=0.1: first",
        "algorithm=grpo train.lr=0.1 seed=100: trial-old",
    ]
    assert found.runs["method"].tolist() == ["grpo"]  # no hash to tell it from the one that is gone
    PlanUpdate({"first": first}, [first], tuned_keys=["train.lr"]).write(tmp_path)  # and back
    assert collect(tmp_path).runs["id"].tolist() == ["first"]


def test_choice_with_trials_running_waits_until_all_have_ended(monkeypatch, capsys):
    monkeypatch.setattr(trials, "POLL_INTERVAL", 0.0)
    done, running, gone = (RunState("id", "trial", state) for state in ("finished", "running", "cut off"))
    looks = iter([[done, running], [done, running], [done, gone], [done, done]])
    worked = []
    wait_for_trials(lambda: next(looks), lambda: worked.append(1))
    assert worked == [1]  # what the other copy left behind
    with pytest.raises(SystemExit) as ended:
        wait_for_trials(lambda: [done, gone], lambda: None)
    assert ended.value.code == 1
    assert "cut off" in capsys.readouterr().err


GRIDS = """# @package _global_
experiment:
  name: toy
hydra:
  mode: MULTIRUN
  sweeper:
    grids:
      - algorithm: grpo
      - algorithm: sgrpo,grpo
        token_sampler: random,full
    params:
      seed: 0,1
    tune:
      train.lr: 1e-3,1e-5
      seed: "100"
"""


def describe(tmp_path, *more):
    (tmp_path / "experiment").mkdir(exist_ok=True)
    (tmp_path / "experiment" / "toy.yaml").write_text(GRIDS)
    return call("--config-dir", ".", "experiment=toy", "tracker=none", *FAST, *more, cwd=tmp_path)


def test_dry_run_of_grids_with_tuning_counts_methods_and_trials(tmp_path):
    # methods: grpo; sgrpo and grpo with random and full tokens: 5, times 2 rates, and times 2 seeds
    done = describe(tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "20 points: 20 missing" in done.stdout
    assert (
        "train.lr: the runs of the comparison are listed with the first value; the trials will choose the value"
        in done.stdout
    )
    # methods take turns
    compared = [line for line in done.stdout.splitlines() if "seed=100" not in line and "seed=" in line]
    assert ["seed=0" in line for line in compared] == [True] * 5 + [False] * 5
    assert not (tmp_path / "runs").exists()


def test_sweep_with_bad_input_ends_before_the_first_trial(tmp_path):
    done = describe(tmp_path, "lora_rank=0")
    assert done.returncode != 0
    assert done.stderr.startswith("error: ")
    assert not list(tmp_path.glob("runs/*/*"))
    seeds = describe(tmp_path, "seed=100")
    assert "hydra.sweeper.tune.seed=100: seed 100 is also compared" in seeds.stderr
    default = call("-m", "tracker=none", *FAST, "hydra.sweeper.tune={train.lr:'1,2',seed:'0'}", cwd=tmp_path)
    assert "hydra.sweeper.tune.seed=0: seed 0 is also compared" in default.stderr  # conf's own seed, without an axis


def test_unknown_key_is_refused_with_the_keys_that_exist():
    for word, said in (
        ("train.step=2", "train.step: no such key; here there are .*steps"),
        ("token_samper.budget=2", "token_samper.budget: no such key; here there are .*token_sampler"),
        ("++token_sampler.budgets=2", "token_sampler.budgets: no such key; here there are .*budget"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_keys([word])
    known = [
        "hydra/launcher=joblib",
        "hydra.job.chdir=true",
        "reward.correct=1",
        "reward._target_=x.Y",
        "+model.path=x",
        "group@a.b=c",
    ]
    check_keys([*known, "+setup=small"])  # a user's own group


def test_misspelt_key_of_a_sweep_is_one_message(tmp_path):
    for words, said in (
        (["hydra.sweeper.tune={train.lrr:'1,2',seed:'9'}"], "train.lrr: no such key; here there are"),
        (
            ["+hydra.sweeper.grid=[{algorithm:'grpo'}]"],
            "hydra.sweeper.grid: no such key; here there are dry_run, grids",
        ),
    ):
        done = call("-m", "tracker=none", *words, cwd=tmp_path)
        assert (done.returncode, done.stderr.startswith(f"error: {said}")) == (1, True), done.stderr


GRID = [{"algorithm": "grpo,tspmo"}, {"algorithm": "sgrpo", "token_sampler.budget": "8,16"}]


@pytest.mark.parametrize(
    ("typed", "left"),
    [
        ([], 4),
        (["train.steps=3"], 4),  # no axis: goes to all
        (["algorithm=tspmo"], 1),
        (["algorithm=tspmo,sgrpo"], 3),
        (["token_sampler.budget=16"], 3),  # the other grid has no such axis: its two take the key as it is
        (["algorithm=sgrpo", "token_sampler.budget=16"], 1),
        (["token_sampler.budget=9"], 3),  # none has it: in the place of both
    ],
)
def test_typed_overrides_narrow_the_grids(typed, left):
    register_schemas()
    with initialize_config_dir(config_dir(), version_base="1.3"):
        jobs = [job for grid, rest in _narrow_grids(GRID, typed) for job in _jobs(grid, rest)]
    assert len(jobs) == left
    for job in jobs:
        assert all(
            word.split("=")[1] in dict(one.split("=") for one in typed).get(word.split("=")[0], word) for word in job
        )


def test_option_of_a_group_as_a_value_is_that_of_each_point():
    register_schemas()
    with initialize_config_dir(config_dir(), version_base="1.3"):
        word = "runs_dir=runs/${hydra:runtime.choices.adapter}"
        config = compose("config", [word], return_hydra_config=True)
        points = sweep_points(config, [[word, "adapter=lora"], [word, "adapter=l1ra_short"]])
    assert [point.config.runs_dir for point in points] == ["runs/lora", "runs/l1ra_short"]


@pytest.mark.slow
def test_tuned_sweep_runs_to_its_tables_and_is_skipped_when_repeated(tmp_path):
    sweep = ("-m", "algorithm=grpo", "seed=0,1", "tracker=none", *FAST)
    tune = "hydra.sweeper.tune={train.lr:'1e-9,5e-3',seed:'100,101'}"
    done = call(*sweep, tune, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "default"
    plan = json.loads((folder / "plan.json").read_text())
    assert (len(plan["points"]), len(plan["trials"])) == (6, 4)
    compared = [
        json.loads((folder / run / "summary.json").read_text()) for run in set(plan["points"]) - set(plan["trials"])
    ]
    rates = {one["setting"]["lr"] for one in compared}
    assert len(rates) == 1
    scores = {
        rate: [
            one["curve_mean"]
            for one in (json.loads((folder / run / "summary.json").read_text()) for run in plan["trials"])
            if one["setting"]["lr"] == rate
        ]
        for rate in (1e-9, 5e-3)
    }
    assert rates == {max(scores, key=lambda rate: (sum(scores[rate]), -rate))}
    assert f"tuned on seeds 100, 101: train.lr={rates.pop():g} for 2 of 2 runs".replace("1e-09", "1e-09") in done.stderr
    again = call(*sweep, tune, cwd=tmp_path)
    assert again.stderr.count("finished before, skipped") == 6
    assert call(cwd=tmp_path, module="rlsparse.results").returncode == 0
    assert "lr 0.005" in (folder / "tuning.md").read_text()
    assert "| grpo" in (folder / "table.md").read_text()

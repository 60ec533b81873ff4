"""Sweeps that add seeds in rounds until their claims are decided."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rlsparse.config.schema import ConfigError
from rlsparse.results.claims_file import Claim, Claims
from rlsparse.results.correction import at_looks
from rlsparse.results.rounds import ROUNDS, Look, Rounds, RoundsError, read_rounds
from rlsparse.results.study import Study
from rlsparse.sweep.rounds import earlier_looks, jobs_of_round, look_at, method_of, more_seeds, schedule
from tests.test_cli import FAST, call, summaries

CLAIMS = """
baseline: grpo
claims:
  - {claim: long, published: p, source: s, of: reinforce, measure: mean_length, expect: {above: 0}, primary: true}
  - {claim: longer, published: p, source: s, of: rgra, versus: grpo, measure: mean_length, expect: {above: 0}}
"""


def test_schedule_takes_the_seeds_of_the_grid_and_then_the_next_numbers():
    assert schedule(["0", "1", "2", "3", "4", "5", "6", "7"], 4, 2).rounds == (
        ("0", "1", "2", "3"),
        ("4", "5"),
        ("6", "7"),
    )
    more = schedule(more_seeds(["7", "9", "7"], 6, avoided=["11"]), 3, 2)
    assert more.rounds == (("7", "9", "10"), ("12", "13"), ("14",))
    assert (more.looks, more.until(1)) == (3, {"7", "9", "10", "12", "13"})
    assert more_seeds(["0", "1", "2"], 2) == ["0", "1"]
    with pytest.raises(
        ConfigError,
        match=r"sweep.first_seeds=4: with 3 seeds there is a single round; raise sweep.max_seeds to at least 5",
    ):
        schedule(["0", "1", "2"], 4, 2)


def test_jobs_of_a_round_are_those_of_the_open_methods_with_its_seeds():
    jobs = [["algorithm=grpo", "seed=0"], ["algorithm=rgra", "seed=0"], ["algorithm=grpo", "seed=1"]]
    assert jobs_of_round(jobs, ["4", "5"], None) == [
        ["algorithm=grpo", "seed=4"],
        ["algorithm=rgra", "seed=4"],
        ["algorithm=grpo", "seed=5"],
        ["algorithm=rgra", "seed=5"],
    ]
    assert jobs_of_round(jobs, ["4"], {method_of(jobs[1])}) == [["algorithm=rgra", "seed=4"]]


def test_looks_of_other_rounds_and_damaged_ones_are_refused(tmp_path):
    plan = schedule(["0", "1", "2", "3"], 3, 1)
    assert earlier_looks(tmp_path, plan) == []
    look = {"seeds": ["0", "1", "2"], "verdicts": {"a": "supported"}, "open": []}
    (tmp_path / ROUNDS).write_text(json.dumps({"planned_looks": 2, "looks": [look]}))
    assert earlier_looks(tmp_path, plan) == [Look(["0", "1", "2"], {"a": "supported"}, [])]
    with pytest.raises(ConfigError, match=r"sweep.until=decided: .*rounds.json has looks at other seeds"):
        earlier_looks(tmp_path, schedule(["0", "1", "2", "3", "4", "5"], 4, 1))
    (tmp_path / ROUNDS).write_text(json.dumps({"planned_looks": 2, "looks": [{"seeds": 3}]}))
    with pytest.raises(RoundsError, match=r"rounds.json: has no valid looks; delete it"):
        read_rounds(tmp_path)


def test_line_of_a_look_counts_decided_claims():
    look = Look(["0", "1", "2"], {"a": "supported", "b": "inconclusive"}, ["grpo", "rgra"])
    assert look.line(0, 3) == "look 1 of 3, 3 seeds: 1 of 2 decided; more seeds for grpo, rgra"
    assert look.line(2, 3).endswith("1 of 2 decided; the last one")
    assert "looks at 3 seeds, of at most 3 looks" in Rounds(3, (look,)).note()


def test_several_looks_find_something_false_in_at_most_a_twentieth_of_studies():
    """Looks at 4, 6 and 8 seeds of a true null: without the correction about 9 %, with it at most 5 %."""
    values = np.random.default_rng(0).normal(size=(3000, 8))
    p = np.array([stats.ttest_1samp(values[:, :n], 0, axis=1).pvalue for n in (4, 6, 8)])  # (3, 3000)
    corrected = np.array([at_looks(list(one), 3) for one in p])
    assert (p <= 0.05).any(axis=0).mean() > 0.07
    assert (corrected <= 0.05).any(axis=0).mean() <= 0.05


def test_seeds_beyond_the_planned_looks_are_left_out_and_named():
    """Two looks are planned and made, at 3 and 4 seeds: a third one, at 6, is not corrected for."""
    rows = [{"id": f"{m}{s}", "method": m, "seed": s, "status": "finished"} for m in "ab" for s in range(6)]
    runs = pd.DataFrame(rows).assign(final_sampled=0.5)
    study = Study("s", runs, pd.DataFrame(), pd.DataFrame(), ["earlier"], pd.DataFrame(), None, None)
    looks = tuple(Look(list(map(str, range(n))), {}, []) for n in (3, 4))
    kept = replace(study, rounds=Rounds(2, looks)).within_rounds()
    assert sorted(kept.runs["seed"].unique()) == [0, 1, 2, 3]
    assert kept.not_counted == ["earlier", "seeds 4, 5: every planned look was made without them (rounds.json)"]
    # a planned look that was not made may be the one at all seeds; without rounds, all count
    for rounds in (Rounds(3, looks), None):
        assert len(replace(study, rounds=rounds).within_rounds().runs) == 12


def test_claim_about_a_setting_opens_no_method():
    """Its seeds are no repetitions, so that more of them would decide nothing."""
    rows = [{"id": f"{m}{s}", "method": m, "seed": s, "status": "finished", "lr": 0.1} for m in "ab" for s in range(3)]
    claim = Claim("c", "p", "s", ["a"], "lr", {"above": 0.0})
    runs = pd.DataFrame(rows).assign(final_sampled=0.5)
    study = Study("s", runs, pd.DataFrame(), pd.DataFrame(), [], pd.DataFrame(), None, Claims("b", [claim]))
    look = look_at(study, ["0", "1", "2"], 2)
    assert (look.verdicts, look.open) == ({"c": "inconclusive"}, [])


@pytest.mark.slow
def test_sweep_until_decided_gives_seeds_to_open_claims_alone_and_does_nothing_when_repeated(tmp_path):
    (tmp_path / "claims.yaml").write_text(CLAIMS)
    rounds = ["sweep.until=decided", "sweep.first_seeds=3", "sweep.round_seeds=1", "sweep.max_seeds=5"]
    command = ["-m", "algorithm=grpo,rgra,reinforce", *rounds, "sweep.claims=.", *FAST, "tracker=none"]
    done = call(*command, "seed=0,1,2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    seeds = {}
    for one in summaries(tmp_path):
        seeds.setdefault(one["algorithm"], set()).add(one["seed"])
    # with one step per rollout batch, RGRA and GRPO are the same runs: their claim stays open up to the last round
    assert seeds == {"grpo": {0, 1, 2, 3, 4}, "rgra": {0, 1, 2, 3, 4}, "reinforce": {0, 1, 2}}
    assert "look 1 of 3, 3 seeds: 1 of 2 decided; more seeds for grpo, rgra" in done.stderr
    file = tmp_path / "runs" / "default" / ROUNDS
    before = file.read_bytes()
    assert [one["seeds"] for one in json.loads(before)["looks"]] == [["0", "1", "2"], list("0123"), list("01234")]
    again = call(*command, "seed=0,1,2", cwd=tmp_path)
    assert (again.returncode, again.stderr.count("finished before, skipped")) == (0, 13)
    assert file.read_bytes() == before
    assert call(cwd=tmp_path, module="rlsparse.results").returncode == 0
    assert "looks at 3, 4, 5 seeds, of at most 3 looks" in (file.parent / "table.md").read_text()
    shown = call(*command, "seed=0,1,2", "--dry-run", cwd=tmp_path)
    assert "15 points: 13 finished, 2 missing" in shown.stdout
    assert "these are all runs of 3 rounds; the first has 3 seeds of each method" in shown.stdout
    (tmp_path / "claims.yaml").write_text("claims: 3")  # an error is found before the first run
    refused = call(*command, "seed=0,1,2", "experiment.name=other", cwd=tmp_path)
    assert "error: sweep.until=decided: claims.yaml: needs baseline: METHOD and claims: a list" in refused.stderr
    assert not (tmp_path / "runs" / "other").exists()
    refused = call(*[word.replace("claims=.", "claims=nowhere") for word in command], "seed=0,1,2", cwd=tmp_path)
    assert "sweep.claims=nowhere: has no claims.yaml; give the folder that contains it" in refused.stderr
    assert refused.returncode == 1


@pytest.mark.full
def test_round_with_a_failed_run_is_not_judged_until_the_same_command_has_repaired_it(tmp_path):
    (tmp_path / "claims.yaml").write_text(CLAIMS)
    rounds = ["sweep.until=decided", "sweep.first_seeds=3", "sweep.round_seeds=1", "sweep.max_seeds=4"]
    command = ["-m", "algorithm=grpo,rgra,reinforce", *rounds, "sweep.claims=.", *FAST, "tracker=none", "seed=0,1,2"]
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "own.yaml").write_text("_target_: broken.Own\n")
    (tmp_path / "broken.py").write_text(
        "from dataclasses import dataclass\nfrom rlsparse.components.reward import Completion, Reward\n\n\n"
        "@dataclass(frozen=True)\nclass Own(Reward):\n    def __call__(self, completion: Completion) -> float:\n"
        "        return float(open('right').read())\n"
    )
    done = call("--config-dir", ".", *command, "reward=own", cwd=tmp_path)
    assert done.returncode == 1
    assert not (tmp_path / "runs" / "default" / ROUNDS).exists()
    (tmp_path / "right").write_text("1")
    done = call("--config-dir", ".", *command, "reward=own", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "runs" / "default" / ROUNDS).read_text())["looks"]) == 2

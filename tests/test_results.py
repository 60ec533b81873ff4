"""Tables from run folders: arithmetic by hand, nothing averaged in silence, the same bytes twice."""

import json
import re
import shutil

import pandas as pd
import pytest
from scipy import stats

from rlsparse.results.claims import judge_all
from rlsparse.results.claims_file import Claim
from rlsparse.results.collect import collect
from rlsparse.results.comparisons import compare_all
from rlsparse.results.figures.ranks import rank_figure
from rlsparse.results.figures.style import MAX_METHODS, save
from rlsparse.results.measures import main_measure
from rlsparse.results.ranks import collect_ranks, rank_table
from rlsparse.results.sample import Samples
from rlsparse.results.table import Table, csv, latex, markdown
from rlsparse.results.tables import cost_table, outcome_table, tuning_table
from tests.commands import run_command


def put(folder, run_id, algorithm, seed, final, status="finished", overrides=(), method="m", **more):
    run = folder / run_id
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 0\n")
    evaluation = {"accuracy_greedy": final, "accuracy_sampled": final, "mean_length": 10.0}
    summary = {
        "id": run_id,
        "algorithm": algorithm,
        "seed": seed,
        "status": status,
        "error": "boom\nline two" if status != "finished" else None,
        "setting": {"task": "toy", "lr": 0.1},
        "overrides": [f"algorithm={algorithm}", f"seed={seed}", *overrides],
        "method_hash": f"{algorithm}-{method}",
        "base": evaluation,
        "final": evaluation,
        "curve_mean": final,
        "tokens": {"frac_updated": 0.5, "generated": 100},
        "time": {"total": 8.0 + seed, "rollout": 1, "train": 1, "eval": 1},
        "peak_memory_bytes": 2**30,
        "adapter": {"parameters": 5},
        **more,
    }
    (run / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "runs" / "study"
    for seed, final in enumerate((0.5, 0.6, 0.7)):
        put(folder, f"grpo-s{seed}", "grpo", seed, final)
    put(folder, "tspmo-s0", "tspmo", 0, 0.65)
    put(folder, "tspmo-s1", "tspmo", 1, 0.99, status="diverged")
    (folder / "grpo-s3").mkdir()
    (folder / "grpo-s3" / "config.yaml").write_text("seed: 3\n")
    (folder / "grpo-s4").mkdir()
    (folder / "grpo-s4" / "config.yaml").write_text("seed: 4\n")
    (folder / "grpo-s4" / "summary.json").write_text('{"status": "fini')
    plan = {"latest": [], "points": {"rgra-s0": ["algorithm=rgra", "seed=0"], "grpo-s0": ["algorithm=grpo", "seed=0"]}}
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


def table_of(runs, baseline, not_counted, margin=None):
    samples = Samples(runs)
    compared = compare_all(samples, baseline, main_measure(runs), margin) if baseline else {}
    return outcome_table(samples, baseline, compared, not_counted, margin)


def rows_of(table):
    return {row["method"]: row for row in table.cells.to_dict("records")}


def test_collected_runs_are_finished_or_diverged_and_the_rest_is_named(folder):
    found = collect(folder)
    assert found.runs[["method", "seed", "final_sampled"]].values.tolist() == [
        ["grpo", 0, 0.5],
        ["grpo", 1, 0.6],
        ["grpo", 2, 0.7],
        ["tspmo", 0, 0.65],
        ["tspmo", 1, 0.99],
    ]
    assert found.runs["status"].tolist() == ["finished"] * 4 + ["diverged"]
    assert found.not_counted == [
        "grpo-s3: not finished",
        "grpo-s4: its summary.json cannot be read",
        "algorithm=rgra seed=0: missing",
        "tspmo-s1: diverged (boom line two)",
    ]


def test_outcome_table_equals_hand_computed_values(folder):
    found = collect(folder)
    table = table_of(found.runs, "grpo", found.not_counted)
    rows = rows_of(table)
    # grpo 50, 60, 70: standard deviation 10, t of 97.5 % with 2 degrees of freedom 4.303, 60 ± 4.303 · 10 / √3
    assert rows["grpo"]["final, %"] == "60.0 [35.2, 84.8]"
    assert rows["tspmo"]["final, %"] == "65.0"  # the diverged seed has no end; no interval from one seed
    assert rows["tspmo"]["seeds"] == "1"
    assert rows["tspmo"]["collapsed"] == "1 of 1"  # that one; the other has no curve
    assert rows["tspmo"]["difference, points"] == "15.0"  # seed 0: 65 - 50
    assert (rows["tspmo"]["p"], rows["tspmo"]["p, seeds"], rows["tspmo"]["verdict"]) == ("–", "1.000", "inconclusive")
    assert (rows["grpo"]["p"], rows["grpo"]["verdict"]) == ("–", "baseline")
    assert table.bold == {(1, "final, %"), (1, "final greedy, %"), (1, "area under curve, %")}
    text = markdown(table)
    assert "**65.0**" in text
    assert "tspmo-s1: diverged (boom line two)" in text


def test_difference_that_all_seeds_share_is_better_or_worse(tmp_path):
    # six seeds, each about 10 points above, each 5 below; and one above, five below
    for seed in range(6):
        put(tmp_path, f"grpo-s{seed}", "grpo", seed, 0.5)
        put(tmp_path, f"sgrpo-s{seed}", "sgrpo", seed, 0.6 + 0.01 * (-1) ** seed)
        put(tmp_path, f"rgra-s{seed}", "rgra", seed, 0.45)
        put(tmp_path, f"tspmo-s{seed}", "tspmo", seed, 0.9 if seed == 0 else 0.45)
    table = table_of(collect(tmp_path).runs, "grpo", [])
    rows = rows_of(table)
    said = {name: (row["difference, points"], row["p, seeds"], row["verdict"]) for name, row in rows.items()}
    # 11 and 9 in turns: standard deviation √(6 / 5), t of 97.5 % with 5 degrees of freedom 2.571
    assert said["sgrpo"] == ("10.0 [8.9, 11.1]", "0.031", "better")
    # equal at all seeds: p is that of the permutation test, 2 / 2^6, and after Holm's correction of the second of three
    # twice that
    assert said["rgra"] == ("−5.0 [−5.0, −5.0]", "0.031", "inconclusive")
    assert (rows["rgra"]["p"], rows["rgra"]["p, Holm"]) == ("0.031", "0.062")
    # differences 40 and five times -5: mean 2.5; |sum| >= 15 where 40 has + and at most all five - (40 - 25 = 15), or
    # where 40 has - : every pattern, so p = 1
    assert said["tspmo"][1:] == ("1.000", "inconclusive")
    assert any("to new seeds on the same questions" in note for note in table.notes)


def test_small_difference_is_equivalent_within_the_margin(tmp_path):
    for seed in range(6):
        put(tmp_path, f"grpo-s{seed}", "grpo", seed, 0.5)
        put(tmp_path, f"rgra-s{seed}", "rgra", seed, 0.5 + 0.01 * (-1) ** seed)
    runs = collect(tmp_path).runs
    # mean 0, error √(6 / 5) / √6 = 0.447 points: 2 points are 4.47 errors, p 2 · 0.003; half a point is 1.1, p 2 · 0.16
    assert rows_of(table_of(runs, "grpo", [], margin=0.02))["rgra"]["verdict"] == "equivalent"
    assert rows_of(table_of(runs, "grpo", [], margin=0.005))["rgra"]["verdict"] == "inconclusive"
    assert rows_of(table_of(runs, "grpo", []))["rgra"]["verdict"] == "inconclusive"


def test_latex_table_has_booktabs_rules_and_escapes(folder):
    put(folder, "sgrpo-s0", "sgrpo", 0, 0.1, overrides=["token_sampler.budget=8"], method="8")
    put(folder, "sgrpo-s1", "sgrpo", 0, 0.2, overrides=["token_sampler.budget=9"], method="9")
    text = latex(table_of(collect(folder).runs, "grpo", ["a_b: 5 % −1"]))
    assert r"a\_\allowbreak{}b: 5 \% $-$1" in text
    for word in (
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        "60.0 [35.2, 84.8]",
        r"token\_\allowbreak{}sampler.\allowbreak{}budget=\allowbreak{}8",
        r"base, \%",
    ):
        assert word in text


def test_csv_table_has_unrounded_numbers(folder):
    (folder.parent / "t.csv").write_text(csv(table_of(collect(folder).runs, "grpo", [])))
    table = pd.read_csv(folder.parent / "t.csv").set_index("method")
    assert table.loc["grpo", "final, % low"] == pytest.approx(60 - stats.t.ppf(0.975, 2) * 10 / 3**0.5)
    assert table.loc["tspmo", "final, %"] == pytest.approx(65)
    assert table.loc["grpo", "seeds"] == 3


def curve(folder, run_id, accuracies, updated, seconds):
    """Evaluations at steps 0, 1, 2, ...; each step updates so many tokens and takes so many seconds."""
    lines = [{"step": 0, "kind": "eval", "eval/accuracy_sampled": accuracies[0], "eval/accuracy_greedy": 0.5}]
    for step, accuracy in enumerate(accuracies[1:], start=1):
        time = {"time/rollout": seconds / 2, "time/reward": 0, "time/train": seconds / 2, "time/eval": 9}
        tokens = {"tokens/generated": 100 * step, "tokens/selected": updated * step}
        lines.append({"step": step, "kind": "train", **time, **tokens})
        lines.append({"step": step, "kind": "eval", "eval/accuracy_sampled": accuracy, "eval/accuracy_greedy": 0.5})
    (folder / run_id / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{half")


def test_accuracy_at_equal_cost_equals_hand_computed_values(tmp_path):
    put(tmp_path, "grpo-s0", "grpo", 0, 0.9)
    put(tmp_path, "tspmo-s0", "tspmo", 0, 0.6)
    curve(tmp_path, "grpo-s0", [0.2, 0.6, 0.9], updated=100, seconds=2)
    curve(tmp_path, "tspmo-s0", [0.2, 0.4, 0.6], updated=10, seconds=1)
    found = collect(tmp_path)
    rows = rows_of(cost_table(found.runs, found.curves))
    # the cheaper run takes 20 tokens and 2 seconds in all. GRPO at 20 of its first 100 tokens: 0.2 + 20 % of 0.4, before
    # any evaluation; at 2 seconds it is at its first
    assert rows["grpo"]["% at equal tokens updated"] == "28.0 †"
    assert rows["grpo"]["% at equal seconds of steps"] == "60.0"
    assert rows["tspmo"]["% at equal tokens updated"] == rows["tspmo"]["% at equal seconds of steps"] == "60.0"
    # one that collapses costs next to nothing, and is no measure for the rest
    put(tmp_path, "rgra-s0", "rgra", 0, 0.0)
    curve(tmp_path, "rgra-s0", [0.2, 0.0, 0.0], updated=1, seconds=0.1)
    found = collect(tmp_path)
    again = rows_of(cost_table(found.runs, found.curves))
    assert [again[name]["% at equal tokens updated"] for name in ("grpo", "tspmo")] == ["28.0 †", "60.0"]


def test_run_that_loses_half_of_its_best_accuracy_has_collapsed(tmp_path):
    for seed, accuracies in enumerate([[0.2, 0.8, 0.39], [0.2, 0.8, 0.4], [0.2, 0.1, 0.09], [0.0, 0.0, 0.0]]):
        put(tmp_path, f"s{seed}", "grpo", seed, accuracies[-1])
        curve(tmp_path, f"s{seed}", accuracies, updated=1, seconds=1)
    put(tmp_path, "s4", "grpo", 4, 0.9, status="diverged")
    found = collect(tmp_path).runs
    assert found["collapsed"].tolist() == [True, False, True, False, True]
    assert rows_of(table_of(found, None, []))["grpo"]["collapsed"] == "3 of 5"


def test_trials_of_tuning_are_separate_and_the_chosen_rate_is_bold(tmp_path):
    points = {}
    for rate, mean in ((0.1, 0.3), (0.2, 0.5)):
        for seed in (100, 101):
            words = [f"train.lr={rate}"]
            put(tmp_path, f"t{rate}{seed}", "grpo", seed, mean, overrides=words, method=str(rate), setting={"lr": rate})
            points[f"t{rate}{seed}"] = ["algorithm=grpo", *words, f"seed={seed}"]
    for seed in (0, 1):
        put(tmp_path, f"c{seed}", "grpo", seed, 0.6, overrides=["train.lr=0.2"], method="0.2", setting={"lr": 0.2})
        points[f"c{seed}"] = ["algorithm=grpo", f"seed={seed}", "train.lr=0.2"]
    trials = {name: ["train.lr"] for name in points if name.startswith("t")}
    (tmp_path / "plan.json").write_text(json.dumps({"latest": [], "points": points, "trials": trials}))
    found = collect(tmp_path)
    assert found.runs[["method", "seed", "lr"]].values.tolist() == [["grpo", 0, 0.2], ["grpo", 1, 0.2]]
    assert set(found.trials["method"]) == {"grpo"}
    table = tuning_table(found.trials, found.runs)
    assert rows_of(table)["grpo"] == {"method": "grpo", "lr 0.1": "30.0", "lr 0.2": "50.0"}
    assert table.bold == {(0, "lr 0.2")}
    assert table.notes[-1] == "The chosen rate is at the end of the range, and a rate beyond it may be better: grpo."
    assert rows_of(table_of(found.runs, None, []))["grpo"]["lr"] == "0.2"


def test_methods_are_named_by_the_overrides_that_differ(tmp_path):
    folder = tmp_path / "runs" / "grid"
    for rank in (4, 8):
        for clip in ("on", "off"):
            overrides = ["train.steps=9", f"lora_rank={rank}", f"clipping={clip}"]
            put(folder, f"a{rank}{clip}", "grpo", 0, 0.5, overrides=overrides, method=f"{rank}{clip}")
    assert set(collect(folder).runs["method"]) == {
        f"grpo lora_rank={rank} clipping={clip}" for rank in (4, 8) for clip in ("on", "off")
    }
    # the same config typed in other words is the same method
    put(folder, "a", "grpo", 7, 0.5, overrides=["train.steps=9", "lora_rank=0x4", "clipping=on"], method="4on")
    assert len(set(collect(folder).runs["method"])) == 4
    # the same words but another config (a default that changed meanwhile) must not be averaged together
    put(folder, "b", "grpo", 1, 0.5, overrides=["train.steps=9", "lora_rank=4", "clipping=on"], method="changed")
    names = collect(folder).runs["method"]
    assert len(set(names)) == 5


def call(*arguments, cwd):
    return run_command("rlsparse.results", *arguments, cwd=cwd)


def test_command_run_twice_writes_the_same_bytes_and_publishes_them(folder, tmp_path):
    names = ("results.csv", "table.md", "table.tex", "table.csv", "costs.md", "run_config.yaml", "not_counted.txt")
    assert call(cwd=tmp_path).returncode == 0
    first = {name: (folder / name).read_bytes() for name in names}
    assert call(cwd=tmp_path).returncode == 0
    assert first == {name: (folder / name).read_bytes() for name in names}
    assert call("--experiment", "study", "--out", tmp_path / "experiments" / "study", cwd=tmp_path).returncode == 0
    published = tmp_path / "experiments" / "study"
    assert (published / "table.md").read_bytes() == first["table.md"]
    # a study's tables come from its committed csv alone
    shutil.rmtree(tmp_path / "runs")
    (published / "table.md").unlink()
    assert call("--studies", "experiments", cwd=tmp_path).returncode == 0
    assert (published / "table.md").read_bytes() == first["table.md"]


def test_unknown_experiment_is_refused_with_one_message(tmp_path):
    assert call(cwd=tmp_path).stderr.startswith("error: --runs runs: there is no such folder")
    (tmp_path / "runs").mkdir()
    done = call("--experiment", "nope", cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.startswith("error: --experiment nope: there is no")


def test_path_that_cannot_be_right_is_refused_with_one_message(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for words, said in (
        (("--studies", "nowhere"), "--studies nowhere: there is no such folder"),
        (("--runs", "empty"), "--runs empty: holds no experiment"),
        (("--experiment", "study", "--out", "runs/study/results.csv"), "--out runs/study/results.csv: is a file"),
    ):
        (folder / "results.csv").touch()
        done = call(*words, cwd=tmp_path)
        assert (done.returncode, done.stderr.startswith(f"error: {said}")) == (1, True), done.stderr


def test_publishing_without_runs_of_the_target_is_refused(folder, tmp_path):
    publish = ("--experiment", "study", "--out", "experiments/study")
    assert call(*publish, cwd=tmp_path).returncode == 0
    published = tmp_path / "experiments" / "study" / "results.csv"
    before = published.read_bytes()
    put(folder, "more", "grpo", 5, 0.5)
    shutil.rmtree(folder / "tspmo-s0")
    done = call(*publish, cwd=tmp_path)
    assert done.returncode == 1
    assert "the experiment lacks 1 of the 5 runs in its results.csv (the first is tspmo-s0)" in done.stderr
    assert published.read_bytes() == before
    published.write_text("")
    assert "its results.csv cannot be read; delete it" in call(*publish, cwd=tmp_path).stderr
    published.unlink()
    assert call(*publish, cwd=tmp_path).returncode == 0


def test_publishing_with_a_bad_claims_file_writes_nothing(folder, tmp_path):
    claims = tmp_path / "experiments" / "study" / "claims.yaml"
    claims.parent.mkdir(parents=True)
    claims.write_text("claims: 3")
    done = call("--experiment", "study", "--studies", "experiments", "--out", "new/study", cwd=tmp_path)
    assert (done.returncode, "needs baseline" in done.stderr) == (1, True)
    assert not (tmp_path / "new").exists()


def test_baseline_that_no_method_has_is_named_in_the_table(folder, tmp_path):
    claims = tmp_path / "experiments" / "study" / "claims.yaml"
    claims.parent.mkdir(parents=True)
    claims.write_text("baseline: grpoo\nclaims: []\n")
    assert call("--experiment", "study", "--studies", "experiments", cwd=tmp_path).returncode == 0
    assert "No differences: no method is named grpoo, the baseline of claims.yaml." in (folder / "table.md").read_text()


def test_wide_latex_table_continues_below_and_long_names_are_numbered():
    cells = pd.DataFrame({"method": ["grpo", "x" * 30], **{f"n{i}": ["1" * 20, "2"] for i in range(5)}})
    text = latex(Table(cells, cells, ["a note"]))
    # 78 characters: 6 + 1.7 for the names' numbers, 20 + 1.7 for each column: three of them, then two
    assert re.findall(r"begin\{tabular\}\{(\w+)\}", text) == ["lrrr", "lrr"]
    assert text.count(r"\par 2: " + "x" * 30) == 1
    assert text.index("2: x") > text.rindex(r"\end{tabular}")


def test_experiment_without_finished_run_has_a_table_that_says_so(tmp_path):
    folder = tmp_path / "runs" / "empty"
    put(folder, "x", "grpo", 0, 0.5, status="failed")
    assert call(cwd=tmp_path).returncode == 0
    assert "No finished run." in (folder / "table.md").read_text()


def test_committed_tables_equal_those_made_from_their_csv(tmp_path):
    from tests.conftest import ROOT

    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    assert call("--studies", "experiments", cwd=tmp_path).returncode == 0
    made = [file for end in ("md", "tex", "csv") for file in (tmp_path / "experiments").rglob(f"*.{end}")]
    assert {"table.md", "table.tex", "table.csv", "costs.md", "claims.md", "tuning.md"} <= {file.name for file in made}
    for file in made:
        assert file.read_bytes() == (ROOT / file.relative_to(tmp_path)).read_bytes(), file


def moved_ranks(folder, run_id, steps):
    """Two layers with q_proj and down_proj; ``steps``: step -> the four ranks."""
    names = [
        f"adapter/rank/model.layers.{layer}.{m}" for layer in (0, 1) for m in ("self_attn.q_proj", "mlp.down_proj")
    ]
    lines = [{"step": s, "kind": "ranks", **dict(zip(names, ranks, strict=True))} for s, ranks in steps.items()]
    train = {"step": 1, "kind": "train", "adapter/rank_total": 16}
    text = "".join(json.dumps(line) + "\n" for line in [train, *lines])
    (folder / run_id / "metrics.jsonl").write_text(text)


@pytest.fixture
def with_ranks(tmp_path):
    folder = tmp_path / "runs" / "moving"
    for seed in (0, 1):
        put(folder, f"lora-s{seed}", "grpo", seed, 0.5, overrides=["adapter=lora"], method="lora")
        put(folder, f"l1ra-s{seed}", "grpo", seed, 0.6, overrides=["adapter=l1ra"], method="l1ra")
    moved_ranks(folder, "l1ra-s0", {0: (4, 4, 4, 4), 5: (3, 5, 4, 4), 10: (1, 7, 3, 5)})
    moved_ranks(folder, "l1ra-s1", {0: (4, 4, 4, 4), 5: (4, 4, 4, 4), 10: (3, 5, 5, 3)})
    return folder


def test_rank_table_equals_hand_computed_values(with_ranks):
    ranks = collect_ranks(with_ranks, collect(with_ranks).runs)
    assert ranks.final.values.tolist() == [
        ["grpo adapter=l1ra", seed, module, layer, rank]
        for seed, found in ((0, (1, 7, 3, 5)), (1, (3, 5, 5, 3)))
        for (layer, module), rank in zip(
            ((0, "q_proj"), (0, "down_proj"), (1, "q_proj"), (1, "down_proj")), found, strict=True
        )
    ]
    by_step = ranks.history[(ranks.history["module"] == "down_proj") & (ranks.history["seed"] == 0)]
    assert by_step[["step", "rank"]].values.tolist() == [[0, 4], [5, 4.5], [10, 6]]  # (4 + 4)/2, (5 + 4)/2, (7 + 5)/2
    # q_proj: 2 and 4, mean 3, error 1, t of 97.5 % with 1 degree of freedom 12.7; down_proj: 6 and 4
    (row,) = rank_table(ranks.final).cells.values.tolist()
    assert row == ["grpo adapter=l1ra", "3.0 [−9.7, 15.7]", "5.0 [−7.7, 17.7]", "16", "2"]


ORDER = ("gate_proj", "up_proj", "o_proj", "down_proj", "q_proj", "k_proj", "v_proj")


@pytest.mark.parametrize(
    ("ranks", "tau"),
    [
        ((27.3, 22.4, 19.1, 17.5, 10.0, 9.0, 6.6), 1.0),  # the published ones of Mistral-7B
        # those of the same authors on Llama-3.1-8B: q is below k and v, 2 of the 21 pairs, so (19 - 2) / 21
        ((22.2, 18.3, 17.1, 15.6, 12.4, 13.6, 12.9), 17 / 21),
        ((1, 2, 3, 4, 5, 6, 7), -1.0),
        ((8, 8, 8, 8, 8, 8, 8), 0.0),
        ((9, 9, 9, 9, 4, 4, 4), 12 / 21),  # 4 x 3 pairs are in order; 6 + 3 are equal and count as 0
    ],
)
def test_rank_order_is_the_share_of_pairs_in_the_published_order_minus_the_reverse(ranks, tau, tmp_path):
    # two layers around the mean; the module names say the type
    named = {
        f"model.layers.{n}.x.{kind}": r + d for n, d in ((0, -1), (1, 1)) for kind, r in zip(ORDER, ranks, strict=True)
    }
    put(tmp_path, "a", "grpo", 0, 0.5, adapter={"rank": dict(reversed(named.items())), "pruned": 1})
    put(tmp_path, "b", "grpo", 1, 0.5, adapter={"rank": named})  # its ranks cannot move
    put(tmp_path, "c", "grpo", 2, 0.5, adapter={"rank": {"h.0.attn.c_attn": 4, "h.0.mlp.c_fc": 5}, "pruned": 0})
    found = collect(tmp_path).runs["rank_order"]
    assert found.isna().tolist() == [False, True, True]
    assert found[0] == pytest.approx(tau)
    if len(set(ranks)) == 7:  # without ties, all of Kendall's coefficients are the same
        assert found[0] == pytest.approx(stats.kendalltau(range(7, 0, -1), ranks).statistic)


def test_rank_order_of_a_claim_is_judged_like_other_measures(tmp_path):
    ranks = dict(zip(ORDER, (7, 6, 5, 4, 3, 2, 1), strict=True))
    for seed in range(6):
        put(tmp_path, str(seed), "grpo", seed, 0.5, adapter={"rank": ranks, "pruned": 1})
    claim = Claim("it is the published order", "tau 1", "x", ["grpo"], "rank_order", {"above": 0.0})
    (outcome,) = judge_all([claim], Samples(collect(tmp_path).runs))
    assert (outcome.verdict, outcome.value.mean) == ("supported", 1.0)


def test_rank_figure_made_twice_has_the_same_bytes(with_ranks, tmp_path):
    names = ("ranks_final.csv", "ranks_history.csv", "ranks.md", "ranks.svg", "ranks.png", "costs.svg")
    assert call("--experiment", "moving", "--out", "experiments/moving", "--figures", cwd=tmp_path).returncode == 0
    first = {name: (tmp_path / "experiments/moving" / name).read_bytes() for name in names}
    assert b"grpo adapter=l1ra" in first["ranks.svg"]
    assert b"adapter=lora" not in first["ranks.svg"]  # its ranks stay
    for name in ("ranks.md", "ranks.svg"):
        (tmp_path / "experiments/moving" / name).unlink()
    shutil.rmtree(tmp_path / "runs")
    assert call("--studies", "experiments", "--figures", cwd=tmp_path).returncode == 0
    assert first == {name: (tmp_path / "experiments/moving" / name).read_bytes() for name in names}


def test_methods_with_numbers_are_in_natural_order(tmp_path):
    for rank in (16, 4, 8):
        put(tmp_path, f"r{rank}", "grpo", 0, 0.5, overrides=[f"lora_rank={rank}"], method=str(rank))
    put(tmp_path, "t", "tspmo", 0, 0.5)
    assert list(rows_of(table_of(collect(tmp_path).runs, None, []))) == [
        "grpo lora_rank=4",
        "grpo lora_rank=8",
        "grpo lora_rank=16",
        "tspmo",
    ]


def test_measure_that_no_run_has_is_no_column(with_ranks):
    runs = collect(with_ranks).runs
    assert "loss" not in markdown(table_of(runs, None, []))
    runs["final_loss"] = [0.5, 0.4, 0.7, 0.6]
    table = markdown(table_of(runs, None, []))
    assert "final loss, nats" in table
    assert "**0.450 [" in table  # the mean of 0.5 and 0.4: the lower is best


def test_step_time_is_the_time_without_evaluation_by_steps(tmp_path):
    time = {"total": 30.0, "rollout": 4.0, "reward": 1.0, "train": 5.0, "eval": 20.0}
    put(tmp_path, "a", "grpo", 0, 0.5, time=time, steps=5)
    assert collect(tmp_path).runs["time_step"].tolist() == [2.0]  # (4 + 1 + 5) / 5


def test_figure_of_too_many_methods_says_that_some_are_missing(tmp_path):
    methods = [f"m{i}" for i in range(MAX_METHODS + 2)]
    final = pd.DataFrame([(m, 0, "q_proj", layer, 4) for m in methods for layer in (0, 1)])
    history = pd.DataFrame([(m, 0, step, "q_proj", 4.0) for m in methods for step in (0, 5)])
    final.columns = ["method", "seed", "module", "layer", "rank"]
    history.columns = ["method", "seed", "step", "module", "rank"]
    for count, said in ((MAX_METHODS, 0), (MAX_METHODS + 2, 1)):
        among = methods[:count]
        save(
            rank_figure(final[final["method"].isin(among)], history[history["method"].isin(among)]), tmp_path / "ranks"
        )
        assert (tmp_path / "ranks.svg").read_text().count(
            f"the first {MAX_METHODS} of {MAX_METHODS + 2} methods"
        ) == said

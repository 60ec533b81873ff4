"""Tables from run folders: arithmetic by hand, nothing averaged in silence, the same bytes twice."""

import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from rlsparse.results.collect import collect
from rlsparse.results.figures import MOST, rank_figure
from rlsparse.results.ranks import collect_ranks, rank_table
from rlsparse.results.statistics import estimate
from rlsparse.results.tables import csv, latex, markdown


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


def test_interval_by_hand():
    # mean 60, s = 10, n = 3: t(0.975, 2) = 4.302653; 4.302653 x 10 / sqrt(3) = 24.8414
    got = estimate(pd.Series([50.0, 60.0, 70.0]))
    assert (got.mean, got.half_width, got.n) == (pytest.approx(60), pytest.approx(24.8414, rel=1e-5), 3)
    assert estimate(pd.Series([50.0])).half_width != estimate(pd.Series([50.0])).half_width  # NaN: unknown
    assert estimate(pd.Series([None, 4.0], dtype=float)).n == 1


def test_only_finished_runs_count_and_the_rest_is_named(folder):
    found = collect(folder)
    assert found.runs[["method", "seed", "final_sampled"]].values.tolist() == [
        ["grpo", 0, 0.5],
        ["grpo", 1, 0.6],
        ["grpo", 2, 0.7],
        ["tspmo", 0, 0.65],
    ]
    assert found.not_counted == [
        "grpo-s3: not finished",
        "grpo-s4: its summary.json cannot be read",
        "algorithm=rgra seed=0: missing",
        "tspmo-s1: diverged (boom line two)",
    ]


def test_markdown(folder):
    found = collect(folder)
    text = markdown(found.runs, found.not_counted)
    grpo, tspmo = (line for line in text.splitlines() if line.startswith(("| grpo", "| tspmo")))
    assert "60.0 ± 24.8" in grpo
    assert "**65.0**" in tspmo  # the best mean, and no interval from one seed
    assert "±" not in tspmo
    assert grpo.rstrip("| ").endswith("3")
    assert "- tspmo-s1: diverged (boom line two)" in text


def test_latex_has_booktabs_rules_and_escapes(folder):
    put(folder, "sgrpo-s0", "sgrpo", 0, 0.1, overrides=["token_sampler.budget=8"], method="8")
    put(folder, "sgrpo-s1", "sgrpo", 0, 0.2, overrides=["token_sampler.budget=9"], method="9")
    text = latex(collect(folder).runs, ["x"])
    for word in (r"\toprule", r"\midrule", r"\bottomrule", r"$60.0 \pm 24.8$", r"token\_sampler.budget=8", r"base, \%"):
        assert word in text


def test_csv_has_unrounded_numbers(folder):
    (folder.parent / "t.csv").write_text(csv(collect(folder).runs))
    table = pd.read_csv(folder.parent / "t.csv").set_index("method")
    assert table.loc["grpo", "final, % ±"] == pytest.approx(24.8414, rel=1e-5)
    assert table.loc["grpo", "seeds"] == 3


def test_methods_are_told_apart_by_what_differs(tmp_path):
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
    return subprocess.run(
        [sys.executable, "-m", "rlsparse.results", *map(str, arguments)], cwd=cwd, capture_output=True, text=True
    )


def test_the_command_writes_the_same_bytes_twice_and_publishes(folder, tmp_path):
    names = ("results.csv", "table.md", "table.tex", "table.csv", "not_counted.txt")
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


def test_an_unknown_experiment_is_one_message(tmp_path):
    assert call(cwd=tmp_path).stderr.startswith("error: --runs runs: there is no such folder")
    (tmp_path / "runs").mkdir()
    done = call("--experiment", "nope", cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.startswith("error: --experiment nope: there is no")


def test_an_experiment_with_no_finished_run(tmp_path):
    folder = tmp_path / "runs" / "empty"
    put(folder, "x", "grpo", 0, 0.5, status="failed")
    assert call(cwd=tmp_path).returncode == 0
    assert "No finished run." in (folder / "table.md").read_text()


def test_committed_tables_are_what_their_csv_gives(tmp_path):
    from tests.conftest import ROOT

    studies = [file.parent for file in ROOT.glob("experiments/*/results.csv")]
    assert studies
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    assert call("--studies", "experiments", cwd=tmp_path).returncode == 0
    for study in studies:
        for name in ("table.md", "table.tex", "table.csv"):
            assert (tmp_path / "experiments" / study.name / name).read_bytes() == (study / name).read_bytes()


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


def test_where_the_rank_went_by_hand(with_ranks):
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
    # q_proj: 2 and 4, mean 3, s = sqrt 2, t(0.975, 1) = 12.706: 12.706 x sqrt 2 / sqrt 2 = 12.7; down_proj: 6 and 4
    (row,) = [line for line in rank_table(ranks.final).splitlines() if line.startswith("| grpo adapter=l1ra")]
    assert [cell.strip() for cell in row.split("|")[2:-1]] == ["3.0 ± 12.7", "5.0 ± 12.7", "16", "2"]


def test_the_figure_of_ranks_has_the_same_bytes_twice_and_goes_with_its_runs(with_ranks, tmp_path):
    names = ("ranks_final.csv", "ranks_history.csv", "ranks.md", "ranks.svg")
    assert call("--experiment", "moving", "--out", "experiments/moving", cwd=tmp_path).returncode == 0
    first = {name: (tmp_path / "experiments/moving" / name).read_bytes() for name in names}
    assert b"grpo adapter=l1ra" in first["ranks.svg"]
    assert b"adapter=lora" not in first["ranks.svg"]  # its ranks stay
    for name in ("ranks.md", "ranks.svg"):
        (tmp_path / "experiments/moving" / name).unlink()
    shutil.rmtree(tmp_path / "runs")
    assert call("--studies", "experiments", cwd=tmp_path).returncode == 0
    assert first == {name: (tmp_path / "experiments/moving" / name).read_bytes() for name in names}


def test_methods_stand_in_natural_order(tmp_path):
    for rank in (16, 4, 8):
        put(tmp_path, f"r{rank}", "grpo", 0, 0.5, overrides=[f"lora_rank={rank}"], method=str(rank))
    put(tmp_path, "t", "tspmo", 0, 0.5)
    lines = markdown(collect(tmp_path).runs, []).splitlines()[2:6]
    assert [line.split("|")[1].strip() for line in lines] == [
        "grpo lora_rank=4",
        "grpo lora_rank=8",
        "grpo lora_rank=16",
        "tspmo",
    ]


def test_a_measure_that_no_run_has_is_no_column(with_ranks):
    runs = collect(with_ranks).runs
    assert "loss" not in markdown(runs, [])
    runs["final_loss"] = [0.5, 0.4, 0.7, 0.6]
    table = markdown(runs, [])
    assert "final loss, nats" in table
    assert "**0.450 ± 0.635**" in table  # 0.5 and 0.4: s = 0.0707, 12.706 x 0.0707 / sqrt 2 = 0.635; the lower is best


def test_step_time_is_what_training_took(tmp_path):
    time = {"total": 30.0, "rollout": 4.0, "reward": 1.0, "train": 5.0, "eval": 20.0}
    put(tmp_path, "a", "grpo", 0, 0.5, time=time, steps=5)
    assert collect(tmp_path).runs["time_step"].tolist() == [2.0]  # (4 + 1 + 5) / 5


def test_a_figure_of_very_many_methods_says_that_it_has_not_all(tmp_path):
    methods = [f"m{i}" for i in range(MOST + 2)]
    final = pd.DataFrame([(m, 0, "q_proj", layer, 4) for m in methods for layer in (0, 1)])
    history = pd.DataFrame([(m, 0, step, "q_proj", 4.0) for m in methods for step in (0, 5)])
    final.columns = ["method", "seed", "module", "layer", "rank"]
    history.columns = ["method", "seed", "step", "module", "rank"]
    for count, said in ((MOST, 0), (MOST + 2, 1)):
        among = methods[:count]
        file = tmp_path / "ranks.svg"
        rank_figure(final[final["method"].isin(among)], history[history["method"].isin(among)], file)
        assert file.read_text().count(f"the first {MOST} of {MOST + 2} methods") == said

"""The page of the benchmarks holds the tables of its json files, and our side of the benchmarks runs."""

import importlib
import json
import logging
import sys

import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "experiments" / "benchmarks"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for script in FOLDER.glob("*.py"):
        sys.modules.pop(script.stem, None)


SCRIPTS = [
    "vs_trl",
    "ideas",
    "exactness",
    "startup",
    "many_runs",
    "sweep_overhead",
    "rounding",
    "l1ra",
    "layer_skip",
    "side_by_side",
]


VS_TRL = ("vs_trl", "vs_trl_zen4")  # a script, and its report from a second processor


@pytest.mark.parametrize(("script", "name"), [*((one, one) for one in SCRIPTS), VS_TRL])
def test_page_of_the_benchmarks_holds_the_table_of_the_json(scripts, script, name):
    report = json.loads((FOLDER / f"{name}.json").read_text())
    assert importlib.import_module(script).table(report) in (FOLDER / "README.md").read_text()


def test_page_on_results_holds_the_tables_of_the_simulations(scripts):
    import coverage

    report, page = json.loads((FOLDER / "coverage.json").read_text()), (ROOT / "docs" / "results.md").read_text()
    tables = {"normal": coverage.coverage_table, "answers": coverage.answers_table, "looks": coverage.looks_table}
    tables |= {"comparisons": coverage.comparisons_table, "replayed": coverage.replayed_table}
    for name, table in tables.items():
        assert table(report[name]) in page


def test_page_on_performance_and_readme_hold_the_headline_of_the_json(scripts):
    import vs_trl

    reports = [json.loads((FOLDER / f"{name}.json").read_text()) for name in VS_TRL]
    for report in reports:
        assert vs_trl.headline(report) in (ROOT / "docs" / "performance.md").read_text()
    times = [time for report in reports for time in report["time"]["grpo"].values()]
    assert f"{min(times):.1f} to {max(times):.1f} times" in (ROOT / "README.md").read_text()


def test_plain_path_ends_the_benchmark_and_waiting_for_a_server_does_not(scripts, monkeypatch):
    import contenders

    logger = logging.getLogger("rlsparse")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    contenders.refuse_plain_paths()
    logging.getLogger("rlsparse.rollout.vllm.server").info("rollout=vllm: waits for a server")
    with pytest.raises(SystemExit, match="rollout: plain for this model"):
        logging.getLogger("rlsparse.rollout.fast").info("rollout: plain for this model")
    logger.setLevel(logging.NOTSET)  # the level is cached in the loggers below


@pytest.mark.full
def test_contenders_take_turns_and_report_every_step(scripts):
    from contenders import ours
    from race import Contender, race, ratios
    from workload import Work

    from rlsparse.model.source import EMBEDDED

    work = Work(str(EMBEDDED["tiny"]), "grpo", new_tokens=6, steps=3, threads=1)
    measured = race({"a": Contender(ours, work, []), "b": Contender(ours, work, ["token_sampler=first"])}, warmup=1)
    for one in measured.values():
        assert len(one.steps) == 2
        assert all(0 < step["time/rollout"] + step["time/train"] < step["wall"] for step in one.steps)
        assert one.peak > 100 * 2**20
    a, b = (measured[name].steps for name in "ab")
    assert ratios(measured["a"], measured["b"], "wall") == sorted(
        x["wall"] / y["wall"] for x, y in zip(a, b, strict=True)
    )


def test_rewards_are_equal_for_both_sides_and_differ_in_every_group(scripts):
    from workload import Work, rewards

    work = Work("", "grpo", group_size=2)
    first, second = rewards(work), rewards(work)
    for _ in range(20):
        drawn = next(first)
        assert drawn == next(second)
        assert all({*drawn[2 * p : 2 * p + 2]} == {0.0, 1.0} for p in range(work.prompts))


def test_floor_counts_the_products_with_the_weights(scripts, tiny):
    """Layers of tiny: 4 · (hidden² for q and o, hidden · kv for k and v, 3 · hidden · ffn); by hand from its shapes."""
    from floor import step_operations
    from workload import Work

    config = tiny.model.config
    hidden, ffn = config.hidden_size, config.intermediate_size
    kv = hidden * config.num_key_value_heads // config.num_attention_heads
    layers = config.num_hidden_layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * ffn)
    head = config.vocab_size * hidden
    # 2 prompts of 10 tokens together, 2 · 4 completions of 5: rollout once, training forward and backward, 2 flops each
    work = Work("", "grpo", prompts=2, group_size=4, new_tokens=5)
    assert step_operations(tiny.model, work, 10) == 3 * 2 * (layers * (10 + 40) + head * 40)

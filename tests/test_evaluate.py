"""Evaluation: metrics by hand, benchmarks beside the held-out rows, every question on disk, and evaluation later."""

import json
import os
import random
import shutil
import signal
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from rlsparse.algorithm import Algorithm
from rlsparse.components.task import load_task
from rlsparse.config.compose import compose, config_dir, register_schemas, run_config
from rlsparse.config.schema import ConfigError
from rlsparse.execution import model_check
from rlsparse.execution.evaluate_model import _differences, _run_of, evaluate
from rlsparse.execution.evaluate_model import preflight as preflight_evaluation
from rlsparse.execution.preflight import identity_of, preflight
from rlsparse.execution.run_once import run
from rlsparse.model.loading import load_policy
from rlsparse.model.source import EMBEDDED
from rlsparse.results.answers import Answers
from rlsparse.results.benchmarks import benchmark_table, collect_benchmarks
from rlsparse.results.collect import collect
from rlsparse.runtime.signals import Interrupted
from rlsparse.storage.jsonl import read_rows
from rlsparse.storage.run_folder import RunFolder
from rlsparse.training.data import encode_task
from rlsparse.training.evaluate import Examiner, Graded, Outcome, evaluation_metrics, majority_at, pass_at
from tests.conftest import built, composed

SMALL = (
    "tracker=none",
    "train.steps=2",
    "train.prompts_per_step=2",
    "train.group_size=4",
    "eval.max_rows=8",
    "eval.samples=4",
    "eval.maj_at=[3]",
    "eval.benchmarks=[word_problems,arithmetic]",
    "eval.benchmark_rows=6",
)
OF_EVALUATION = tuple(word for word in SMALL if word.startswith("eval.") and "max_rows" not in word)


def composed_evaluation(*overrides):
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    register_schemas()
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return run_config(hydra_compose("evaluate", list(overrides)))


def graded(answer, correct=False, length=5):
    return Graded(correct, answer, length, ended=True)


def vote(sampled, k):
    """The mean over all subsets of k of the chance that the right candidate wins, by enumeration."""
    chances = []
    for some in combinations(sampled, k):
        votes = {}
        for one in some:
            if one.answer is not None:
                name = "right" if one.correct else one.answer
                votes[name] = votes.get(name, 0) + 1
        best = [name for name, count in votes.items() if count == max(votes.values())]
        chances.append((1 / len(best)) if "right" in best else 0.0)
    return sum(chances) / len(chances)


def test_majority_vote_by_hand():
    # of the three pairs of (right, right, wrong 7): (r, r) is right, (r, 7) twice is a tie: (1 + 1/2 + 1/2) / 3
    sampled = [graded("4", True), graded("4.0", True), graded("7")]
    assert majority_at(2, sampled) == pytest.approx(2 / 3)
    assert majority_at(1, sampled) == pytest.approx(2 / 3)  # as the accuracy
    assert majority_at(3, sampled) == 1.0  # two votes against one


def test_majority_vote_where_nobody_answers_is_wrong():
    assert majority_at(2, [graded(None), graded(None), graded("3")]) == 0.0


def test_two_ways_to_write_a_wrong_number_are_one_candidate():
    # 7 and 7.0 outvote the one right answer; as two candidates they would tie with it
    assert majority_at(3, [graded("4", True), graded("7"), graded("7.0")]) == 0.0


def test_majority_vote_equals_enumeration_of_all_subsets():
    chance = random.Random(0)
    for _ in range(40):
        n = chance.randint(1, 7)
        answers = [chance.choice(["right", "a", "b", "c", None]) for _ in range(n)]
        sampled = [graded(answer, answer == "right") for answer in answers]
        for k in range(1, n + 1):
            assert majority_at(k, sampled) == pytest.approx(vote(sampled, k)), (answers, k)


def test_pass_at_k_equals_enumeration_of_all_subsets():
    for correct in range(5):
        results = [True] * correct + [False] * (4 - correct)
        for k in range(1, 5):
            found = [any(some) for some in combinations(results, k)]
            assert pass_at(k, 4, correct) == pytest.approx(sum(found) / len(found))


def test_metrics_by_hand():
    config = replace(composed().eval, samples=2, pass_at=[1, 2, 9], maj_at=[2])
    outcomes = [
        Outcome("a", "4", graded("4", True), (graded("4", True, 3), graded(None, length=7))),
        Outcome("b", "5", graded("6"), (graded("6"), graded("6"))),
    ]
    assert evaluation_metrics(outcomes, config) == {
        "accuracy_greedy": 1 / 2,
        "accuracy_sampled": 1 / 4,
        "mean_length": (3 + 7 + 5 + 5) / 4,
        "frac_answered": 3 / 4,
        "frac_truncated": 0.0,
        "pass_at_1": (1 / 2 + 0) / 2,
        "pass_at_2": (1 + 0) / 2,
        "maj_at_2": (1 + 0) / 2,  # the one vote of a is right
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with two benchmarks, its folder and its summary."""
    runs = tmp_path_factory.mktemp("runs")
    config = composed(*SMALL, f"runs_dir={runs}")
    return config, run(config), next(runs.glob("default/grpo*"))


def test_answers_counted_by_hand_agree_with_the_summary(trained):
    _, summary, folder = trained
    rows = read_rows(folder / "answers.jsonl")
    assert {(row["step"], row["benchmark"]) for row in rows} == {
        (step, name) for step in (0, 2) for name in ("held_out", "word_problems", "arithmetic")
    }
    for name, ends in {"held_out": summary, **summary["benchmarks"]}.items():
        for step, values in ((0, ends["base"]), (2, ends["final"])):
            asked = [row for row in rows if (row["step"], row["benchmark"]) == (step, name)]
            assert len(asked) == len({row["question"] for row in asked}) == (8 if name == "held_out" else 6)
            assert values["accuracy_greedy"] == sum(row["greedy"] for row in asked) / len(asked)
            assert values["accuracy_sampled"] == sum(row["right"] for row in asked) / (4 * len(asked))
            assert values["mean_length"] == sum(sum(row["lengths"]) for row in asked) / (4 * len(asked))
            answered = sum(answer is not None for row in asked for answer in row["answers"])
            assert values["frac_answered"] == answered / (4 * len(asked))
            for row in asked:
                assert row["samples"] == len(row["answers"]) == len(row["lengths"]) == len(row["correct"]) == 4
                assert row["right"] == sum(row["correct"])


def test_questions_have_the_same_ids_at_both_ends(trained):
    rows = read_rows(trained[2] / "answers.jsonl")
    for name in ("held_out", "word_problems", "arithmetic"):
        first, last = (
            [row["question"] for row in rows if (row["step"], row["benchmark"]) == (s, name)] for s in (0, 2)
        )
        assert first == last


@pytest.fixture
def alone(trained, tmp_path):
    """The same run without benchmarks, and its folder."""
    config = trained[0]
    summary = run(replace(config, runs_dir=str(tmp_path), eval=replace(config.eval, benchmarks=[], tasks={})))
    return summary, next(tmp_path.glob("default/grpo*"))


def test_benchmarks_do_not_change_training(trained, alone):
    assert alone[0]["id"] != trained[1]["id"]
    assert alone[0]["final"] == trained[1]["final"]
    for part in ("adapter/adapter_model.safetensors", "samples.jsonl"):
        assert (alone[1] / part).read_bytes() == (trained[2] / part).read_bytes()


def test_adapter_evaluated_later_gives_the_run_what_it_would_have_found(trained, alone, tmp_path):
    folder = alone[1]
    words = [*OF_EVALUATION, f"adapter_path={folder / 'adapter'}", f"runs_dir={tmp_path}"]
    found = evaluate(composed_evaluation(*words))

    def last(run_folder):
        rows = read_rows(run_folder / "answers.jsonl")
        return [row for row in rows if row["step"] == 2 and row["benchmark"] != "held_out"]

    assert last(folder) == last(trained[2]) != []
    summary = json.loads((folder / "summary.json").read_text())
    for name, ends in trained[1]["benchmarks"].items():
        assert summary["benchmarks"][name] == {"base": None, "final": ends["final"]}
        assert found["benchmarks"][name]["final"] == {**ends["final"], "step": 0}
    assert summary["evaluations"] == dict.fromkeys(["word_problems", "arithmetic"], found["id"])
    # the same again changes nothing, and another evaluation takes its place
    files = [folder / name for name in ("answers.jsonl", "metrics.jsonl", "summary.json")]
    before = [file.read_bytes() for file in files]
    assert evaluate(composed_evaluation(*words)) == found
    assert [file.read_bytes() for file in files] == before
    other = evaluate(composed_evaluation(*words, "eval.benchmarks=[arithmetic]", "eval.benchmark_rows=3"))
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "benchmark"]
    assert sorted(row.get("benchmark/arithmetic/questions", 0) for row in rows) == [0, 3]
    assert [row["benchmark"] for row in last(folder)] == ["word_problems"] * 6 + ["arithmetic"] * 3
    again = json.loads((folder / "summary.json").read_text())
    assert again["evaluations"] == {"word_problems": found["id"], "arithmetic": other["id"]}


@pytest.fixture(scope="module")
def trained_weights(tmp_path_factory):
    """A run of adapter=full on a bfloat16 model with two benchmarks, and one without; a folder of each."""
    base = tmp_path_factory.mktemp("bfloat16") / "model"
    policy = load_policy(composed().model, torch.device("cpu"), "bfloat16")
    policy.model.save_pretrained(base)
    policy.tokenizer.save_pretrained(base)
    words = ("adapter=full", f"model.path={base}", "train.lr=1e-3")
    config = composed(*SMALL, *words, f"runs_dir={tmp_path_factory.mktemp('with')}")
    without = tmp_path_factory.mktemp("without")
    run(config)
    run(replace(config, runs_dir=str(without), eval=replace(config.eval, benchmarks=[], tasks={})))
    return tuple(next(folder.glob("default/grpo*")) for folder in (Path(config.runs_dir), without))


@pytest.fixture
def weights_alone(trained_weights, tmp_path):
    """A copy of the run without benchmarks."""
    return Path(shutil.copytree(trained_weights[1], tmp_path / "runs" / "default" / trained_weights[1].name))


def test_exported_model_evaluated_later_gives_the_run_what_it_would_have_found(
    trained_weights, weights_alone, tmp_path
):
    assert not (weights_alone / "adapter").exists()
    words = [*OF_EVALUATION, f"model.path={weights_alone / 'model'}", f"runs_dir={tmp_path}"]
    found = evaluate(composed_evaluation(*words))
    of_run = json.loads((trained_weights[0] / "summary.json").read_text())
    summary = json.loads((weights_alone / "summary.json").read_text())
    assert set(summary["benchmarks"]) == {"word_problems", "arithmetic"}
    for name, ends in of_run["benchmarks"].items():
        assert summary["benchmarks"][name] == {"base": None, "final": ends["final"]}
    assert summary["evaluations"] == dict.fromkeys(["word_problems", "arithmetic"], found["id"])
    of_last_step = [
        [row for row in read_rows(folder / "answers.jsonl") if (row["step"], row["benchmark"]) != (2, "held_out")][-12:]
        for folder in (trained_weights[0], weights_alone)
    ]
    assert of_last_step[0] == of_last_step[1]
    # training has changed the model, so the answers are not those of its base
    at_start = [row for row in read_rows(trained_weights[0] / "answers.jsonl") if row["step"] == 0][-12:]
    assert [row["answers"] for row in at_start] != [row["answers"] for row in of_last_step[1]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dtype=float32"], "the evaluation has dtype=float32 instead of auto"),
        (["model.chat_template=false"], "the evaluation has model.chat_template=false instead of true"),
    ],
)
def test_exported_model_evaluated_with_other_settings_is_not_added_to_its_run(words, message, weights_alone, tmp_path):
    differences = _differences(
        RunFolder(weights_alone), composed_evaluation(*OF_EVALUATION, f"model.path={weights_alone / 'model'}", *words)
    )
    assert message == f"the evaluation has {', '.join(differences)}"


def test_run_of_an_evaluation_is_the_one_that_exported_what_is_evaluated(weights_alone, trained, tmp_path):
    def run_of(*words):
        found = _run_of(composed_evaluation(*OF_EVALUATION, *words))
        return None if found is None else found.path

    assert run_of() is None
    assert run_of(f"model.path={EMBEDDED['tiny']}") is None
    assert run_of(f"model.path={weights_alone / 'model'}") == weights_alone
    # an adapter that was trained later on an exported model belongs to its own run
    adapter = f"adapter_path={trained[2] / 'adapter'}"
    assert run_of(f"model.path={weights_alone / 'model'}", adapter) == trained[2]
    shutil.copytree(weights_alone / "model", tmp_path / "moved")
    assert run_of(f"model.path={tmp_path / 'moved'}") is None
    (weights_alone / "summary.json").unlink()
    assert run_of(f"model.path={weights_alone / 'model'}") is None


def test_exported_model_is_checked_and_trained_like_any_other(weights_alone, tmp_path):
    words = (f"model.path={weights_alone / 'model'}", f"runs_dir={tmp_path / 'next'}", *SMALL, "train.steps=1")
    report = str(model_check.check(composed(*words, "eval.benchmarks=[]")))
    assert "Qwen2ForCausalLM" in report
    assert "bfloat16" in report
    first = json.loads((weights_alone / "summary.json").read_text())
    summary = run(composed(*words, "eval.benchmarks=[]", "adapter=full"))
    assert summary["status"] == "finished"
    assert summary["base"] == {**first["final"], "step": 0}  # it starts from the trained model


def test_folder_beside_the_exported_one_is_refused_with_its_name(weights_alone, trained, tmp_path):
    def refusal(*words):
        with pytest.raises(ConfigError) as caught:
            preflight_evaluation(composed_evaluation(*OF_EVALUATION, *words))
        return str(caught.value)

    model, adapter = weights_alone / "model", trained[2] / "adapter"
    for given in (weights_alone, weights_alone / "adapter"):
        assert refusal(f"model.path={given}").endswith(f"did you mean {model}?")
    for given in (trained[2], trained[2] / "model"):
        assert refusal(f"model.path={given}").endswith(f"did you mean {adapter}?")
    for given in (weights_alone, weights_alone / "adapter", model):
        assert refusal(f"adapter_path={given}").endswith(
            f"this run has trained the weights of the model, so give model.path={model} without adapter"
        )
    assert refusal(f"model.path={tmp_path / 'nothing'}").endswith("give a Hugging Face model folder")


def test_results_that_a_run_has_found_itself_stay(trained, tmp_path, logged):
    folder = trained[2]
    before = {file.name: file.read_bytes() for file in folder.glob("*.json*")}
    words = [f"adapter_path={folder / 'adapter'}", f"runs_dir={tmp_path}", "eval.benchmarks=[arithmetic]"]
    evaluate(composed_evaluation(*words, "eval.benchmark_rows=3"))
    assert {file.name: file.read_bytes() for file in folder.glob("*.json*")} == before
    assert any("has its own results of arithmetic, which stay" in line for line in logged)


def test_evaluation_on_another_model_than_that_of_the_run_is_not_added_to_it(alone, tmp_path, logged):
    folder = alone[1]
    shutil.copytree(EMBEDDED["tiny"], tmp_path / "other")
    settings = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**settings, "rms_norm_eps": 1e-3}))
    before = {file.name: file.read_bytes() for file in folder.glob("*.json*")}
    words = [*OF_EVALUATION, f"adapter_path={folder / 'adapter'}", f"runs_dir={tmp_path}"]
    evaluate(composed_evaluation(*words, f"model.path={tmp_path / 'other'}"))
    evaluate(composed_evaluation(*words, "dtype=bfloat16", "eval.benchmark_rows=2"))
    assert {file.name: file.read_bytes() for file in folder.glob("*.json*")} == before
    assert any("does not get the results, since the evaluation has another model than tiny" in line for line in logged)
    assert any("since the evaluation has dtype=bfloat16 instead of auto" in line for line in logged)


def test_folder_of_a_run_or_of_another_evaluation_is_refused(alone, tmp_path):
    with pytest.raises(ConfigError, match=r"out=.*: holds config.yaml of a run or of another evaluation"):
        evaluate(composed_evaluation(*OF_EVALUATION, f"out={alone[1]}"))
    evaluate(composed_evaluation(*OF_EVALUATION, f"out={tmp_path / 'one'}", "eval.benchmark_rows=2"))
    (tmp_path / "one" / "summary.json").unlink()  # as if it had been cut off
    with pytest.raises(ConfigError, match=r"out=.*: holds config.yaml of a run or of another evaluation"):
        evaluate(composed_evaluation(*OF_EVALUATION, f"out={tmp_path / 'one'}"))


def test_model_evaluated_alone_gives_the_answers_before_training(trained, tmp_path):
    summary = trained[1]
    found = evaluate(composed_evaluation(*OF_EVALUATION, f"out={tmp_path / 'out'}"))
    assert {name: ends["final"] for name, ends in found["benchmarks"].items()} == {
        name: ends["base"] for name, ends in summary["benchmarks"].items()
    }


def test_evaluation_that_was_cut_off_continues_with_the_next_benchmark(tmp_path, logged):
    words = [*OF_EVALUATION, f"out={tmp_path}"]
    whole = evaluate(composed_evaluation(*words))
    answers = (tmp_path / "answers.jsonl").read_bytes()
    assert evaluate(composed_evaluation(*words)) == whole  # finished before
    (tmp_path / "summary.json").unlink()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text(lines[0])  # the second benchmark was not finished
    logged.clear()
    assert evaluate(composed_evaluation(*words))["benchmarks"] == whole["benchmarks"]
    assert (tmp_path / "answers.jsonl").read_bytes() == answers
    assert [line for line in logged if line.startswith("word_problems:")] == []
    assert "finished before: word_problems" in logged


def test_table_of_benchmarks_has_a_row_for_each_measure_and_method(trained):
    folder = trained[2].parent
    found = collect_benchmarks(folder, collect(folder).runs)
    table = benchmark_table(found, "grpo")
    assert list(table.cells.columns) == ["method", "measure", "word_problems", "arithmetic", "mean", "seeds"]
    shown = {(row.measure, row.method): row for row in table.cells.itertuples()}
    assert {measure for measure, _ in shown} == {"greedy", "avg@n", "pass@2", "maj@3", "length"}
    final = trained[1]["benchmarks"]["arithmetic"]["final"]["accuracy_greedy"]
    base = trained[1]["benchmarks"]["word_problems"]["base"]["accuracy_sampled"]
    assert shown["greedy", "grpo"].arithmetic == f"{100 * final:.1f}"
    assert shown["avg@n", "before training"].word_problems == f"{100 * base:.1f}"
    assert "word_problems 6, arithmetic 6" in table.notes[1]


def test_methods_are_compared_on_the_mean_over_benchmarks_by_seed_and_question(tmp_path):
    """Two benchmarks, of two and of four questions; tspmo answers one question more of each, and with seed 2 all."""
    right = {"grpo": {"a": [0, 1], "b": [0, 0, 1, 1]}, "tspmo": {"a": [1, 1], "b": [0, 1, 1, 1]}}
    rows, answered = [], []
    for method, by_benchmark in right.items():
        for seed in range(3):
            for name, greedy in by_benchmark.items():
                given = [1] * len(greedy) if (method, seed) == ("tspmo", 2) else greedy
                about = {"id": f"{method}{seed}", "when": "final"}
                accuracy = sum(given) / len(given)
                rows.append({**about, "method": method, "seed": seed, "benchmark": name, "step": 5})
                rows[-1] |= {"questions": len(given), "accuracy_greedy": accuracy}
                text = " ".join(map(str, given))
                answered.append(
                    {**about, "benchmark": name, "questions": name, "samples": 1, "right": text, "greedy": text}
                )
    questions = pd.DataFrame({"questions": list("aabbbb"), "question": list("uvuvwx")})
    table = benchmark_table(pd.DataFrame(rows), "grpo", Answers(pd.DataFrame(answered), questions))
    (row,) = (one for one in table.numbers.to_dict("records") if one["method"] == "tspmo")
    # differences by seed: (50 + 25) / 2 twice, and (50 + 50) / 2
    by_seed = np.array([37.5, 37.5, 50.0])
    assert row["difference, points"] == pytest.approx(by_seed.mean())
    low, _ = stats.t.interval(0.95, 2, by_seed.mean(), stats.sem(by_seed))
    assert row["difference, points low"] <= low + 1e-9  # the choice of the questions counts too
    assert float(row["p, seeds"]) == 2 / 2**3
    assert float(row["p"]) == float(row["p, Holm"]) >= stats.ttest_1samp(by_seed, 0).pvalue
    assert table.cells["difference, points"][0] == "–"
    assert any("6 questions" in note or "2 or 4 or 6 questions" in note for note in table.notes)


def test_mean_of_benchmarks_is_over_those_that_every_row_has():
    def evaluated(method, name, when, accuracy):
        step = 0 if when == "base" else 5
        about = {"method": method, "seed": 0, "id": method, "benchmark": name, "when": when, "step": step}
        return {**about, "questions": 9, "accuracy_greedy": accuracy}

    rows = [evaluated("grpo", name, when, 0.2) for name in ("a", "b") for when in ("base", "final")]
    table = benchmark_table(pd.DataFrame([*rows, evaluated("grpo", "c", "final", 0.8)]), "grpo")
    assert list(table.cells["mean"]) == ["20.0", "20.0"]  # not (0.2 + 0.2 + 0.8) / 3
    assert list(table.cells["c"]) == ["–", "80.0"]
    assert "mean: over the benchmarks that every row has: a, b." in table.notes


def test_benchmarks_are_evaluated_as_often_as_asked(tmp_path):
    words = [*SMALL, "train.steps=3", "eval.benchmarks_every=2", "eval.every=3", f"runs_dir={tmp_path}"]
    run(composed(*words))
    rows = read_rows(next(tmp_path.glob("default/*/metrics.jsonl")))
    assert [row["step"] for row in rows if "benchmark/arithmetic/questions" in row] == [0, 2, 3]
    assert [row["step"] for row in rows if row["kind"] == "eval"] == [0, 3]


def test_held_out_row_without_room_for_the_completions_of_an_evaluation_is_left_out(tiny):
    task = built().task
    whole = encode_task(tiny, task, 26, 8)
    longest = tiny.context - min(len(prompt.ids) for prompt in whole.test)  # the shortest prompts alone fit
    few = encode_task(tiny, task, 26, 8, longest)
    assert few.train == whole.train
    assert 0 < len(few.test) + few.skipped_test == 8
    assert all(len(prompt.ids) + longest <= tiny.context for prompt in few.test)
    with pytest.raises(ConfigError, match=r"eval.max_new_tokens=255: no test prompt"):
        encode_task(tiny, task, 26, 8, tiny.context - 1)


def test_evaluation_samples_with_its_own_temperature_and_length(tmp_path):
    words = [*SMALL, "train.steps=1", "eval.max_new_tokens=3", "eval.temperature=0.000001"]
    run(composed(*words, f"runs_dir={tmp_path}"))
    rows = read_rows(next(tmp_path.glob("default/*/answers.jsonl")))
    assert max(length for row in rows for length in (*row["lengths"], row["greedy_length"])) == 3
    for row in rows:  # almost no temperature: all samples are the greedy completion
        assert set(row["answers"]) == {row["greedy_answer"]}
    trained = read_rows(next(tmp_path.glob("default/*/metrics.jsonl")))
    assert max(row["rollout/length_mean"] for row in trained if row["kind"] == "train") > 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval.benchmarks=[nosuch]"], "eval.benchmarks=nosuch: there is no such task; choose from .*svamp"),
        (["eval.benchmarks=[svamp,svamp]"], "eval.benchmarks=svamp,svamp: has svamp twice"),
        (
            ["eval.benchmarks=svamp,gsm8k"],
            r"eval.benchmarks=svamp,gsm8k: must be a list; write eval.benchmarks=\[svamp",
        ),
        (["eval.tasks.svamp.path=x"], "eval.tasks.svamp: is not in eval.benchmarks"),
        (["eval.benchmarks=[svamp]", "eval.tasks.svamp=3"], "eval.tasks.svamp=3: must be keys of the task"),
    ],
)
def test_benchmark_that_is_not_there_is_refused_when_composing(words, message):
    with pytest.raises(ConfigError, match=message):
        composed(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval.maj_at=[3]"], r"eval.maj_at=\[3\]: a vote of 3 needs as many sampled completions, and eval.samples=2"),
        (["eval.max_new_tokens=256"], "eval.max_new_tokens=256: the model's context is 256 tokens"),
        (["eval.maj_at=[2,2]"], r"eval.maj_at=\[2, 2\]: has a number twice"),
        (
            ["eval.benchmarks=[word_problems]", "eval.max_new_tokens=250"],
            "=250: no question of the benchmark word_prob",
        ),
        (["eval.maj_at=[0]"], r"eval.maj_at=\[0\]: must be a list"),
        (["eval.tasks.svamp.pth=x", "eval.benchmarks=[svamp]"], "eval.tasks.svamp.pth: no such key"),
        (["eval.tasks.svamp.path=/nowhere", "eval.benchmarks=[svamp]"], "eval.benchmarks=svamp: .*/nowhere"),
        (["eval.benchmarks=[arithmetic]", "eval.max_new_tokens=9999"], "eval.max_new_tokens=9999: the model's context"),
    ],
)
def test_bad_benchmark_is_refused_before_a_model_loads(words, message):
    with pytest.raises(ConfigError, match=message):
        preflight([composed(*words)])


def test_all_bad_benchmarks_are_named_at_once(tmp_path):
    empty = tmp_path / "test.jsonl"
    empty.write_text("")
    words = ["eval.benchmarks=[svamp,gsm8k]", f"eval.tasks.svamp.path={tmp_path}", "eval.tasks.gsm8k.path=/nowhere"]
    with pytest.raises(ConfigError) as caught:
        preflight([composed(*words)])
    assert "eval.benchmarks=svamp:" in str(caught.value)
    assert "eval.benchmarks=gsm8k:" in str(caught.value)


def test_evaluation_without_benchmarks_or_with_a_foreign_adapter_is_refused(tmp_path, trained):
    with pytest.raises(ConfigError, match=r"eval.benchmarks=: names no task"):
        preflight_evaluation(composed_evaluation())
    with pytest.raises(ConfigError, match=r"adapter=.*: there is no such folder"):
        preflight_evaluation(composed_evaluation(*OF_EVALUATION, "adapter_path=/nowhere"))
    with pytest.raises(ConfigError, match=r"holds no adapter_config.json; did you mean .*/adapter"):
        preflight_evaluation(composed_evaluation(*OF_EVALUATION, f"adapter_path={trained[2]}"))
    words = [*OF_EVALUATION, "model=tiny_deep", f"adapter_path={trained[2] / 'adapter'}"]
    with pytest.raises(ConfigError, match="the adapter does not fit"):
        preflight_evaluation(composed_evaluation(*words))


def test_task_of_a_user_is_a_benchmark(tmp_path):
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "products.yaml").write_text("defaults: [multiplication, _self_]\nname: products\n")
    config = compose(["eval.benchmarks=[products]", "eval.tasks.products.test_rows=7"], [str(tmp_path)])
    assert config.eval.tasks["products"]["name"] == "products"
    assert config.eval.tasks["products"]["test_rows"] == 7
    assert Path(config.import_path[0]) == tmp_path
    preflight([config])


def test_id_depends_on_benchmarks_and_their_changes_only_where_there_are_some():
    def identity(*words):
        config = composed(*words)
        return identity_of(config, Algorithm.build(config), "cpu").config_hash

    assert identity("eval.benchmark_rows=5", "eval.benchmarks_every=3") == identity()
    assert identity("eval.temperature=1.0") == identity() != identity("eval.temperature=0.6")
    one = identity("eval.benchmarks=[arithmetic]")
    assert one != identity()
    assert one != identity("eval.benchmarks=[arithmetic]", "eval.tasks.arithmetic.max_new_tokens=9")
    assert one != identity("eval.benchmarks=[arithmetic]", "eval.benchmark_rows=5")


def test_evaluation_that_was_interrupted_continues_within_it(trained, tmp_path, monkeypatch):
    """A signal between two benchmarks of the last evaluation: the training steps and the first sets are not repeated."""
    config = replace(trained[0], runs_dir=str(tmp_path))
    ask = Examiner.__call__

    def interrupted(self, questions):
        found = ask(self, questions)
        if questions.name == "word_problems" and (self.clock.total["train"] > 0):
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    monkeypatch.setattr(Examiner, "__call__", interrupted)
    with pytest.raises(Interrupted):
        run(config)
    monkeypatch.setattr(Examiner, "__call__", ask)
    folder = next(tmp_path.glob("default/grpo*"))
    asked = {(row["step"], row["benchmark"]) for row in read_rows(folder / "answers.jsonl")}
    assert (2, "word_problems") in asked
    assert (2, "arithmetic") not in asked
    summary = run(config)
    assert summary["benchmarks"] == trained[1]["benchmarks"]
    assert (folder / "answers.jsonl").read_bytes() == (trained[2] / "answers.jsonl").read_bytes()
    assert (folder / "samples.jsonl").read_bytes() == (trained[2] / "samples.jsonl").read_bytes()


def test_questions_of_a_benchmark_that_the_run_trains_on_are_said(tmp_path):
    trained_on = load_task(built().task).train[0].question
    lines = [{"question": question, "answer": "1"} for question in ("1+1=", trained_on)]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["eval.benchmarks=[data_set]", f"eval.tasks.data_set.path={tmp_path / 'some.jsonl'}"]
    words += ["eval.tasks.data_set.split.train=null", "eval.max_new_tokens=9"]
    (warning,) = preflight([composed(*words)]).warnings
    assert "1 of 2 held-out questions are training questions, too (test rows 2)" in warning


def test_warm_start_with_benchmarks_is_refused(tmp_path):
    from rlsparse.config.checks import problems
    from tests.conftest import composed_warm_start

    config = composed_warm_start(f"out={tmp_path}", "eval.benchmarks=[svamp]")
    assert any("a warm start evaluates its own task only" in line for line in problems(config))

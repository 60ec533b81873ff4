"""The answers to each question, as a study keeps them."""

import json

import pandas as pd
import pytest

from rlsparse.results.answers import ANSWERS, QUESTIONS, collect_answers
from rlsparse.results.study import read_study
from rlsparse.run import run
from rlsparse.storage.run_folder import RunFolder
from tests.conftest import composed


def written(folder, run_id, answers):
    """Write a run of two samples a question: (step, question, right, greedy)."""
    run_folder = RunFolder(folder / run_id)
    run_folder.path.mkdir(parents=True)
    rows = [
        {"step": step, "benchmark": "held_out", "question": name, "samples": 2, "right": right, "greedy": greedy}
        for step, name, right, greedy in answers
    ]
    other = {"step": 4, "benchmark": "math500", "question": "a", "samples": 2, "right": 2, "greedy": True}
    run_folder.answers.write_text("".join(json.dumps(row) + "\n" for row in [*rows, other]))


def test_scores_are_the_shares_of_right_answers_by_question_and_run(tmp_path):
    written(tmp_path, "one", [(0, "a", 0, False), (0, "b", 1, True), (4, "a", 2, True), (4, "b", 1, False)])
    written(tmp_path, "two", [(0, "b", 2, True), (0, "c", 0, False), (4, "b", 0, False), (4, "c", 1, True)])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "answers.jsonl").write_text("{}\n")
    runs = pd.DataFrame({"id": ["one", "two", "broken", "gone"], "status": "finished"})
    found = collect_answers(tmp_path, runs)
    expected = pd.DataFrame({"one": [1.0, 0.5], "two": [float("nan"), 0.0]}, index=["a", "b"])
    expected.loc["c"] = [float("nan"), 0.5]
    pd.testing.assert_frame_equal(found.scores(list(runs["id"]), "final_sampled").sort_index(), expected)
    assert found.scores(["one"], "base_greedy")["one"].to_dict() == {"a": 0.0, "b": 1.0}
    assert found.scores(["two"], "final_greedy")["two"].to_dict() == {"b": 0.0, "c": 1.0}


def test_published_study_keeps_answers_whose_means_are_the_accuracies_of_its_runs(tmp_path):
    from rlsparse.results.__main__ import main

    for seed in (0, 1):
        run(composed("train.steps=2", "eval.max_rows=8", "tracker=none", f"runs_dir={tmp_path}", f"seed={seed}"))
    out = tmp_path / "study"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", ["results", "--runs", str(tmp_path), "--experiment", "default", "--out", str(out)])
        main()
    assert (out / ANSWERS).is_file()
    assert (out / QUESTIONS).is_file()
    study = read_study(out)
    for measure in ("base_sampled", "base_greedy", "final_sampled", "final_greedy"):
        means = study.answers.scores(list(study.runs["id"]), measure).mean()
        assert means.to_dict() == pytest.approx(study.runs.set_index("id")[measure].to_dict())


def test_study_without_answers_has_no_scores(tmp_path):
    (tmp_path / "results.csv").write_text("id,method,status\na,grpo,finished\n")
    assert read_study(tmp_path).answers.empty
    assert read_study(tmp_path).answers.scores(["a"], "final_sampled").empty

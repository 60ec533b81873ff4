"""Planning: power against simulated tests and textbook numbers, and the plan of small studies computed by hand."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from rlsparse.results.__main__ import main
from rlsparse.results.crossed import Crossed, analyse
from rlsparse.results.planning import (
    baseline_plan,
    claims_plan,
    grid_plan,
    plan_claims,
    plan_text,
    seeds_range,
    study_of_runs,
    variances_of,
)
from rlsparse.results.power import Variances
from rlsparse.results.sample import Sample
from rlsparse.results.study import read_study
from rlsparse.sweep.dry_run import describe
from tests.test_dry_run import point

HOUR = 3600


def simulated(variances, mean, S, Q, repetitions=1000):
    """Return the means of scores μ + a_s + b_q + e_sq with their errors, by the analysis that the verdicts rest on."""
    random = np.random.default_rng(0)
    a = random.normal(0, variances.seeds**0.5, (repetitions, S, 1))
    b = random.normal(0, variances.questions**0.5, (repetitions, 1, Q))
    e = random.normal(0, variances.rest**0.5, (repetitions, S, Q))
    return [analyse(scores).over_both() for scores in mean + a + b + e]


def ratio_told(freedom, level=0.05):
    """Return the difference in standard errors that a two-sided t test finds with a power of 80 %."""
    critical = stats.t.ppf(1 - level / 2, freedom)

    def power(ratio):
        below = np.nan_to_num(stats.nct.cdf(-critical, freedom, ratio))  # scipy has NaN for some that are nearly 0
        return 1 - stats.nct.cdf(critical, freedom, ratio) + below

    return optimize.brentq(lambda ratio: power(ratio) - 0.8, 0, 100)


@pytest.mark.parametrize(
    ("variances", "S", "Q", "level", "wanted"),
    [
        (Variances(1, 30, 20), 6, 120, 0.05, 0.8),
        (Variances(1, 30, 20), 6, 120, 0.05, 0.5),
        (Variances(0.2, 100, 100), 10, 30, 0.05, 0.8),
        (Variances(1, 1, 1), 16, 50, 0.01, 0.8),
        (Variances(4, 0, 20), 5, 40, 0.05, 0.8),
        (Variances(1, 0, 20), 3, 100, 0.05, 0.8),
        (Variances(0.2, 100, 100), 3, 100, 0.05, 0.8),
    ],
)
def test_power_is_the_share_of_simulated_tests_that_are_significant(variances, S, Q, level, wanted):
    difference = variances.detectable(S, Q, level, wanted)
    spreads = simulated(variances, difference, S, Q)
    share = np.mean([2 * min(one.p_above(0), one.p_below(0)) <= level for one in spreads])
    # three standard errors of a share of 1000: 3 · √(0.8 · 0.2 / 1000) = 0.038, at 0.5 it is 0.047; and 0.05 because
    # the test estimates its degrees of freedom, and both tests must be significant
    assert abs(share - wanted) < 3 * (wanted * (1 - wanted) / 1000) ** 0.5 + 0.05


@pytest.mark.parametrize("value", [0.0, 0.8])
def test_power_of_two_one_sided_tests_is_that_of_simulated_ones(value):
    variances = Variances(1, 30, 20)  # standard error √(1/6 + 30/120 + 20/720) = 0.67
    spreads = simulated(variances, value, 6, 120)
    share = np.mean([2 * max(one.p_above(-2.5), one.p_below(2.5)) <= 0.05 for one in spreads])
    found = variances.power_within(value + 2.5, 2.5 - value, 6, 120)
    assert 0.6 < found < 0.99
    assert abs(share - found) < 0.06  # 3 · √(0.8 · 0.2 / 1000) = 0.038, and 0.02 as above


def test_power_without_questions_is_that_of_the_paired_t_test():
    # ten pairs and a difference of one standard deviation: 0.803 in Cohen's tables and in G*Power
    by_seed = Variances(4, 0, 0)
    assert by_seed.power(2, 10, 1) == pytest.approx(0.803, abs=5e-4)
    noncentrality = 2 / (2 / 10**0.5)
    critical = stats.t.ppf(0.975, 9)
    by_hand = 1 - stats.nct.cdf(critical, 9, noncentrality) + stats.nct.cdf(-critical, 9, noncentrality)
    assert by_seed.power(2, 10, 1) == by_seed.power(-2, 10, 500) == pytest.approx(by_hand)
    assert by_seed.power(2, 10, 1, sides=1) == pytest.approx(1 - stats.nct.cdf(stats.t.ppf(0.95, 9), 9, noncentrality))
    # half a standard deviation needs 34 pairs, as these tables and G*Power say
    assert by_seed.seeds_needed(1, Q=1) == 34
    # a test without any difference is significant with the probability of its level
    assert by_seed.power(0, 7, 1, level=0.01) == pytest.approx(0.01)


def test_error_and_freedom_are_those_of_the_analysis_at_expected_mean_squares():
    # of σ_a² = 2, σ_b² = 3, σ_e² = 5 with 4 seeds and 7 questions: 5 + 7 · 2 = 19, 5 + 4 · 3 = 17, 5
    spread = Crossed(0.0, seeds=4, questions=7, of_seeds=19, of_questions=17, of_rest=5).two_way()
    variances = Variances(2, 3, 5)
    assert variances.standard_error(4, 7) == pytest.approx(spread.error) == pytest.approx((31 / 28) ** 0.5)
    assert variances.freedom(4, 7) == pytest.approx(spread.freedom)
    # 31² / (19²/3 + 17²/6 + 5²/18) = 961 / (120.33 + 48.17 + 1.39)
    assert variances.freedom(4, 7) == pytest.approx(5.657, abs=1e-3)
    for S, Q in ((1, 7), (4, 1)):
        with pytest.raises(ValueError, match=f"{S} seeds and {Q} questions: an error needs at least two"):
            variances.freedom(S, Q)


@pytest.mark.parametrize(
    "variances", [Variances(2, 3, 5), Variances(0, 3, 5), Variances(9, 0, 0), Variances(1, 100, 50)]
)
def test_smallest_difference_and_smallest_numbers_are_where_the_power_becomes_enough(variances):
    for S, Q, level in ((3, 20, 0.05), (6, 100, 0.01)):
        difference = variances.detectable(S, Q, level, power=0.9)
        assert variances.power(difference, S, Q, level) == pytest.approx(0.9)
        assert variances.power(0.999 * difference, S, Q, level) < 0.9
    difference = 1.5
    seeds = [variances.power(difference, S, 100) >= 0.8 for S in range(3, 200)]
    questions = [variances.power(difference, 8, Q) >= 0.8 for Q in range(2, 2000)]
    assert variances.seeds_needed(difference, 100, most=199) == (3 + seeds.index(True) if any(seeds) else None)
    assert variances.questions_needed(difference, 8, most=1999) == (
        2 + questions.index(True) if any(questions) else None
    )


def test_questions_do_not_help_below_the_part_of_the_seeds_nor_seeds_below_that_of_the_questions():
    variances = Variances(seeds=4, questions=100, rest=0)
    # with 4 seeds the error is at least √(4 / 4) = 1, of 3 degrees of freedom, whose 2.5 % point is 3.2
    assert variances.questions_needed(2, S=4) is None
    assert variances.questions_needed(9, S=4) is not None
    # with 100 questions it is at least √(100 / 100) = 1
    assert variances.seeds_needed(2, Q=100) is None
    assert variances.seeds_needed(4, Q=100) is not None
    # more questions never make the smallest difference larger, although the two-way test loses degrees of freedom
    few = Variances(1, 100, 50)
    assert few.freedom(3, 10_000) < few.freedom(3, 300)
    told = [few.detectable(3, Q) for Q in (30, 100, 300, 1_000, 10_000)]
    assert told == sorted(told, reverse=True)


def runs(**methods):
    """Method → final accuracies by seed; the runs of ``grpo`` take two hours, others one."""
    rows = [
        {
            "id": f"{method}-{seed}",
            "method": method,
            "seed": seed,
            "status": "finished",
            "final_sampled": final,
            "time_total": 2 * HOUR if method == "grpo" else HOUR,
        }
        for method, finals in methods.items()
        for seed, final in enumerate(finals)
    ]
    return pd.DataFrame(rows)


CLAIM = {"published": "p", "source": "s", "of": "a", "versus": "grpo", "measure": "final_sampled"}


def written(folder, table, *claims, answers=None, **more):
    """Write a study; a claim is a mapping that is added to ``CLAIM``. Return it as it is read."""
    folder.mkdir(parents=True)
    table.to_csv(folder / "results.csv", index=False)
    named = [{"claim": f"claim {at}", **CLAIM, **claim} for at, claim in enumerate(claims)]
    (folder / "claims.yaml").write_text(json.dumps({"baseline": "grpo", "claims": named, **more}))
    if answers is not None:
        rows = [
            {
                "id": name,
                "when": when,
                "questions": "all",
                "samples": 100,
                "right": " ".join(map(str, right)),
                "greedy": 0,
            }
            for name, right in answers.items()
            for when in ("base", "final")
        ]
        pd.DataFrame(rows).to_csv(folder / "answers.csv", index=False)
        asked = [{"questions": "all", "question": name} for name in "abcdefgh"[: len(next(iter(answers.values())))]]
        pd.DataFrame(asked).to_csv(folder / "questions.csv", index=False)
    return read_study(folder)


def only_row(table):
    (row,) = table.cells.to_dict("records")
    return row


def test_plan_without_answers_equals_hand_computed_values(tmp_path):
    # differences of 0, 2 and 4 points: mean 2, standard deviation 2; t = 2 / (2/√3) = 1.73 with p = 0.23
    study = written(tmp_path / "s", runs(grpo=[0.5] * 3, a=[0.5, 0.52, 0.54]), {"expect": {"above": 0}}, margin=0.02)
    row = only_row(claims_plan(plan_claims(study)))
    # a mean of one standard deviation needs ten seeds (Cohen's tables), which are 7 more, of two methods; a run takes
    # one hour or two, so (1 + 2) / 2 hours in the mean, and 7 · 2 · 1.5 = 21
    assert row == {
        "claim": "claim 0",
        "value": "2.0 points",
        "claimed": "above 0.0 points",
        "distance": "2.0",
        "seeds": "3",
        "questions": "–",
        "SD seeds": "2.0 [1.0, 12.6]",  # from 2 · √(2 / 7.38) to 2 · √(2 / 0.0506): χ² with 2 degrees of freedom
        "SD questions": "–",
        "SD rest": "–",
        "level": "0.05",
        "more seeds": "7",
        "hours of more seeds": "21",
        "more questions": "–",
        "hours of a run": "1.5",
    }
    told = 2 / 3**0.5 * ratio_told(freedom=2)
    row = only_row(baseline_plan(study))
    assert (row["method"], row["SD seeds"], row["smallest detectable, points"]) == (
        "a",
        "2.0 [1.0, 12.6]",
        f"{told:.1f}",
    )
    assert (row["seeds for 2 points"], row["questions for 2 points"]) == ("10", "–")
    grid = grid_plan(study).cells
    assert grid["seeds"].tolist() == ["3", "6", "10", "16"]
    by_hand = [2 / S**0.5 * ratio_told(S - 1) for S in (3, 6, 10, 16)]
    assert grid["the same questions"].tolist() == [f"{one:.1f}" for one in by_hand]
    assert grid["hours of all runs"].tolist() == ["9", "18", "30", "48"]  # S runs of 1 hour and S of 2
    assert "The answers to each question are not known." in plan_text(study)


def additive_study(tmp_path, mean, *claims):
    """Differences in points of mean + a_s + b_q with a = -2, 0, 2 and b = -10, -10, 10, 10, on four questions."""
    right = {f"grpo-{seed}": [50] * 4 for seed in range(3)}
    right |= {f"a-{s}": [50 + mean + a + b for b in (-10, -10, 10, 10)] for s, a in enumerate((-2, 0, 2))}
    table = runs(grpo=[0.5] * 3, a=[(50 + mean + a) / 100 for a in (-2, 0, 2)])
    return written(tmp_path / "s", table, *claims, answers=right)


def test_plan_with_answers_equals_hand_computed_values(tmp_path):
    study = additive_study(tmp_path, 7, {"expect": {"above": 0}})
    row = only_row(claims_plan(plan_claims(study)))
    # variances: of a, (4 + 0 + 4) / 2 = 4; of b, 4 · 100 / 3 = 133.3; nothing is left
    # of a standard deviation of 2: from 2/√7.26 to 2/√0.0254, the 97.5 and 2.5 % points of F with 2 and 6 degrees
    assert (row["SD seeds"], row["SD questions"], row["SD rest"]) == ("2.0 [0.7, 12.5]", "11.5", "0.0")
    assert (row["value"], row["seeds"], row["questions"]) == ("7.0 points", "3", "4")

    def power(S, Q):  # without rest, the mean squares are proportional to the two parts of the squared error
        of_seeds, of_questions = 4 / S, 400 / 3 / Q
        freedom = (of_seeds + of_questions) ** 2 / (of_seeds**2 / (S - 1) + of_questions**2 / (Q - 1))
        return 1 - stats.nct.cdf(stats.t.ppf(0.975, freedom), freedom, 7 / (of_seeds + of_questions) ** 0.5)

    # four questions leave an error of at least √(133.3 / 4) = 5.8 points
    assert max(power(S, 4) for S in range(3, 1001)) < 0.8
    assert row["more seeds"] == "none would"
    assert row["more questions"] == str(next(Q for Q in range(5, 1000) if power(3, Q) >= 0.8) - 4)
    grid = grid_plan(study).cells
    assert list(grid.columns) == ["seeds", "4 questions", "8 questions", "16 questions", "hours of all runs"]
    # 3 seeds and 8 questions: 4/3 + 133.3/8 = 18; degrees of freedom 18² / ((4/3)²/2 + (16.67)²/7)
    told = 18**0.5 * ratio_told(18**2 / ((4 / 3) ** 2 / 2 + (400 / 24) ** 2 / 7))
    assert grid["8 questions"][0] == f"{told:.1f}"


@pytest.mark.parametrize(("S", "Q"), [(3, 60), (6, 128)])
def test_interval_of_the_standard_deviation_between_seeds_covers_it(S, Q):
    """A true value of 2 in 1,000 studies: 95 % of 1,000 have a standard deviation of 0.7 %."""
    random, covered = np.random.default_rng(S), 0
    for _ in range(1000):
        scores = 2 * random.normal(size=(S, 1)) + 10 * random.normal(size=Q) + 20 * random.normal(size=(S, Q))
        frame = pd.DataFrame(scores)
        low, high = seeds_range(Sample(frame.mean(axis=1), frame))
        covered += low <= 2 <= high
    assert 925 <= covered <= 975


def test_smallest_differences_are_corrected_for_the_number_of_comparisons(tmp_path):
    # variances of the differences: 4 of a and 16 of b, 10 in the mean; those of c do not vary, and it is left out
    table = runs(grpo=[0.5] * 3, a=[0.5, 0.52, 0.54], b=[0.5, 0.54, 0.58], c=[0.5] * 3)
    study = written(tmp_path / "s", table)
    of_a, of_b = (error / 3**0.5 * ratio_told(2, 0.05 / 3) for error in (2, 4))
    assert baseline_plan(study).cells["smallest detectable, points"].tolist() == [f"{of_a:.1f}", f"{of_b:.1f}", "–"]
    by_hand = [(10 / S) ** 0.5 * ratio_told(S - 1, 0.05 / 3) for S in (3, 6, 10, 16)]
    assert grid_plan(study).cells["the same questions"].tolist() == [f"{one:.1f}" for one in by_hand]


def test_claim_with_two_bounds_is_planned_by_the_two_one_sided_tests(tmp_path):
    # differences of -2, 0 and 2 points, standard deviation 2, within 3 points: by one-sided tests at 2.5 %, each needs a
    # power of 90 % where the value is in the middle
    study = written(
        tmp_path / "s", runs(grpo=[0.5] * 3, a=[0.48, 0.5, 0.52]), {"expect": {"above": -0.03, "below": 0.03}}
    )
    row = only_row(claims_plan(plan_claims(study)))
    enough = [1 - stats.nct.cdf(stats.t.ppf(0.975, n - 1), n - 1, 3 / (2 / n**0.5)) >= 0.9 for n in range(4, 50)]
    assert row["more seeds"] == str(4 + enough.index(True) - 3)
    # a value outside is judged by the two-sided test against the bound that it misses: 2 points, standard deviation 2
    outside = written(
        tmp_path / "t", runs(grpo=[0.5] * 3, a=[0.53, 0.55, 0.57]), {"expect": {"above": -0.03, "below": 0.03}}
    )
    row = only_row(claims_plan(plan_claims(outside)))
    assert (row["distance"], row["more seeds"]) == ("2.0", "7")


def test_level_is_that_of_the_next_step_of_holm_among_claims_of_its_kind(tmp_path):
    table = runs(grpo=[0.5, 0.5, 0.5], a=[0.5, 0.52, 0.54], b=[0.9, 0.91, 0.92])
    far, near = {"of": "b", "expect": {"above": 0}}, {"expect": {"above": 0}}
    # b is decided: 41 points with a standard deviation of 1; two claims are left
    study = written(tmp_path / "s", table, near, far, near)
    assert [one.level for one in plan_claims(study)] == [0.025, 0.025]
    # the primary claim is a family of its own; b only waits for it
    study = written(tmp_path / "t", table, {**near, "primary": True}, far, near)
    plans = plan_claims(study)
    assert [one.level for one in plans] == [0.05, None, 0.05]
    assert claims_plan(plans).cells["more seeds"].tolist() == ["7", "a primary claim first", "7"]
    # decided claims, and those that were not run, are not planned
    study = written(tmp_path / "u", table, far, {**near, "of": "c"})
    assert claims_plan(plan_claims(study)) is None


@pytest.mark.parametrize(
    ("expect", "finals", "more"),
    [
        # n equal values: the sign-flip test has p = 2/2ⁿ, which is below 0.05 from 6 on, and so have two one-sided tests
        ({"above": 0}, [0.6] * 4, "2"),
        ({"above": 0, "below": 0.2}, [0.6] * 4, "2"),
        ({"above": 0.1}, [0.6] * 4, "none would"),  # 0.6 - 0.5 is 0.1 but for rounding
    ],
)
def test_equal_values_are_planned_by_the_sign_flip_test(tmp_path, expect, finals, more):
    study = written(tmp_path / "s", runs(grpo=[0.5] * 4, a=finals), {"expect": expect})
    assert claims_plan(plan_claims(study)).cells["more seeds"].tolist() == [more]
    assert baseline_plan(study).cells["smallest detectable, points"].tolist() == ["–"]
    assert grid_plan(study) is None


def test_values_that_differ_by_rounding_alone_have_no_variance():
    values = pd.Series([0.3 - 0.2, 0.6 - 0.5, 1.1 - 1.0])
    assert values.std() > 0
    assert variances_of(Sample(values)) == Variances(0, 0, 0)


def test_one_seed_is_not_enough_for_a_plan_and_the_text_says_so(tmp_path):
    study = written(
        tmp_path / "s",
        runs(grpo=[0.5], a=[0.57]),
        {"expect": {"above": 0}},
        answers={"grpo-0": [50] * 4, "a-0": [47, 47, 67, 67]},
    )
    text = plan_text(study)
    assert "The variance between seeds is not known" in text
    assert "Run more seeds of grpo and of another method" in text
    row = only_row(baseline_plan(study))
    # -3, -3, 17, 17 have the variance 4 · 100 / 3
    assert (row["SD seeds"], row["SD questions"], row["smallest detectable, points"]) == ("–", "11.5 †", "–")
    assert only_row(claims_plan(plan_claims(study)))["more seeds"] == "–"
    assert grid_plan(study) is None


def put(folder, name, algorithm, seed, shares, lr=0.1, curve_mean=0.5):
    """Write a finished run: the accuracy on each question before and after."""
    run = folder / name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 0\n")
    final = sum(shares) / len(shares)
    evaluation = {"accuracy_greedy": final, "accuracy_sampled": final, "mean_length": 10.0}
    summary = {
        "id": name,
        "algorithm": algorithm,
        "seed": seed,
        "status": "finished",
        "overrides": [f"algorithm={algorithm}", f"train.lr={lr}", f"seed={seed}"],
        "setting": {"lr": lr},
        "method_hash": f"{algorithm}-{lr}",
        "base": evaluation,
        "final": evaluation,
        "curve_mean": curve_mean,
        "time": {"total": HOUR},
    }
    (run / "summary.json").write_text(json.dumps(summary))
    rows = [
        {
            "step": step,
            "benchmark": "held_out",
            "question": str(at),
            "samples": 100,
            "right": round(100 * one),
            "greedy": True,
        }
        for step in (0, 9)
        for at, one in enumerate(shares)
    ]
    (run / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def put_six(folder):
    """Two methods with three seeds on the same four questions, with the differences of ``additive_study``."""
    for seed, a in enumerate((-0.02, 0, 0.02)):
        put(folder, f"grpo-{seed}", "grpo", seed, [0.5] * 4)
        put(folder, f"tspmo-{seed}", "tspmo", seed, [0.57 + a + b for b in (-0.1, -0.1, 0.1, 0.1)])


def planned(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["results", "--plan", *map(str, words)])
    main()
    return capsys.readouterr().out


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_plan_of_experiments_and_studies_is_printed_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    put_six(tmp_path / "runs" / "new")
    written(tmp_path / "studies" / "old", runs(grpo=[0.5] * 3, a=[0.5, 0.52, 0.54]), {"expect": {"above": 0}})
    before = contents(tmp_path)
    text = planned(monkeypatch, capsys, "--runs", tmp_path / "runs", "--studies", tmp_path / "studies")
    assert contents(tmp_path) == before
    of_runs, of_study = text.split("## old")
    assert of_runs.startswith("## new\n\n| method")
    assert "| tspmo | 3 | 4 | 2.0 [0.7, 12.5] | 11.5 | 0.0 |" in " ".join(of_runs.split())
    assert "| claim 0 |" in of_study
    # the claims of an experiment are those of the study of its name, as for the tables
    (tmp_path / "studies" / "new").mkdir()
    claims = {"claims": [{"claim": "mine", **CLAIM, "of": "tspmo", "expect": {"above": 0}}], "baseline": "grpo"}
    (tmp_path / "studies" / "new" / "claims.yaml").write_text(json.dumps(claims))
    words = ("--runs", tmp_path / "runs", "--experiment", "new", "--studies", tmp_path / "studies")
    assert "mine" in planned(monkeypatch, capsys, *words)


def test_study_without_finished_runs_is_planned_from_its_trials(tmp_path):
    folder, points = tmp_path / "tuned", {}
    for algorithm, shares in (("grpo", [0.5, 0.5, 0.5, 0.5]), ("tspmo", [0.47, 0.47, 0.67, 0.67])):
        for lr, curve_mean in ((0.1, 0.4), (0.2, 0.6)):
            name = f"{algorithm}-{lr}"
            # the trial with the worse curve would give other variances
            put(folder, name, algorithm, 100, shares if lr == 0.2 else [0.1, 0.9, 0.2, 0.4], lr, curve_mean)
            points[name] = [f"algorithm={algorithm}", f"train.lr={lr}", "seed=100"]
    (folder / "plan.json").write_text(json.dumps({"points": points, "trials": {name: ["train.lr"] for name in points}}))
    text = plan_text(study_of_runs(folder, folder))
    assert (
        "The plan is made from 2 finished trials, of each method at its best value of the tuned keys, on seed 100."
        in text
    )
    assert "The variance between seeds is not known" in text
    assert "11.5 †" in text
    # a second seed of each method is enough for the variances
    put(folder, "grpo-more", "grpo", 101, [0.5] * 4, 0.2, 0.6)
    put(folder, "tspmo-more", "tspmo", 101, [0.51, 0.51, 0.71, 0.71], 0.2, 0.6)
    points |= {name: ["algorithm=x", "train.lr=0.2", "seed=101"] for name in ("grpo-more", "tspmo-more")}
    (folder / "plan.json").write_text(json.dumps({"points": points, "trials": {name: ["train.lr"] for name in points}}))
    text = plan_text(study_of_runs(folder, folder))
    assert "on seeds 100, 101." in text
    assert "The test needs at least 3 seeds" in text
    # means 7 and 11 points: standard deviation √8; F with 1 and 3 degrees of freedom: √8/√17.4 and √8/√0.00116
    assert "| tspmo | 2 | 4 | 2.8 [0.7, 83.1] | 11.5 |" in " ".join(text.split())


def test_study_without_any_run_or_comparison_says_so(tmp_path):
    put(tmp_path / "one", "grpo-0", "grpo", 0, [0.5] * 4)
    assert "No other method has a seed in common with grpo" in plan_text(study_of_runs(tmp_path / "one", tmp_path))
    (tmp_path / "none").mkdir()
    assert "no finished run and no finished trial" in plan_text(study_of_runs(tmp_path / "none", tmp_path))
    study = written(tmp_path / "s", runs(grp=[0.5] * 3, a=[0.5] * 3))
    assert "No method is named grpo, the baseline of claims.yaml" in plan_text(study)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--plan", "--figures"), "--plan writes nothing and prints no other tables; leave out --out"),
        (("--plan", "--experiment", "new", "--out", "x"), "--plan writes nothing and prints no other tables"),
        (("--plan", "--experiment", "nope"), "--experiment nope: there is no folder runs/nope"),
        (("--plan", "--runs", "nowhere", "--studies", "empty"), "--studies empty: holds no study"),
        (("--plan", "--studies", "bad"), "claims.yaml: needs baseline: METHOD and claims: a list"),
    ],
)
def test_bad_input_of_a_plan_is_refused_with_one_message(words, said, tmp_path, monkeypatch, capsys):
    put_six(tmp_path / "runs" / "new")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad" / "new").mkdir(parents=True)
    (tmp_path / "bad" / "new" / "claims.yaml").write_text("claims: 3")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["results", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert said in f"{ended.value} {capsys.readouterr().err}"
    assert not (tmp_path / "x").exists()


@pytest.fixture
def sweep(tmp_path):
    """Return a function from seeds to the points of a sweep over the two algorithms of ``put_six``, all finished."""
    methods = [point(f"algorithm={one}", "experiment.name=new", runs=tmp_path) for one in ("grpo", "tspmo")]

    def points(seeds, is_trial=False):
        found = [
            replace(
                one,
                config=replace(one.config, seed=seed),
                identity=replace(one.identity, id=f"{one.identity.id}-{seed}"),
                is_trial=is_trial,
            )
            for seed in seeds
            for one in methods
        ]
        for one in found:
            one.folder.mkdir(parents=True, exist_ok=True)
            (one.folder / "summary.json").write_text('{"status": "finished"}')  # nothing is left to do
        return found

    return points


def test_dry_run_tells_the_smallest_difference_that_the_seeds_of_the_sweep_will_tell(sweep, tmp_path):
    assert "tell" not in describe(sweep([0, 1, 2]))
    put_six(tmp_path / "new")
    # 4/6 + 133.3/4 = 34, of 34² / ((4/6)²/5 + 33.3²/3) degrees of freedom; the variances are those of additive_study
    told = 34**0.5 * ratio_told(34**2 / ((4 / 6) ** 2 / 5 + (100 / 3) ** 2 / 3))
    text = f"6 seeds x 4 questions detect a difference to grpo of about {told:.3g} points (80 % power), from 6 finished runs"
    assert describe(sweep(range(6))).splitlines()[-1] == text
    # seeds of trials are not compared; the finished seeds count with those of the sweep
    trials = sweep([100, 101], is_trial=True)
    assert describe([*sweep([3, 4, 5]), *trials]).splitlines()[-1] == text
    assert "tell" not in describe(trials)


def test_dry_run_has_the_baseline_of_the_claims_and_the_looks_of_the_rounds(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put_six(tmp_path / "new")
    claims = tmp_path / "experiments" / "new" / "claims.yaml"
    claims.parent.mkdir(parents=True)
    claims.write_text("baseline: tspmo\nclaims: []\n")
    points = sweep(range(6))
    assert "detect a difference to tspmo of about" in describe(points)
    # looks at 4, 6 and 8 of 8 seeds: a third of the level; the two-way error² is 4/8 + 133.3/4, with those degrees
    found = 4 / 8 + 400 / 3 / 4
    told = found**0.5 * ratio_told(found**2 / (0.5**2 / 7 + (100 / 3) ** 2 / 3), 0.05 / 3)
    until = replace(points[0].config.sweep, until="decided", max_seeds=8, first_seeds=4, round_seeds=2)
    points = [replace(one, config=replace(one.config, sweep=until)) for one in points]
    expected = f"8 seeds x 4 questions detect a difference to tspmo of about {told:.3g} points (80 % power, 3 looks)"
    assert expected in describe(points)


def test_damaged_runs_do_not_stop_a_dry_run(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put_six(tmp_path / "new")
    points = sweep(range(6))
    (tmp_path / "new" / "grpo-0" / "answers.jsonl").write_bytes(b"\xff\x00{")
    assert "6 seeds detect a difference" in describe(points)  # the answers of one method are not complete
    (tmp_path / "new" / "grpo-1" / "summary.json").write_text('{"status": "finis')
    assert "from 4 finished runs" in describe(points)  # seeds 0 and 2 of both methods
    (tmp_path / "new" / "plan.json").write_text('{"points": 3, "trials": [')
    assert "from 4 finished runs" in describe(points)
    (tmp_path / "experiments" / "new").mkdir(parents=True)
    (tmp_path / "experiments" / "new" / "claims.yaml").write_text("claims: 3")
    assert describe(points).splitlines()[-1] == "12 points: 12 finished; 0 to do"

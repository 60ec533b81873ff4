"""Published claims against small tables of runs whose verdicts are plain, and the claims that are committed."""

import math
from dataclasses import replace

import pandas as pd
import pytest
from scipy import stats

from rlsparse.results.answers import Answers
from rlsparse.results.claims import claims_table, format_effect, judge_all
from rlsparse.results.claims_file import Claim, ClaimError, read_claims
from rlsparse.results.effects import effects, interactions
from rlsparse.results.measures import BY_COLUMN
from rlsparse.results.sample import Samples
from rlsparse.results.study import read_study
from rlsparse.results.table import latex, markdown
from tests.conftest import ROOT


def runs(**methods):
    """Method → final accuracies by seed; base 0.2."""
    rows = [
        {
            "method": method.replace("__", " "),
            "seed": seed,
            "status": "finished",
            "final_sampled": final,
            "base_sampled": 0.2,
            "frac_updated": 0.4,
            "tokens_per_second": 100 * (seed + 1) * (2 if method == "fast" else 1),
            "collapsed": final < 0.1,
            "task": "toy",
            "model": "tiny",
            "steps": 4,
            "lr": 0.001,
        }
        for method, finals in methods.items()
        for seed, final in enumerate(finals)
    ]
    return pd.DataFrame(rows)


def claim(name, **more):
    return Claim(**{"claim": "c", "published": "p", "source": "s", "of": [name], "measure": "final_sampled"} | more)


def judge(one, table, answers=None):
    """The outcome of a claim that is the only one of its study."""
    return judge_all([one], Samples(table, answers) if answers else Samples(table))[0]


SIX = [0.5, 0.52, 0.54, 0.5, 0.51, 0.53]


@pytest.mark.parametrize(
    ("shift", "expect", "verdict"),
    [
        (0.1, {"above": 0.0}, "supported"),
        (-0.1, {"above": 0.0}, "contradicted"),
        (0.0, {"above": 0.0}, "inconclusive"),
        (0.0, {"above": -0.02}, "supported"),  # on par: no more than 2 points below
        (-0.03, {"above": -0.02}, "contradicted"),
        (-0.1, {"below": 0.0}, "supported"),
        (0.05, {"above": 0.0, "below": 0.1}, "supported"),
        (0.2, {"above": 0.0, "below": 0.1}, "contradicted"),
    ],
)
def test_difference_of_two_methods_gets_its_verdict(shift, expect, verdict):
    table = runs(a=[one + shift for one in SIX], b=SIX)
    outcome = judge(claim("a", versus=["b"], expect=expect), table)
    assert outcome.verdict == verdict
    assert outcome.value.mean == pytest.approx(shift)
    assert outcome.value.n == 6


def test_claim_with_two_seeds_is_inconclusive_however_large():
    table = runs(a=[0.9, 0.91], b=[0.1, 0.12])
    assert judge(claim("a", versus=["b"], expect={"above": 0.0}), table).verdict == "inconclusive"


def test_verdicts_rest_on_corrected_p_and_primary_claims_come_first():
    # differences 0.01 to 0.05 and 0: t test of their mean against 0
    values = [0.01, 0.02, 0.03, 0.04, 0.05, 0.0]
    table = runs(a=[one + 0.5 for one in values], b=[0.5] * 6, c=[0.5, 0.5, 0.501, 0.499, 0.5, 0.5])
    p = stats.ttest_1samp(values, 0).pvalue  # 0.0225
    effect, none = (claim(name, versus=["b"], expect={"above": 0.0}) for name in ("a", "c"))
    (alone,) = judge_all([effect], Samples(table))
    assert (alone.p, alone.corrected, alone.verdict) == (pytest.approx(p), pytest.approx(p), "supported")
    # with two more claims, Holm multiplies the smallest by 3: 0.067
    first, *_ = judge_all([effect, none, none], Samples(table))
    assert (first.p, first.corrected, first.verdict) == (pytest.approx(p), pytest.approx(3 * p), "inconclusive")
    first, *_ = judge_all([replace(effect, primary=True), none, none], Samples(table))
    assert (first.corrected, first.verdict) == (pytest.approx(p), "supported")
    # a primary claim that is not decided leaves none of the others
    undecided, after = judge_all([replace(none, primary=True), effect], Samples(table))
    assert (undecided.verdict, after.verdict) == ("inconclusive", "inconclusive")
    assert after.corrected == undecided.corrected
    # the second is decided but for the first: more of its seeds would change nothing
    assert (undecided.needs_data, after.needs_data, after.is_open) == (True, False, True)


def test_primary_claim_that_cannot_be_tested_is_named_and_asks_for_no_seeds():
    table = runs(a=[one + 0.01 for one in SIX], b=SIX)
    missing = claim("typo", claim="first", versus=["b"], expect={"above": 0.0}, primary=True)
    other = claim("a", versus=["b"], expect={"above": 0.5})
    outcomes = judge_all([missing, other], Samples(table))
    assert [one.verdict for one in outcomes] == ["not run", "inconclusive"]
    assert not outcomes[1].needs_data
    assert any(
        "A primary claim is not tested" in note and note.endswith("first.") for note in claims_table(outcomes).notes
    )


def test_equivalence_is_supported_by_two_one_sided_tests():
    differences = [0.01, -0.012, 0.004, -0.006, 0.011, -0.003]
    table = runs(a=[one + 0.5 for one in differences], b=[0.5] * 6)
    within = claim("a", versus=["b"], expect={"above": -0.02, "below": 0.02})
    outcome = judge(within, table)
    sides = [
        stats.ttest_1samp(differences, -0.02, alternative="greater").pvalue,
        stats.ttest_1samp(differences, 0.02, alternative="less").pvalue,
    ]
    assert (outcome.p, outcome.verdict) == (pytest.approx(2 * max(sides)), "supported")
    # too narrow a margin for these seeds: not known
    assert judge(replace(within, expect={"above": -0.005, "below": 0.005}), table).verdict == "inconclusive"


def test_tuned_setting_has_no_p_since_its_seeds_are_no_repetitions():
    outcome = judge(claim("a", measure="lr", expect={"above": 0.0}), runs(a=SIX))
    assert math.isnan(outcome.p)
    assert (outcome.value.mean, outcome.verdict) == (0.001, "inconclusive")


def test_claim_without_a_common_seed_says_so():
    table = pd.concat([runs(a=SIX[:3]), runs(b=SIX[:3]).assign(seed=[7, 8, 9])])
    outcome = judge(claim("a", versus=["b"], expect={"above": 0.0}), table)
    assert (outcome.verdict, outcome.reason) == (
        "not run",
        "no seed has a value of final_sampled for all of its methods",
    )


def test_claim_is_judged_on_questions_where_answers_are_known():
    """Two questions of four are better at all seeds, two are not: new questions could be of either kind."""
    table = runs(a=[0.75] * 6, b=[0.5] * 6)
    table["id"] = [f"run{number}" for number in range(12)]
    answer = {"when": "final", "questions": "q", "samples": 4}
    right = ["4 4 2 2"] * 6 + ["2 2 2 2"] * 6
    rows = [{"id": f"run{n}", **answer, "right": one, "greedy": "1 1 1 1"} for n, one in enumerate(right)]
    answers = Answers(pd.DataFrame(rows), pd.DataFrame({"questions": ["q"] * 4, "question": list("abcd")}))
    one = claim("a", versus=["b"], expect={"above": 0.0})
    seeds, both = judge(one, table), judge(one, table, answers)
    assert (seeds.verdict, seeds.value.questions) == ("supported", 0)
    # scores 0.5 0.5 0 0 at each seed: mean squares of questions 6 · 4 · 0.0625 / 3 = 0.5, all others 0;
    # error² = 0.5 / (6 · 4), 3 degrees of freedom: t = 0.25 / 0.1443 = 1.73
    assert both.value.questions == 4
    assert both.p == pytest.approx(2 * stats.t.sf(0.25 / (0.5 / 24) ** 0.5, 3))
    assert both.verdict == "inconclusive"
    assert format_effect(both).endswith("points, 6 seeds × 4 questions")


def test_claim_about_a_method_without_runs_is_not_run():
    for one in (claim("nope", expect={"above": 0.0}), claim("a", versus=["nope"], expect={"above": 0.0})):
        assert judge(one, runs(a=SIX)).verdict == "not run"
    assert judge(claim("a", measure="rank_shift", expect={"above": 0.0}), runs(a=SIX)).verdict == "not run"
    # one name of two that no method has: the other alone would be another claim
    both = judge(claim("a", of=["a", "aa"], expect={"above": 0.0}), runs(a=SIX))
    assert (both.verdict, both.reason) == ("not run", "no method is named aa")
    assert claims_table([both]).cells["ours"].tolist() == ["no method is named aa"]


def test_claim_with_minus_ratio_or_pattern_is_judged_by_hand_computed_values():
    table = runs(a__x=SIX, a__y=[one + 0.02 for one in SIX], fast=SIX)
    # mean of x and y is SIX + 0.01; SIX has mean 0.31 / 6 + ... = 0.51667, less the base's 0.2
    gained = judge(claim("a *", minus="base_sampled", expect={"above": 0.0}), table)
    assert gained.value.mean == pytest.approx(sum(SIX) / 6 + 0.01 - 0.2)
    assert gained.verdict == "supported"
    # the base is 0.2 on both sides: (SIX + 0.02 - 0.2) - (SIX - 0.2)
    more = judge(claim("a y", versus=["fast"], minus="base_sampled", expect={"above": 0.0}), table)
    assert more.value.mean == pytest.approx(0.02)
    faster = judge(claim("fast", versus=["a x"], measure="tokens_per_second", ratio=True, expect={"above": 0}), table)
    assert (faster.value.mean, faster.value.low) == (1.0, 1.0)  # twice as fast at every seed
    assert "+100.0 [100.0, 100.0] %" in markdown(claims_table([faster]))


def test_patterns_on_both_sides_compare_methods_that_share_the_rest():
    # r=2 has no partner: a x r=1 less b r=1, 0.6 - 0.5
    table = runs(a__r1=[0.6] * 6, a__r2=[0.9] * 6, b__r1=[0.5] * 6)
    outcome = judge(claim("a *", versus=["b *"], expect={"above": 0.0}), table)
    assert (outcome.value.mean, outcome.methods) == (pytest.approx(0.1), 1)
    assert judge(claim("a r2*", versus=["b *"], expect={"above": 0.0}), table).verdict == "not run"
    # without * on one side all count: (0.6 + 0.9) / 2 - 0.5
    every = judge(claim("a *", versus=["b r1"], expect={"above": 0.0}), table)
    assert every.value.mean == pytest.approx(0.25)
    assert format_effect(every) == "+25.0 [25.0, 25.0] points, mean of 2 methods (10.0 to 40.0), 6 seeds"


def test_diverged_runs_are_named_in_the_effect():
    table = runs(a=SIX, b=SIX)
    table.loc[[0, 1], ["status", "final_sampled"]] = ["diverged", None]
    outcome = judge(claim("a", versus=["b"], expect={"above": 0.0}), table)
    assert format_effect(outcome).endswith("points, 4 seeds, 2 runs diverged")


def test_rate_of_collapse_counts_diverged_runs():
    table = runs(a=[0.05] * 6)
    table.loc[0, ["status", "final_sampled"]] = ["diverged", None]
    table["collapsed"] = True
    outcome = judge(claim("a", measure="collapsed", expect={"above": 0.5}), table)
    assert (outcome.value.mean, outcome.verdict) == (1.0, "supported")
    one_survives = table.assign(collapsed=[True] * 5 + [False])  # 5 of 6: p = 14 / 64 of the permutation test
    assert judge(claim("a", measure="collapsed", expect={"above": 0.5}), one_survives).verdict == "inconclusive"


def test_claims_table_shows_claim_effect_setting_and_verdict():
    outcome = judge(claim("a", versus=["b"], expect={"above": -0.02}), runs(a=[0.6] * 6, b=[0.5] * 6))
    (row,) = claims_table([outcome]).cells.to_dict("records")
    assert (
        row["ours"]
        == "+10.0 [10.0, 10.0] points, 6 seeds; claimed above −2.0 points; p 0.031, corrected 0.031; p, seeds 0.031"
    )
    assert row["setting"] == "toy, tiny, 4 steps, lr 0.001"
    assert row["verdict"] == "supported"
    assert "p{0." in latex(claims_table([judge(claim("a", claim="long " * 20, expect={"above": 0}), runs(a=SIX))]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("claims: 3", "needs baseline: METHOD and claims: a list"),
        ("claims: [{claim: a, published: b, source: c, of: d, measure: final_sampled}]", "claim 1: expect: is missing"),
        (
            "claims: [{claim: a, published: b, source: c, of: d, measure: final_sampled, expect: {over: 1}}]",
            "give above: NUMBER, below: NUMBER, or both",
        ),
        (
            "claims: [{claim: a, published: b, source: c, of: d, measure: final_sampled, expect: {above: much}}]",
            "expect.above=much: must be a number",
        ),
        (
            "claims: [{claim: a, published: b, source: c, of: d, measure: final_sampled, expect: {above: 1}, agianst: f}]",
            "agianst: no such key",
        ),
        (
            "claims: [{claim: a, published: b, source: c, of: d, measure: final_sampled, expect: {above: 1}, ratio: true}]",
            "ratio: needs versus",
        ),
        (
            "claims: [{claim: a, published: b, source: c, of: d, measure: status, expect: {above: 1}}]",
            "measure=status: no such measure; here there are seed, ",
        ),
        (
            "claims: [{claim: a, published: b, source: c, of: d, measure: lr, minus: base, expect: {above: 1}}]",
            "minus=base: no such measure; here there are",
        ),
        (
            "claims: [{claim: a, published: b, source: c, of: d, measure: lr, expect: {above: 0.6, below: 0.4}}]",
            "no value satisfies both; above must be smaller than below",
        ),
        (
            "claims: [{claim: a, published: b, source: c, of: 3, measure: lr, expect: {above: 0.6}}]",
            "of=3: give the name of a method or a list of names",
        ),
        (
            "claims: [{claim: a, published: b, source: c, of: d, measure: lr, expect: {above: 1}, primary: yes please}]",
            "primary=yes please: give true or false",
        ),
        ("margin: much\nclaims: []", "margin=much: give a number above 0"),
        ("claims: [", "is not valid YAML"),
    ],
)
def test_bad_claims_file_is_refused_with_one_message(tmp_path, text, said):
    file = tmp_path / "claims.yaml"
    file.write_text(text)
    with pytest.raises(ClaimError, match=r"claims\.yaml") as error:
        read_claims(file)
    assert said in str(error.value)


STUDIES = sorted(file.parent for file in ROOT.glob("experiments/*/claims.yaml"))


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_committed_claims_name_methods_of_their_study(folder):
    claims = read_claims(folder / "claims.yaml")
    assert claims.claims
    for one in claims.claims:
        assert one.measure in BY_COLUMN
    if not (folder / "results.csv").is_file():
        pytest.skip(f"{folder.name}: its runs are not committed yet")
    study = read_study(folder)
    assert study.baseline == claims.baseline is not None
    assert {one.verdict for one in study.outcomes} & {"supported", "contradicted", "inconclusive"}


def test_main_effects_equal_hand_computed_values():
    # effect of b over a's values: (0.6 - 0.5 + 0.9 - 0.7) / 2 = 0.15; of a over b's: (0.7 - 0.5 + 0.9 - 0.6) / 2 = 0.25
    cells = {"m a=0 b=0": 0.5, "m a=0 b=1": 0.6, "m a=1 b=0": 0.7, "m a=1 b=1": 0.9}
    table = pd.concat([runs(**{name.replace(" ", "__"): [value] * 6}) for name, value in cells.items()])
    found = {(one.component, one.value): one for one in effects(Samples(table), "m a=0 b=0")}
    assert set(found) == {("a", "1"), ("b", "1")}
    assert found["b", "1"].test.estimate.mean == pytest.approx(15)
    assert found["a", "1"].test.estimate.mean == pytest.approx(25)
    assert found["a", "1"].pairs == 2
    # without m a=0 b=1 there is one pair for a, and one for b
    rest = table[table["method"] != "m a=0 b=1"]
    found = {one.component: one for one in effects(Samples(rest), "m a=0 b=0")}
    assert (found["a"].pairs, found["a"].test.estimate.mean) == (1, pytest.approx(20))
    assert (found["b"].pairs, found["b"].test.estimate.mean) == (1, pytest.approx(20))


def test_interaction_is_what_two_values_change_together_beyond_their_effects():
    # y(1, 1) − y(1, 0) − y(0, 1) + y(0, 0) = 0.9 − 0.7 − 0.6 + 0.5 at c=0, and 0.8 − 0.5 − 0.6 + 0.4 at c=1
    cells = {"a=0 b=0 c=0": 0.5, "a=0 b=1 c=0": 0.6, "a=1 b=0 c=0": 0.7, "a=1 b=1 c=0": 0.9}
    cells |= {"a=0 b=0 c=1": 0.4, "a=0 b=1 c=1": 0.6, "a=1 b=0 c=1": 0.5, "a=1 b=1 c=1": 0.8}
    table = pd.concat([runs(**{f"m {name}".replace(" ", "__"): [value] * 6}) for name, value in cells.items()])
    found = {one.component: one for one in interactions(Samples(table), "m a=0 b=0 c=0")}
    assert set(found) == {"a × b", "a × c", "b × c"}
    assert (found["a × b"].value, found["a × b"].reference, found["a × b"].pairs) == ("1, 1", "0, 0", 2)
    assert found["a × b"].test.estimate.mean == pytest.approx(100 * (0.1 + 0.1) / 2)
    # over b: at b=0 0.5 − 0.7 − 0.4 + 0.5 = −0.1, at b=1 0.8 − 0.9 − 0.6 + 0.6 = −0.1
    assert found["a × c"].test.estimate.mean == pytest.approx(-10)
    # without one of the four methods at c=1, the mean is over c=0 alone
    rest = table[table["method"] != "m a=1 b=1 c=1"]
    found = {one.component: one for one in interactions(Samples(rest), "m a=0 b=0 c=0")}
    assert found["a × b"].pairs == 1

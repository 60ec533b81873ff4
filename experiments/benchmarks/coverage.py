"""Check the statistics of the tables by simulation: coverage of the intervals and rates of false findings.

python experiments/benchmarks/coverage.py    # writes coverage.json and prints the tables of docs/results.md

Differences of two methods are drawn from the crossed model d = a_s + b_q + e_sq with true mean 0: normal effects, and
answers that are right or wrong; and tables with many methods. A sweep with ``sweep.until=decided`` is simulated with
all its looks and claims.
"""

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from tabulate import tabulate

from rlsparse.results.correction import at_looks, holm
from rlsparse.results.crossed import analyse
from rlsparse.results.study import read_study
from rlsparse.sweep.rounds import look_at, schedule

SEEDS, QUESTIONS = (3, 4, 6, 8, 16), (60, 240, 1000)
# standard deviations of seeds and questions, as shares of one answer; that of the rest is 0.4
SPREADS = ((0.0, 0.0), (0.02, 0.0), (0.0, 0.1), (0.02, 0.1), (0.05, 0.1), (0.02, 0.3))
REST = 0.4
BOOTSTRAPPED, RESAMPLES = 240, 500  # questions of the settings that are bootstrapped too
METHODS = 12  # that are compared with a baseline in one table
LOOKS, LOOK_QUESTIONS = (4, 6, 8), (120, 1000)  # seeds at each look
CLAIMS = 5
STUDIES = Path(__file__).parent.parent


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--repetitions", type=int, default=1000)
    options = arguments.parse_args()
    report = {
        "normal": normal_effects(options.repetitions),
        "answers": right_or_wrong(options.repetitions),
        "comparisons": many_comparisons(options.repetitions),
        "looks": sequential(options.repetitions),
        "replayed": [one for one in map(replayed, sorted(STUDIES.glob("*"))) if one is not None],
    }
    Path(__file__).with_name("coverage.json").write_text(json.dumps(report, indent=1) + "\n")
    print(coverage_table(report["normal"]), answers_table(report["answers"]), sep="\n\n")
    print("\n" + comparisons_table(report["comparisons"]), looks_table(report["looks"]), sep="\n\n")
    print("\n" + replayed_table(report["replayed"]))


def normal_effects(repetitions: int) -> list[dict[str, Any]]:
    """Return for each setting the share of intervals that cover the true mean."""
    rows = []
    for S in SEEDS:
        for Q in QUESTIONS:
            for of_seeds, of_questions in SPREADS:
                random, covered, covered_t, covered_b = np.random.default_rng([S, Q]), 0, 0, 0
                for _ in range(repetitions):
                    scores = of_seeds * random.normal(size=(S, 1)) + of_questions * random.normal(size=Q)
                    scores = scores + REST * random.normal(size=(S, Q))  # (S, Q)
                    found = analyse(scores)
                    low, high = found.over_both().interval()
                    covered += low <= 0 <= high
                    low, high = found.over_seeds().interval()
                    covered_t += low <= 0 <= high
                    if Q == BOOTSTRAPPED:
                        low, high = bootstrap(scores, random)
                        covered_b += low <= 0 <= high
                setting = {"seeds": S, "questions": Q, "of_seeds": of_seeds, "of_questions": of_questions}
                shares = {"covered": covered, "covered_by_seeds": covered_t}
                if Q == BOOTSTRAPPED:
                    shares["covered_by_bootstrap"] = covered_b
                rows.append({**setting, **{name: count / repetitions for name, count in shares.items()}})
    return rows


def bootstrap(scores: np.ndarray[Any, Any], random: np.random.Generator) -> tuple[float, float]:
    """Return the 95 % percentile interval of a bootstrap that draws seeds and questions (Owen 2007).

    Args:
        scores: shape (S, Q).
    """
    S, Q = scores.shape
    of_seeds = random.multinomial(S, np.full(S, 1 / S), size=RESAMPLES)  # (R, S) how often each seed is drawn
    of_questions = random.multinomial(Q, np.full(Q, 1 / Q), size=RESAMPLES)  # (R, Q)
    means = ((of_seeds @ scores) * of_questions).sum(axis=1) / (S * Q)  # (R,)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def right_or_wrong(repetitions: int) -> list[dict[str, Any]]:
    """Return how often two methods that are alike are called different, with two answers to each question.

    The chance of a right answer is Φ(difficulty + effects); the methods share the difficulty of a question, and have
    effects of their own for each seed and each question.
    """
    rows = []
    for S in (3, 6, 16):
        for Q in QUESTIONS:
            for tau, kappa in ((0.0, 0.0), (0.1, 0.0), (0.1, 0.3)):
                random, false = np.random.default_rng([S, Q, 1]), {"p": 0, "p_seeds": 0}
                for _ in range(repetitions):
                    difficulty = random.normal(size=Q)
                    rates = [
                        stats.norm.cdf(difficulty + tau * random.normal(size=(S, 1)) + kappa * random.normal(size=Q))
                        for _ in range(2)
                    ]
                    scores = [random.binomial(2, rate) / 2 for rate in rates]
                    found = analyse(scores[0] - scores[1])
                    for name, spread in (("p", found.over_both()), ("p_seeds", found.over_seeds())):
                        if spread.error > 0:
                            false[name] += 2 * min(spread.p_above(0), spread.p_below(0)) <= 0.05
                setting = {"seeds": S, "questions": Q, "of_seeds": tau, "of_questions": kappa}
                rows.append({**setting, **{name: count / repetitions for name, count in false.items()}})
    return rows


def many_comparisons(repetitions: int) -> list[dict[str, Any]]:
    """Return how often a table of methods that are all alike finds any of them different from the baseline.

    The verdict rests on Holm's correction of p over seeds and questions; beside it, that of the two-way analysis alone.
    """
    rows = []
    for S in (3, 4, 6, 8):
        for Q in (120, 1000):
            for of_seeds, of_questions in SPREADS:
                random, false = np.random.default_rng([S, Q, 2]), {"p": 0, "p_two_way": 0}
                scale = 2**-0.5  # the spreads are those of a difference of two methods
                for _ in range(repetitions):
                    runs = REST * scale * random.standard_normal((METHODS + 1, S, Q), dtype=np.float32)
                    runs += of_seeds * scale * random.normal(size=(METHODS + 1, S, 1))
                    runs += of_questions * scale * random.normal(size=(METHODS + 1, 1, Q))
                    found = [analyse(one - runs[0]) for one in runs[1:]]
                    for name, spreads in (
                        ("p", [one.over_both() for one in found]),
                        ("p_two_way", [one.two_way() for one in found]),
                    ):
                        false[name] += min(holm([2 * min(one.p_above(0), one.p_below(0)) for one in spreads])) <= 0.05
                setting = {"seeds": S, "questions": Q, "of_seeds": of_seeds, "of_questions": of_questions}
                rows.append({**setting, **{name: count / repetitions for name, count in false.items()}})
    return rows


def comparisons_table(rows: list[dict[str, Any]]) -> str:
    """Return the rates of tables with a false finding by seeds and questions, as Markdown."""
    cells = []
    for S in sorted({one["seeds"] for one in rows}):
        row = [str(S)]
        for Q in (120, 1000):
            for name in ("p", "p_two_way"):
                those = [100 * one[name] for one in rows if one["seeds"] == S and one["questions"] == Q]
                row.append(f"{min(those):.1f} to {max(those):.1f}")
        cells.append(row)
    heads = ["seeds", "120 questions", "two-way test alone", "1000 questions", "two-way test alone"]
    return tabulate(cells, headers=heads, tablefmt="github", disable_numparse=True, colalign=["right"] * len(heads))


def sequential(repetitions: int) -> list[dict[str, Any]]:
    """Return how often a sweep that stops when its claims are decided finds something, and the seeds that it takes.

    The claims are differences of ``CLAIMS`` methods to a baseline that they share. All are 0, or the first two are not.
    """
    rows = []
    cases = (("all 0", [0.0] * CLAIMS), ("two of 10 points", [0.1, 0.1, 0.0, 0.0, 0.0]))
    for Q, (name, effects) in itertools.product(LOOK_QUESTIONS, cases):
        random = np.random.default_rng(7)
        false, true, seeds = 0, 0, 0
        for _ in range(repetitions):
            questions = 0.1 * random.normal(size=(CLAIMS, Q)) - 0.1 * random.normal(size=Q)  # (C, Q)
            shape = (CLAIMS, max(LOOKS), Q)
            runs = 0.02 * random.normal(size=(*shape[:2], 1)) + REST / 2**0.5 * random.normal(size=shape)
            baseline = 0.02 * random.normal(size=(shape[1], 1)) + REST / 2**0.5 * random.normal(size=shape[1:])
            scores = np.array(effects)[:, None, None] + questions[:, None] + runs - baseline  # (C, S, Q)
            found, taken = decided(scores)
            false += any(found[claim] for claim in range(CLAIMS) if effects[claim] == 0)
            true += sum(found[claim] for claim in range(CLAIMS) if effects[claim] != 0)
            seeds += taken
        real = sum(effect != 0 for effect in effects)
        rows.append(
            {
                "questions": Q,
                "effects": name,
                "false": false / repetitions,
                "found": true / repetitions / real if real else None,
                "runs": seeds / repetitions,
                "fixed_runs": (CLAIMS + 1) * max(LOOKS),
            }
        )
    return rows


def decided(scores: np.ndarray[Any, Any]) -> tuple[list[bool], int]:
    """Return whether each claim is decided at any look, and the runs that were needed.

    Args:
        scores: differences to the baseline, shape (C, S, Q) for the seeds of the last look.
    """
    taken, found = [LOOKS[0]] * len(scores), [False] * len(scores)
    baseline = LOOKS[0]
    for look, S in enumerate(LOOKS):
        p = []
        for claim, one in enumerate(scores):
            if not found[claim] and look:
                taken[claim], baseline = S, S
            spread = analyse(one[: taken[claim]]).over_both()
            p.append(2 * min(spread.p_above(0), spread.p_below(0)))
        found = [one or corrected <= 0.05 for one, corrected in zip(found, at_looks(holm(p), len(LOOKS)), strict=True)]
        if all(found):
            break
    return found, sum(taken) + baseline


def replayed(folder: Path) -> dict[str, Any] | None:
    """Return what ``sweep.until=decided`` would have saved in a committed study.

    Returns:
        None where the study has too few seeds or no claims.
    """
    if not (folder / "results.csv").is_file():
        return None
    study = read_study(folder)
    seeds = [str(seed) for seed in sorted(study.runs["seed"].unique())]
    if len(seeds) <= LOOKS[0] or not study.outcomes:
        return None
    plan = schedule(seeds, LOOKS[0], 2)
    runs, fixed = study.runs, [one.verdict for one in study.outcomes]
    taken = runs[runs["seed"].astype(str).isin(plan.rounds[0])]
    for number in range(plan.looks):
        look = look_at(replace(study, runs=taken), plan.until(number), plan.looks)
        if not look.open or number + 1 == plan.looks:
            break
        more = runs["seed"].astype(str).isin(plan.rounds[number + 1]) & runs["method"].isin(list(look.open))
        taken = pd.concat([taken, runs[more]])
    counts = [sum(one in ("supported", "contradicted") for one in each) for each in (look.verdicts.values(), fixed)]
    return {"study": folder.name, "runs": len(taken), "fixed_runs": len(runs), "decided": counts, "claims": len(fixed)}


def replayed_table(rows: list[dict[str, Any]]) -> str:
    """Return what rounds would have saved in the committed studies, as Markdown."""
    cells = [
        [one["study"], f"{one['runs']} of {one['fixed_runs']}", *map(str, one["decided"]), str(one["claims"])]
        for one in sorted(rows, key=lambda one: one["study"])
    ]
    heads = ["study", "runs", "claims decided in rounds", "with all seeds", "claims"]
    return tabulate(cells, headers=heads, tablefmt="github", disable_numparse=True, colalign=["left"] + ["right"] * 4)


def coverage_table(rows: list[dict[str, Any]]) -> str:
    """Return the lowest and the highest coverage by seeds and questions, as Markdown."""
    cells = []
    for S in SEEDS:
        row, of_seeds = [str(S)], [one for one in rows if one["seeds"] == S]
        for Q in QUESTIONS:
            those = [100 * one["covered"] for one in of_seeds if one["questions"] == Q]
            row.append(f"{min(those):.1f} to {max(those):.1f}")
        drawn = [100 * one["covered_by_bootstrap"] for one in of_seeds if "covered_by_bootstrap" in one]
        narrow = [100 * one["covered_by_seeds"] for one in of_seeds if one["of_questions"] == 0.3]
        cells.append([*row, *(f"{min(one):.1f} to {max(one):.1f}" for one in (drawn, narrow))])
    heads = ["seeds", *(f"{Q} questions" for Q in QUESTIONS)]
    heads += [f"bootstrap, {BOOTSTRAPPED} questions", "seeds alone, questions differ much"]
    return tabulate(cells, headers=heads, tablefmt="github", disable_numparse=True, colalign=["right"] * len(heads))


def answers_table(rows: list[dict[str, Any]]) -> str:
    """Return the rates of false findings by seeds and the spread of questions, as Markdown."""
    cells = []
    for S in (3, 6, 16):
        row = [str(S)]
        for kappa in (0.0, 0.3):
            for name in ("p", "p_seeds"):
                those = [100 * one[name] for one in rows if one["seeds"] == S and one["of_questions"] == kappa]
                row.append(f"{min(those):.1f} to {max(those):.1f}")
        cells.append(row)
    heads = ["seeds", "p, no question effects", "t test of seeds", "p, question effects", "t test of seeds"]
    return tabulate(cells, headers=heads, tablefmt="github", disable_numparse=True, colalign=["right"] * len(heads))


def looks_table(rows: list[dict[str, Any]]) -> str:
    """Return the results of the simulated sweeps, as Markdown."""
    cells = [
        [
            str(one["questions"]),
            one["effects"],
            f"{100 * one['false']:.1f} %",
            "–" if one["found"] is None else f"{100 * one['found']:.0f} %",
            f"{one['runs']:.0f} of {one['fixed_runs']}",
        ]
        for one in rows
    ]
    heads = ["questions", "true differences", "any false finding", "true ones found", "runs"]
    align = ["right", "left"] + ["right"] * 3
    return tabulate(cells, headers=heads, tablefmt="github", disable_numparse=True, colalign=align)


if __name__ == "__main__":
    main()

"""How many seeds and questions a study needs: the plan that ``python -m rlsparse.results --plan`` prints.

The variances between seeds and between questions are estimated from the runs that are there. ``results.power`` computes
from them what more seeds or more questions would tell.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from rlsparse.results.answers import collect_answers
from rlsparse.results.claims import (
    ClaimOutcome,
    claim_value,
    counterparts,
    matching_methods,
    unit_of,
)
from rlsparse.results.claims_file import FILE as CLAIMS
from rlsparse.results.claims_file import Claim, read_claims
from rlsparse.results.collect import collect
from rlsparse.results.correction import at_looks, holm
from rlsparse.results.crossed import analyse
from rlsparse.results.formatting import signed
from rlsparse.results.measures import Measure, finished, main_measure
from rlsparse.results.names import sorted_methods
from rlsparse.results.power import MOST_QUESTIONS, MOST_SEEDS, POWER, Variances, fewest
from rlsparse.results.rounds import read_rounds
from rlsparse.results.sample import Sample, Samples
from rlsparse.results.statistics import FEWEST, LEVEL
from rlsparse.results.study import Study
from rlsparse.results.table import Table, markdown

GRID_SEEDS = (3, 6, 10, 16)
GRID_QUESTIONS = (1, 2, 4)  # times the present questions
NAN = float("nan")
NONE, UNKNOWN, WAITS = "none would", "–", "a primary claim first"
ROUNDING = 1e-12  # a smaller distance or standard deviation is one of rounding errors, of values up to 1
ONE_SEED = " †"  # marks a standard deviation of the scores of one seed
RUN_HOURS, MORE_SEEDS, MORE_QUESTIONS, HOURS = "hours of a run", "more seeds", "more questions", "hours of more seeds"


@dataclass(frozen=True)
class Typical:
    """The differences of the methods of a study from its baseline, averaged over the methods.

    Attributes:
        baseline: the method that the others are compared with.
        variances: the means of the variance components, in the unit ``unit``.
        unit: points, or the unit of the main measure.
        questions: the number of questions; 0 where their scores are not known.
        seeds: those that a method has in common with the baseline.
        runs: the number of finished runs with these seeds.
        comparisons: the number of methods besides the baseline.
    """

    baseline: str
    variances: Variances
    unit: str
    questions: int
    seeds: frozenset[int]
    runs: int
    comparisons: int


@dataclass(frozen=True)
class ClaimPlan:
    """What would settle an inconclusive claim.

    Attributes:
        level: the level at which its test must be significant; None if it only waits for the primary claims.
        variances: of its value, in the stored unit of the measure; None with a single seed.
        questions: the number of questions; 0 where their scores are not known.
        seeds_range: the 95 % interval of the standard deviation between seeds, in the same unit.
        distance: from the value to the nearer bound, in the stored unit of the measure; not negative.
        more_seeds: additional seeds on the same questions that settle it; None if no number does, or if it is not
            known.
        more_questions: the same of additional questions with the same seeds.
        methods: the number of methods that it needs.
        hours: of a run of these methods, on average; NaN if it is not known.
    """

    outcome: ClaimOutcome
    level: float | None
    variances: Variances | None
    questions: int
    seeds_range: tuple[float, float]
    distance: float
    more_seeds: int | None
    more_questions: int | None
    methods: int
    hours: float

    @property
    def more_hours(self) -> float:
        """Hours of the additional seeds of all its methods, one run at a time; NaN if they are not known."""
        return NAN if self.more_seeds is None else self.more_seeds * self.methods * self.hours


def study_of_runs(folder: Path, claims: Path) -> Study:
    """Return the study of an experiment, without writing a file; the answers of its trials are read too.

    Args:
        folder: the folder of the experiment, with its run folders.
        claims: the folder with the claims file.

    Raises:
        ClaimError: the claims file has an error.
    """
    found, file = collect(folder), claims / CLAIMS
    published = read_claims(file) if file.is_file() else None
    every = pd.concat([found.runs[["id", "status"]], found.trials[["id", "status"]]])
    return Study(
        name=folder.name,
        runs=_as_read(found.runs),
        trials=_as_read(found.trials),
        curves=found.curves,
        not_counted=found.not_counted,
        benchmarks=pd.DataFrame(),
        ranks=None,
        claims=published,
        answers=collect_answers(folder, every),
        rounds=read_rounds(folder),
    ).within_rounds()


def plan_text(study: Study) -> str:
    """Return the plan of a study as Markdown: what is missing, and the tables of ``plan_tables``."""
    based = _based_on_trials(study)
    parts = [f"## {study.name}", *_remarks(study, based)]
    noted: set[str] = set()
    for table in plan_tables(based):  # a note that two tables share is printed once
        parts.append(markdown(replace(table, notes=[note for note in table.notes if note not in noted])).rstrip("\n"))
        noted |= set(table.notes)
    return "\n\n".join(parts) + "\n"


def plan_tables(study: Study) -> list[Table]:
    """Return the tables of a plan: inconclusive claims, differences from the baseline, and other numbers of seeds.

    Tables that would be empty are left out.
    """
    if finished(study.runs).empty:
        return []
    return [
        table
        for table in (claims_plan(plan_claims(study)), baseline_plan(study), grid_plan(study))
        if table is not None
    ]


def variances_of(sample: Sample) -> Variances | None:
    """Return the variance components of a sample; None with fewer than two seeds.

    All are 0 if the values differ by rounding errors alone.
    """
    if len(sample.values) < 2:
        return None
    found = (float(sample.values.var(ddof=1)), 0.0, 0.0)
    if sample.scores is not None:
        found = analyse(sample.scores.to_numpy(dtype=float)).variances
    rounding = ROUNDING * max(1.0, float(abs(sample.values).max()))
    return Variances(*(one if one > rounding**2 else 0.0 for one in found))


def typical(samples: Samples, baseline: str | None) -> Typical | None:
    """Return the mean variance components of the differences from the baseline; None without two common seeds.

    Methods whose answers to each question are not known are left out if those of another method are. So are methods
    whose differences do not vary, which are the baseline in other words.
    """
    if baseline is None:
        return None
    differences = _differences(samples, baseline)
    known = {name: (one, variances_of(one)) for name, one in differences.items()}
    found = {name: (one, parts) for name, (one, parts) in known.items() if parts is not None and _vary(parts)}
    if any(one.questions for one, _ in found.values()):
        found = {name: pair for name, pair in found.items() if pair[0].questions}
    if not found:
        return None
    every = [parts for _, parts in found.values()]
    means = Variances(*(sum(column) / len(every) for column in zip(*map(_components, every), strict=True)))
    seeds = frozenset(int(seed) for one, _ in found.values() for seed in one.by_seed.index)
    used = finished(samples.runs)
    used = used[used["method"].isin([baseline, *found]) & used["seed"].isin(seeds)]
    return Typical(
        baseline=baseline,
        variances=means,
        unit=_unit_of(main_measure(samples.runs)),
        questions=max(one.questions for one, _ in found.values()),
        seeds=seeds,
        runs=len(used),
        comparisons=len(differences),
    )


def plan_claims(study: Study) -> list[ClaimPlan]:
    """Return what would settle each inconclusive claim of a study."""
    outcomes = study.outcomes
    return [
        _plan_claim(one, level, study.samples)
        for one, level in zip(outcomes, _levels(outcomes, study.looks), strict=True)
        if one.is_open
    ]


def claims_plan(plans: Sequence[ClaimPlan]) -> Table | None:
    """Return a table of what would settle inconclusive claims; None without a claim."""
    if not plans:
        return None
    notes = [
        f"Inconclusive claims. {MORE_SEEDS}: on the same questions. {MORE_QUESTIONS}: with the same seeds. Each is the "
        f"smallest number that settles the claim with a probability of {100 * POWER:g} % if the true value is the "
        f"observed one. {NONE}: even {MOST_SEEDS:,} seeds or {MOST_QUESTIONS:,} questions in all are too few, since "
        "more seeds do not make the error from the questions smaller, nor more questions the error from the seeds.",
        "distance: from the value to the bound; of two bounds, to the nearer one. A value between two bounds is "
        "settled by two one-sided tests, and the number is enough for both together. Any other value is settled by "
        "the two-sided test against the nearer bound.",
        f"level: {LEVEL:g}, divided by the number of claims of the study that are not decided yet, and by that of the "
        "planned looks where seeds were added in rounds. Primary claims are counted apart from the others.",
        _about_deviations([one.outcome.value.n for one in plans]),
        f"{RUN_HOURS}: mean over the runs that the claim needs. {HOURS}: of all methods that the claim needs, one run "
        "at a time. The hours of more questions are not estimated.",
    ]
    cells, numbers = pd.DataFrame(list(map(_claim_cells, plans))), pd.DataFrame(list(map(_claim_numbers, plans)))
    return Table(cells, numbers, notes)


def baseline_plan(study: Study) -> Table | None:
    """Return a table of the smallest detectable difference from the baseline with the present runs, one row per method.

    None if no other method has a seed in common with the baseline.
    """
    differences, main = _differences(study.samples, study.baseline), main_measure(study.runs)
    if not differences:
        return None
    level, margin = LEVEL / len(differences) / study.looks, None if study.margin is None else study.margin * main.factor
    of_baseline = _hours(study.runs, [study.baseline])
    rows = [_method_row(name, one, level, margin, main) for name, one in differences.items()]
    hours = {name: _hours(study.runs, [name]) for name in differences}
    cells, numbers = (pd.DataFrame(list(column)) for column in zip(*rows, strict=True))
    cells[RUN_HOURS], numbers[RUN_HOURS] = [_short(one) for one in hours.values()], list(hours.values())
    unit = _unit_of(main)
    of_several = f", divided by the {len(differences)} comparisons" if len(differences) > 1 else ""
    notes = [
        f"Differences from {study.baseline} in {main.title.rsplit(',', 1)[0]}, in {unit}. smallest detectable: the "
        f"smallest true difference that the runs find with a probability of {100 * POWER:g} %, in a two-sided test at "
        f"the level {LEVEL:g}{of_several}. A run of {study.baseline} takes {_short(of_baseline)} hours.",
        _about_deviations([len(one.values) for one in differences.values()]),
    ]
    if margin is not None:
        notes.append(
            f"seeds, questions for {margin:g} {unit}: the number in all, with the present questions or the present "
            f"seeds, that detects a difference as large as the margin of {CLAIMS}."
        )
    if any(len(one.values) == 1 for one in differences.values()):
        notes.append(f"{ONE_SEED.strip()} of one seed: the standard deviation between questions includes the rest.")
    return Table(cells, numbers, notes)


def grid_plan(study: Study) -> Table | None:
    """Return a table of the smallest detectable difference with other numbers of seeds and questions.

    None if no method has two seeds in common with the baseline.
    """
    found, main = typical(study.samples, study.baseline), main_measure(study.runs)
    if found is None:
        return None
    methods = sorted_methods(list(finished(study.runs)["method"]))
    of_a_run = _hours(study.runs, methods)
    columns = {f"{times * found.questions:,} questions": times * found.questions for times in GRID_QUESTIONS}
    if not found.questions:
        columns = {"the same questions": 1}
    rows, numbers = [], []
    for S in GRID_SEEDS:
        told = {
            title: found.variances.detectable(S, Q, LEVEL / found.comparisons / study.looks)
            for title, Q in columns.items()
        }
        hours = S * len(methods) * of_a_run
        rows.append({"seeds": str(S)} | {title: _plain(one, main.decimals) for title, one in told.items()})
        rows[-1]["hours of all runs"] = _short(hours)
        numbers.append({"seeds": S, **told, "hours of all runs": hours})
    several = found.comparisons > 1
    notes = [
        f"Smallest detectable difference from {study.baseline}, in {found.unit}, as above, with the variances "
        f"{'averaged over the methods' if several else 'of the table above'}. The hours are those of all "
        f"{len(methods)} methods on the present questions, one run at a time.",
    ]
    return Table(pd.DataFrame(rows), pd.DataFrame(numbers), notes)


def _plan_claim(one: ClaimOutcome, level: float | None, samples: Samples) -> ClaimPlan:
    """Return what would settle a claim.

    Args:
        level: None if the claim only waits for the primary claims.
    """
    sample, methods = _sample_of(one.claim, samples)
    variances, S, Q = variances_of(sample), len(sample.values), sample.questions
    inside = _inside(one.claim, one.value.mean)
    seeds = questions = None
    if level is not None and variances is not None and not _vary(variances):
        seeds = _equal_values(inside, level)
    elif level is not None and variances is not None:
        power_of = _power_of(inside, variances, level)
        seeds = fewest(lambda n: power_of(n, max(1, Q)), POWER, max(FEWEST, S + 1), MOST_SEEDS)
        if Q and S >= FEWEST:
            questions = fewest(lambda m: power_of(S, m), POWER, Q + 1, MOST_QUESTIONS)
    return ClaimPlan(
        outcome=one,
        level=level,
        variances=variances,
        questions=Q,
        seeds_range=seeds_range(sample),
        distance=abs(min(inside.values())),
        more_seeds=None if seeds is None else max(1, seeds - S),
        more_questions=None if questions is None else questions - Q,
        methods=len(methods),
        hours=_hours(samples.runs, methods),
    )


def _claim_cells(one: ClaimPlan) -> dict[str, str]:
    claim, value = one.outcome.claim, one.outcome.value
    factor, decimals, unit = unit_of(claim)
    without = WAITS if one.level is None else UNKNOWN if one.variances is None else NONE
    scaled = None if one.variances is None else _scaled(one.variances, factor)
    return {
        "claim": claim.claim,
        "value": f"{signed(value.mean * factor, decimals)}{unit}",
        "claimed": " and ".join(f"{side} {signed(x * factor, decimals)}{unit}" for side, x in claim.expect.items()),
        "distance": _plain(one.distance * factor, decimals),
        "seeds": str(value.n),
        "questions": str(one.questions or UNKNOWN),
        **_deviation_cells(scaled, one.questions, decimals, [factor * end for end in one.seeds_range]),
        "level": UNKNOWN if one.level is None else f"{one.level:.3g}",
        MORE_SEEDS: _count(one.more_seeds, without),
        HOURS: _short(one.more_hours),
        MORE_QUESTIONS: _count(one.more_questions, without if one.questions or one.level is None else UNKNOWN),
        RUN_HOURS: _short(one.hours),
    }


def _claim_numbers(one: ClaimPlan) -> dict[str, Any]:
    factor, *_ = unit_of(one.outcome.claim)
    return {
        "claim": one.outcome.claim.claim,
        "value": one.outcome.value.mean * factor,
        "distance": one.distance * factor,
        "seeds": one.outcome.value.n,
        "questions": one.questions,
        **_deviations(None if one.variances is None else _scaled(one.variances, factor)),
        "SD seeds low": factor * one.seeds_range[0],
        "SD seeds high": factor * one.seeds_range[1],
        "level": one.level,
        MORE_SEEDS: one.more_seeds,
        HOURS: one.more_hours,
        MORE_QUESTIONS: one.more_questions,
        RUN_HOURS: one.hours,
    }


def _inside(claim: Claim, value: float) -> dict[str, float]:
    """Return how far a value lies on the claimed side of each bound, by side; negative where it misses the bound."""
    return {side: value - bound if side == "above" else bound - value for side, bound in claim.expect.items()}


def _power_of(inside: dict[str, float], variances: Variances, level: float) -> Callable[[int, int], float]:
    """Return the power of the test that settles a claim, as a function of the numbers of seeds and questions.

    Args:
        inside: how far the true value lies on the claimed side of each bound.
    """
    if _is_between(inside):
        return lambda S, Q: variances.power_within(inside["above"], inside["below"], S, Q, level)
    return lambda S, Q: variances.power(min(inside.values()), S, Q, level)


def _is_between(inside: dict[str, float]) -> bool:
    return len(inside) == 2 and min(inside.values()) > 0


def _equal_values(inside: dict[str, float], level: float) -> int | None:
    """Return how many seeds settle a claim if the values of all seeds stay equal; None if no number does.

    The sign-flip test decides then. With n seeds, its two-sided p is 2/2ⁿ, and so is that of two one-sided tests.
    """
    if abs(min(inside.values())) <= ROUNDING:
        return None
    return max(FEWEST, math.ceil(math.log2(2 / level)))


def _levels(outcomes: Sequence[ClaimOutcome], looks: int) -> list[float | None]:
    """Return the level that settles each claim; None for a claim that is decided or only waits for primary claims.

    It is the level of the next step of Holm's procedure: 0.05, divided by the number of undecided claims of the same
    kind, primary or not, and by the number of planned looks.
    """
    levels: list[float | None] = [None] * len(outcomes)
    for primary in (True, False):
        those = [at for at, one in enumerate(outcomes) if one.claim.primary == primary and one.is_tested]
        corrected = at_looks(holm([outcomes[at].p for at in those]), looks)
        undecided = [at for at, p in zip(those, corrected, strict=True) if not p <= LEVEL]
        for at in undecided:
            levels[at] = LEVEL / len(undecided) / looks
    return levels


def _sample_of(claim: Claim, samples: Samples) -> tuple[Sample, list[str]]:
    """Return the value of a claim by seed and question, and the methods that it needs."""
    methods = list(dict.fromkeys(samples.runs["method"]))
    own, others = counterparts(matching_methods(claim.of, methods), matching_methods(claim.versus or [], methods))
    sample = claim_value(claim, samples, list(own), list(others))
    assert sample is not None  # the verdict is not "not run"
    return sample, list(dict.fromkeys([*own, *others]))


def _method_row(
    name: str, difference: Sample, level: float, margin: float | None, main: Measure
) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the cells and the unrounded numbers of a method that is compared with the baseline."""
    variances, S, Q = variances_of(difference), len(difference.values), difference.questions
    tested = variances if variances is not None and _vary(variances) and S >= FEWEST else None
    told = NAN if tested is None else tested.detectable(S, max(1, Q), level)
    title = f"smallest detectable, {_unit_of(main)}"
    cells = {"method": name, "seeds": str(S), "questions": str(Q or UNKNOWN)}
    numbers: dict[str, Any] = {"method": name, "seeds": S, "questions": Q}
    if variances is None and difference.scores is not None:
        of_one = float(difference.scores.to_numpy(dtype=float).std(ddof=1))
        cells |= _deviation_cells(None, Q, main.decimals, (NAN, NAN)) | {
            "SD questions": f"{of_one:.{main.decimals}f}{ONE_SEED}"
        }
        numbers |= {**_deviations(None), "SD questions and rest": of_one}
    else:
        ends = seeds_range(difference)
        cells |= _deviation_cells(variances, Q, main.decimals, ends)
        numbers |= _deviations(variances) | dict(zip(("SD seeds low", "SD seeds high"), ends, strict=True))
    cells[title], numbers[title] = _plain(told, main.decimals), told
    if margin is not None:
        of_seeds = of_questions = None
        if tested is not None:
            of_seeds = tested.seeds_needed(margin, max(1, Q), level)
            of_questions = tested.questions_needed(margin, S, level) if Q else None
        for what, count, is_known in (("seeds", of_seeds, True), ("questions", of_questions, bool(Q))):
            column = f"{what} for {margin:g} {_unit_of(main)}"
            cells[column] = _count(count, NONE if is_known and tested is not None else UNKNOWN)
            numbers[column] = count
    return cells, numbers


def _differences(samples: Samples, baseline: str | None) -> dict[str, Sample]:
    """Return the differences of the main measure from the baseline, by method, in the unit of its heading.

    Methods without a seed in common with the baseline are left out.
    """
    if baseline is None:
        return {}
    main, runs = main_measure(samples.runs), finished(samples.runs)
    of_baseline = samples.of(baseline, main.column).scaled(main.factor)
    others = [method for method in sorted_methods(list(runs["method"])) if method != baseline]
    found = {method: samples.of(method, main.column).scaled(main.factor) - of_baseline for method in others}
    return {method: one for method, one in found.items() if len(one.values)}


def _based_on_trials(study: Study) -> Study:
    """Return a study without finished runs with its trials as runs, each method at its best value of the tuned keys.

    The best value has the largest mean area under the curve, where a diverged trial counts as 0. Any other study is
    returned as it is.
    """
    if not finished(study.runs).empty or finished(study.trials).empty:
        return study
    trials = study.trials
    score = trials["curve_mean"].where(trials["status"] == "finished", 0.0).fillna(0.0)
    means = score.groupby([trials["method"], trials["method_hash"]]).mean()
    best = set(means.groupby(level="method").idxmax())
    kept = [pair in best for pair in zip(trials["method"], trials["method_hash"], strict=True)]
    return replace(study, runs=trials[kept].reset_index(drop=True))


def _remarks(study: Study, based: Study) -> list[str]:
    """Return what the plan is made from where that are not the runs of the study, and what is missing for a plan.

    Args:
        based: the study whose runs the plan is made from.
    """
    runs = finished(based.runs)
    if runs.empty:
        return ["There is no finished run and no finished trial, so nothing is known of the variances."]
    lines = []
    if based is not study:
        lines.append(
            f"No finished run. The plan is made from {len(runs)} finished trials, of each method at its best value of "
            f"the tuned keys, on {_listed(sorted(runs['seed'].unique()))}."
        )
    wanted = based.claims.baseline if based.claims is not None else None
    if based.baseline is None:
        lines.append(f"No method is named {wanted}, the baseline of {CLAIMS}, so no difference from it is planned.")
        return lines
    differences = _differences(based.samples, based.baseline)
    if not differences:
        lines.append(f"No other method has a seed in common with {based.baseline}: at least one is needed to compare.")
        return lines
    most = max(len(one.values) for one in differences.values())
    if most == 1:
        lines.append(
            "Each method has one seed in common with the baseline. The variance between seeds is not known from it, so "
            "neither the smallest difference nor the number of seeds can be computed. Run more seeds of "
            f"{based.baseline} and of another method: two are enough for an estimate, and the test needs {FEWEST}."
        )
    elif most < FEWEST:
        lines.append(
            f"The test needs at least {FEWEST} seeds: with two, no difference is detectable, however large it is."
        )
    if not any(one.questions for one in differences.values()):
        lines.append(
            "The answers to each question are not known. The plan therefore holds for the same questions, and the "
            "number of questions cannot be planned."
        )
    return lines


def _about_deviations(seeds: Collection[int]) -> str:
    """Return a note on the columns of standard deviations.

    Args:
        seeds: the numbers of seeds that they are estimated from.
    """
    text = (
        "SD seeds, SD questions, SD rest: standard deviations of a difference or value on one question between seeds, "
        "between questions, and beyond both. SD seeds is followed by its 95 % interval. Where the questions are not "
        "known, SD seeds is that of the means."
    )
    several = [one for one in seeds if one > 1]
    if not several:
        return text
    return (
        f"{text} With few seeds (here {min(several)} or more) they are uncertain, and so is all that follows from them."
    )


def seeds_range(sample: Sample) -> tuple[float, float]:
    """Return the 95 % interval of the standard deviation between seeds, in the unit of the sample.

    Without questions it is the one of a variance by the χ² distribution. With questions, the ratio of the mean squares
    is (1 + Q·σ_a²/σ_e²) times an F variable, which gives the interval of σ_a²/σ_e²; σ_e² is taken as estimated.

    Returns:
        NaN for both with fewer than two seeds, or if the values do not vary.
    """
    S = len(sample.values)
    variances = variances_of(sample)
    if S < 2 or variances is None or not _vary(variances):
        return NAN, NAN
    if sample.scores is None:
        low, high = ((S - 1) / float(stats.chi2.ppf(q, S - 1)) for q in (0.975, 0.025))
        return (low * variances.seeds) ** 0.5, (high * variances.seeds) ** 0.5
    found, Q = analyse(sample.scores.to_numpy(dtype=float)), sample.questions
    low, high = (
        max(0.0, found.of_seeds / float(stats.f.ppf(q, S - 1, (S - 1) * (Q - 1))) - found.of_rest) / Q
        for q in (0.975, 0.025)
    )
    return low**0.5, high**0.5


def _deviation_cells(
    variances: Variances | None, questions: int, decimals: int, of_seeds: Sequence[float]
) -> dict[str, str]:
    """Return the cells of the standard deviations.

    Args:
        of_seeds: the interval of that between seeds; NaN where it is not known.
    """
    found = _deviations(variances)
    known = found if questions else {"SD seeds": found["SD seeds"]}
    cells = {title: _plain(known.get(title, NAN), decimals) for title in found}
    if of_seeds[0] == of_seeds[0]:
        cells["SD seeds"] += f" [{_plain(of_seeds[0], decimals)}, {_plain(of_seeds[1], decimals)}]"
    return cells


def _deviations(variances: Variances | None) -> dict[str, float]:
    of_each = (NAN,) * 3 if variances is None else _components(variances)
    return dict(zip(("SD seeds", "SD questions", "SD rest"), (one**0.5 for one in of_each), strict=True))


def _components(variances: Variances) -> tuple[float, float, float]:
    return variances.seeds, variances.questions, variances.rest


def _vary(variances: Variances) -> bool:
    """Return whether the values vary at all; the t test says nothing of values that are all equal."""
    return any(_components(variances))


def _scaled(variances: Variances, factor: float) -> Variances:
    return Variances(*(factor**2 * one for one in _components(variances)))


def _hours(runs: pd.DataFrame, methods: Sequence[str | None]) -> float:
    """Return the mean duration of the finished runs of some methods in hours; NaN if it is not known."""
    done = finished(runs)
    if "time_total" not in done:
        return NAN
    return float(done[done["method"].isin(list(methods))]["time_total"].mean()) / 3600


def _as_read(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table as it is after it was written to a file and read again, as all other results are."""
    return pd.read_csv(StringIO(frame.to_csv(index=False)))


def _unit_of(measure: Measure) -> str:
    return "points" if measure.factor == 100 else measure.title.rsplit(" ", 1)[-1]


def _plain(value: float, decimals: int) -> str:
    return UNKNOWN if value != value else f"{value:.{decimals}f}"


def _count(number: int | None, without: str) -> str:
    return without if number is None else f"{number:,}"


def _short(hours: float) -> str:
    """Return hours with two significant digits below 10, else without decimals."""
    return UNKNOWN if hours != hours else f"{hours:.2g}" if hours < 10 else f"{hours:,.0f}"


def _listed(seeds: Sequence[object]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"

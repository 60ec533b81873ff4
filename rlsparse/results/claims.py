"""Test published claims on our own runs. The verdict is computed, never written by hand."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from rlsparse.results.claims_file import Claim
from rlsparse.results.comparisons import equivalence_p
from rlsparse.results.correction import at_looks, holm, in_order
from rlsparse.results.formatting import interval, p_value, signed, values
from rlsparse.results.measures import BY_COLUMN
from rlsparse.results.sample import Sample, Samples
from rlsparse.results.statistics import LEVEL, Estimate, MeanTest, estimate, mean_test
from rlsparse.results.table import Table

SUPPORTED, CONTRADICTED, INCONCLUSIVE, NOT_RUN = "supported", "contradicted", "inconclusive", "not run"
NOTE = (
    "A claim is supported if our value lies on the claimed side of the bound, and contradicted if it lies on the other "
    f"side, each with a corrected p ≤ {LEVEL:g}; otherwise it is inconclusive. A claim with two bounds is supported "
    "by two one-sided tests. p is of the t test over at least three seeds; of a rate of collapse, it is of the exact "
    "binomial test, and of a difference of two such rates, of the sign-flip test. It is corrected by Holm's procedure "
    "for the number of claims of the study, where a primary claim is tested before the others. Where the number of "
    "questions is given, intervals and p are to new seeds and new questions; elsewhere they are to new seeds on the "
    "same questions. p, seeds is of the sign-flip permutation test over seeds. The published values were measured with "
    "the models and data that stand next to them."
)
NAN = float("nan")
SETTINGS = ("lr", "steps", "prompts_per_step", "group_size", "minibatches", "updates_per_rollout", "adapter_budget")


@dataclass(frozen=True)
class ClaimOutcome:
    """The result of testing a claim on our runs.

    Attributes:
        value: the effect over seeds, in the stored unit of the measure.
        p: the p-value that the verdict depends on, before the correction: two-sided, of the distance to the bound; of
            two bounds with the value between them, twice the larger one of two one-sided tests.
        p_seeds: two-sided p-value of the permutation test over seeds; of two tests the larger one.
        verdict: what the value says, whatever its p: supported, contradicted or not run; after ``judge_all``, it may
            also be inconclusive.
        corrected: p, corrected for the number of claims of the study; NaN before ``judge_all``.
        setting: task, model, steps and learning rate of the runs.
        methods: the number of methods that ``claim.of`` matches; the value is their mean.
        spread: the lowest and the highest value of one of these methods; None for a single method.
        waits: whether it is inconclusive only because a primary claim is, or because a primary claim cannot be tested.
        diverged: diverged runs of these methods and of ``claim.versus``; they have no final value and are left out.
        reason: why the verdict is "not run"; empty for other verdicts.
    """

    claim: Claim
    value: Estimate
    p: float
    p_seeds: float
    verdict: str
    setting: str
    corrected: float = NAN
    methods: int = 0
    spread: tuple[float, float] | None = None
    diverged: int = 0
    reason: str = ""
    waits: bool = False

    @property
    def is_tested(self) -> bool:
        """Whether seeds can decide it: there are runs, and its measure is no setting, which has no p."""
        return self.verdict != NOT_RUN and self.claim.measure not in SETTINGS

    @property
    def is_open(self) -> bool:
        """Whether it is tested and not decided."""
        return self.is_tested and self.verdict == INCONCLUSIVE

    @property
    def needs_data(self) -> bool:
        """Whether more seeds or questions of its own could decide it."""
        return self.is_open and not self.waits


def judge_all(claims: Sequence[Claim], samples: Samples, looks: int = 1) -> list[ClaimOutcome]:
    """Return the outcomes of the claims of a study, corrected for their number; primary claims come first.

    Args:
        looks: the number of planned looks at the results, by which corrected p-values are multiplied.
    """
    alone = [judge(claim, samples) for claim in claims]
    primary = [claim.primary for claim in claims]
    corrected = at_looks(in_order([one.p for one in alone], primary), looks)
    others = at_looks(holm([NAN if is_first else one.p for one, is_first in zip(alone, primary, strict=True)]), looks)
    is_blocked = any(one.claim.primary and not one.is_tested for one in alone)
    return [
        replace(
            one,
            corrected=p,
            verdict=one.verdict if p <= LEVEL or one.verdict == NOT_RUN else INCONCLUSIVE,
            waits=not one.claim.primary and p > LEVEL and (is_blocked or other <= LEVEL),
        )
        for one, p, other in zip(alone, corrected, others, strict=True)
    ]


def judge(claim: Claim, samples: Samples) -> ClaimOutcome:
    """Return the outcome of a claim, as if it were the only one, with the verdict of its value whatever its p.

    The verdict is "not run" if any name in the claim matches no method: on the remaining methods it would be a
    different claim.
    """
    runs = samples.runs
    methods = list(dict.fromkeys(runs["method"]))
    own, others = counterparts(matching_methods(claim.of, methods), matching_methods(claim.versus or [], methods))
    unknown = [one for one in [*claim.of, *(claim.versus or [])] if not matching_methods([one], methods)]
    sample = None if unknown else claim_value(claim, samples, list(own), list(others))
    if sample is None or not len(sample.values):
        reason = "no method has a counterpart"
        if own:
            reason = f"no seed has a value of {claim.measure} for all of its methods"
        if unknown:
            reason = f"no method is named {', '.join(unknown)}"
        nothing = estimate(pd.Series(dtype=float))
        return ClaimOutcome(claim, nothing, NAN, NAN, NOT_RUN, "", reason=reason)
    verdict, p, p_seeds = _verdict({side: mean_test(sample, bound) for side, bound in claim.expect.items()})
    if claim.measure in SETTINGS:  # chosen once for a method, so that its seeds are no repetitions
        p, p_seeds = NAN, NAN
    those = runs[runs["method"].isin([*own, *others])] if claim.measure != "collapsed" else runs[:0]
    return ClaimOutcome(
        claim,
        estimate(sample),
        p,
        p_seeds,
        verdict,
        _setting(runs, list(own)),
        methods=len(own),
        spread=_spread(claim, samples, own, others) if len(own) > 1 else None,
        diverged=int((those["status"] == "diverged").sum()),
    )


def methods_of(claim: Claim, methods: list[str]) -> list[str]:
    """Return the methods whose runs a claim is about."""
    sides = counterparts(matching_methods(claim.of, methods), matching_methods(claim.versus or [], methods))
    return [method for side in sides for method in side]


def claims_table(outcomes: list[ClaimOutcome], studies: list[str] | None = None) -> Table:
    """Return a table of claims: claim, published value, our value, setting and verdict.

    Args:
        studies: the study of each outcome, shown in an additional first column; None for no such column.
    """
    rows, numbers = [], []
    for one, study in zip(outcomes, studies or [""] * len(outcomes), strict=True):
        study_cell = {"study": study} if studies is not None else {}
        rows.append(
            {
                **study_cell,
                "claim": one.claim.claim,
                "published": f"{one.claim.published} ({one.claim.source})",
                "ours": one.reason or f"{format_effect(one)}; {_bounds(one)}; {_p_values(one)}",
                "setting": one.setting or "–",
                "verdict": one.verdict,
            }
        )
        value = one.value
        unrounded = {"value": value.mean, "low": value.low, "high": value.high, "seeds": value.n}
        unrounded |= {"questions": value.questions, "p": one.p, "p, Holm": one.corrected, "p, seeds": one.p_seeds}
        numbers.append({**study_cell, "claim": one.claim.claim, **unrounded, "verdict": one.verdict})
    notes = [NOTE]
    untested = [
        (one.claim.claim if studies is None else f"{study}: {one.claim.claim}")
        for one, study in zip(outcomes, studies or [""] * len(outcomes), strict=True)
        if one.claim.primary and not one.is_tested
    ]
    if untested:
        notes.append(
            f"A primary claim is not tested, so the other claims of its study stay open: {'; '.join(untested)}."
        )
    return Table(pd.DataFrame(rows), pd.DataFrame(numbers), notes, left=5 + (studies is not None))


def _verdict(tests: dict[str, MeanTest]) -> tuple[str, float, float]:
    """Return what the value says of the bounds, and p of the test and of the permutation test that it rests on."""
    missed = [test for side, test in tests.items() if test.side != side]
    if missed:  # of two bounds, a value misses one at most
        return CONTRADICTED, missed[0].p, missed[0].p_seeds
    p_seeds = max(test.p_seeds for test in tests.values())
    if len(tests) == 2:
        return SUPPORTED, equivalence_p(tests["above"], tests["below"]), p_seeds
    (test,) = tests.values()
    return SUPPORTED, test.p, p_seeds


def claim_value(claim: Claim, samples: Samples, own: list[str], others: list[str]) -> Sample | None:
    """Return the value of the claim; None if a method has no run or a column is missing."""
    columns = [claim.measure] + ([claim.minus] if claim.minus else [])
    if not own or (claim.versus and not others) or not set(columns) <= set(samples.runs.columns):
        return None
    if claim.measure == "collapsed":  # diverged runs count here
        runs = samples.runs.assign(status="finished", collapsed=samples.runs["collapsed"].astype(float))
        samples = replace(samples, runs=runs)
    value = _mean_less_minus(claim, samples, own)
    if others and claim.ratio:
        return value.ratio(_mean_less_minus(claim, samples, others))
    return value - _mean_less_minus(claim, samples, others) if others else value


def _spread(
    claim: Claim, samples: Samples, own: dict[str, tuple[str, ...]], others: dict[str, tuple[str, ...]]
) -> tuple[float, float]:
    """Return the lowest and the highest value over the methods, each against its counterpart if both sides have *."""
    matched = any(own.values()) and any(others.values())
    means = []
    for method, texts in own.items():
        against = [other for other, its in others.items() if its == texts or not matched]
        value = claim_value(claim, samples, [method], against)
        means.append(float("nan") if value is None else float(value.by_seed.mean()))
    return min(means), max(means)


def _mean_less_minus(claim: Claim, samples: Samples, methods: list[str]) -> Sample:
    """Return the mean of the measure, with the column ``claim.minus`` subtracted if it is given."""
    mean = Sample.mean([samples.of(method, claim.measure) for method in methods])
    return mean - Sample.mean([samples.of(method, claim.minus) for method in methods]) if claim.minus else mean


def matching_methods(patterns: list[str], methods: list[str]) -> dict[str, tuple[str, ...]]:
    """Return the methods that match a pattern, each with the texts that stand for * in the first such pattern."""
    found = {}
    for method in methods:
        for pattern in patterns:
            match = re.fullmatch("(.*)".join(map(re.escape, pattern.split("*"))), method)
            if match and method not in found:
                found[method] = match.groups()
    return found


def counterparts(
    own: dict[str, tuple[str, ...]], others: dict[str, tuple[str, ...]]
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Return the methods of both sides; if both have *, only those whose texts for * are found on both sides."""
    if any(own.values()) and any(others.values()):
        common = set(own.values()) & set(others.values())
        own, others = ({m: texts for m, texts in side.items() if texts in common} for side in (own, others))
    return own, others


def format_effect(one: ClaimOutcome) -> str:
    """Return the value with its interval in the unit of the measure, and what it is a mean of."""
    factor, decimals, unit = unit_of(one.claim)
    value = one.value.scaled(factor)
    compared = one.claim.versus or one.claim.minus
    measure = BY_COLUMN.get(one.claim.measure)
    if measure is not None and measure.is_share and not compared:
        value = value.within(0, 100)
    elif measure is not None and measure.is_share and not one.claim.ratio:
        value = value.within(-100, 100)
    plus = "+" if compared and value.mean > 0 else ""
    methods = []
    if one.spread is not None:
        low, high = (signed(end * factor, decimals) for end in one.spread)
        methods = [f"mean of {one.methods} methods ({low} to {high})"]
    diverged = [f"{one.diverged} run{'s' if one.diverged > 1 else ''} diverged"] if one.diverged else []
    questions = f" × {value.questions} questions" if value.questions else ""
    seeds = f"{value.n} seed{'s' if value.n != 1 else ''}{questions}"
    return ", ".join([f"{plus}{interval(value, decimals)}{unit}", *methods, seeds, *diverged])


def _p_values(one: ClaimOutcome) -> str:
    primary = ", primary" if one.claim.primary else ""
    return f"p {p_value(one.p)}, corrected {p_value(one.corrected)}{primary}; p, seeds {p_value(one.p_seeds)}"


def _bounds(one: ClaimOutcome) -> str:
    """Return the claimed bounds in words."""
    factor, decimals, unit = unit_of(one.claim)
    return "claimed " + " and ".join(
        f"{side} {signed(bound * factor, decimals)}{unit}" for side, bound in one.claim.expect.items()
    )


def unit_of(claim: Claim) -> tuple[float, int, str]:
    """Return the factor from the stored unit to the shown one, the number of decimals, and the unit as text."""
    measure = BY_COLUMN.get(claim.measure)
    if claim.ratio:
        return 100, 1, " %"
    if measure is None:
        return 1, 3, ""
    unit = measure.title.rsplit(", ", 1)[-1] if ", " in measure.title and measure.factor == 100 else ""
    compared = claim.versus or claim.minus
    text = {"%": " points" if compared else " %"}.get(unit, "")
    return measure.factor, measure.decimals, text


def _setting(runs: pd.DataFrame, methods: list[str]) -> str:
    """Return task, model, number of steps and learning rate of the methods, as far as they are known."""
    those = runs[runs["method"].isin(methods)]
    keys = [key for key in ("task", "model") if key in those and those[key].notna().any()]
    words = [values(those[key]) for key in keys]
    if "steps" in those and those["steps"].notna().any():
        words.append(f"{values(those['steps'])} steps")
    if "lr" in those and those["lr"].notna().any():
        words.append(f"lr {values(those['lr'])}")
    return ", ".join(words)

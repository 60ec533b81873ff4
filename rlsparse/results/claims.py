"""Test published claims on our own runs. The verdict is computed, never written by hand."""

import re
from dataclasses import dataclass

import pandas as pd

from rlsparse.results.claims_file import Claim
from rlsparse.results.formatting import interval, p_value, signed, values
from rlsparse.results.measures import BY_COLUMN, by_seed
from rlsparse.results.statistics import LEVEL, Estimate, PermutationTest, estimate, permutation_test
from rlsparse.results.table import Table

SUPPORTED, CONTRADICTED, INCONCLUSIVE, NOT_RUN = "supported", "contradicted", "inconclusive", "not run"
NOTE = (
    "A claim is supported if our value lies on the claimed side of the bound, and contradicted if it lies on the other "
    f"side, each with p ≤ {LEVEL:g}; otherwise it is inconclusive. p is the p-value of the exact two-sided sign-flip "
    "permutation test, over paired seeds, of the distance to the bound. Effects have 95 % bootstrap intervals. The "
    "published values were measured with the models and data that stand next to them."
)


@dataclass(frozen=True)
class ClaimOutcome:
    """The result of testing a claim on our runs.

    Attributes:
        value: the effect over seeds, in the stored unit of the measure.
        p: the largest p-value of the tests that the verdict depends on.
        setting: task, model, steps and learning rate of the runs.
        methods: the number of methods that ``claim.of`` matches; the value is their mean.
        spread: the lowest and the highest value of one of these methods; None for a single method.
        diverged: diverged runs of these methods and of ``claim.versus``; they have no final value and are left out.
        reason: why the verdict is "not run"; empty for other verdicts.
    """

    claim: Claim
    value: Estimate
    p: float
    verdict: str
    setting: str
    methods: int = 0
    spread: tuple[float, float] | None = None
    diverged: int = 0
    reason: str = ""


def judge(claim: Claim, runs: pd.DataFrame) -> ClaimOutcome:
    """Return the outcome of a claim on a tidy table of runs.

    The verdict is "not run" if any name in the claim matches no method: on the remaining methods it would be a
    different claim.
    """
    methods = list(dict.fromkeys(runs["method"]))
    own, others = _counterparts(matching_methods(claim.of, methods), matching_methods(claim.versus or [], methods))
    unknown = [one for one in [*claim.of, *(claim.versus or [])] if not matching_methods([one], methods)]
    by_seeds = pd.Series(dtype=float) if unknown else _value(claim, runs, list(own), list(others))
    if by_seeds.empty:
        reason = f"no finished run has a value of {claim.measure}" if own else "no method has a counterpart"
        if unknown:
            reason = f"no method is named {', '.join(unknown)}"
        return ClaimOutcome(claim, estimate(by_seeds), float("nan"), NOT_RUN, "", reason=reason)
    tests = [(side, permutation_test(by_seeds, bound)) for side, bound in claim.expect.items()]
    p, verdict, setting = max(test.p for _, test in tests), _verdict(tests), _setting(runs, list(own))
    those = runs[runs["method"].isin([*own, *others])] if claim.measure != "collapsed" else runs[:0]
    diverged = int((those["status"] == "diverged").sum())
    spread = _spread(claim, runs, own, others) if len(own) > 1 else None
    return ClaimOutcome(claim, estimate(by_seeds), p, verdict, setting, len(own), spread, diverged)


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
                "ours": one.reason or f"{format_effect(one)}; {_bounds(one)}; p {p_value(one.p)}",
                "setting": one.setting or "–",
                "verdict": one.verdict,
            }
        )
        value = one.value
        unrounded = {"value": value.mean, "low": value.low, "high": value.high, "p": one.p, "seeds": value.n}
        numbers.append({**study_cell, "claim": one.claim.claim, **unrounded, "verdict": one.verdict})
    return Table(pd.DataFrame(rows), pd.DataFrame(numbers), [NOTE], left=5 + (studies is not None))


def _verdict(tests: list[tuple[str, PermutationTest]]) -> str:
    verdicts = [(side, test.verdict) for side, test in tests]
    if all(verdict == side for side, verdict in verdicts):
        return SUPPORTED
    opposite = {"above": "below", "below": "above"}
    return CONTRADICTED if any(verdict == opposite[side] for side, verdict in verdicts) else INCONCLUSIVE


def _value(claim: Claim, runs: pd.DataFrame, own: list[str], others: list[str]) -> "pd.Series[float]":
    """Return the value of the claim by seed; empty if a method has no run or a column is missing."""
    columns = [claim.measure] + ([claim.minus] if claim.minus else [])
    if not own or (claim.versus and not others) or not set(columns) <= set(runs.columns):
        return pd.Series(dtype=float)
    if claim.measure == "collapsed":
        runs = runs.assign(status="finished", collapsed=runs["collapsed"].astype(float))  # diverged runs count here
    by_seeds = _mean_less_minus(claim, runs, own)
    if others and claim.ratio:
        by_seeds = by_seeds / _mean_less_minus(claim, runs, others) - 1
    elif others:
        by_seeds = by_seeds - _mean_less_minus(claim, runs, others)
    return by_seeds.dropna()


def _spread(
    claim: Claim, runs: pd.DataFrame, own: dict[str, tuple[str, ...]], others: dict[str, tuple[str, ...]]
) -> tuple[float, float]:
    """Return the lowest and the highest value over the methods, each against its counterpart if both sides have *."""
    matched = any(own.values()) and any(others.values())
    means = [
        _value(claim, runs, [method], [o for o, its in others.items() if its == texts or not matched]).mean()
        for method, texts in own.items()
    ]
    return min(means), max(means)


def _mean_less_minus(claim: Claim, runs: pd.DataFrame, methods: list[str]) -> "pd.Series[float]":
    """Return the mean of the measure by seed, with the column ``claim.minus`` subtracted if it is given."""
    mean = _mean(runs, methods, claim.measure)
    return mean - _mean(runs, methods, claim.minus) if claim.minus else mean


def _mean(runs: pd.DataFrame, methods: list[str], column: str) -> "pd.Series[float]":
    """Return the mean over the methods by seed; a seed that one of them lacks is left out."""
    table = pd.DataFrame({method: by_seed(runs, method, column) for method in methods})
    return table.dropna().mean(axis=1)


def matching_methods(patterns: list[str], methods: list[str]) -> dict[str, tuple[str, ...]]:
    """Return the methods that match a pattern, each with the texts that stand for * in the first such pattern."""
    found = {}
    for method in methods:
        for pattern in patterns:
            match = re.fullmatch("(.*)".join(map(re.escape, pattern.split("*"))), method)
            if match and method not in found:
                found[method] = match.groups()
    return found


def _counterparts(
    own: dict[str, tuple[str, ...]], others: dict[str, tuple[str, ...]]
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Return the methods of both sides; if both have *, only those whose texts for * are found on both sides."""
    if any(own.values()) and any(others.values()):
        common = set(own.values()) & set(others.values())
        own, others = ({m: texts for m, texts in side.items() if texts in common} for side in (own, others))
    return own, others


def format_effect(one: ClaimOutcome) -> str:
    """Return the value with its interval in the unit of the measure, and the number of methods, seeds and losses."""
    factor, decimals, unit = _unit(one.claim)
    value = one.value
    scaled = Estimate(value.mean * factor, value.low * factor, value.high * factor, value.iqm * factor, value.n)
    compared = one.claim.versus or one.claim.minus
    plus = "+" if compared and value.mean > 0 else ""
    methods = []
    if one.spread is not None:
        low, high = (signed(end * factor, decimals) for end in one.spread)
        methods = [f"mean of {one.methods} methods ({low} to {high})"]
    diverged = [f"{one.diverged} run{'s' if one.diverged > 1 else ''} diverged"] if one.diverged else []
    seeds = f"{value.n} seed{'s' if value.n != 1 else ''}"
    return ", ".join([f"{plus}{interval(scaled, decimals)}{unit}", *methods, seeds, *diverged])


def _bounds(one: ClaimOutcome) -> str:
    """Return the claimed bounds in words."""
    factor, decimals, unit = _unit(one.claim)
    return "claimed " + " and ".join(
        f"{side} {signed(bound * factor, decimals)}{unit}" for side, bound in one.claim.expect.items()
    )


def _unit(claim: Claim) -> tuple[float, int, str]:
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

"""Published claims as data, and what our own measurements say of each. No verdict is written by hand."""

import re
from dataclasses import dataclass

import pandas as pd

from rlsparse.results.measures import BY_COLUMN, by_seed
from rlsparse.results.shown import interval, p_value, signed, values
from rlsparse.results.stated import Claim
from rlsparse.results.statistics import LEVEL, Estimate, Test, against, estimate
from rlsparse.results.table import Table

SUPPORTED, CONTRADICTED, INCONCLUSIVE, NOT_RUN = "supported", "contradicted", "inconclusive", "not run"
NOTE = (
    f"A claim is supported where our value lies where it says, and contradicted where it lies on the other side, each "
    f"time with p ≤ {LEVEL:g} (exact two-sided sign-flip permutation test over paired seeds, of the distance to the "
    "bound); inconclusive where the seeds cannot tell. Effects with 95 % bootstrap intervals. The published figures "
    "are of the models and sizes that stand beside them."
)


@dataclass(frozen=True)
class Outcome:
    """What our runs say of a claim.

    Attributes:
        value: the effect over seeds, in the measure's stored unit.
        p: the largest of the tests that the verdict rests on.
        methods: that ``of`` is the mean of.
        spread: the lowest and the highest value of one of these alone; None where there is one.
        diverged: runs of these and of ``versus`` that have no end, and so no part in the value.
        reason: why it is not run; empty where it is.
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


def judge(claim: Claim, runs: pd.DataFrame) -> Outcome:
    """A claim against the tidy table of runs.

    It is not run where any of the names it gives is no method's: on the rest alone it would be another claim.
    """
    methods = list(dict.fromkeys(runs["method"]))
    own, others = _alike(_matching(claim.of, methods), _matching(claim.versus or [], methods))
    unknown = [one for one in [*claim.of, *(claim.versus or [])] if not _matching([one], methods)]
    values = pd.Series(dtype=float) if unknown else _value(claim, runs, list(own), list(others))
    if values.empty:
        reason = f"no finished run has its {claim.measure}" if own else "no method has its like on the other side"
        if unknown:
            reason = f"no method is named {', '.join(unknown)}"
        return Outcome(claim, estimate(values), float("nan"), NOT_RUN, "", reason=reason)
    tests = [(side, against(values, bound)) for side, bound in claim.expect.items()]
    p, verdict, setting = max(test.p for _, test in tests), _verdict(tests), _setting(runs, list(own))
    those = runs[runs["method"].isin([*own, *others])] if claim.measure != "collapsed" else runs[:0]
    diverged = int((those["status"] == "diverged").sum())
    spread = _spread(claim, runs, own, others) if len(own) > 1 else None
    return Outcome(claim, estimate(values), p, verdict, setting, len(own), spread, diverged)


def claims_table(outcomes: list[Outcome], studies: list[str] | None = None) -> Table:
    """Claim, published, ours, verdict.

    Args:
        studies: the study of each outcome, for a column of its own; None for one study's.
    """
    rows, numbers = [], []
    for one, study in zip(outcomes, studies or [""] * len(outcomes), strict=True):
        whose = {"study": study} if studies is not None else {}
        rows.append(
            {
                **whose,
                "claim": one.claim.claim,
                "published": f"{one.claim.published} ({one.claim.source})",
                "ours": one.reason or f"{effect(one)}; {_bounds(one)}; p {p_value(one.p)}",
                "setting": one.setting or "–",
                "verdict": one.verdict,
            }
        )
        value = one.value
        behind = {"value": value.mean, "low": value.low, "high": value.high, "p": one.p, "seeds": value.n}
        numbers.append({**whose, "claim": one.claim.claim, **behind, "verdict": one.verdict})
    return Table(pd.DataFrame(rows), pd.DataFrame(numbers), [NOTE], left=5 + (studies is not None))


def _verdict(tests: list[tuple[str, Test]]) -> str:
    verdicts = [(side, test.verdict) for side, test in tests]
    if all(verdict == side for side, verdict in verdicts):
        return SUPPORTED
    opposite = {"above": "below", "below": "above"}
    return CONTRADICTED if any(verdict == opposite[side] for side, verdict in verdicts) else INCONCLUSIVE


def _value(claim: Claim, runs: pd.DataFrame, own: list[str], others: list[str]) -> "pd.Series[float]":
    """The claim's value by seed; empty where a method or the column has no run."""
    nothing = pd.Series(dtype=float)
    columns = [claim.measure] + ([claim.minus] if claim.minus else [])
    if not own or (claim.versus and not others) or not set(columns) <= set(runs.columns):
        return nothing
    if claim.measure == "collapsed":
        runs = runs.assign(status="finished", collapsed=runs["collapsed"].astype(float))
    values = _gain(claim, runs, own)
    if others and claim.ratio:
        values = values / _gain(claim, runs, others) - 1
    elif others:
        values = values - _gain(claim, runs, others)
    return values.dropna()


def _spread(
    claim: Claim, runs: pd.DataFrame, own: dict[str, tuple[str, ...]], others: dict[str, tuple[str, ...]]
) -> tuple[float, float]:
    """Over the methods, each beside its like where both sides have *."""
    alike = any(own.values()) and any(others.values())
    means = [
        _value(claim, runs, [method], [o for o, its in others.items() if its == texts or not alike]).mean()
        for method, texts in own.items()
    ]
    return min(means), max(means)


def _gain(claim: Claim, runs: pd.DataFrame, methods: list[str]) -> "pd.Series[float]":
    mean = _mean(runs, methods, claim.measure)
    return mean - _mean(runs, methods, claim.minus) if claim.minus else mean


def _mean(runs: pd.DataFrame, methods: list[str], column: str) -> "pd.Series[float]":
    """By seed, over the methods; a seed that one of them lacks is left out."""
    table = pd.DataFrame({method: by_seed(runs, method, column) for method in methods})
    return table.dropna().mean(axis=1)


def _matching(patterns: list[str], methods: list[str]) -> dict[str, tuple[str, ...]]:
    """Method → the texts that stand for the * of the first pattern it matches."""
    found = {}
    for method in methods:
        for pattern in patterns:
            match = re.fullmatch("(.*)".join(map(re.escape, pattern.split("*"))), method)
            if match and method not in found:
                found[method] = match.groups()
    return found


def _alike(
    own: dict[str, tuple[str, ...]], others: dict[str, tuple[str, ...]]
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """The methods of both sides; where both have *, those whose texts for it the other side has too."""
    if any(own.values()) and any(others.values()):
        common = set(own.values()) & set(others.values())
        own, others = ({m: texts for m, texts in side.items() if texts in common} for side in (own, others))
    return own, others


def effect(one: Outcome) -> str:
    """The value with its interval, in the measure's unit."""
    factor, decimals, unit = _unit(one.claim)
    value = one.value
    scaled = Estimate(value.mean * factor, value.low * factor, value.high * factor, value.iqm * factor, value.n)
    compared = one.claim.versus or one.claim.minus
    plus = "+" if compared and value.mean > 0 else ""
    of = []
    if one.spread is not None:
        low, high = (signed(end * factor, decimals) for end in one.spread)
        of = [f"mean of {one.methods} methods ({low} to {high})"]
    lost = [f"{one.diverged} run{'s' if one.diverged > 1 else ''} diverged"] if one.diverged else []
    seeds = f"{value.n} seed{'s' if value.n != 1 else ''}"
    return ", ".join([f"{plus}{interval(scaled, decimals)}{unit}", *of, seeds, *lost])


def _bounds(one: Outcome) -> str:
    """What the claim says of the value, in words."""
    factor, decimals, unit = _unit(one.claim)
    return "claimed " + " and ".join(
        f"{side} {signed(bound * factor, decimals)}{unit}" for side, bound in one.claim.expect.items()
    )


def _unit(claim: Claim) -> tuple[float, int, str]:
    measure = BY_COLUMN.get(claim.measure)
    if claim.ratio:
        return 100, 1, " %"
    if measure is None:
        return 1, 3, ""
    unit = measure.title.rsplit(", ", 1)[-1] if ", " in measure.title and measure.factor == 100 else ""
    compared = claim.versus or claim.minus
    shown = {"%": " points" if compared else " %"}.get(unit, "")
    return measure.factor, measure.decimals, shown


def _setting(runs: pd.DataFrame, methods: list[str]) -> str:
    those = runs[runs["method"].isin(methods)]
    keys = [key for key in ("task", "model") if key in those and those[key].notna().any()]
    words = [values(those[key]) for key in keys]
    if "steps" in those and those["steps"].notna().any():
        words.append(f"{values(those['steps'])} steps")
    if "lr" in those and those["lr"].notna().any():
        words.append(f"lr {values(those['lr'])}")
    return ", ".join(words)

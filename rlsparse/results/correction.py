"""Corrections of p-values for several comparisons."""

from collections.abc import Sequence


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values corrected by Holm's step-down procedure (Holm 1979).

    The chance that any of the corrected values is at most 0.05 where its hypothesis is true is at most 5 %, however the
    tests depend on each other. A NaN is no test: it stays, and it does not count.
    """
    known = sorted((p, at) for at, p in enumerate(values) if p == p)
    corrected, largest = list(values), 0.0
    for rank, (p, at) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[at] = largest
    return corrected


def in_order(values: Sequence[float], primary: Sequence[bool]) -> list[float]:
    """Return p-values corrected with some tests before the others.

    The primary tests are corrected among themselves. The others are corrected among themselves too, and each is at
    least the largest of the primary ones: they count only if every primary test is decided. The chance of any false
    finding stays at most 5 % (serial gatekeeping: Westfall and Krishen 2001).

    Args:
        values: p-values; NaN for no test.
        primary: whether a test was fixed beforehand as primary.
    """
    first = holm([p if is_first else float("nan") for p, is_first in zip(values, primary, strict=True)])
    others = holm([float("nan") if is_first else p for p, is_first in zip(values, primary, strict=True)])
    gates = [p for p, is_first in zip(first, primary, strict=True) if is_first]
    gate = max((p if p == p else 1.0 for p in gates), default=0.0)  # a primary test that cannot be made is not decided
    return [
        one if is_first else max(gate, other) if other == other else other
        for one, other, is_first in zip(first, others, primary, strict=True)
    ]


def at_looks(values: Sequence[float], looks: int) -> list[float]:
    """Return p-values that stay valid under several looks at growing data: multiplied by the number of planned looks.

    That is Bonferroni's correction over looks: it holds whatever the rule by which the sampling stops.
    """
    return [min(looks * p, 1.0) for p in values]

"""Format numbers for the cells of a table."""

import pandas as pd

from rlsparse.results.statistics import Estimate


def interval(value: Estimate, decimals: int) -> str:
    """Return ``91.7 [89.1, 94.0]``; the mean alone where there is no interval; a dash without seeds."""
    if value.n == 0:
        return "–"
    mean = signed(value.mean, decimals)
    return mean if value.low != value.low else f"{mean} [{signed(value.low, decimals)}, {signed(value.high, decimals)}]"


def signed(value: float, decimals: int, plus: str = "") -> str:
    """Return a number with a typographic minus sign; zero has no sign.

    Args:
        plus: "+" to write a plus sign before positive numbers.
    """
    text = f"{value:{plus}.{decimals}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-+")


def p_value(p: float) -> str:
    """Return a p-value with three decimals; a dash for NaN."""
    return "–" if p != p else "< 0.001" if p < 0.001 else f"{p:.3f}"


def values(column: "pd.Series[float]") -> str:
    """Return the distinct values of a column in order, separated by commas."""
    found = sorted(column.dropna().unique())
    return ", ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in found)

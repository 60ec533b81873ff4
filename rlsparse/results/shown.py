"""Numbers as a table shows them."""

import pandas as pd

from rlsparse.results.statistics import Estimate


def interval(value: Estimate, decimals: int) -> str:
    """``91.7 [89.1, 94.0]``; without an interval where one seed leaves it unknown."""
    if value.n == 0:
        return "–"
    mean = signed(value.mean, decimals)
    return mean if value.n == 1 else f"{mean} [{signed(value.low, decimals)}, {signed(value.high, decimals)}]"


def signed(value: float, decimals: int, plus: str = "") -> str:
    """A number with a true minus sign."""
    text = f"{value:{plus}.{decimals}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-+")


def p_value(p: float) -> str:
    return "–" if p != p else "< 0.001" if p < 0.001 else f"{p:.3f}"


def values(column: "pd.Series[float]") -> str:
    """The one value of a column, or the few."""
    found = sorted(column.dropna().unique())
    return ", ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in found)

"""Mean and 95 % interval of a method over its seeds."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtrit


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: NaN where there is no value.
        half_width: of the 95 % interval; NaN where fewer than two seeds leave it unknown.
        n: seeds.
    """

    mean: float
    half_width: float
    n: int


def estimate(values: "pd.Series[float]") -> Estimate:
    """Mean and Student-t 95 % interval, mean ± t(0.975, n−1)·s/√n, over seeds as independent draws."""
    present = values.dropna().to_numpy(dtype=float)
    n = len(present)
    if n == 0:
        return Estimate(float("nan"), float("nan"), 0)
    if n == 1:
        return Estimate(float(present[0]), float("nan"), 1)
    half_width = float(stdtrit(n - 1, 0.975) * present.std(ddof=1) / np.sqrt(n))
    return Estimate(float(present.mean()), half_width, n)

"""The measures of a run that tables show: columns of the tidy table with heading, unit and direction."""

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Measure:
    """A measure of a run.

    Attributes:
        column: its column in the tidy table.
        title: heading with unit.
        factor: multiplies the stored value to give the unit of the heading.
        decimals: number of decimals that are shown.
        best: "max" if larger values are better, "min" if smaller values are better, None if neither is.
        only_if: another column; the measure is shown only if that column has a value other than 0.
    """

    column: str
    title: str
    factor: float = 1
    decimals: int = 1
    best: str | None = None
    only_if: str | None = None

    @property
    def is_share(self) -> bool:
        """Whether its values are shares, which are shown in percent."""
        return self.factor == 100


OUTCOMES = (
    Measure("base_sampled", "base, %", 100),
    Measure("final_sampled", "final, %", 100, best="max"),
    Measure("final_greedy", "final greedy, %", 100, best="max"),
    Measure("curve_mean", "area under curve, %", 100, best="max"),
    Measure("base_loss", "base loss, nats", decimals=3),
    Measure("final_loss", "final loss, nats", decimals=3, best="min"),
)
COSTS = (
    Measure("frac_updated", "tokens updated, %", 100, best="min"),
    Measure("tokens_generated", "tokens sampled, thousands", 1e-3),
    Measure("depth_mean", "depth of updated tokens", only_if="tokens_replayed"),
    Measure("frac_replayed", "tokens replayed, %", 100, only_if="tokens_replayed"),
    Measure("off_policy_kl", "off-policy KL, nats", decimals=3),
    Measure("effective_sample_size", "effective samples, %", 100),
    Measure("frac_idle", "idle steps, %", 100),
    Measure("tokens_per_second", "rollout, tokens/s", decimals=0, best="max"),
    Measure("time_train", "training, s", best="min"),
    Measure("time_step", "step, s", decimals=2, best="min"),
    Measure("time_total", "time, s", best="min"),
    Measure("peak_memory_bytes", "memory, GiB", 2**-30, 2, best="min"),
    Measure("adapter_parameters", "adapter parameters, thousands", 1e-3),
)
OTHERS = (
    Measure("collapsed", "collapsed, %", 100, 0, best="min"),
    Measure("lr", "learning rate", decimals=4),
    Measure("rank_shift", "rank of FFN and o over q, k, v", decimals=2),
    Measure("rank_order", "Kendall's τ of final ranks with the published order", decimals=2),
)
BY_COLUMN = {measure.column: measure for measure in (*OUTCOMES, *COSTS, *OTHERS)}


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the finished runs, over which means are taken; a diverged run has no final values."""
    return runs[runs["status"] == "finished"] if "status" in runs else runs


def collapsed_methods(runs: pd.DataFrame) -> set[str]:
    """Return the methods with at least one collapsed run; such a run is cheap only because it writes almost nothing."""
    return set(runs[runs["collapsed"].eq(True)]["method"]) if "collapsed" in runs else set()


def available(measures: tuple[Measure, ...], runs: pd.DataFrame) -> list[Measure]:
    """Return the measures that at least one run has a value of and whose ``only_if`` holds."""
    return [
        one
        for one in measures
        if one.column in runs
        and runs[one.column].notna().any()
        and (one.only_if is None or _has_nonzero(runs, one.only_if))
    ]


def main_measure(runs: pd.DataFrame) -> Measure:
    """Return the measure that methods are compared by: final sampled accuracy; final loss for supervised runs."""
    supervised = "final_loss" in runs and bool(runs["final_loss"].notna().any())
    return BY_COLUMN["final_loss" if supervised else "final_sampled"]


def by_seed(runs: pd.DataFrame, method: str, column: str) -> "pd.Series[float]":
    """Return a column of the finished runs of a method, indexed by seed; the mean if a seed was run twice."""
    # of this column alone: a report calls this thousands of times, and rows of a whole table are slow to choose
    wanted = runs["method"].to_numpy() == method
    if "status" in runs:
        wanted &= runs["status"].to_numpy() == "finished"
    seeds = pd.Index(runs["seed"].to_numpy()[wanted], name="seed")
    values = pd.Series(runs[column].to_numpy()[wanted].astype(float), seeds, name=column)
    return values.sort_index() if seeds.is_unique else values.groupby(level=0).mean()


def _has_nonzero(runs: pd.DataFrame, column: str) -> bool:
    return column in runs and bool((runs[column].fillna(0) != 0).any())

"""What a table shows of a run: the columns of the tidy table, with heading, unit and which end is good."""

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Measure:
    """A column.

    Attributes:
        column: of the tidy table.
        title: heading, with its unit.
        factor: from the stored unit to the heading's.
        decimals: shown.
        best: which end is best, "max" or "min"; None where neither is.
        where: shown only where this other column has a value other than 0.
    """

    column: str
    title: str
    factor: float = 1
    decimals: int = 1
    best: str | None = None
    where: str | None = None


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
    Measure("depth_mean", "depth of updated tokens", where="tokens_replayed"),
    Measure("frac_replayed", "tokens replayed, %", 100, where="tokens_replayed"),
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
    Measure("rank_shift", "rank of FFN and o over q, k, v", decimals=2),
)
BY_COLUMN = {measure.column: measure for measure in (*OUTCOMES, *COSTS, *OTHERS)}


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that means are over: a diverged one has no end."""
    return runs[runs["status"] == "finished"] if "status" in runs else runs


def collapsed_methods(runs: pd.DataFrame) -> set[str]:
    """Those of which a run collapsed: that such a one writes next to nothing is no thrift."""
    return set(runs[runs["collapsed"].eq(True)]["method"]) if "collapsed" in runs else set()


def present(measures: tuple[Measure, ...], runs: pd.DataFrame) -> list[Measure]:
    """Those that any of the runs has a value of, and its study looks at."""
    return [
        one
        for one in measures
        if one.column in runs and runs[one.column].notna().any() and (one.where is None or _used(runs, one.where))
    ]


def headline(runs: pd.DataFrame) -> Measure:
    """What methods are compared by: final sampled accuracy; of supervised runs, which have one, the final loss."""
    supervised = "final_loss" in runs and bool(runs["final_loss"].notna().any())
    return BY_COLUMN["final_loss" if supervised else "final_sampled"]


def by_seed(runs: pd.DataFrame, method: str, column: str) -> "pd.Series[float]":
    """A measure of a method's finished runs, indexed by seed; the mean where a seed was run twice."""
    of_method = finished(runs)
    of_method = of_method[of_method["method"] == method]
    return of_method.groupby("seed")[column].mean().astype(float)


def _used(runs: pd.DataFrame, column: str) -> bool:
    return column in runs and bool((runs[column].fillna(0) != 0).any())

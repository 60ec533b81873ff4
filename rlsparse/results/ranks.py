"""Adapter ranks: tidy tables of the final ranks and of their history, from the runs of an experiment."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rlsparse.results.formatting import interval
from rlsparse.results.names import sorted_methods
from rlsparse.results.statistics import estimate
from rlsparse.results.table import Table
from rlsparse.storage.jsonl import rows_of
from rlsparse.storage.run_folder import RunFolder

PREFIX = "adapter/rank/"  # as in tracking/metrics.py
LAYER = re.compile(r"\.(\d+)\.")
OTHER_KIND = re.compile(rb'"kind": "(train|eval|benchmark)"')
FINAL = ["method", "seed", "module", "layer", "rank"]
HISTORY = ["method", "seed", "step", "module", "rank"]
ModuleRank = tuple[str, int, int]  # module type, layer, rank


@dataclass(frozen=True)
class Ranks:
    """The ranks of the runs whose adapter can change them.

    Attributes:
        final: one row per adapter module of each run: method, seed, module type, layer and final rank.
        history: one row per module type, rank update and run: the mean rank over the layers after that step.
        unreadable: a message for each line of a run's file that could not be read and is left out.
    """

    final: pd.DataFrame
    history: pd.DataFrame
    unreadable: list[str]


def collect_ranks(folder: Path, runs: pd.DataFrame) -> Ranks:
    """Return the ranks of the runs of an experiment.

    Args:
        folder: the folder of the experiment.
        runs: the tidy table of its runs, with the columns ``method``, ``seed`` and ``id``.
    """
    final: list[tuple[Any, ...]] = []  # plain rows: one table per line of a file would take a minute for 1,000 runs
    history: list[tuple[Any, ...]] = []
    unreadable: list[str] = []
    for method, seed, run_id in zip(runs["method"], runs["seed"], runs["id"], strict=True):
        modules: list[ModuleRank] = []
        for step, ranks in _rank_updates(RunFolder(folder / run_id), unreadable):
            modules = [_module_rank(name, rank) for name, rank in ranks.items()]
            history += [(method, seed, step, module, mean) for module, mean in _means(modules).items()]
        final += [(method, seed, *module) for module in modules]
    return Ranks(pd.DataFrame(final, columns=FINAL), pd.DataFrame(history, columns=HISTORY), unreadable)


def rank_table(final: pd.DataFrame) -> Table:
    """Return the mean final rank by module type, one row per method, with intervals over seeds."""
    modules = list(dict.fromkeys(final["module"]))
    rows, numbers = [], []
    for method in sorted_methods(list(final["method"])):
        of_method = final[final["method"] == method]
        means = of_method.groupby(["seed", "module"])["rank"].mean().unstack()
        ranks = {module: estimate(means[module]) for module in modules}
        total = estimate(of_method.groupby("seed")["rank"].sum())
        cells = {module: interval(value, 1) for module, value in ranks.items()}
        rows.append({"mean final rank": method, **cells, "total": f"{total.mean:.0f}", "seeds": str(total.n)})
        unrounded = {module: value.mean for module, value in ranks.items()}
        numbers.append({"method": method, **unrounded, "total": total.mean, "seeds": total.n})
    return Table(pd.DataFrame(rows), pd.DataFrame(numbers), ["Mean over layers [95 % t interval over seeds]."])


def _rank_updates(run: RunFolder, unreadable: list[str]) -> Iterator[tuple[int, dict[str, int]]]:
    """Yield step and ranks by module name of each row with ranks; add a message to ``unreadable`` for a bad line."""
    if not run.metrics.is_file():
        return
    for number, line in enumerate(run.metrics.read_bytes().splitlines(), start=1):
        if b'"kind": "ranks"' not in line and OTHER_KIND.search(line):  # parsing them takes most of the time
            continue
        try:
            (row,) = rows_of(line)
            yield int(row["step"]), {key.removeprefix(PREFIX): int(row[key]) for key in row if key.startswith(PREFIX)}
        except (ValueError, TypeError, KeyError, OverflowError):
            unreadable.append(f"line {number} of {run.path.name}/{run.metrics.name}: cannot be read")


def _module_rank(name: str, rank: int) -> ModuleRank:
    """Return module type, layer number and rank, from a name such as ``model.layers.3.self_attn.q_proj``."""
    found = LAYER.search(name)
    return name.rsplit(".", 1)[-1], int(found[1]) if found else 0, rank


def _means(modules: list[ModuleRank]) -> dict[str, float]:
    """Return the mean rank over layers by module type."""
    ranks: dict[str, list[int]] = {}
    for module, _, rank in modules:
        ranks.setdefault(module, []).append(rank)
    return {module: sum(those) / len(those) for module, those in ranks.items()}

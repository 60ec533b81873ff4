"""Where the rank went: from the runs of an experiment to tidy tables of final ranks and of their history."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rlsparse.results.names import in_order
from rlsparse.results.shown import interval
from rlsparse.results.statistics import estimate
from rlsparse.results.table import Table

PREFIX = "adapter/rank/"  # as in tracking/metrics.py
LAYER = re.compile(r"\.(\d+)\.")
FINAL = ["method", "seed", "module", "layer", "rank"]
Place = tuple[str, int, int]  # module type, layer, rank
HISTORY = ["method", "seed", "step", "module", "rank"]


@dataclass(frozen=True)
class Ranks:
    """The ranks of the runs whose adapter can move them.

    Attributes:
        final: a row for each adapter of each run: method, seed, module type, layer, rank at the end.
        history: a row for each module type, rank update and run: its mean rank over the layers after that step.
        unread: a line for each line of a run's file that could not be read, and is left out.
    """

    final: pd.DataFrame
    history: pd.DataFrame
    unread: list[str]


def collect_ranks(folder: Path, runs: pd.DataFrame) -> Ranks:
    """Read the ranks of an experiment's finished runs.

    Args:
        runs: their tidy table, of which ``method``, ``seed`` and ``id`` are used.
    """
    final: list[tuple[Any, ...]] = []  # rows: a table for each line of a run's file would take a minute for 1,000 runs
    history: list[tuple[Any, ...]] = []
    unread: list[str] = []
    for method, seed, run_id in zip(runs["method"], runs["seed"], runs["id"], strict=True):
        places: list[Place] = []
        for step, ranks in _rows(folder / run_id / "metrics.jsonl", unread):
            places = [_place(name, rank) for name, rank in ranks.items()]
            history += [(method, seed, step, module, mean) for module, mean in _means(places).items()]
        final += [(method, seed, *place) for place in places]
    return Ranks(pd.DataFrame(final, columns=FINAL), pd.DataFrame(history, columns=HISTORY), unread)


def rank_table(final: pd.DataFrame) -> Table:
    """Mean final rank by module type: a row a method, with intervals over seeds."""
    modules = list(dict.fromkeys(final["module"]))
    rows, numbers = [], []
    for method in in_order(list(final["method"])):
        of_method = final[final["method"] == method]
        means = of_method.groupby(["seed", "module"])["rank"].mean().unstack()
        ranks = {module: estimate(means[module]) for module in modules}
        total = estimate(of_method.groupby("seed")["rank"].sum())
        shown = {module: interval(value, 1) for module, value in ranks.items()}
        rows.append({"mean final rank": method, **shown, "total": f"{total.mean:.0f}", "seeds": str(total.n)})
        behind = {module: value.mean for module, value in ranks.items()}
        numbers.append({"method": method, **behind, "total": total.mean, "seeds": total.n})
    return Table(pd.DataFrame(rows), pd.DataFrame(numbers), ["Mean over layers [95 % bootstrap interval over seeds]."])


def _rows(file: Path, unread: list[str]) -> Iterator[tuple[int, dict[str, int]]]:
    """Step and ranks by module name of each line that holds them; a line that cannot be read is named in ``unread``."""
    if not file.is_file():
        return
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        if b'"kind": "train"' in line or b'"kind": "eval"' in line:
            continue
        try:
            row = json.loads(line)
            yield int(row["step"]), {key.removeprefix(PREFIX): int(row[key]) for key in row if key.startswith(PREFIX)}
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            unread.append(f"line {number} of {file.parent.name}/{file.name}: cannot be read")


def _place(name: str, rank: int) -> Place:
    """Module type, layer number and rank, from a name as ``model.layers.3.self_attn.q_proj``."""
    found = LAYER.search(name)
    return name.rsplit(".", 1)[-1], int(found[1]) if found else 0, rank


def _means(places: list[Place]) -> dict[str, float]:
    """Module type → mean rank over its layers."""
    ranks: dict[str, list[int]] = {}
    for module, _, rank in places:
        ranks.setdefault(module, []).append(rank)
    return {module: sum(those) / len(those) for module, those in ranks.items()}

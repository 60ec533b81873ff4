"""Collect the run folders of an experiment into one tidy table with one row per run."""

import re
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, TypeGuard

import pandas as pd

from rlsparse.results.curves import CURVES, has_collapsed, read_curve
from rlsparse.results.names import method_names, method_overrides
from rlsparse.storage.atomic import read_object
from rlsparse.storage.run_folder import RunFolder

# column of results.csv -> path of its value in summary.json
COLUMNS: dict[str, tuple[str, ...]] = {
    "id": ("id",),
    "algorithm": ("algorithm",),
    "seed": ("seed",),
    "method_hash": ("method_hash",),
    "status": ("status",),
    "model": ("setting", "model"),
    "task": ("setting", "task"),
    "prompts_per_step": ("setting", "prompts_per_step"),
    "group_size": ("setting", "group_size"),
    "minibatches": ("setting", "minibatches"),
    "updates_per_rollout": ("setting", "updates_per_rollout"),
    "lr": ("setting", "lr"),
    "base_greedy": ("base", "accuracy_greedy"),
    "base_sampled": ("base", "accuracy_sampled"),
    "final_greedy": ("final", "accuracy_greedy"),
    "final_sampled": ("final", "accuracy_sampled"),
    "base_loss": ("base", "loss"),
    "final_loss": ("final", "loss"),
    "curve_mean": ("curve_mean",),
    "mean_length": ("final", "mean_length"),
    "frac_updated": ("tokens", "frac_updated"),
    "tokens_generated": ("tokens", "generated"),
    "tokens_replayed": ("tokens", "replayed"),
    "depth_mean": ("tokens", "depth_mean"),
    "layers_skipped": ("layers_skipped",),
    "off_policy_kl": ("off_policy", "kl"),
    "effective_sample_size": ("off_policy", "effective_sample_size"),
    "weight_mean": ("off_policy", "weight_mean"),
    "weight_max": ("off_policy", "weight_max"),
    "frac_truncated": ("off_policy", "frac_truncated"),
    "steps": ("steps",),
    "steps_without_update": ("steps_without_update",),
    "time_total": ("time", "total"),
    "time_rollout": ("time", "rollout"),
    "time_reward": ("time", "reward"),
    "time_train": ("time", "train"),
    "time_eval": ("time", "eval"),
    "peak_memory_bytes": ("peak_memory_bytes",),
    "adapter": ("adapter", "name"),
    "adapter_budget": ("adapter", "budget"),
    "adapter_parameters": ("adapter", "parameters"),
    "device": ("device",),
    "rlsparse": ("versions", "rlsparse"),
    "python": ("versions", "python"),
    "torch": ("versions", "torch"),
    "transformers": ("versions", "transformers"),
    "peft": ("versions", "peft"),
    "commit": ("git", "commit"),
    "changed": ("changed",),
}
TEXTS = (
    "id",
    "algorithm",
    "method_hash",
    "status",
    "model",
    "task",
    "adapter",
    "device",
    "rlsparse",
    "python",
    "torch",
    "transformers",
    "peft",
    "commit",
    "changed",
)
FRACTIONS = ("base_greedy", "base_sampled", "final_greedy", "final_sampled", "curve_mean", "frac_updated")
LARGEST = 1e18  # no measure of a run is as large; NaN and infinity are excluded, too
RUN_ID = re.compile(r"[\w-][\w.-]{0,199}")  # as in sweep/plan.py
DERIVED = ("time_step", "tokens_per_second", "frac_replayed", "frac_idle", "rank_shift", "rank_order", "collapsed")
MEASURED = (*(column for column in COLUMNS if column not in TEXTS), *DERIVED)  # the columns that a claim can be about
# module types by falling mean final rank in the run of Singh et al. 2025 (2509.04884) on Mistral-7B-v0.3
PUBLISHED_ORDER = ("gate_proj", "up_proj", "o_proj", "down_proj", "q_proj", "k_proj", "v_proj")
QUERY_KEY_VALUE = re.compile(r"\.(q|k|v|qkv|query|key|value|query_key_value|c_attn)(_proj)?$")


@dataclass(frozen=True)
class Collected:
    """The runs of an experiment.

    Attributes:
        runs: one row for each finished or diverged run, with the columns ``COLUMNS``, ``DERIVED`` and ``method``.
        trials: the same for runs that only tuned a key and are not compared.
        curves: one row for each evaluation of the finished runs, with the columns ``results.curves.CURVES``.
        not_counted: a line for each run that was planned or started but has not finished, with the reason.
    """

    runs: pd.DataFrame
    trials: pd.DataFrame
    curves: pd.DataFrame
    not_counted: list[str]


@dataclass(frozen=True)
class _Plan:
    """The content of ``plan.json``, as far as it is valid.

    Attributes:
        points: overrides by run id.
        trials: by run id of a trial, the keys that it tunes.
        replaced: overrides by run id of points that a later sweep has replaced.
        axes: the keys that the experiment varies.
    """

    points: dict[str, list[str]]
    trials: dict[str, list[str]]
    replaced: dict[str, list[str]]
    axes: list[str]


def collect(folder: Path) -> Collected:
    """Return the runs in ``<runs_dir>/<experiment>``.

    A summary that cannot be read or has impossible values is named in ``not_counted``; it never raises an error.
    """
    plan = _read_plan(folder)
    tuned = sorted({key for keys in plan.trials.values() for key in keys})
    started = {path.name for path in folder.iterdir() if RunFolder(path).config.is_file()}
    rows, curves, not_counted = [], {}, []
    for run_id in sorted(started & set(plan.replaced)):
        name = " ".join(plan.replaced[run_id]) or run_id
        not_counted.append(f"{name}: {run_id} is replaced (a default, the model or a tuned key has changed since)")
    for run_id in sorted((started | set(plan.points)) - set(plan.replaced)):
        run = RunFolder(folder / run_id)
        name = " ".join(plan.points.get(run_id, [])) or run_id
        row, reason = _read(run, run_id in started)
        if reason:
            not_counted.append(" ".join(f"{name}: {reason}".split()))  # an error message may have line breaks
        if row is not None:
            curve = read_curve(run)
            collapsed = True if row["status"] == "diverged" else has_collapsed(curve)
            overrides = method_overrides(row["overrides"], tuned)
            # the name of the folder identifies the run, also that of a warm start
            rows.append({**row, "id": run_id, "collapsed": collapsed, "overrides": overrides})
            curves[run_id] = curve
    points = [set(method_overrides(overrides, tuned)) for overrides in plan.points.values()]
    runs = pd.DataFrame(rows, columns=[*COLUMNS, *DERIVED, "overrides"])
    is_trial = runs["id"].isin(list(plan.trials))
    compared = _with_method_names(runs[~is_trial].reset_index(drop=True), points, plan.axes)
    # trials of one method differ in method_hash, which contains the tuned key; their words identify the method instead
    tried = runs[is_trial].reset_index(drop=True)
    words = [
        " ".join([algorithm, *rest]) for algorithm, rest in zip(tried["algorithm"], tried["overrides"], strict=True)
    ]
    trials = _with_method_names(tried, points, plan.axes, words)
    return Collected(compared, trials, _curves(compared[compared["status"] == "finished"], curves), not_counted)


def _read(run: RunFolder, started: bool) -> tuple[dict[str, Any] | None, str]:
    """Return the row of a run with its overrides, and the reason why the run does not count.

    The row is None for a run without results; the reason is empty for a run that counts.
    """
    summary = read_object(run.summary)
    if summary is None:
        if run.summary.exists():
            return None, "its summary.json cannot be read"
        return None, "not finished" if started else "missing"
    if summary.get("status") not in ("finished", "diverged"):
        return None, f"{summary.get('status')} ({summary.get('error')})"
    row = _row(summary)
    reason = f"diverged ({summary.get('error')})" if row["status"] == "diverged" else ""
    damage = _find_damage(row, summary)
    if damage is not None:
        return None, reason or f"its summary.json is damaged ({damage})"
    return {**row, "overrides": summary["overrides"]}, reason


def _with_method_names(
    runs: pd.DataFrame, planned: list[set[str]], axes: list[str], identities: list[str] | None = None
) -> pd.DataFrame:
    """Return the sorted runs with a column ``method`` and without the overrides.

    Args:
        identities: identifies the method of each run; None to use ``method_hash``.
    """
    named = runs if identities is None else runs.assign(method_hash=identities)
    names = method_names(named, planned, axes)
    table = runs.drop(columns="overrides")
    table.insert(0, "method", names)
    return table.sort_values(["method", "seed", "id"], ignore_index=True)


def _curves(runs: pd.DataFrame, curves: dict[str, list[dict[str, Any]]]) -> pd.DataFrame:
    rows = [
        {"method": method, "seed": seed, **point}
        for method, seed, run_id in zip(runs["method"], runs["seed"], runs["id"], strict=True)
        for point in curves[run_id]
    ]
    return pd.DataFrame(rows, columns=CURVES)


def _read_plan(folder: Path) -> _Plan:
    content = read_object(folder / "plan.json") or {}
    points, trials, replaced = (_string_lists(content.get(key)) for key in ("points", "trials", "replaced"))
    axes = content.get("axes")
    return _Plan(points, trials, replaced, axes if _is_string_list(axes) else [])


def _string_lists(value: object) -> dict[str, list[str]]:
    """Return the entries of a mapping from run ids to lists of strings; entries of another form are left out."""
    if not isinstance(value, dict):
        return {}
    return {run_id: words for run_id, words in value.items() if RUN_ID.fullmatch(run_id) and _is_string_list(words)}


def _is_string_list(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _find_damage(row: dict[str, Any], summary: dict[str, Any]) -> str | None:
    """Return the first value that a finished run cannot have; None if all values are possible.

    An evaluation of a model on benchmarks trains nothing: it has no final values.
    """
    if not _is_string_list(summary.get("overrides")):
        return "overrides"
    for column, value in row.items():
        if column in DERIVED or value is None:
            continue
        if column in TEXTS:
            valid = isinstance(value, str)
        else:
            valid = _is_number(value) and (column not in FRACTIONS or 0 <= value <= 1)
        if not valid:
            return f"{column}={value}"
    needed = ["algorithm", "seed", "method_hash"]
    trained = "final" in summary or not summary.get("benchmarks")
    if row["status"] == "finished" and trained:
        needed.append("final_sampled" if row["final_loss"] is None else "final_loss")
    missing = [column for column in needed if row[column] is None]
    return f"no {', '.join(missing)}" if missing else None


def _row(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the columns ``COLUMNS`` and ``DERIVED`` of a run; None for a value that the summary lacks."""
    row = {}
    for column, path in COLUMNS.items():
        value: Any = summary
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        row[column] = "; ".join(value) if column == "changed" and _is_string_list(value) else value
    stages = [row[column] for column in ("time_rollout", "time_reward", "time_train")]
    stages = [seconds for seconds in stages if _is_number(seconds)]
    row["time_step"] = _ratio(sum(stages), row["steps"]) if stages else None
    row["tokens_per_second"] = _ratio(row["tokens_generated"], row["time_rollout"])
    row["frac_replayed"] = _ratio(row["tokens_replayed"], row["tokens_generated"])
    ranks = _moved_ranks(summary)
    row["rank_shift"], row["rank_order"] = _rank_shift(ranks), _rank_order(ranks)
    row["frac_idle"] = _ratio(row["steps_without_update"], row["steps"])
    return row


def _moved_ranks(summary: dict[str, Any]) -> dict[str, float]:
    """Return the final rank of each module, by name; empty for an adapter with fixed ranks."""
    adapter = summary.get("adapter") or {}
    ranks = adapter.get("rank")
    if "pruned" not in adapter or not isinstance(ranks, dict) or not all(map(_is_number, ranks.values())):
        return {}
    return ranks


def _rank_shift(ranks: dict[str, float]) -> float | None:
    """Return the mean final rank of feed-forward and attention output modules minus that of queries, keys and values.

    Modules are identified by their names in the models that PEFT supports. None without both kinds of modules.
    """
    inputs = [rank for module, rank in ranks.items() if QUERY_KEY_VALUE.search(module)]
    others = [rank for module, rank in ranks.items() if not QUERY_KEY_VALUE.search(module)]
    return sum(others) / len(others) - sum(inputs) / len(inputs) if inputs and others else None


def _rank_order(ranks: dict[str, float]) -> float | None:
    """Return Kendall's τ_a of the mean final rank by module type with ``PUBLISHED_ORDER``.

    That is the share of the pairs of module types that are in this order, minus the share in the reverse order: 1 for
    the published order, 0 for equal ranks. None for fewer than two of these types.
    """
    by_type: dict[str, list[float]] = {}
    for module, rank in ranks.items():
        by_type.setdefault(module.rsplit(".", 1)[-1], []).append(rank)
    means = [sum(by_type[kind]) / len(by_type[kind]) for kind in PUBLISHED_ORDER if kind in by_type]
    signs = [(first > second) - (first < second) for first, second in combinations(means, 2)]
    return sum(signs) / len(signs) if signs else None


def _ratio(part: Any, whole: Any) -> float | None:
    return part / whole if _is_number(part) and _is_number(whole) and whole else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < LARGEST

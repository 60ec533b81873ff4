"""From run folders to one tidy table: a row a run."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import pandas as pd

from rlsparse.results.curves import CURVES, has_collapsed, read_curve
from rlsparse.results.names import method_names, method_overrides
from rlsparse.storage.atomic import read_object

# summary.json -> column of results.csv
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
SHARES = ("base_greedy", "base_sampled", "final_greedy", "final_sampled", "curve_mean", "frac_updated")
LARGEST = 1e18  # no measure of a run is; NaN and infinity are not below it
RUN_ID = re.compile(r"[\w-][\w.-]{0,199}")  # as in plan.py
DERIVED = ("time_step", "tokens_per_second", "frac_replayed", "frac_idle", "rank_shift", "collapsed")
MEASURED = (*(column for column in COLUMNS if column not in TEXTS), *DERIVED)  # what a claim can be about
QUERY_KEY_VALUE = re.compile(r"\.(q|k|v|qkv|query|key|value|query_key_value|c_attn)(_proj)?$")


@dataclass(frozen=True)
class Collected:
    """What a results folder holds.

    Attributes:
        runs: a row for each run that finished or diverged, columns as in ``COLUMNS``, ``DERIVED`` and ``method``.
        trials: the same for runs that were there to tune a key, and are not compared.
        curves: a row for each evaluation of the finished runs, as ``results.curves.CURVES``.
        not_counted: a line for each run that is planned or begun but not finished, with the reason.
    """

    runs: pd.DataFrame
    trials: pd.DataFrame
    curves: pd.DataFrame
    not_counted: list[str]


def collect(folder: Path) -> Collected:
    """Read ``<runs_dir>/<experiment>``. A summary that cannot be read, or be one, is named and never fatal."""
    planned, trials, replaced, axes = _planned(folder)
    tuned = sorted({key for keys in trials.values() for key in keys})
    found = {p.name for p in folder.iterdir() if (p / "config.yaml").is_file()}
    rows, curves, not_counted = [], {}, []
    for run_id in sorted(found & set(replaced)):
        name = " ".join(replaced[run_id]) or run_id
        not_counted.append(f"{name}: {run_id} is replaced (a default, the model or a tuned key has changed since)")
    for run_id in sorted((found | set(planned)) - set(replaced)):
        name = " ".join(planned.get(run_id, [])) or run_id
        row, reason = _read(folder / run_id, run_id in found)
        if reason:
            not_counted.append(" ".join(f"{name}: {reason}".split()))  # an error may have line breaks
        if row is not None:  # the folder names the run, a warm start's too
            curve = read_curve(folder / run_id / "metrics.jsonl")
            collapsed = True if row["status"] == "diverged" else has_collapsed(curve)
            overrides = method_overrides(row["overrides"], tuned)
            rows.append({**row, "id": run_id, "collapsed": collapsed, "overrides": overrides})
            curves[run_id] = curve
    points = [set(method_overrides(overrides, tuned)) for overrides in planned.values()]
    runs = pd.DataFrame(rows, columns=[*COLUMNS, *DERIVED, "overrides"])
    is_trial = runs["id"].isin(list(trials))
    compared = _named(runs[~is_trial].reset_index(drop=True), points, axes, by_words=False)
    tried = _named(runs[is_trial].reset_index(drop=True), points, axes, by_words=True)
    return Collected(compared, tried, _curves(compared[compared["status"] == "finished"], curves), not_counted)


def _read(folder: Path, begun: bool) -> tuple[dict[str, Any] | None, str]:
    """A run's row and overrides, where it has one; and why it does not count, where it does not."""
    summary = read_object(folder / "summary.json")
    if summary is None:
        if (folder / "summary.json").exists():
            return None, "its summary.json cannot be read"
        return None, "not finished" if begun else "missing"
    if summary.get("status") not in ("finished", "diverged"):
        return None, f"{summary.get('status')} ({summary.get('error')})"
    row = _row(summary)
    reason = f"diverged ({summary.get('error')})" if row["status"] == "diverged" else ""
    damage = _damage(row, summary.get("overrides"))
    if damage is not None:
        return None, reason or f"its summary.json is damaged ({damage})"
    return {**row, "overrides": summary["overrides"]}, reason


def _named(runs: pd.DataFrame, planned: list[set[str]], axes: list[str], by_words: bool) -> pd.DataFrame:
    """With a name for each method, in order, and without the overrides.

    Args:
        by_words: trials of a method have hashes of their own, as the key that they tune is in them.
    """
    words = [" ".join([algorithm, *rest]) for algorithm, rest in zip(runs["algorithm"], runs["overrides"], strict=True)]
    names = method_names(runs.assign(method_hash=words) if by_words else runs, planned, axes)
    named = runs.drop(columns="overrides")
    named.insert(0, "method", names)
    return named.sort_values(["method", "seed", "id"], ignore_index=True)


def _curves(runs: pd.DataFrame, curves: dict[str, list[dict[str, Any]]]) -> pd.DataFrame:
    rows = [
        {"method": method, "seed": seed, **point}
        for method, seed, run_id in zip(runs["method"], runs["seed"], runs["id"], strict=True)
        for point in curves[run_id]
    ]
    return pd.DataFrame(rows, columns=CURVES)


def _planned(folder: Path) -> tuple[dict[str, list[str]], dict[str, list[str]], dict[str, list[str]], list[str]]:
    """By run id: overrides, keys of those that are there to tune them, overrides of replaced ones. And the axes."""
    plan = read_object(folder / "plan.json") or {}
    points, trials, replaced = (_lists_of_words(plan.get(kind)) for kind in ("points", "trials", "replaced"))
    axes = plan.get("axes")
    return points, trials, replaced, axes if _words(axes) else []


def _lists_of_words(value: object) -> dict[str, list[str]]:
    if not isinstance(value, dict):
        return {}
    return {run_id: words for run_id, words in value.items() if RUN_ID.fullmatch(run_id) and _words(words)}


def _words(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _damage(row: dict[str, Any], overrides: object) -> str | None:
    """What cannot be true of a finished run; None where all may be."""
    if not _words(overrides):
        return "overrides"
    for column, value in row.items():
        if column in DERIVED or value is None:
            continue
        if column in TEXTS:
            sound = isinstance(value, str)
        else:
            sound = _is_number(value) and (column not in SHARES or 0 <= value <= 1)
        if not sound:
            return f"{column}={value}"
    needed = ["algorithm", "seed", "method_hash"]
    if row["status"] == "finished":
        needed.append("final_sampled" if row["final_loss"] is None else "final_loss")
    missing = [column for column in needed if row[column] is None]
    return f"no {', '.join(missing)}" if missing else None


def _row(summary: dict[str, Any]) -> dict[str, Any]:
    row = {}
    for column, path in COLUMNS.items():
        value: Any = summary
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        row[column] = "; ".join(value) if column == "changed" and _words(value) else value
    stages = [row[column] for column in ("time_rollout", "time_reward", "time_train")]
    stages = [seconds for seconds in stages if _is_number(seconds)]
    row["time_step"] = _share(sum(stages), row["steps"]) if stages else None
    row["tokens_per_second"] = _share(row["tokens_generated"], row["time_rollout"])
    row["frac_replayed"] = _share(row["tokens_replayed"], row["tokens_generated"])
    row["rank_shift"] = _rank_shift(summary)
    row["frac_idle"] = _share(row["steps_without_update"], row["steps"])
    return row


def _rank_shift(summary: dict[str, Any]) -> float | None:
    """Where ranks could move: mean final rank of the feed-forward and attention output modules, less that of the rest.

    The rest are queries, keys and values, as PEFT's supported models name them.
    """
    adapter = summary.get("adapter") or {}
    ranks = adapter.get("rank")
    if "pruned" not in adapter or not isinstance(ranks, dict) or not all(map(_is_number, ranks.values())):
        return None
    inputs = [rank for module, rank in ranks.items() if QUERY_KEY_VALUE.search(module)]
    others = [rank for module, rank in ranks.items() if not QUERY_KEY_VALUE.search(module)]
    return sum(others) / len(others) - sum(inputs) / len(inputs) if inputs and others else None


def _share(part: Any, whole: Any) -> float | None:
    return part / whole if _is_number(part) and _is_number(whole) and whole else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < LARGEST

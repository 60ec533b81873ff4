"""From run folders to one tidy table: a row a run."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rlsparse.whole_file import read_object

# summary.json -> column of results.csv
COLUMNS: dict[str, tuple[str, ...]] = {
    "id": ("id",),
    "algorithm": ("algorithm",),
    "seed": ("seed",),
    "method_hash": ("method_hash",),
    "status": ("status",),
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
    "torch": ("versions", "torch"),
    "commit": ("git", "commit"),
    "changed": ("changed",),
}
TEXTS = ("id", "algorithm", "method_hash", "status", "adapter", "device", "torch", "commit", "changed")
SHARES = ("base_greedy", "base_sampled", "final_greedy", "final_sampled", "curve_mean", "frac_updated")
LARGEST = 1e18  # no measure of a run is; NaN and infinity are not below it
RUN_ID = re.compile(r"[\w-][\w.-]{0,199}")  # as in plan.py
DERIVED = ("time_step", "tokens_per_second", "frac_replayed", "frac_idle")
NOT_A_METHOD = ("algorithm", "seed", "runs_dir", "out", "experiment", "sweep", "tracker", "threads", "device", "hydra")


@dataclass(frozen=True)
class Collected:
    """What a results folder holds.

    Attributes:
        runs: a row for each finished run, columns as in ``COLUMNS`` and ``method``.
        not_counted: a line for each run that is planned or begun but not finished, with the reason.
    """

    runs: pd.DataFrame
    not_counted: list[str]


def collect(folder: Path) -> Collected:
    """Read ``<runs_dir>/<experiment>``. A summary that cannot be read, or be one, is named and never fatal."""
    planned = _planned(folder)
    found = {p.name for p in folder.iterdir() if (p / "config.yaml").is_file()}
    rows, not_counted = [], []
    for run_id in sorted(found | set(planned)):
        summary = read_object(folder / run_id / "summary.json")
        name = " ".join(planned.get(run_id, [])) or run_id
        if summary is not None and summary.get("status") == "finished":
            row = _row(summary)
            damage = _damage(row, summary.get("overrides"))
            if damage is None:  # the folder names the run, a warm start's too
                rows.append({**row, "id": run_id, "overrides": _method_overrides(summary["overrides"])})
            else:
                not_counted.append(f"{name}: its summary.json is damaged ({damage})")
        elif summary is not None:
            not_counted.append(f"{name}: {summary.get('status')} ({summary.get('error')})")
        elif (folder / run_id / "summary.json").exists():
            not_counted.append(f"{name}: its summary.json cannot be read")
        elif run_id in found:
            not_counted.append(f"{name}: not finished")
        else:
            not_counted.append(f"{name}: missing")
    runs = pd.DataFrame(rows, columns=[*COLUMNS, *DERIVED, "overrides"])
    runs.insert(0, "method", _method_names(runs, [set(_method_overrides(o)) for o in planned.values()]))
    not_counted = [" ".join(line.split()) for line in not_counted]  # an error may have line breaks
    return Collected(
        runs.drop(columns="overrides").sort_values(["method", "seed", "id"], ignore_index=True), not_counted
    )


def _planned(folder: Path) -> dict[str, list[str]]:
    """Overrides by run id; what is not of that form is left out."""
    points = (read_object(folder / "plan.json") or {}).get("points")
    if not isinstance(points, dict):
        return {}
    return {run_id: overrides for run_id, overrides in points.items() if RUN_ID.fullmatch(run_id) and _words(overrides)}


def _words(value: object) -> bool:
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
    needed = ["algorithm", "seed", "method_hash", "final_sampled" if row["final_loss"] is None else "final_loss"]
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
    row["frac_idle"] = _share(row["steps_without_update"], row["steps"])
    return row


def _share(part: Any, whole: Any) -> float | None:
    return part / whole if _is_number(part) and _is_number(whole) and whole else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < LARGEST


def _method_overrides(overrides: list[str]) -> tuple[str, ...]:
    return tuple(o for o in overrides if o.lstrip("+~").split("=")[0].split(".")[0] not in NOT_A_METHOD)


def _method_names(runs: pd.DataFrame, planned: list[set[str]]) -> list[str]:
    """A name for each run's method: the algorithm and the overrides that tell the experiment's methods apart.

    Runs of one ``method_hash`` are one method, however they were typed; two methods never share a name. What all
    have in common is left out; planned points count, so that the survivor of an axis still says its value.
    """
    typed: dict[str, set[str]] = {}  # method -> the overrides that all its runs have
    order: dict[str, tuple[str, ...]] = {}  # method -> overrides of its first run, for their order
    algorithm = dict(zip(runs["method_hash"], runs["algorithm"], strict=True))
    for method, overrides in zip(runs["method_hash"], runs["overrides"], strict=True):
        typed[method] = typed.get(method, set(overrides)) & set(overrides)
        order.setdefault(method, overrides)
    everywhere = set.intersection(*typed.values(), *planned) if typed else set()
    names = {
        method: " ".join([algorithm[method], *(o for o in order[method] if o in shared - everywhere)])
        for method, shared in typed.items()
    }
    twice = {name for name, count in Counter(names.values()).items() if count > 1}
    unique = {method: f"{name} ({method[:6]})" if name in twice else name for method, name in names.items()}
    return [unique[method] for method in runs["method_hash"]]

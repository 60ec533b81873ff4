"""The summary of a run, ``summary.json``: its origin, status and results, written once at the end."""

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

# rlsparse.results imports no other package than storage, so it takes these two from here
from rlsparse.config.run_id import NO_EFFECT as NO_EFFECT
from rlsparse.config.run_id import SERVER_KEYS as SERVER_KEYS
from rlsparse.config.run_id import Identity
from rlsparse.config.schema import Config, ModelConfig
from rlsparse.storage.atomic import read_object, write_whole
from rlsparse.storage.run_folder import RunFolder

DONE = ("finished", "diverged")
STATUSES = (*DONE, "failed")
PACKAGES = ("rlsparse", "torch", "transformers", "peft", "hydra-core", "datasets", "math-verify", "wandb")
Summary = dict[str, Any]


class TrainedAdapter(Protocol):
    """The part of an adapter that a summary needs; see ``components.adapter.base``."""

    budget: int | None

    def parameter_count(self) -> int: ...
    def ranks(self) -> dict[str, int]: ...


def provenance(identity: Identity, experiment: str, algorithm: str, seed: int, overrides: list[str]) -> Summary:
    """Return id, command line and code versions of a run, which are recorded when it starts."""
    return {
        "id": identity.id,
        "experiment": experiment,
        "algorithm": algorithm,
        "seed": seed,
        "overrides": overrides,
        "config_hash": identity.config_hash,
        "method_hash": identity.method_hash,
        **code(),
    }


def setting(config: Config, task: str) -> Summary:
    """Return the settings of a run that tables show beside its method.

    Args:
        task: name of the task.
    """
    train = config.train
    return {
        "model": model_name(config.model),
        "task": task,
        "steps": train.steps,
        "prompts_per_step": train.prompts_per_step,
        "group_size": train.group_size,
        "minibatches": train.minibatches,
        "updates_per_rollout": train.updates_per_rollout,
        "lr": train.lr,
    }


def model_name(model: ModelConfig) -> str:
    """Return the name of a model for tables."""
    return model.name if model.path is None else f"{model.name} (a local folder)"


def code() -> Summary:
    """Return the versions of Python and the packages, and the commit of the checkout."""
    versions = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    return {"versions": versions, "git": _git()}


def changed_versions(begun: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences between two provenances, a line each: Python, packages, and the commit of the code.

    Args:
        begun: the provenance at the start of the run.
        now: the provenance of this process.
    """
    lines = [
        f"{name} is {now['versions'][name]}, was {version}"
        for name, version in (begun.get("versions") or {}).items()
        if name in now["versions"] and now["versions"][name] != version
    ]
    then, here = (one.get("git") or {} for one in (begun, now))
    if then.get("commit") != here.get("commit"):
        lines.append(f"the code is at commit {here.get('commit')}, was at {then.get('commit')}")
    elif then.get("changes") != here.get("changes"):
        lines.append(f"the uncommitted changes of the code are {here.get('changes')}, were {then.get('changes')}")
    return lines


def results(history: list[dict[str, Any]]) -> Summary:
    """Return the results of a run from its metrics: the last evaluation and the mean of the curve, never the maximum.

    Args:
        history: the rows of ``metrics.jsonl``.

    Returns:
        base, final: the first and the last evaluation (metric names without prefix); None if there is none.
        benchmarks: by name, the first and the last evaluation on it (base, final), as above; empty if there are none.
        curve_mean: mean sampled accuracy over the evaluations after step 0 (share).
        tokens: numbers of completion tokens that were generated for training, replayed (the part of them sampled from
            the middle of completions) and selected by the token sampler; frac_updated, selected over generated; and
            depth_mean, the mean depth of the selected tokens over the steps that selected any.
        off_policy: mean over the steps of each off-policy metric (of weight_max the maximum), by metric name without
            prefix; empty if the policy itself sampled.
        layers_skipped: mean over the steps.
        steps: number of training steps; steps_without_update: number of those in which the loss had no token.
    """
    evaluations = [row for row in history if row["kind"] == "eval"]
    steps = [row for row in history if row["kind"] == "train"]
    curve = [row["eval/accuracy_sampled"] for row in evaluations if row["step"] > 0]
    generated = steps[-1]["tokens/generated"] if steps else 0
    selected = steps[-1]["tokens/selected"] if steps else 0
    return {
        "base": _evaluation(evaluations[0]) if evaluations else None,
        "final": _evaluation(evaluations[-1]) if evaluations else None,
        "benchmarks": benchmark_results(history),
        "curve_mean": sum(curve) / len(curve) if curve else None,
        "tokens": {
            "generated": generated,
            "replayed": steps[-1]["tokens/replayed"] if steps else 0,
            "selected": selected,
            "frac_updated": selected / generated if generated else None,
            "depth_mean": _mean("tokens/depth_mean", steps),
        },
        "off_policy": _off_policy(steps),
        "layers_skipped": _mean("rollout/layers_skipped", steps),
        "steps": len(steps),
        "steps_without_update": sum(row["train/updates"] == 0 for row in steps),
    }


def benchmark_results(history: list[dict[str, Any]]) -> Summary:
    """Return the first and the last evaluation on each benchmark, by name, from the rows of ``metrics.jsonl``.

    As for the held-out rows, base is the first one, and final the last one.
    """
    found: Summary = {}
    for row in (row for row in history if row["kind"] == "benchmark"):
        named: Summary = {}
        for key, value in row.items():
            if key.startswith("benchmark/"):
                name, _, metric = key.removeprefix("benchmark/").rpartition("/")
                named.setdefault(name, {"step": row["step"]})[metric] = value
        for name, values in named.items():
            found.setdefault(name, {"base": values})["final"] = values
    return found


def about_adapter(name: str, adapter: "TrainedAdapter", history: list[dict[str, Any]] | None) -> Summary:
    """Return name, ranks, budget and number of trained parameters of an adapter, and how many ranks have moved.

    Args:
        history: the rows of ``metrics.jsonl``; None for an adapter whose ranks do not move.
    """
    about: Summary = {"name": name, "rank": adapter.ranks(), "budget": adapter.budget}
    about["parameters"] = adapter.parameter_count()
    if history is not None:
        for count in ("pruned", "reassigned"):
            about[count] = sum(row.get(f"adapter/{count}", 0) for row in history)
    return about


def moved_ranks(summary: Summary) -> str:
    """Return how many ranks have moved, for a line on the terminal; empty for an adapter whose ranks do not move."""
    adapter = summary["adapter"]
    if "pruned" not in adapter:
        return ""
    return f", {adapter['pruned']} ranks pruned, {adapter['reassigned']} reassigned (budget {adapter['budget']})"


def headline(summary: Summary) -> str:
    """Return status and main results of a run, as one line for the terminal."""
    if summary["status"] != "finished":
        return f"{summary['status']}: {summary['error']}"
    base, final = summary["base"], summary["final"]
    idle = summary["steps_without_update"]
    return (
        f"sampled {100 * base['accuracy_sampled']:.1f} -> {100 * final['accuracy_sampled']:.1f} %, "
        f"greedy {100 * base['accuracy_greedy']:.1f} -> {100 * final['accuracy_greedy']:.1f} %, "
        f"{100 * summary['tokens']['frac_updated']:.1f} % of tokens, {summary['time']['total']:.0f} s"
        + moved_ranks(summary)
        + (f", {idle} of {summary['steps']} steps had nothing to update" if idle else "")
    )


def read_summary(folder: Path) -> Summary | None:
    """Return the summary in the folder of a run; None if there is none yet, or if it cannot be read."""
    summary = read_object(RunFolder(folder).summary)
    return summary if summary is not None and summary.get("status") in STATUSES else None


def write_summary(folder: Path, summary: Summary) -> None:
    """Write the summary of a run atomically.

    Raises:
        OSError: the file cannot be written; an existing one is unchanged.
    """
    write_whole(RunFolder(folder).summary, json.dumps(summary, indent=1, ensure_ascii=False))


def read_provenance(folder: Path) -> Summary | None:
    """Return what was recorded when a run started; None if it cannot be read."""
    begun = read_object(RunFolder(folder).provenance)
    complete = begun is not None and isinstance(begun.get("versions"), dict) and "git" in begun
    return begun if complete else None


def record_death(folder: Path, cause: str) -> None:
    """Write the summary of a run whose process died and could not write it."""
    begun = read_provenance(folder) or {"id": folder.name}
    write_summary(folder, {**begun, "status": "failed", "error": f"its process died: {cause}"})


def _evaluation(row: dict[str, Any]) -> dict[str, Any]:
    names = {name.removeprefix("eval/"): value for name, value in row.items() if name.startswith("eval/")}
    return {"step": row["step"], **names}


def _mean(name: str, rows: list[dict[str, Any]]) -> float | None:
    values = [row[name] for row in rows if name in row]
    return sum(values) / len(values) if values else None


def _off_policy(steps: list[dict[str, Any]]) -> dict[str, float | None]:
    names = dict.fromkeys(name for row in steps for name in row if name.startswith("off_policy/"))
    about = {name.removeprefix("off_policy/"): _mean(name, steps) for name in names}
    if about:
        about["weight_max"] = max(row.get("off_policy/weight_max", 0.0) for row in steps)
    return about


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Return commit and uncommitted changes of the checkout that this code is in; None for an installed package."""
    checkout = Path(__file__).parent.parent.parent
    if not (checkout / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(checkout), *arguments],
            capture_output=True,
            check=True,
            encoding="utf-8",
            errors="surrogateescape",
        ).stdout

    try:
        changes = git("diff", "HEAD", "--", "rlsparse", "conf", "hydra_plugins")
        return {
            "commit": git("rev-parse", "HEAD").strip(),
            "dirty": bool(git("status", "--porcelain", "-uno").strip()),
            "changes": hashlib.sha256(changes.encode("utf-8", "surrogateescape")).hexdigest()[:10] if changes else None,
        }
    except (OSError, subprocess.CalledProcessError):
        return None

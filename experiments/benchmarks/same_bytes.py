"""Records short runs of every part of the framework, and compares two recordings byte for byte.

A refactoring must not change a number. Record before it and after it, on the same machine with the same packages:

    python experiments/benchmarks/same_bytes.py record before
    python experiments/benchmarks/same_bytes.py record after
    python experiments/benchmarks/same_bytes.py compare before after

Each run takes six steps on an embedded model with one thread. Compared are the adapter's weights (bytes), every row of
``metrics.jsonl`` without times and speeds, ``samples.jsonl`` (bytes), and ``summary.json`` without times, identity and
versions.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

DEEP = ["model=tiny_deep", "layer_skip=r15"]
# name -> overrides. Names are compared: a recording of an older version may give the same run by other keys
RUNS: dict[str, list[str]] = {
    "grpo": ["algorithm=grpo"],
    "rgra": ["algorithm=rgra"],
    "sgrpo": ["algorithm=sgrpo"],
    "tspmo": ["algorithm=tspmo"],
    "reinforce": ["algorithm=reinforce"],
    "dr_grpo": ["algorithm=dr_grpo"],
    "rloo": ["algorithm=rloo"],
    "sgrpo_reweight": ["algorithm=sgrpo", "token_sampler.reweight=true"],
    "positive_only": ["negative_feedback=off"],
    "kl": ["kl=on"],
    "tspmo_kl": ["algorithm=tspmo", "kl=on"],
    "updates_4": ["train.updates_per_rollout=4"],
    "ratio_updates_4": ["algorithm=sgrpo", "clipping=ratio_only", "train.updates_per_rollout=4"],
    "prob_updates_2": ["algorithm=tspmo", "train.updates_per_rollout=2"],
    "l1ra": ["adapter=l1ra_short", "adapter.update_every=0.34", "adapter.gate_lr=0.5", "adapter.l1=0.5"],
    "l1ra_budget": ["adapter=l1ra_short", "adapter.budget=50", "adapter.update_every=0.5"],
    "last_third": ["adapter.layers=last_third"],
    "some_modules": ["adapter.target_modules=[q_proj,v_proj]", "lora_rank=2"],
    "skip_none": [*DEEP, "off_policy=none"],
    "skip_importance": [*DEEP, "off_policy=importance"],
    "skip_sequence": [*DEEP, "off_policy=importance", "off_policy.level=sequence"],
    "skip_truncated": [*DEEP, "off_policy=truncated", "kl=on"],
    "skip_truncated_sequence": [*DEEP, "off_policy=truncated", "off_policy.level=sequence", "off_policy.cap=1.5"],
    "skip_retrace": [*DEEP, "off_policy=retrace"],
    "skip_last": [*DEEP, "layer_skip.choice=last"],
    "skip_fixed": ["model=tiny_deep", "layer_skip.choice=fixed", "layer_skip.layers=[2,5]"],
    "replay": ["algorithm=tspmo", "replay.successes=2", "replay.failures=1"],
    "random": ["token_sampler=random"],
    "random_reweight": ["token_sampler=random", "token_sampler.reweight=true"],
    "first": ["token_sampler=first"],
    "high_entropy": ["token_sampler=high_entropy"],
    "plain": ["rollout=plain", "train.packing=off"],
    "token_mean": ["objective=token_mean", "objective.l2=1e-3", "train.schedule=cosine"],
    "schedule": ["train.schedule=linear", "train.warmup_steps=2", "train.weight_decay=0.1", "seed=3"],
    "top_k": ["rollout.temperature=0.8", "rollout.top_k=20", "rollout.top_p=0.9", "rollout.max_rows=24"],
    "reward_values": ["reward.correct=2", "reward.wrong=1", "reward.format=0.5"],
    "word_problems": ["task=word_problems", "train.microbatch=8"],
    "arithmetic": ["task=arithmetic", "model.chat_template=false"],
}
COMMON = ["train.steps=6", "eval.every=3", "eval.max_rows=24", "tracker=none", "threads=1", "device=cpu"]
WARM_STARTS: dict[str, list[str]] = {
    "warm_start": ["adapter=none"],
    "warm_start_lora": ["adapter=lora"],
    "warm_start_l1ra": ["adapter=l1ra_short", "adapter.update_every=0.3"],
    "warm_start_noise": ["warm_start=noisy"],
}
COMMON_WARM = ["model=tiny", "task=multiplication", "warm_start.epochs=1", "warm_start.max_rows=160", "threads=1"]
# keys of a summary that say when, where and by which code a run was made, not what it found
ABOUT = ("id", "config_hash", "method_hash", "time", "peak_memory_bytes", "versions", "git", "overrides", "experiment")
TIMED = ("time/", "rollout/tokens_per_second")


def record(folder: Path, only: list[str], workers: int) -> int:
    """Make every run below ``folder``; the number of commands that failed."""
    commands = {name: _run(folder, name, words) for name, words in RUNS.items()}
    commands |= {name: _warm_start(folder, name, words) for name, words in WARM_STARTS.items()}
    wanted = {name: command for name, command in commands.items() if not only or name in only}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def make(name: str) -> bool:
        done = subprocess.run(wanted[name], env=environment, capture_output=True, text=True)
        print(f"{name}: {'done' if done.returncode == 0 else done.stderr}", flush=True)
        return done.returncode != 0

    with ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(make, wanted))


def _run(folder: Path, name: str, words: list[str]) -> list[str]:
    places = [f"runs_dir={folder}", f"experiment.name={name}"]
    return [sys.executable, "-m", "rlsparse.run", *words, *COMMON, *places]


def _warm_start(folder: Path, name: str, words: list[str]) -> list[str]:
    places = [f"out={folder}/{name}/model"]
    return [sys.executable, "-m", "rlsparse.warm_start", *COMMON_WARM, *words, *places]


def compare(before: Path, after: Path) -> int:
    """Print what differs; the number of runs that do, or that only one side has."""
    names = sorted({path.name for folder in (before, after) for path in folder.iterdir() if path.is_dir()} - {".hydra"})
    different = 0
    for name in names:
        lines = list(_differences(before / name, after / name))
        different += bool(lines)
        print(f"{name}: {'the same bytes' if not lines else '; '.join(lines)}")
    print(f"{len(names) - different} of {len(names)} runs are the same")
    return different


def _differences(before: Path, after: Path) -> list[str]:
    folders = [sorted(one.glob("*/summary.json")) for one in (before, after)]
    if any(len(found) != 1 for found in folders):
        return [f"{before} has {len(folders[0])} finished runs and {after} {len(folders[1])}"]
    a, b = (found[0].parent for found in folders)
    found = []
    for file in ("adapter/adapter_model.safetensors", "samples.jsonl", "model.safetensors"):
        contents = [(one / file).read_bytes() if (one / file).is_file() else None for one in (a, b)]
        if contents[0] != contents[1]:
            found.append(f"{file} differs")
    for row_a, row_b in zip(_rows(a), _rows(b), strict=False):
        if row_a != row_b:
            keys = sorted(key for key in {*row_a, *row_b} if row_a.get(key) != row_b.get(key))
            found.append(f"metrics.jsonl differs at step {row_a.get('step')}: {', '.join(keys)}")
            break
    if len(_rows(a)) != len(_rows(b)):
        found.append(f"metrics.jsonl has {len(_rows(a))} rows and {len(_rows(b))}")
    summaries = [_summary(one) for one in (a, b)]
    keys = sorted(key for key in {*summaries[0], *summaries[1]} if summaries[0].get(key) != summaries[1].get(key))
    return found + [f"summary.json differs: {', '.join(keys)}"] * bool(keys)


def _rows(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith(TIMED)} for row in rows]


def _summary(folder: Path) -> dict[str, Any]:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return {key: value for key, value in summary.items() if key not in ABOUT}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="make the runs")
    recording.add_argument("folder", type=Path)
    recording.add_argument("--only", nargs="*", default=[], metavar="NAME", help="these runs only")
    recording.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    comparing = commands.add_parser("compare", help="compare two recordings")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.command == "record":
        sys.exit(record(options.folder.resolve(), options.only, options.workers) > 0)
    sys.exit(compare(options.before, options.after) > 0)


if __name__ == "__main__":
    main()

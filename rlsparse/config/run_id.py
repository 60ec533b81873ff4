"""Who a run is: a hash of everything that can change its numbers, of the algorithm's label, and of nothing else.

The label changes no number, but ``algorithm=grpo clipping=off`` and ``algorithm=rgra`` are two rows of a table.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlsparse.config.schema import Config
from rlsparse.config.warm_start_schema import WarmStartConfig

NO_EFFECT = ("runs_dir", "out", "threads", "tracker", "experiment", "sweep")
REPORTS = (
    "summary.json",
    "metrics.jsonl",
    "warm_start.json",
)  # what a warm start leaves in a model folder beside the model


@dataclass(frozen=True)
class Identity:
    """A run's names.

    Attributes:
        id: folder name: algorithm, seed and the start of the hash.
        config_hash: of all that can change the numbers.
        method_hash: the same without the seed: runs that differ in it are different methods.
        device: kind of device that the run is on.
    """

    id: str
    config_hash: str
    method_hash: str
    device: str


def folder_digest(path: str) -> str:
    """Hash of a model's or data set's files, so that a run is known by what it read and not by where it lay."""
    digest = hashlib.sha256()
    for file in sorted(Path(path).iterdir()):
        if file.name not in REPORTS and file.suffix in (".safetensors", ".json", ".jsonl", ".jinja", ".model", ".txt"):
            digest.update(file.name.encode())
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def identify(
    config: Config | WarmStartConfig,
    model_folder: str | None,
    device: str,
    digest: Callable[[str], str] = folder_digest,
) -> Identity:
    """The identity of a run or a warm start.

    Args:
        model_folder: the local folder the model is read from; None when the hub provides it.
        device: kind of device that the run is on (cpu, cuda, mps), whatever the key says.
        digest: replaces ``folder_digest``, for a caller that remembers digests.
    """
    relevant: dict[str, Any] = {k: v for k, v in asdict(config).items() if k not in NO_EFFECT}
    # these two only feed train.lr and rollout.max_new_tokens, which are in the hash themselves
    model = {k: v for k, v in relevant["model"].items() if k != "lr"}
    task = {k: v for k, v in relevant["task"].items() if k != "max_new_tokens"}
    relevant |= {"model": model, "task": task, "device": device}
    if isinstance(config, Config):
        relevant["train"] = {k: v for k, v in relevant["train"].items() if k != "checkpoint_every"}
    if config.adapter.name == "none":
        del relevant["lora_rank"]
    if model_folder is not None:
        relevant["model"] = {**model, "name": None, "path": digest(model_folder), "revision": None}
    if task.get("path") is not None:
        relevant["task"] = {**task, "hub": None, "hub_config": None, "revision": None, "path": digest(task["path"])}
    config_hash = _hash(relevant)
    label = config.algorithm if isinstance(config, Config) else "supervised"
    return Identity(
        id=f"{label}-s{config.seed}-{config_hash[:10]}",
        config_hash=config_hash,
        method_hash=_hash({k: v for k, v in relevant.items() if k != "seed"}),
        device=device,
    )


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
